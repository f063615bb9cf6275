"""``train.distill_from=self``: the uncompressed model teaches the compressed one, with the same weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

import skim
from skim.engine.inputs import inputs_of
from skim.errors import SkimError
from skim.lightning.build import build
from skim.lightning.distill import Distiller
from skim.lightning.module import SkimModule
from skim.lightning.recipe import train
from tests.runs import small


class Watch(pl.Callback):
    """The model before its first step, and the gradients that the step is taken with."""

    def __init__(self) -> None:
        self.before: Any = None
        self.grads: dict[str, Tensor] = {}
        self.flops = 1.0
        self.training = False

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.before = self.before or copy.deepcopy(pl_module.model)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.model.named_parameters()
        self.grads = {name: p.grad.detach().clone() for name, p in named if p.grad is not None}
        self.flops = float(pl_module.trace.relative_flops().detach())
        self.training = all(module.training for module in pl_module.model.modules())


class Pupil(SkimModule):
    """Notes the logits of its last forward."""

    def forward(self, batch: dict[str, Tensor]) -> Any:
        out = super().forward(batch)
        self.logits = out.logits
        return out


class Noted(Distiller):
    """Notes the logits that it taught."""

    def teach(self, student: torch.nn.Module, batch: dict[str, Tensor], begun: bool) -> Any:
        taught = super().teach(student, batch, begun)
        self.target = taught.logits
        return taught


def one_step(precision: Any = "32-true", *overrides: str, **options: Any) -> tuple[Pupil, Watch, dict[str, Tensor]]:
    """One training step of a method that skims half of the tokens, with dropout; and its batch."""
    cfg = small("method=transkimmer", "method.margin=0", *overrides)
    pl.seed_everything(1, verbose=False)
    parts = build(cfg)
    module, watch = Pupil(parts.model, parts.task, **options), Watch()
    pl.Trainer(
        max_steps=1,
        callbacks=[watch],
        precision=precision,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(module, datamodule=parts.task)
    parts.task.setup("fit")
    return module, watch, next(iter(parts.task.train_dataloader()))


def test_the_teacher_is_the_model_itself_run_dense_and_without_dropout() -> None:
    module, watch, batch = one_step(distiller=Noted(1.0))
    inputs = inputs_of(batch)
    with torch.no_grad():
        wanted = skim.decompress(watch.before).eval()(**inputs).logits
    assert torch.allclose(module.distiller.target, wanted, atol=1e-6)
    assert not torch.allclose(module.logits, wanted, atol=1e-3)
    assert not module.distiller.target.requires_grad
    assert watch.flops < 1, "the trace is the student's"
    assert watch.training, "and so is the dropout"


def test_gradients_are_the_students_in_mixed_precision_too() -> None:
    """Autocast keeps the weights that it has cast; those of a teacher have no gradient to give."""
    found = one_step("bf16-mixed", distiller=Distiller(0.5))[1].grads
    wanted = one_step("bf16-mixed")[1].grads
    assert set(found) == set(wanted)
    assert all(bool(found[name].any()) == bool(grad.any()) for name, grad in wanted.items())


def test_a_run_that_teaches_itself_needs_no_other(tmp_path: Path) -> None:
    """It learns other weights than without a teacher, and saves no more than without."""
    overrides = ["method=transkimmer", "method.margin=0", "train.max_steps=2"]
    one = train(small(*overrides, "train.distill=0.5", "train.distill_from=self"), tmp_path / "one", "")
    train(small(*overrides), tmp_path / "other", "")
    assert one.results.status == "done"
    taught, alone = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("one", "other")
    )
    assert set(taught) == set(alone)
    name = "model.bert.encoder.layer.1.attention.self.query.weight"
    assert not torch.equal(taught[name], alone[name])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method=transkimmer", "train.distill=0.5", "train.distill_from=slef"], "'self'"),
        (["method=dense", "train.distill=0.5", "train.distill_from=self"], "its own uncompressed self"),
        (["method=transkimmer", "train.distill=0.5"], "train.distill_from=self"),
    ],
)
def test_refusals(tmp_path: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(SkimError) as caught:
        train(small(*overrides), tmp_path / "run", "")
    assert says in str(caught.value)
    assert not (tmp_path / "run").exists()
