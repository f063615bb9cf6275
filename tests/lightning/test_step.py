"""What a step of training asks of the machine beside the model's own work: nothing that somebody waits for."""

from __future__ import annotations

import traceback
from argparse import Namespace
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from skim.benchmark import counting
from skim.compression import accepted
from skim.lightning.build import build
from tests.race import together
from tests.runs import small, watched_by

HEAD = ("item", "engine/inputs.py")  # that the head reads no pads, which an error would have to say at once
PACKED = ("engine/packed.py", "engine/kernels/")  # how many rows there are


class Counted(pl.Callback):
    """Counts what each step does, from its batch to its optimizer."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.within = ExitStack()

    def on_train_batch_start(self, *_: Any) -> None:
        self.steps.append(self.within.enter_context(counting()))

    def on_train_batch_end(self, *_: Any) -> None:
        self.within.close()


def counted(folder: Path, *given: str) -> list[Any]:
    callback = Counted()
    size = ["task.max_train_samples=96", "task.max_eval_samples=32"]
    settings = [*size, "callbacks.log_every=2", "train.calibrate=0", "train.max_steps=3"]
    watched_by(callback, small(*settings, *given), folder)
    return callback.steps


@pytest.mark.parametrize("method", ["dense", "topk", "layer_drop"])
def test_training_packed_waits_for_the_number_of_rows_alone(method: str, tmp_path: Path) -> None:
    (*_, last) = counted(tmp_path / "run", f"method={method}", *(["method.layers=[0]"] * (method == "layer_drop")))
    places = {(kind, place.partition(":")[0]) for kind, place in last.reads}
    assert {(kind, place) for kind, place in places if not place.startswith(PACKED)} == {HEAD}


def test_training_through_decisions_waits_once_a_step(tmp_path: Path) -> None:
    _, logged, last = counted(tmp_path / "run", "method=transkimmer", "method.target=0.6", "method.stages.hard=null")
    assert [(kind, place.partition(":")[0]) for kind, place in last.reads.elements()] == [HEAD]
    assert last.operations.total() < logged.operations.total()  # numbers are made for the log, and by it


def test_dense_steps_are_those_of_transformers_own_trainer() -> None:
    options = Namespace(task="builtin", samples=0, max_length=64, threads=1, lr=2e-3)
    pairs = together(options, None, "backbone=tiny")
    assert all(ours == pytest.approx(theirs, abs=1e-4) for ours, theirs in pairs)
    assert max(pairs)[0] - min(pairs)[0] > 0.01  # of weights that move


def test_a_dense_step_is_one_of_a_bare_loop_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The framework's cost in what can be counted: operations beside forward, backward and optimizer, reads, stacks."""
    stacks: list[str] = []
    usual = traceback.format_stack
    monkeypatch.setattr(traceback, "format_stack", lambda *given: stacks.append("".join(usual())) or [])
    *_, step = counted(tmp_path / "run", "method=dense")
    assert stacks, "torch writes them down for generators of devices that were never used, in seed_everything"
    assert not [stack for stack in stacks if "training_epoch_loop.py" in stack], "and not in every step"

    given = ["task.max_train_samples=96", "task.max_eval_samples=32", "train.calibrate=0", "train.max_steps=3"]
    parts = build(small(*given, "method=dense"))
    model = parts.model.train()
    kinds = [[p for p in model.parameters() if (p.dim() > 1) is matrix] for matrix in (True, False)]
    optimizer = torch.optim.AdamW([{"params": kind} for kind in kinds], fused=True)
    *_, batch = parts.task.train_dataloader()
    for _ in range(2):  # the second has moments to go on with
        with counting() as bare:
            model(**accepted(model, batch)).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    assert step.reads.total() == bare.reads.total()
    lightnings = Counter(clone=1, div=2)  # a copy of the loss, and its share of the batches of a step, forth and back
    penalties = Counter(new_zeros=1, add=1)  # the sum of those that a method has
    judged = Counter(stack=1, mul=1, sum=1, ne=1, _to_copy=1)  # 1 if the loss or the norm is not finite, else 0
    held = Counter(_foreach_sub_=len(kinds))  # a step that the optimizer does not make is not counted
    assert step.operations - bare.operations == lightnings + penalties + judged + held, "all of them of single numbers"


def test_bf16_has_one_pass_over_the_weights_as_well(tmp_path: Path) -> None:
    (*_, last) = counted(tmp_path / "run", "method=dense", "hardware.precision=bf16-mixed")
    assert last.operations["_fused_adamw_"] == len({"decay", "plain"})  # groups of parameters
