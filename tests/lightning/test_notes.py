"""What a run says when its method has left nothing to read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate

from skim.calibration import EXTREME, left_over
from skim.lightning.build import Parts, build
from skim.lightning.notes import collapsed
from skim.lightning.recipe import train
from skim.results import Results
from tests.runs import composed, small


def parts_of(*overrides: str, shift: float = -EXTREME) -> Parts:
    """Of a run whose method retires all that it may, by its shift."""
    parts = build(small(*overrides))
    parts.model.method.shift.fill_(shift)
    return parts


def results_of(parts: Parts, score: float) -> Results:
    results = Results.of(small("method=transkimmer"), parts.task.name, "")
    results.metrics, results.samples = {parts.task.monitor: score}, {"validation": 100}
    return results


def test_a_run_that_has_skimmed_everything_and_learned_nothing_says_so(tmp_path: Path) -> None:
    """30 steps of a method that starts undecided, with nothing to hold it back, ended without a word."""
    overrides = ["method=transkimmer", "method.margin=0", "train.max_steps=16", "train.method_lr=1e-2"]
    results = train(small(*overrides, "task.max_eval_samples=64"), tmp_path, "").results
    assert max(results.keep_ratio[1:]) < 0.1
    (note,) = results.notes
    assert "collapsed: 0.0% of the tokens that may retire are left halfway through the layers, and accuracy" in note
    assert "Lower method.coefficient, raise method.warmup, set method.target" in note


def test_whoever_reads_well_from_what_is_left_has_not_collapsed() -> None:
    parts = parts_of("method=transkimmer")
    inputs, chance = parts.sampled(32, 64), parts.task.chance()
    assert chance is not None
    assert left_over(parts.model, inputs) == 0
    assert collapsed(results_of(parts, chance + 0.09), parts, inputs) is not None  # within two standard errors
    assert collapsed(results_of(parts, chance + 0.11), parts, inputs) is None
    parts.model.method.shift.fill_(EXTREME)
    assert left_over(parts.model, inputs) == 1
    assert collapsed(results_of(parts, chance), parts, inputs) is None


def test_a_method_with_a_target_keeps_to_it() -> None:
    parts = parts_of("method=transkimmer", "method.target=0.5")
    assert collapsed(results_of(parts, 0.0), parts, parts.sampled(32, 64)) is None


@pytest.mark.parametrize("method", ["transkimmer", "ltp_manual"])
def test_where_chance_is_not_known_the_share_speaks(method: str) -> None:
    parts = build(composed("task=builtin_tags", "backbone=tiny", f"method={method}", "task.max_eval_samples=32"))
    parts.model.method.shift.fill_(-EXTREME)
    assert parts.task.chance() is None
    note = collapsed(results_of(parts, 0.25), parts, parts.sampled(32, 32))
    assert note is not None
    assert f"layers, where {parts.task.monitor} is 0.2500. " in note
    assert ("method.coefficient" in note) is (method == "transkimmer")


def test_chance_is_the_best_single_answer() -> None:
    task = parts_of("method=transkimmer").task
    positive = (np.asarray(task._rows["validation"]["labels"]) == 1).mean()
    for metric, chance in (
        ("accuracy", max(positive, 1 - positive)),
        ("f1", 2 * positive / (1 + positive)),
        ("matthews", 0.0),
    ):
        task._metrics = [metric]
        assert task.chance() == pytest.approx(chance), metric
    overrides = ["task=builtin_choices", "backbone=tiny", "method=dense", "task.max_eval_samples=50"]
    choices = build(composed(*overrides)).task
    labels = np.asarray(choices._rows["validation"]["labels"])
    assert choices.chance() == pytest.approx(np.bincount(labels).max() / len(labels))


def test_chance_of_sets_of_labels_is_that_of_the_best_set(tmp_path: Path) -> None:
    """Two of the three labels for all: 7 hits of 12 that are said and 9 that are right."""
    file = tmp_path / "sets.csv"
    file.write_text("text,label\na b,x|y\nc d,x\ne f,y\ng h,x|z\ni j,y|z\nk l,x\n")
    files = [f"task.files.{part}={file}" for part in ("train", "validation")]
    task = instantiate(composed("task=text", "task.head=multi_label", *files).task)
    task.setup_tokenizer(parts_of("method=transkimmer").tokenizer)
    task.setup("validate")
    assert task.monitor == "micro_f1"
    assert task.chance() == pytest.approx(14 / 21)
