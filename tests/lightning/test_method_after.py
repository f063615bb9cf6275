"""``train.method_after``: the plain dense backbone trains first, and the method begins where it is told to."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

import skim
from skim.errors import SkimError
from skim.lightning import recipe
from skim.stages import Plan, Stage
from tests.families import batch_of, plain
from tests.methods.table import METHODS
from tests.ragged import assert_same, ragged
from tests.runs import small, watched_by

QUIET = ["backbone.overrides.hidden_dropout_prob=0", "callbacks.log_every=1"]
WEIGHT = "bert.encoder.layer.1.attention.self.query.weight"
SOFT = ["method=transkimmer", "method.target=0.5", "method.stages.hard=null", "train.warmup=0.2"]
LTP = ["method=ltp", "method.target=0.6", "method.final_token_threshold=0.005", "method.stages.hard.epochs=2"]


class Recorder(pl.Callback):
    """Every optimizer step before it is taken: what ran, how fast the method learns, and the weights."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        own = [p for p in pl_module.method.parameters() if p.requires_grad]
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        self.steps.append(
            {
                "execution": pl_module.trace.execution,
                "flops": float(pl_module.trace.relative_flops().detach()),
                "progress": pl_module.method.progress,
                "rate": rates[id(own[0])] if own else None,
                "moments": bool(own) and own[0] in optimizer.state,
                "moved": any(bool(p.grad.any()) for p in own),
                "weight": pl_module.model.get_parameter(WEIGHT).detach().clone(),
                "method": {name: p.detach().clone() for name, p in pl_module.method.named_parameters()},
            }
        )


def recorded(folder: Path, *overrides: str) -> tuple[recipe.Run, list[dict[str, Any]]]:
    """A run of the recipe, and every step of it."""
    recorder = Recorder()
    return watched_by(recorder, small(*QUIET, *overrides), folder), recorder.steps


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# ---- the plan ----


def test_the_methods_steps_and_its_rate_count_from_where_it_begins() -> None:
    """Written out by hand: 10 steps, of which the method has 6, two of them of warm-up."""
    plan = Plan([Stage(lr=1.0, method_lr=1.0, warmup=1 / 3)], 10, method_after=0.4)
    assert plan.begin == 4
    assert [plan.of_method(step) for step in (0, 4, 9)] == [(4, 6)] * 3
    assert [plan.rate("method", step) for step in range(10)] == [0, 0, 0, 0, 1 / 2, 1, 1, 3 / 4, 2 / 4, 1 / 4]
    assert plan.rate("decay", 0) == 1 / 4  # which knows nothing of the method
    plan.check()


def test_later_stages_do_not_know_when_the_first_began() -> None:
    plan = Plan([Stage("soft", epochs=1), Stage("hard", epochs=3)], 16, method_after=0.125)
    assert [plan.of_method(step) for step in (0, 3, 4, 15)] == [(2, 2), (2, 2), (4, 12), (4, 12)]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method=transkimmer", "train.method_after=0.9", "train.max_steps=4"], "step 4 of 4 and so leaves stage soft"),
        (["method=transkimmer", "train.method_after=-0.1"], "must be a number, at least 0 and below 1"),
        (["method=transkimmer", "train.method_after=1"], "must be a number, at least 0 and below 1"),
        ([*LTP, "train.method_after=0.34", "train.max_steps=6"], "leaves stage soft, which ends at step 2, no step"),
    ],
)
def test_refusals(tmp_path: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(SkimError) as caught:
        recipe.train(small(*overrides), tmp_path / "run", "")
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


# ---- uncompressed ----


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_uncompressed_is_the_plain_model_and_compressed_again_after(family: str) -> None:
    model, batch = plain(family), batch_of(family)
    compressed = ragged(model, batch, METHODS["transkimmer"])
    with torch.no_grad():
        before = compressed(**batch).logits
        flops = compressed.trace.relative_flops()
        with skim.uncompressed(compressed):
            found = compressed(**batch).logits
        assert compressed.trace.relative_flops() == 1.0 > flops
        assert_same(found, model(**batch).logits)
        assert (found - before).abs().max() > 1e-3
        assert torch.equal(compressed(**batch).logits, before)


def test_uncompressed_trains_packed_and_leaves_the_method_alone() -> None:
    compressed = skim.compress(plain("bert"), "transkimmer").train()
    batch = batch_of("bert") | {"labels": torch.tensor([0, 1, 2, 0])}
    with skim.uncompressed(compressed):
        compressed(**batch).loss.backward()
    assert compressed.trace.execution == "packed"
    assert all(p.grad is None for p in compressed.method.parameters())
    assert compressed.bert.encoder.layer[0].attention.self.query.weight.grad.any()
    with pytest.raises(ZeroDivisionError), skim.uncompressed(compressed):
        raise ZeroDivisionError
    assert compressed.skim_walk.method is compressed.method


# ---- runs ----


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Transkimmer over 8 steps, of which the first three are dense."""
    folder = tmp_path_factory.mktemp("after") / "late"
    return folder, recorded(folder, *SOFT, "train.method_after=0.375")[1]


def test_the_backbone_trains_as_it_would_without_a_method(late: tuple[Path, list], tmp_path: Path) -> None:
    """Step by step the same weights as a dense run's; the method's are untouched, and its steering has not begun."""
    _, steps = late
    _, dense = recorded(tmp_path / "dense", "method=dense", "train.warmup=0.2")
    assert len(steps) == len(dense) == 8
    assert all(torch.equal(steps[i]["weight"], dense[i]["weight"]) for i in range(4))
    assert not torch.equal(steps[0]["weight"], steps[3]["weight"])
    assert all(not torch.allclose(steps[i]["weight"], dense[i]["weight"], atol=1e-7) for i in range(4, 8))
    assert all(same(steps[0]["method"], step["method"]) for step in steps[:4])


def test_the_method_begins_where_it_is_told_to(late: tuple[Path, list]) -> None:
    _, steps = late
    assert [step["execution"] for step in steps] == ["packed"] * 3 + ["masked"] * 5
    assert [step["flops"] for step in steps[:3]] == [1.0] * 3
    assert all(step["flops"] != 1.0 for step in steps[3:])
    assert [step["progress"] for step in steps] == pytest.approx([0, 0, 0, 0, 0.2, 0.4, 0.6, 0.8])
    assert [step["rate"] for step in steps] == pytest.approx([0, 0, 0, 1e-3, 1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    assert [step["moved"] for step in steps] == [False] * 3 + [True] * 5
    assert [step["moments"] for step in steps] == [False, True, True, False, *[True] * 4], "they start anew with it"


def test_penalties_are_logged_from_there_on(late: tuple[Path, list]) -> None:
    folder, _ = late
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [bool(row["train/relative_flops"]) for row in rows] == [False] * 3 + [True] * 5


def test_what_is_trained_is_validated(tmp_path: Path) -> None:
    """Funnel pools whatever has been learned; 8 steps with 4 evaluations, the second just before it begins."""
    quick = ["callbacks.log_every=1", "train.evals_per_epoch=4", "train.method_after=0.5"]
    run = recipe.train(small("method=funnel", *quick), tmp_path / "run", "")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        spent = [float(row["val/relative_flops"]) for row in csv.DictReader(file) if row["val/relative_flops"]]
    assert spent[:2] == [1.0, 1.0]
    assert len(spent[2:]) >= 2
    assert max(spent[2:]) < 1.0
    assert run.results.relative_flops < 1.0


def test_within_the_first_of_several_stages(tmp_path: Path) -> None:
    """LTP's soft stage begins late, at its target; the hard one is as ever."""
    run, steps = recorded(tmp_path / "run", *LTP, "train.method_after=0.125", "train.epochs=1", "train.lr=1e-3")
    assert [step["execution"] for step in steps] == ["packed"] * 3 + ["masked"] * 5 + ["packed"] * 16
    assert [step["flops"] for step in steps[:3]] == [1.0] * 3
    assert steps[3]["flops"] == pytest.approx(0.6, abs=0.2), "the ramp was scaled to the target when it began"
    assert steps[3]["progress"] == 0.0
    assert steps[7]["progress"] == pytest.approx(4 / 5)
    assert steps[8]["progress"] == 0.0
    assert not same(steps[3]["method"], steps[8]["method"])
    assert same(steps[0]["method"], steps[3]["method"])
    assert run.results.status == "done"


def test_a_resumed_run_may_not_move_the_beginning(late: tuple[Path, list], tmp_path: Path) -> None:
    last = late[0] / "checkpoints" / "last.ckpt"
    overrides = [*SOFT, f"resume={last}", "train.epochs=2"]
    with pytest.raises(SkimError, match=r"begins at step 3, this run's at 6\.\nUse train\.method_after=0\.1875"):
        recorded(tmp_path / "moved", *overrides, "train.method_after=0.375")
    _, steps = recorded(tmp_path / "same", *overrides, "train.method_after=0.1875")
    assert [step["progress"] for step in steps] == pytest.approx([(step - 3) / 13 for step in range(8, 16)])
