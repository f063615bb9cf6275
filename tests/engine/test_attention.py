"""Attention over the alive: equal to a softmax over the kept subset, with gradients that can bring a token back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from skim.engine.attention import skim_attention
from skim.engine.kernels.cpu import memory_attention, packed_attention
from skim.engine.kernels.cuda import rectangle_attention
from skim.engine.kernels.padded import BLOCK, attention_with_sums
from skim.engine.kernels.static import attend_rows
from skim.engine.mask import AttentionMask, MaskedSoftmax, column_sums, masked_softmax
from skim.engine.masked import MaskedTokens
from skim.engine.packed import PackedTokens
from skim.engine.tokens import Sequences
from skim.engine.walk import FORMS

seeds = st.integers(0, 10_000)


@given(seeds, st.sampled_from([1.0, 30.0, 1000.0]))
@settings(max_examples=100, deadline=None)
def test_equals_softmax_over_the_kept(seed: int, scale: float) -> None:
    """However large the scores of the keys that are gone."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 3, 5, 7, generator=generator) * scale
    keep = (torch.rand(2, 1, 1, 7, generator=generator) < 0.5).float()
    visible = torch.rand(2, 1, 5, 7, generator=generator) < 0.7
    keep[..., 0], visible[..., 0] = 1, True
    wanted = scores.masked_fill((keep == 0) | ~visible, -torch.inf).softmax(-1)
    torch.testing.assert_close(masked_softmax(scores, keep, visible), wanted)


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_soft_weights(seed: int) -> None:
    """Between 0 and 1 a key weighs what it says, also when all are below one half."""
    generator = torch.Generator().manual_seed(seed)
    scores, keep = torch.randn(4, 6, generator=generator) * 5, torch.rand(6, generator=generator)
    for weights in (keep, keep * 0.1):
        wanted = scores.exp() * weights / (scores.exp() * weights).sum(-1, keepdim=True)
        torch.testing.assert_close(masked_softmax(scores, weights), wanted)


def test_gradients_equal_finite_differences() -> None:
    torch.manual_seed(0)
    scores = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    keep = (torch.rand(3, 5, dtype=torch.float64) * 0.9 + 0.05).requires_grad_()
    visible = torch.ones(3, 5, dtype=torch.bool)
    visible[0, 3] = False
    for inside in (True, False):
        assert torch.autograd.gradcheck(lambda s, k, i=inside: masked_softmax(s, k, visible, i), (scores, keep))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gap", [0.0, 50.0, 1000.0])
def test_gradient_of_a_dead_key_is_finite(dtype: torch.dtype, gap: float) -> None:
    """And not zero: it is what the key would contribute if it came back."""
    scores = torch.tensor([[0.0, 1.0, gap]], dtype=dtype, requires_grad=True)
    keep = torch.tensor([1.0, 1.0, 0.0], requires_grad=True)
    probabilities = masked_softmax(scores, keep)
    assert probabilities.dtype == dtype
    assert probabilities[0, 2] == 0
    (probabilities.float() @ torch.tensor([1.0, 0.0, -1.0])).sum().backward()
    assert torch.isfinite(keep.grad).all()
    assert torch.isfinite(scores.grad).all()
    assert keep.grad[2] < 0


def test_after_the_softmax_the_dead_still_weigh() -> None:
    """The published form: probabilities of the kept do not sum to one."""
    scores, keep = torch.zeros(1, 4), torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert masked_softmax(scores, keep, inside=False).tolist() == [[0.25, 0.0, 0.25, 0.0]]
    assert masked_softmax(scores, keep).tolist() == [[0.5, 0.0, 0.5, 0.0]]


def packed(lengths: list[int], gaps: bool) -> PackedTokens:
    """Packed rows of several sequences, some with tokens missing in between."""
    real = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    tokens = PackedTokens.start(torch.zeros(*real.shape, 1), Sequences(real, torch.zeros_like(real)))
    keep = torch.ones(*real.shape)
    keep[:, 1::3] = 0
    return tokens.retire(tokens.occupancy.rows(keep)) if gaps else tokens


@pytest.mark.parametrize("weighs", [False, True])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("lengths", [[5], [7, 7], [9, 4, 9, 1, 0]])
def test_packed_attention_is_attention_per_sequence(
    lengths: list[int], gaps: bool, window: int | None, weighs: bool
) -> None:
    """By length groups (CPU) and by rectangle (CUDA, half precision aside): both equal one plain softmax each."""
    torch.manual_seed(0)
    tokens = packed(lengths, gaps)
    occupancy = tokens.occupancy
    query, key, value = torch.randn(3, 1, 2, len(occupancy.index), 8)
    bias = torch.randn(1, len(occupancy.index)) * 3 if weighs else None
    wanted, sums = torch.zeros_like(query), torch.zeros(1, len(occupancy.index))
    for start, stop in zip(occupancy.bounds[:-1], occupancy.bounds[1:], strict=True):
        span = slice(start, stop)
        position = occupancy.position[0, span]
        scores = query[:, :, span] @ key[:, :, span].transpose(2, 3) * 8**-0.5
        scores = scores if bias is None else scores + bias[:, span]
        if window is not None:
            far = (position[:, None] - position[None]).abs() > window
            scores = scores.masked_fill(far, -torch.inf)
        wanted[:, :, span] = scores.softmax(-1) @ value[:, :, span]
        sums[:, span] = scores.softmax(-1).sum(2).mean(1)
    for attention in (packed_attention, rectangle_attention):
        for asked in (False, True):
            mask = AttentionMask(occupancy, window, wants_received=asked, bias=bias)
            for gradients in (False, True):
                with torch.set_grad_enabled(gradients):
                    found, received = attention(query, key, value, mask, None, 0.0)
                    holes, dropped = attention(query, key, value, mask, None, 0.5)
                assert not torch.allclose(holes, wanted)
                torch.testing.assert_close(found, wanted, msg=lambda text, name=attention.__name__: f"{name}: {text}")
                assert (received is not None) == (dropped is not None) == asked
                if asked:
                    torch.testing.assert_close(received, sums)
                    torch.testing.assert_close(dropped, sums)  # dropout acts after the sums are taken


@pytest.mark.parametrize("window", [None, 3])
def test_rows_that_are_looked_at_weigh_what_they_say(window: int | None) -> None:
    """One call per sequence, by rectangle and on static rows: a bias is that of the key, not of the row that looks."""
    torch.manual_seed(0)
    others = packed([9, 4, 6], gaps=False).occupancy
    rows = packed([9, 4, 6], gaps=True).occupancy
    query, bias = torch.randn(1, 2, len(rows.index), 8), torch.randn(1, len(others.index)) * 3
    key, value = torch.randn(2, 1, 2, len(others.index), 8)
    wanted = torch.zeros_like(query)
    for b in range(3):
        span, seen = slice(*rows.bounds[b : b + 2]), slice(*others.bounds[b : b + 2])
        scores = query[:, :, span] @ key[:, :, seen].transpose(2, 3) * 8**-0.5 + bias[:, seen]
        far = (rows.position[0, span, None] - others.position[0, None, seen]).abs() > (window or 99)
        wanted[:, :, span] = scores.masked_fill(far, -torch.inf).softmax(-1) @ value[:, :, seen]
    mask = AttentionMask(rows, window, memory=others, bias=bias)
    for attention in (memory_attention, rectangle_attention):
        found = attention(query, key, value, mask, None, 0.0)
        torch.testing.assert_close(found if isinstance(found, Tensor) else found[0], wanted)
    places = rows.index, rows.bounds, others.index, others.bounds
    torch.testing.assert_close(attend_rows(query, key, value, *places, 9, window, None, False, bias)[0], wanted)


def test_lengths_rounded_up_to_whole_vectors_let_nobody_look_at_others() -> None:
    """What is not a number in one sequence stays there, and a group of several lengths is one call of the kernel."""
    occupancy = packed([9, 4, 7], gaps=False).occupancy
    query, key, value = torch.randn(3, 1, 2, 20, 8)
    value[:, :, 9:13] = torch.nan
    with torch.no_grad(), Calls(F.scaled_dot_product_attention) as calls:
        context, _ = packed_attention(query, key, value, AttentionMask(occupancy), None, 0.0)
    assert context.isnan().any(-1).any(1)[0].nonzero().flatten().tolist() == list(range(9, 13))
    assert calls.number == 1


class Calls(TorchFunctionMode):
    """Counts calls of one function."""

    def __init__(self, counted: Any) -> None:
        super().__init__()
        self.counted, self.number = counted, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func is self.counted
        return func(*args, **(kwargs or {}))


def plainly(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, seen: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention and what each key received, in float64, without blocks or kernels."""
    query, key, value = query.double(), key.double(), value.double()
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scaling
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    probabilities = scores.softmax(-1)
    if weights is None:
        weights = torch.ones(query.shape[0], query.shape[2])
    received = torch.einsum("bhqk,bq->bhk", probabilities, weights.double()).mean(1)
    return torch.einsum("bhqk,bhkd->bhqd", probabilities, value), received


@pytest.mark.parametrize("block", [1, 40, 250, 2**18])
@pytest.mark.parametrize("view", ["all", "keys", "one window", "windows"])
@pytest.mark.parametrize("weighed", [False, True])
def test_attention_with_sums_in_blocks(block: int, view: str, weighed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few queries and sequences fit in a block: one query, two, two whole sequences, all."""
    monkeypatch.setitem(BLOCK, "cpu", block)
    batch, heads, length, size = 5, 2, 7, 4
    query, key, value = torch.randn(3, batch, heads, length, size) * 2
    keys = torch.rand(batch, 1, 1, length) < 0.6
    keys[..., 0] = True
    near = (torch.arange(length)[:, None] - torch.arange(length)).abs() <= 2
    seen = {
        "all": None,
        "keys": keys,
        "one window": near[None, None],
        "windows": near & keys | torch.eye(length, dtype=torch.bool),
    }[view]
    weights = (torch.rand(batch, length) < 0.7).float() * 0.8 if weighed else None
    for scaling in (None, 0.3):
        found, sums = attention_with_sums(query, key, value, scaling, seen, weights)
        none, alone = attention_with_sums(query, key, None, scaling, seen, weights)
        wanted, received = plainly(query, key, value, size**-0.5 if scaling is None else scaling, seen, weights)
        torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(sums.double(), received, atol=1e-6, rtol=1e-5)
        assert none is None
        assert torch.equal(alone, sums)
        assert sums.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_float32_and_count_queries_by_their_weight(dtype: torch.dtype) -> None:
    probabilities = torch.rand(2, 3, 4, 5).softmax(-1).to(dtype)
    weights = torch.tensor([[1.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 1.0]])
    with torch.autocast("cpu", torch.bfloat16):
        sums, alike = column_sums(probabilities, weights), column_sums(probabilities)
    assert sums.dtype == alike.dtype == torch.float32
    exact = probabilities.float()
    torch.testing.assert_close(sums, torch.einsum("bhqk,bq->bhk", exact, weights).mean(1))
    torch.testing.assert_close(alike, exact.sum(2).mean(1))


@pytest.mark.parametrize("form", FORMS)
def test_received_carries_gradients_in_masked_training_only(form: str) -> None:
    """Elsewhere no decision learns, and the sums are a second pass without a graph."""
    real = torch.ones(2, 5, dtype=torch.bool)
    tokens = FORMS[form].start(torch.zeros(2, 5, 1), Sequences(real, ~real))
    shape = (1, 2, 10, 8) if form == "packed" else (2, 2, 5, 8)
    query, key, value = (torch.randn(shape, requires_grad=True) for _ in range(3))
    for asked in (False, True):
        mask = AttentionMask(tokens.occupancy, wants_received=asked)
        context, _ = skim_attention(torch.nn.Identity(), query, key, value, mask)
        assert context.requires_grad
        assert mask.used
        assert (mask.received is not None) == asked
    assert mask.received.requires_grad == (form == "masked")
    with torch.no_grad():
        mask = AttentionMask(tokens.occupancy, wants_received=True)
        skim_attention(torch.nn.Identity(), query, key, value, mask)
    torch.testing.assert_close(mask.received.sum(), torch.tensor(10.0))  # every query gives away one


def test_grouped_queries() -> None:
    """Fewer key heads than query heads, as in EuroBERT."""
    real = torch.ones(2, 5, dtype=torch.bool)
    tokens = MaskedTokens.start(torch.zeros(2, 5, 1), Sequences(real, real))
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    found, _ = skim_attention(None, query, key, value, AttentionMask(tokens.occupancy))
    wanted = F.scaled_dot_product_attention(query, key, value, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(found, wanted)


def attention_by_hand(scores: Tensor, value: Tensor) -> Tensor:
    return torch.nn.functional.softmax(scores, dim=-1) @ value


def test_masked_softmax_mode_lets_the_mask_in_and_says_so() -> None:
    real = torch.tensor([[True, True, True, False]])
    keep = torch.tensor([[1.0, 0.0, 1.0, 1.0]], requires_grad=True)
    tokens = MaskedTokens.start(torch.zeros(1, 4, 1), Sequences(real, torch.zeros_like(real))).retire(keep)
    scores, value = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 8)
    mask = AttentionMask(tokens.occupancy)
    with MaskedSoftmax(mask):
        found = attention_by_hand(scores, value)
    assert mask.used
    alive = [0, 2]
    torch.testing.assert_close(found, scores[..., alive].softmax(-1) @ value[..., alive, :])
    found.sum().backward()
    assert keep.grad[0, 1] != 0
    torch.testing.assert_close(attention_by_hand(scores, value), scores.softmax(-1) @ value)  # outside: as it was
    unused = AttentionMask(tokens.occupancy)
    with MaskedSoftmax(unused):
        _ = scores @ value
    assert not unused.used
