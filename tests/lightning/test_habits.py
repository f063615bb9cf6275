"""What makes days easier: debug runs, the config as a tree, tags; through the real recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from skim.errors import SkimError
from skim.lightning.build import build
from skim.lightning.rate import tuned
from skim.lightning.recipe import train
from tests.runs import composed, small

TINY = [
    *("backbone.overrides.num_hidden_layers=2", "backbone.overrides.hidden_size=32"),
    *("backbone.overrides.num_attention_heads=2", "task.batch_size=8"),
]


def test_a_profile_leaves_a_table_and_a_trace_and_the_config_is_shown_as_a_tree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["method=dense", "train.max_steps=6", "callbacks.operations.after=2", "callbacks.operations.steps=3"]
    rows = [
        "task.max_train_samples=64",
        "task.max_eval_samples=8",
        "train.calibrate=0",
        "tags=[baseline, why not]",
        "print_config=true",
    ]
    run = train(small("debug=profile", *TINY, *typed, *rows), tmp_path / "run", "")
    said = capsys.readouterr().out
    table = (run.folder / "operations.txt").read_text()
    assert "aten::addmm" in table
    assert "_fused_adamw_" in table
    events = json.loads((run.folder / "trace.json").read_text())["traceEvents"]
    recorded = {event["name"] for event in events if event["name"].startswith("ProfilerStep")}
    assert recorded == {f"ProfilerStep#{number}" for number in (2, 3, 4)}
    assert "run_training_batch" in (run.folder / "fit-profile.txt").read_text()

    tree = (run.folder / "config_tree.txt").read_text()
    assert tree.splitlines()[0] == "config"
    for line in ("├── task = builtin", "├── method = dense", "├── scheduler = linear"):
        assert line in tree.splitlines()
        assert line in said.splitlines()
    assert "max_steps=6" in tree
    assert "tags=[baseline, why not]" in tree
    assert not [word for word in ("null", "_target_", "{", "trainer") if word in tree]
    assert json.loads((run.folder / "results.json").read_text())["config"]["tags"] == ["baseline", "why not"]


def test_the_tree_is_not_shown_where_it_is_not_wanted_and_is_in_the_folder_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside it: the fast debug run, which goes through all that a run does."""
    run = train(small("debug=fast", *TINY, "method=ltp"), tmp_path / "run", "")
    assert "── " not in capsys.readouterr().out
    assert "├── method = ltp" in (run.folder / "config_tree.txt").read_text().splitlines()
    assert (run.results.status, run.results.steps) == ("done", 8)
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert run.results.latency is None  # tests switch it off
    assert (run.folder / "report.html").is_file()


def test_overfitting_evaluates_on_the_rows_that_it_trains_on() -> None:
    few = ["task.max_train_samples=32", "task.max_eval_samples=32"]
    parts = build(small("debug=overfit", *TINY, "method=dense", *few))
    rows: dict[str, Any] = parts.task.numbers
    assert rows["train"].tolist() == rows["validation"].tolist()
    assert len(rows["train"]) == 32


def test_debug_runs_are_kept_apart_from_results() -> None:
    for name in ("fast", "overfit", "profile"):
        assert composed(f"debug={name}").paths.runs == "debug"


def test_a_rate_is_found_on_a_copy_and_the_run_is_the_one_to_which_it_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State and random numbers are those of a run without a test, and the same command finds the same rate."""
    monkeypatch.setattr("skim.lightning.rate.STEPS", 40)
    typed = [*TINY, "method=transkimmer", "train.calibrate=0", "train.max_steps=3", "task.max_train_samples=24"]
    found = train(small(*typed, "train.lr_find=use"), tmp_path / "found", "")
    cfg = OmegaConf.load(tmp_path / "found" / "config.yaml")
    assert 1e-6 < cfg.train.lr < 0.1
    assert cfg.train.lr != 5e-5
    note = f"train.lr_find: {cfg.train.lr:g} suggested, in place of train.lr=5e-05"
    assert note in found.results.notes
    assert (tmp_path / "found" / "lr_find.png").stat().st_size > 5000
    same = train(small(*typed, f"train.lr={cfg.train.lr}"), tmp_path / "same", "")
    assert same.results.metrics == found.results.metrics
    weights, others = (load_file(run.folder / "model" / "model.safetensors") for run in (found, same))
    assert all(torch.equal(weights[name], others[name]) for name in others)


def test_a_rate_is_tested_on_one_device(tmp_path: Path) -> None:
    parts = build(small(*TINY, "method=dense"))
    with pytest.raises(SkimError, match=r"this run has 2\.\nFind the rate with hardware\.devices=1"):
        tuned(small("train.lr_find=suggest"), parts, processes=2)
