"""``train.ema``: a moving average of the weights in their place, and ``train.freeze`` beside it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

import skim
from skim.lightning.callbacks.average import Average
from tests.runs import small, watched_by


class Weights(pl.Callback):
    """The state at the start and after each step, and the one that was evaluated after it."""

    def __init__(self) -> None:
        self.trained: list[dict[str, Tensor]] = []
        self.evaluated: dict[int, dict[str, Tensor]] = {}
        self.buffers: set[str] = set()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.trained.append(copy.deepcopy(dict(pl_module.state_dict())))
        self.buffers = {name for name, _ in pl_module.named_buffers()} & set(pl_module.state_dict())

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.trained.append(copy.deepcopy(dict(pl_module.state_dict())))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self.evaluated[trainer.global_step] = copy.deepcopy(dict(pl_module.state_dict()))


def averaged(weights: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """By hand: the first ones, then a bit of each."""
    found = dict(weights[0])
    for n, now in enumerate(weights[1:], start=1):
        kept = min(decay, (1 + n) / (10 + n))
        found = {name: kept * found[name] + (1 - kept) * now[name] for name in found}
    return found


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], but: set[str]) -> None:
    assert set(found) == set(wanted)
    for name in set(found) - but:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-7, rtol=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Weights, Path]:
    """Two stages of three steps, evaluated after each two, with the embeddings and a layer frozen."""
    folder, weights = tmp_path_factory.mktemp("average") / "run", Weights()
    options = ["method=ltp", "method.target=0.6", "train.max_steps=6", "train.eval_every=2", "train.lr=1e-3"]
    watched_by(weights, small(*options, "train.ema=0.25", "train.freeze=1"), folder)
    return weights, folder


def test_the_average_is_evaluated_and_begins_anew_in_a_stage(run: tuple[Weights, Path]) -> None:
    weights, _ = run
    trained = weights.trained
    for step, since in ((2, trained[1:3]), (4, trained[4:5]), (6, trained[4:7])):
        assert_close(weights.evaluated[step], averaged(since, 0.25), weights.buffers)
        assert all(torch.equal(weights.evaluated[step][name], trained[step][name]) for name in weights.buffers)
    moved = [n for n, tensor in trained[6].items() if not torch.equal(tensor, weights.evaluated[6][n])]
    assert moved, "the weights are not their average"


def test_checkpoints_hold_the_average_and_the_last_one_the_weights_too(run: tuple[Weights, Path]) -> None:
    """At the end, calibrated: the shift of the average's decisions is in both, and in the exported model."""
    weights, folder = run
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert_close(last["state_dict"], averaged(weights.trained[4:7], 0.25), weights.buffers)
    assert_close(last["current_model_state"], weights.trained[6], weights.buffers)
    assert all(torch.equal(last["state_dict"][n], last["current_model_state"][n]) for n in weights.buffers)
    assert int(last["averaging_state"]["n_averaged"]) == 3
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] in (4, 6)
    assert_close(best["state_dict"], weights.evaluated[best["global_step"]], weights.buffers)
    exported = skim.from_pretrained(folder / "model").state_dict()
    chosen = (last["state_dict"], best["state_dict"])
    assert any(all(torch.equal(exported[n], state[f"model.{n}"]) for n in exported) for state in chosen)


def test_what_is_frozen_stays_and_all_else_learns(run: tuple[Weights, Path]) -> None:
    first, *_, last = run[0].trained
    same = {name for name, tensor in last.items() if torch.equal(tensor, first[name])}
    frozen = {n for n in last if n.startswith(("model.bert.embeddings", "model.bert.encoder.layer.0"))}
    assert frozen <= same
    assert not {n for n in same - frozen if n.startswith("model.bert") or "classifier" in n}


def test_an_average_of_few_steps_follows_closely() -> None:
    """After one step, 2 of 11 parts of it stay, whatever the decay; of many, what the decay says."""
    average = Average(0.9)
    for count, kept in ((1, 2 / 11), (8, 0.5), (1000, 0.9)):
        tensors = [torch.ones(3)]
        average._kwargs["multi_avg_fn"](tensors, [torch.zeros(3)], torch.tensor(count))
        torch.testing.assert_close(tensors[0], torch.full((3,), kept))
