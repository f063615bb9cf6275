"""Chains that make sense: each trains, lands on its total, and is looked at again like a run of one method."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from skim.lightning.looks import evaluate
from skim.lightning.recipe import train
from tests.runs import SMALL, looking, small, typed

QUICK = ["task.max_train_samples=32", "task.max_eval_samples=32", "train.epochs=1", "train.calibrate=32"]
FEWER = ["method.layer_drop.layers=3"]
HALVES = ["task.batch_size=16"]  # two steps of an epoch that two stages share
# so that exits of sequences that look alike are not all one
WIDE = ["backbone.overrides.hidden_size=128", "backbone.overrides.intermediate_size=512"]
PAIRS: dict[str, list[str]] = {
    "transkimmer,early_exit": [*HALVES, "method.transkimmer.bottleneck=16", "method.transkimmer.target=0.6"],
    "ltp,early_exit": ["method.ltp.target=0.6"],
    "act,early_exit": ["method.early_exit.halting=pondernet", "method.early_exit.target=0.6", *WIDE],
    "funnel,ltp": ["method.ltp.target=0.6"],
    "funnel,topk": ["method.topk.start=0", "method.topk.target=0.6"],
    "layer_drop,transkimmer": [*FEWER, *HALVES, "method.transkimmer.bottleneck=16", "method.transkimmer.target=0.6"],
}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_trains_and_lands_on_its_total(pair: str, tmp_path: Path) -> None:
    """The member that has the target meets it for both: what the other saves is in the total."""
    cfg = typed(*SMALL, *QUICK, f"method=[{pair}]", *PAIRS[pair])
    results = train(cfg, tmp_path / "run", "").results
    assert math.isfinite(results.metrics["loss"])
    assert results.masked_metrics == pytest.approx(results.metrics, abs=1e-6)
    assert results.relative_flops == pytest.approx(0.6, abs=0.02)
    if pair.startswith("layer_drop"):
        assert results.keep_ratio[3] == 0 < results.keep_ratio[2]


def test_layers_that_are_left_out_and_tokens_that_are_merged_multiply(tmp_path: Path) -> None:
    run = train(typed(*SMALL, *QUICK, "method=[layer_drop,funnel]", *FEWER), tmp_path / "run", "")
    first, second, third, gone = run.results.keep_ratio
    assert 0.75 * first > run.results.relative_flops > 0.25 * (first + second + third) - 0.02
    assert (first, gone) == (1, 0)


def test_every_look_takes_a_chain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    train(typed(*SMALL, *QUICK, "method=[layer_drop,ltp]", *FEWER, "method.ltp.target=0.6"), folder, "")
    quick = ["max_samples=32", "benchmark.samples=8", "benchmark.batch_sizes=[4]", "benchmark.repeats=1"]
    quick += ["benchmark.train_batch_size=8"]
    looks = {
        "metrics": [],
        "predict": ["split=validation"],
        "tokens": ["text='a b c'"],
        "latency": [],
        "throughput": [],
        "curve": ["targets=[0.5]"],
        "depth": [],
    }
    for what, options in looks.items():
        evaluate(looking(folder, f"what={what}", *quick, *options))
        assert capsys.readouterr().out.strip(), what
    results = json.loads((folder / "results.json").read_text())
    assert results["relative_flops"] == pytest.approx(0.6, abs=0.02)
    (point,) = json.loads((folder / "curve.json").read_text())
    assert point["relative_flops"] == pytest.approx(0.5, abs=0.02)


def test_layers_that_have_not_run_before_are_named(tmp_path: Path) -> None:
    """They come back as they were pretrained, behind others that have moved on."""
    before = tmp_path / "before"
    train(small(*QUICK, "method=layer_drop", "method.layers=[0,2]"), before, "")
    start = [*SMALL, *QUICK, f"init_from={before}"]
    found = train(typed(*start, "method=dense"), tmp_path / "all", "").results.notes
    assert any("layers 1, 3 did not run there, and so they have not learned the task" in note for note in found)
    same = typed(*start, "method=[layer_drop,dense]", "method.layer_drop.layers=[0,2]")
    assert not any("did not run there" in note for note in train(same, tmp_path / "same", "").results.notes)
