"""A loss or a gradient that is not finite: training stops and names it, or goes on without the step."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
import pytorch_lightning as pl
import torch

from skim.lightning.callbacks import finite
from skim.lightning.callbacks.finite import Finite, NonFinite
from skim.lightning.recipe import train
from tests.lightning.test_resume_exactly import COMMON, differences
from tests.runs import composed, watched_by

# seven steps of seven or eight rows
RUN = ["task=builtin", *COMMON, "method=transkimmer", "method.target=0.6", "task.train_rows=52"]
LINE = r"^step 5 of 7: the (loss is nan|gradient is inf|gradient is nan); resume="


class Spoils(pl.Callback):
    """Makes a number of some steps one that is not finite, and sees their rows.

    Args:
        what: ``forward`` makes all states NaN, ``loss`` the loss alone, ``inf`` and ``nan`` spoil a number of a
            gradient.
        steps: counted from 1.
    """

    def __init__(self, what: str, *steps: int) -> None:
        self.what, self.steps, self.rows = what, steps, []
        self.weights: dict[int, torch.Tensor] = {}
        self.hook: Any = None

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        self.weights[trainer.global_step] = next(module.model.parameters()).detach().clone()
        if trainer.global_step + 1 in self.steps:
            self.rows = sorted(batch["row"].tolist())
            if self.what == "forward":
                embeddings = module.model.base_model.embeddings
                self.hook = embeddings.register_forward_hook(lambda *given: given[-1] * torch.nan)

    def on_train_batch_end(self, *_: Any) -> None:
        if self.hook is not None:
            self.hook.remove()

    def on_before_backward(self, trainer: pl.Trainer, module: Any, loss: torch.Tensor) -> None:
        if self.what == "loss" and trainer.global_step + 1 in self.steps:
            loss.data.mul_(torch.nan)

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        if self.what in ("inf", "nan") and trainer.global_step + 1 in self.steps:
            next(parameter for parameter in module.parameters() if parameter.grad is not None).grad[0, 0] = float(
                self.what
            )


def last(folder: Path) -> dict[str, Any]:
    """The checkpoint that a run goes on from."""
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(composed(*RUN), folder, "")
    return folder


@pytest.mark.parametrize("what", ["loss", "inf"])
@pytest.mark.parametrize("fused", [True, False])
def test_training_stops_names_step_rows_and_checkpoint_and_goes_on_from_there(
    what: str, fused: bool, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a fused optimizer the host looks at the lines of the log and before a checkpoint only."""
    monkeypatch.setattr(finite, "held", lambda optimizer: fused)
    spoils = Spoils(what, 5)
    with pytest.raises(NonFinite, match=LINE) as caught:
        watched_by(spoils, composed(*RUN, "callbacks.log_every=7", "callbacks.save_every=2"), tmp_path)
    said = str(caught.value).splitlines()
    assert len(spoils.rows) >= 7
    assert f"the rows {', '.join(map(str, spoils.rows))} of" in said[1]
    assert said[0].endswith(f"; resume={tmp_path} goes on from step 4.")
    assert last(tmp_path)["global_step"] == 4
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["status"], results["notes"][-1]) == ("failed", str(caught.value))
    train(
        composed(*RUN, "callbacks.log_every=7", "callbacks.save_every=2", f"resume={tmp_path}/checkpoints/last.ckpt"),
        tmp_path,
        "",
    )
    for part in ("state_dict", "optimizer_states", "global_step"):
        assert not differences(last(tmp_path)[part], last(undisturbed)[part])


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_is_skipped_counted_and_leaves_no_trace_in_the_weights(
    fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(finite, "held", lambda optimizer: fused)
    spoils = Spoils("forward", 3, 5)
    watched_by(spoils, composed(*RUN, "train.nonfinite=skip"), tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["status"], results["steps"], results["steps_skipped"]) == ("done", 7, 2)
    assert "train.nonfinite=skip: 2 of 7 steps are left out, the first of them step 3." in results["notes"]
    log = pandas.read_csv(tmp_path / "metrics.csv").dropna(subset="train/steps_skipped")
    assert log["train/steps_skipped"].tolist() == [0, 0, 0, 1, 1, 2, 2]
    moved = [not torch.equal(spoils.weights[step], spoils.weights[step + 1]) for step in range(6)]
    assert moved == [True, True, False, True, False, True]
    state = last(tmp_path)
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values() if tensor.is_floating_point())
    assert capfd.readouterr().out.count("It is skipped.") == 2


def test_steps_that_are_all_skipped_end_the_training(tmp_path: Path) -> None:
    with pytest.raises(NonFinite, match=r"step 10 of 14: .*\n.*10 steps were skipped"):
        watched_by(Spoils("nan", *range(1, 15)), composed(*RUN, "train.epochs=2", "train.nonfinite=skip"), tmp_path)


def test_weights_that_a_finite_step_has_spoilt_are_not_saved(tmp_path: Path) -> None:
    """A step so large that weights overflow; its own loss and gradient were finite."""

    class Overflows(pl.Callback):
        def __init__(self, step: int) -> None:
            self.step = step

        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
            if trainer.global_step == self.step:
                next(module.model.parameters()).data[0] = torch.inf

    said = r"^step {} of 7: \S*embeddings\S* is not finite any more, and is not saved"
    with pytest.raises(NonFinite, match=said.format(3)):
        watched_by(Overflows(3), composed(*RUN), tmp_path)
    assert last(tmp_path)["global_step"] == 2
    without = ["callbacks.last_checkpoint=null", "callbacks.best_checkpoint=null"]
    with pytest.raises(NonFinite, match=said.format(7)):
        watched_by(Overflows(7), composed(*RUN, *without), tmp_path / "without")
    assert not (tmp_path / "without" / "model").exists()


def test_gradients_that_a_scaler_looks_at_are_left_to_it() -> None:
    one, module = Finite(), SimpleNamespace(plan=SimpleNamespace(steps=9), parameters=list)
    norms, optimizer = [torch.tensor(torch.inf)], torch.optim.SGD([torch.zeros(1)], 0.1)
    for precision, loss, stops in (("16-mixed", 1.0, False), ("16-mixed", torch.nan, True), ("bf16-mixed", 1.0, True)):
        trainer: Any = SimpleNamespace(callbacks=[one], precision=precision, world_size=1, global_step=0)
        one.on_train_batch_start(trainer, module, {}, 0)
        one.on_before_backward(trainer, module, torch.tensor(loss))
        with pytest.raises(NonFinite, match="step 1 of 9") if stops else nullcontext():
            one.judge(trainer, module, norms, optimizer)
