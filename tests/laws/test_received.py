"""The attention that tokens receive, by which LTP, its baselines and top-k decide, in every family."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import skim
from skim.methods.pruning import SCORE_NORMS, Pruner
from tests.families import batch_of
from tests.laws.cases import Case
from tests.methods.table import METHODS
from tests.ragged import assert_same, entering, on_real

ltp = pytest.mark.where(lambda case: case.method == "ltp")


@functools.cache
def pruners() -> dict[str, Pruner]:
    """Make every method of the table that decides by received attention."""
    made = {name: row.make() for name, row in METHODS.items()}
    return {name: method for name, method in made.items() if isinstance(method, Pruner)}


def test_the_table_has_every_pruner_and_every_way_to_divide_scores() -> None:
    names = {"ltp", "ltp_manual", "ltp_relative", "ltp_rising", "topk", "length_drop"}
    assert {method.name for method in pruners().values()} == names
    assert {method.score_norm for method in pruners().values()} == set(SCORE_NORMS)


@pytest.mark.where(lambda case: case.method in pruners())
def test_scores_cost_two_flops_per_head_and_pair(case: Case) -> None:
    """In the layers that are asked for them, and in no other."""
    compressed = case.compressed()
    with torch.no_grad():
        compressed(**case.batch())
    asked = [layer.sums_cost for layer in compressed.trace.layers]
    heads = compressed.config.num_attention_heads
    assert asked == [2.0 * heads * compressed.method.wants_received(i) for i in range(len(asked))]
    assert any(asked)
    assert entering(compressed.trace)[-1].sum() < compressed.trace.lengths.sum()


@pytest.mark.where(lambda case: not case.row.invariant)
def test_scores_by_the_padded_length_change_with_the_padding(case: Case) -> None:
    """The published score; why it is not the default."""
    compressed, counts = case.compressed(), []
    for width in (13, 26):
        with torch.no_grad():
            compressed(**batch_of(case.family, (13, 9, 6, 11), width))
        counts.append(entering(compressed.trace).sum(1))
    assert (counts[1][1:] <= counts[0][1:]).all()
    assert counts[1][-1] < counts[0][-1]


def in_doubt(case: Case, device: str) -> tuple[Any, dict[str, Tensor]]:
    """Take a model in the soft stage, at a temperature at which every token is in doubt, and a batch with labels."""
    compressed = case.compressed(device).train()
    case.row.blur(compressed.method)
    return compressed, case.labelled(case.batch(device))


def decides_something(case: Case, gradient: Tensor) -> Tensor:
    """Pick the thresholds that matter: MobileBERT's layers cannot be split, so after its last one none does."""
    return gradient[:-1] if case.family == "mobilebert" else gradient


@ltp
def test_4_the_task_reaches_every_threshold(case: Case, device: str) -> None:
    compressed, inputs = in_doubt(case, device)
    compressed(**inputs).loss.backward()
    gradient = compressed.method.delta.grad
    assert torch.isfinite(gradient).all()
    assert (decides_something(case, gradient) != 0).all()


@ltp
@pytest.mark.parametrize("target", [False, True])
def test_4_the_penalty_reaches_every_threshold_and_attention(case: Case, target: bool, device: str) -> None:
    """Through the scores it reaches the last layer's attention, though nobody attends after it."""
    compressed, inputs = in_doubt(case, device)
    method = compressed.method
    if target:
        case.row.steer(method)
        method.to(device)
    compressed(**inputs)
    method.step(0.5, compressed.trace)
    method.loss(compressed.trace).backward()
    gradient = decides_something(case, method.delta.grad) if target else method.delta.grad
    assert torch.isfinite(gradient).all()
    assert (gradient != 0).all()
    assert gradient[-1] < 0  # in earlier layers either sign is right: who stays shares the attention of who left
    walk = compressed.skim_walk
    last = walk.backbone.layers(walk.base)[-1]
    touched = [part.grad.abs().max() for part in last.parameters() if part.grad is not None]
    assert touched
    assert max(touched) > 0 or case.family == "mobilebert"


def first_received(compressed: nn.Module, batch: dict, execution: str) -> tuple[Tensor, Tensor]:
    """Find what tokens received in the first layer, at their input positions, ``(B, N)``; and the logits."""
    method, taken = compressed.method, []
    score = method.score
    method.score = lambda received, occupancy: taken.append((received, occupancy)) or score(received, occupancy)
    try:
        with skim.execution(compressed, execution):
            logits = compressed(**batch).logits.detach()
    finally:
        del method.score
    received, occupancy = taken[0]
    real = occupancy.sequences.real
    at = occupancy.rows(torch.arange(real.numel()).view_as(real))
    places = torch.zeros(real.shape, dtype=received.dtype).index_put(
        (at // real.shape[1], at % real.shape[1]), received
    )
    return places.detach() * real, logits


@ltp
def test_attention_dropout_does_not_reach_the_scores(case: Case) -> None:
    """Dropout would make them unfair to whom it strikes, and training unlike evaluation."""
    compressed, batch = case.compressed(), case.batch()
    mask = batch["attention_mask"]
    wanted, undisturbed = first_received(compressed, batch, "masked")
    drop_attention(compressed)
    compressed.train()
    for stage, executions in {"hard": case.executions, "soft": ("masked",)}.items():
        compressed.method.enter(stage)
        for execution in executions:
            received, logits = first_received(compressed, batch, execution)
            assert_same(received, wanted, what=f"{stage} {execution}")
            if stage == "hard":  # dropout is at work: or this test would see nothing
                assert on_real(logits - undisturbed, mask).abs().max() > 1e-3


def drop_attention(compressed: nn.Module) -> None:
    """Drop half of the attention, wherever the family has a dropout for it; hidden states keep theirs of zero."""
    walk = compressed.skim_walk
    for layer in walk.backbone.layers(walk.base):
        owner, _, name = next(path for path in ATTENTION_DROPOUT if has_path(layer, path)).rpartition(".")
        module = layer.get_submodule(owner)
        if isinstance(getattr(module, name), float):
            setattr(module, name, 0.5)
        else:
            getattr(module, name).p = 0.5


def has_path(module: nn.Module, path: str) -> bool:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module is not None


ATTENTION_DROPOUT = (
    *("attention.self.dropout", "attention.attn.dropout", "attention.attention_dropout", "attention.dropout"),
    *("attn.attention_dropout", "self_attn.attention_dropout", "rel_attn.dropout"),
)


@ltp
def test_scores_in_half_precision(case: Case) -> None:
    """Under autocast a threshold has float32 scores to be compared with."""
    compressed, batch = case.compressed(), case.batch()
    for execution in case.executions:
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                wanted, _ = first_received(compressed, batch, execution)
                with torch.autocast("cpu", torch.bfloat16):
                    received, _ = first_received(compressed, batch, execution)
            assert received.dtype == torch.float32
            assert not torch.equal(received, wanted)
            assert_same(received, wanted, tolerance=2e-2, what=execution)
