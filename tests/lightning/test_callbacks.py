"""Which weights a run ends with: those of its best evaluation at the asked budget, whatever came before and after."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import skim
from skim.errors import SkimError
from skim.lightning.callbacks.checkpoints import Evaluation
from skim.lightning.module import SkimModule
from skim.lightning.recipe import Run, train
from skim.report.page import page
from skim.report.table import print_run
from tests.runs import small

TINY = [
    *("backbone.overrides.num_hidden_layers=2", "backbone.overrides.hidden_size=32"),
    "backbone.overrides.intermediate_size=512",  # of many FLOPs that tokens can save
    *("backbone.overrides.num_attention_heads=2", "task.max_eval_samples=16", "task.batch_size=4"),
    *("train.calibrate=16", "train.lr=1e-3", "train.eval_every=1"),
]
DENSE = ["method=dense", "train.max_steps=8"]
WEIGHT = "bert.encoder.layer.0.attention.self.query.weight"
RISE_AND_FALL = [0.5, 0.7, 0.84, 0.8, 0.83, 0.82, 0.81, 0.8]


@pytest.mark.parametrize(
    ("target", "best", "found", "wins"),
    [
        (None, None, (0.1, 1.0), True),
        (None, (0.8, 1.0), (0.9, 1.0), True),
        (None, (0.8, 1.0), (0.8, 1.0), False),
        (None, (0.8, 1.0), (math.nan, 1.0), False),
        (None, (math.nan, 1.0), (0.1, 1.0), True),
        # nothing was asked for: what the training has come to
        (None, (0.9, 1.0), (0.7, 0.6), True),
        (None, (0.9, 0.62), (0.7, 0.6), False),
        # on the target by the metric; what is off it only counts as long as nothing is on it
        (0.5, (0.9, 1.0), (0.7, 0.51), True),
        (0.5, (0.7, 0.51), (0.9, 0.6), False),
        (0.5, (0.7, 0.51), (0.8, 0.48), True),
        (0.5, (0.7, 0.51), (0.6, 0.5), False),
        (0.5, (0.9, 1.0), (0.7, 0.8), True),
        (0.5, (0.7, 0.6), (0.9, 0.3), False),
    ],
)
def test_weights_are_compared_at_equal_cost(
    target: float | None, best: tuple[float, float] | None, found: tuple[float, float], wins: bool
) -> None:
    assert Evaluation(2, *found).beats(best and Evaluation(1, *best), target) is wins


class Script:
    """Evaluations say what is written, of the weights that were trained so far: again at the end of the run, too."""

    def __init__(self, patch: pytest.MonkeyPatch, metric: list[float], spent: list[float] | None = None) -> None:
        usual = SkimModule._report
        step_of: dict[float, int] = {}
        self.found: list[int] = []  # the step whose weights were evaluated, each time

        def report(module: SkimModule, part: str) -> None:
            weight = float(module.model.get_parameter(WEIGHT).sum())
            step = step_of.setdefault(weight, module.global_step)
            self.found.append(step)
            values = module.scores.spending.compute()
            if spent is not None:
                values["relative_flops"] = torch.tensor(spent[step - 1])
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(module.scores.metrics, "compute", lambda: {"accuracy": torch.tensor(metric[step - 1])})
                inner.setattr(module.scores.spending, "compute", lambda: values)
                usual(module, part)

        patch.setattr(SkimModule, "_report", report)


def weights(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_exported(folder: Path, name: str) -> None:
    """``model/`` holds a checkpoint's weights, and its method's whole state."""
    state = weights(folder, name)["state_dict"]
    exported = skim.from_pretrained(folder / "model").state_dict()
    assert exported
    assert all(torch.equal(state[f"model.{name}"], tensor) for name, tensor in exported.items())


def ended(run: Run) -> tuple[str, int, float]:
    results = run.results
    return results.exported, int(results.checkpoints[results.exported]["step"]), results.metrics["accuracy"]


def test_a_run_that_stops_early_ends_with_its_best_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Script(monkeypatch, RISE_AND_FALL)
    run = train(small(*TINY, *DENSE, "callbacks.patience=2"), tmp_path, "")
    assert ended(run) == ("best", 3, pytest.approx(0.84))
    assert run.results.steps == 5
    assert run.results.stopped_early == {"step": 5, "of": 8, "patience": 2}
    assert (weights(tmp_path, "best")["global_step"], weights(tmp_path, "last")["global_step"]) == (3, 5)
    assert_exported(tmp_path, "best")
    capsys.readouterr()
    results = run.results.to_dict()
    print_run(results, tmp_path)
    for said in (capsys.readouterr().out, page(results)):
        assert "stopped early at step 5 of 8: accuracy had not risen for 2 evaluations" in " ".join(said.split())
        assert "exported: best.ckpt; accuracy of best (step 3) 0.8400, of last (step 5) 0.8300" in " ".join(
            said.split()
        )


def test_patience_that_ends_with_training_has_stopped_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The eighth evaluation is the last one, and the first without a rise that is one too many."""
    Script(monkeypatch, [0.5, 0.6, 0.7, 0.75, 0.8, 0.82, 0.84, 0.8])
    run = train(small(*TINY, *DENSE, "callbacks.patience=1"), tmp_path, "")
    assert ended(run) == ("best", 7, pytest.approx(0.84))
    assert (run.results.steps, run.results.stopped_early) == (8, None)


def test_the_last_weights_are_exported_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Script(monkeypatch, RISE_AND_FALL)
    run = train(small(*TINY, *DENSE, "callbacks.export=last"), tmp_path, "")
    assert ended(run) == ("last", 8, pytest.approx(0.8))
    assert run.results.stopped_early is None
    assert_exported(tmp_path, "last")
    assert weights(tmp_path, "best")["global_step"] == 3, "it is kept all the same"


@pytest.mark.parametrize(
    ("metric", "every", "ends"),
    [
        ([0.5, 0.6, 0.7, 0.7], 1, ("last", 4)),
        ([0.5, 0.7, 0.6, 0.7], 1, ("last", 4)),  # as good as the best, and trained for longer
        ([0.5, 0.6, 0.7, 0.9], 3, ("last", 4)),  # training ends between two evaluations: what it came to counts
        ([0.5, 0.6, 0.7, 0.6], 3, ("best", 3)),
    ],
)
def test_the_end_of_training_is_judged_too(
    metric: list[float], every: int, ends: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Script(monkeypatch, metric)
    run = train(small(*TINY, "method=dense", "train.max_steps=4", f"train.eval_every={every}"), tmp_path, "")
    assert ended(run)[:2] == ends
    assert_exported(tmp_path, ends[0])


def test_one_evaluation_at_the_end_is_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, RISE_AND_FALL)
    run = train(small(*TINY, "method=dense", "train.max_steps=4", "train.eval_every=4"), tmp_path, "")
    assert ended(run)[:2] == ("last", 4)
    assert script.found == [4, 4], "in training, and as it will run"
    assert list(run.results.checkpoints) == ["last"]


def test_what_spends_more_than_was_asked_for_is_not_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does an evaluation off the target count as one without a rise."""
    metric = [0.95, 0.9, 0.85, 0.7, 0.9, 0.9, 0.72, 0.71, 0.7, 0.99]
    Script(monkeypatch, metric, [1.0, 0.9, 0.7, 0.62, 0.65, 0.66, 0.59, 0.6, 0.61, 0.6])
    options = ["method=transkimmer", "method.stages.hard=null", "method.target=0.6"]
    options += ["train.max_steps=10", "callbacks.patience=2"]
    run = train(small(*TINY, *options), tmp_path, "")
    assert ended(run) == ("best", 7, pytest.approx(0.72))
    assert run.results.stopped_early is not None
    assert run.results.stopped_early["step"] == 9
    assert run.results.calibration is not None
    assert_exported(tmp_path, "best")  # calibrated, as what is exported
    method = skim.from_pretrained(tmp_path / "model").method
    assert float(method.shift) == run.results.calibration["shift"] != 0
    assert weights(tmp_path, "last")["state_dict"]["model.method.shift"] != 0


def test_only_the_last_stage_may_have_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its method's state, thresholds and all, comes back with it."""
    Script(monkeypatch, [0.9, 0.9, 0.9, 0.9, 0.7, 0.8, 0.6, 0.6], [0.6] * 8)
    run = train(small(*TINY, "method=ltp", "method.target=0.6", "train.max_steps=8"), tmp_path, "")
    assert ended(run) == ("best", 6, pytest.approx(0.8))
    assert_exported(tmp_path, "best")
    assert skim.from_pretrained(tmp_path / "model").method.stage == "hard"


@pytest.mark.parametrize("there", [True, False])
def test_a_resumed_run_still_knows_its_best(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Script(monkeypatch, RISE_AND_FALL)
    train(small(*TINY, *DENSE, "callbacks.patience=2", "callbacks.export=last"), tmp_path / "first", "")
    first = tmp_path / "first" / "checkpoints"
    if not there:
        (first / "best.ckpt").unlink()
    again = small(*TINY, *DENSE, f"resume={first / 'last.ckpt'}")
    run = train(again, tmp_path / "second", "")
    assert ended(run)[:2] == (("best", 3) if there else ("best", 6))
    assert any("best.ckpt, of step 3, was not beside" in note for note in run.results.notes) is not there
    assert_exported(tmp_path / "second", "best")


def test_the_best_weights_are_none_to_go_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(small(*TINY, "method=dense", "train.max_steps=1"), tmp_path / "first", "")
    best = tmp_path / "first" / "checkpoints" / "best.ckpt"
    with pytest.raises(SkimError, match=r"Use last\.ckpt beside it"):
        train(small(*TINY, *DENSE, f"resume={best}"), tmp_path / "second", "")
    assert not (tmp_path / "second").exists()
    with pytest.raises(SkimError, match=r"callbacks\.export=bets must be one of best, last\. Did you mean 'best'"):
        train(small(*TINY, *DENSE, "callbacks.export=bets"), tmp_path / "second", "")
