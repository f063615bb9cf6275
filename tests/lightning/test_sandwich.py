"""Training for a range of budgets: what each step runs, and what comes out at the end."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

import skim
from skim.errors import SkimError
from skim.lightning.looks import evaluate
from skim.lightning.recipe import Run
from skim.lightning.sandwich import drawn
from skim.report.found import load_curve
from skim.report.runs import aggregate
from tests.runs import looking, small, watched_by

OPTIONS = ["method=topk", "method.start=1", "method.target=[0.7,1.0]", "train.max_steps=3", "callbacks.log_every=1"]


class Forwards(pl.Callback):
    """The budgets that each step's forwards spent, and who taught whom."""

    def __init__(self) -> None:
        self.steps: list[list[float]] = []
        self.spent: list[list[float]] = []

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        passed = module._passed

        def noted(batch: Any, salient: Any, lesson: Any, place: str = "") -> Any:
            found = passed(batch, salient, lesson, place)
            if place == "/largest":
                self.steps.append([])
                self.spent.append([])
                assert lesson is None
            else:
                assert not lesson.output.logits.requires_grad
            self.steps[-1].append(module.method.aims_at)
            self.spent[-1].append(float(module.trace.relative_flops()))
            return found

        module._passed = noted


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Forwards]:
    seen = Forwards()
    return watched_by(seen, small(*OPTIONS), tmp_path_factory.mktemp("range")), seen


def test_each_step_has_the_largest_the_smallest_and_one_between(trained: tuple[Run, Forwards]) -> None:
    steps, spent = trained[1].steps, trained[1].spent
    assert len(steps) == 3
    between = [step.pop() for step in steps]
    assert steps == [[1.0, 0.7]] * 3
    assert len(set(between)) == 3
    assert all(0.7 < budget < 1 for budget in between)
    assert all(largest == 1.0 for largest, *_ in spent)
    assert all(smallest < middle < 1.0 for _, smallest, middle in spent)
    logged = [row for row in csv.DictReader((trained[0].folder / "metrics.csv").open()) if row["train/flops/largest"]]
    for smallest, middle in ((row["train/method/shift/smallest"], row["train/method/shift/between"]) for row in logged):
        assert float(smallest) < float(middle)
    assert len(logged) == 3


def test_results_are_of_the_middle_and_the_curve_of_the_range(trained: tuple[Run, Forwards]) -> None:
    run = trained[0]
    results = json.loads((run.folder / "results.json").read_text())
    assert results["target"] == [0.7, 1.0]
    assert results["relative_flops"] == pytest.approx(0.85, abs=0.02)
    assert aggregate([results])[0].name == "topk 0.7-1"
    timed = ["timed=true", "benchmark.samples=4", "benchmark.batch_sizes=[4]", "benchmark.repeats=1"]
    evaluate(looking(run.folder, "what=curve", *timed))
    points = load_curve(run.folder / "curve.json")
    assert [point["target"] for point in points] == pytest.approx([0.7, 0.76, 0.82, 0.88, 0.94, 1.0])
    assert all(point["relative_flops"] == pytest.approx(point["target"], abs=0.02) for point in points)
    assert points[-1]["relative_flops"] == 1.0
    assert skim.from_pretrained(run.folder / "model", max_latency_ms=1e6, batch_size=4).budget == 1.0
    evaluate(looking(run.folder, "what=metrics", "budget=0.76"))
    evaluation = json.loads((run.folder / "evaluation.json").read_text())
    assert evaluation["metrics"] == points[1]["metrics"]
    assert evaluation["relative_flops"] == points[1]["relative_flops"]
    assert "topk-0.7-1" in (run.folder / "model" / "README.md").read_text()
    for what in ("latency", "curve"):
        with pytest.raises(SkimError, match=rf"budget=0.76: what={what} .*\nUse what=curve targets=\[0.76\]"):
            evaluate(looking(run.folder, f"what={what}", "budget=0.76"))
    assert json.loads((run.folder / "results.json").read_text()) == results
    with pytest.raises(SkimError, match=r"budget=0.5 .* 0.7 to 1"):
        evaluate(looking(run.folder, "what=curve", "targets=[0.5]"))


def test_a_budget_is_set_as_by_hand(trained: tuple[Run, Forwards]) -> None:
    folder = trained[0].folder / "model"
    model, other = skim.from_pretrained(folder, budget=0.75), skim.from_pretrained(folder)
    assert other.budget == pytest.approx(0.85)
    other.budget = 0.75
    batch = {"input_ids": torch.randint(5, 60, (4, 20)), "attention_mask": torch.ones(4, 20, dtype=torch.long)}
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, other(**batch).logits)


def test_a_range_that_the_method_cannot_reach_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SkimError, match="cannot be reached"):
        watched_by(Forwards(), small("method=topk", "method.start=3", "method.target=[0.3,1.0]"), tmp_path)
    with pytest.raises(SkimError, match=r"method.target=\[1.0, 0.3\] is not a range"):
        watched_by(Forwards(), small("method=topk", "method.target=[1.0,0.3]"), tmp_path)


def test_budgets_follow_from_the_step() -> None:
    assert drawn(0.3, 0.9, 2, 1, 0, 5) == drawn(0.3, 0.9, 2, 1, 0, 5) != drawn(0.3, 0.9, 2, 1, 0, 6)
    assert drawn(0.3, 0.9, 0, 1, 0, 5) == [0.9, 0.3]
