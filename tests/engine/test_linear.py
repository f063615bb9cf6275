"""Fused linear maps: what the layers compute, by fewer passes over memory, and only where nobody is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import skim
from skim.benchmark import KeepShare, counting
from skim.engine.kernels import linear
from tests.families import batch_of, plain


@pytest.fixture(autouse=True)
def _supported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any x86 computes it, if not fast."""
    if linear.product is None:
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(linear, "half_precision", lambda: True)


def operations(model: nn.Module, batch: dict[str, Any]) -> Counter[str]:
    with torch.no_grad(), counting() as work:
        model(**batch)
    return work.operations


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_as_close_to_float32_as_the_plain_layers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And counted as they are: each of the six maps of a layer is one product."""
    model, batch = skim.compress(plain(family), "dense").eval(), batch_of(family)
    with torch.no_grad():
        wanted = model(**batch).logits
        model.bfloat16()
        with FlopCounterMode(display=False) as counter:
            fused = model(**batch).logits.float()
        layers = len(model.skim_walk.backbone.layers(model.base_model))
        assert operations(model, batch)["_linear_pointwise"] == 6 * layers
        monkeypatch.setattr(linear, "product", None)
        with FlopCounterMode(display=False) as plainly:
            apart = model(**batch).logits.float()
    assert counter.get_total_flops() == plainly.get_total_flops()
    assert (fused - wanted).abs().max() <= 2 * (apart - wanted).abs().max() + 1e-3


def hooked(model: nn.Module, name: str) -> Callable[[], int]:
    """Hook a module; the result tells how often it was called."""
    seen: list[None] = []
    model.get_submodule(name).register_forward_hook(lambda *_: seen.append(None))
    return lambda: len(seen)


@pytest.mark.parametrize(
    ("part", "fewer"),
    [
        ("attention", 4),
        ("attention.self", 4),
        ("attention.self.query", 4),
        ("attention.self.key", 1),
        ("attention.output", 1),
        ("attention.output.dropout", 1),
        ("attention.output.LayerNorm", 0),
        ("intermediate", 1),
        ("intermediate.intermediate_act_fn", 1),
        ("output.dense", 1),
    ],
)
def test_hooks_are_called(part: str, fewer: int) -> None:
    """Of a part that is then computed as it is; the others are fused all the same."""
    model, batch = skim.compress(plain("bert"), "dense").eval().bfloat16(), batch_of("bert")
    before = operations(model, batch)["_linear_pointwise"]
    called = hooked(model.base_model, f"encoder.layer.0.{part}")
    assert operations(model, batch)["_linear_pointwise"] == before - fewer
    assert called() == 1


@pytest.mark.parametrize("why", ["gradients", "autocast", "float32", "training", "subclass"])
def test_elsewhere_layers_are_called_as_they_are(why: str) -> None:
    model, batch = skim.compress(plain("bert"), "dense").eval(), batch_of("bert")
    if why not in ("float32", "autocast"):
        model.bfloat16()
    if why == "training":
        model.train()
    if why == "subclass":
        for module in [part for part in model.modules() if type(part) is nn.Linear]:
            module.__class__ = type("Quantised", (nn.Linear,), {})
    context = torch.autocast("cpu", torch.bfloat16) if why == "autocast" else nullcontext()
    with torch.set_grad_enabled(why in ("gradients", "training")), context, counting() as work:
        model(**batch)
    assert work.operations["_linear_pointwise"] == 0


def test_weights_that_change_in_place_are_read_anew() -> None:
    model, batch = skim.compress(plain("bert"), "dense").eval().bfloat16(), batch_of("bert")
    with torch.no_grad():
        before = model(**batch).logits
        model.base_model.encoder.layer[0].intermediate.dense.weight.data.mul_(-3)
        assert not torch.allclose(model(**batch).logits, before)


def test_work_of_one_sequence() -> None:
    """Nothing is moved for a lone sequence that nobody leaves, and little where some do."""
    batch = {"input_ids": torch.arange(5, 30)[None], "attention_mask": torch.ones(1, 25, dtype=torch.long)}
    moves = ("index_select", "index_copy_", "index_copy", "searchsorted", "sort", "cat", "repeat_interleave")
    found = {}
    for name, method in (("dense", "dense"), ("all kept", KeepShare(1.0)), ("half", KeepShare(0.5))):
        model = skim.compress(plain("bert"), method).eval()
        work = operations(model, batch)
        found[name] = work.total(), sum(work[move] for move in moves)
    layers = len(model.skim_walk.backbone.layers(model.base_model))
    assert found["dense"][1] == found["all kept"][1] == 0
    assert found["half"][1] <= 3 * layers + 1
    assert found["all kept"][0] - found["dense"][0] <= 7 * layers + 1  # the rule itself is four of them
    assert found["half"][0] - found["dense"][0] <= 13 * layers + 2
