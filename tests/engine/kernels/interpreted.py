"""Kernels against plain operations, by Triton's interpreter; test_triton.py runs this file with TRITON_INTERPRET=1."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import skim
from skim.engine.kernels import cuda, static
from skim.engine.kernels.fused import REFUSED, fused
from skim.engine.kernels.triton.attention import attention
from skim.engine.kernels.triton.difference import difference
from skim.engine.kernels.triton.rank import rank
from skim.engine.kernels.triton.rows import retire
from skim.methods.base import Method
from skim.methods.ltp import LTP
from skim.methods.topk import TopK
from skim.methods.transkimmer import predictor
from tests.families import batch_of, plain

assert os.environ["TRITON_INTERPRET"] == "1"

FILLER = 3  # rows behind the last sequence
RAGGED = [5, 0, 70, 1, 33]


def rows_of(lengths: list[int], size: int, dtype: torch.dtype, heads: int = 2) -> tuple[Tensor, ...]:
    """Query, key and value ``(T, H, d)`` as layers hand them over, filler that is not a number behind, and bounds."""
    total = sum(lengths)
    states = torch.randn(3, 1, total + FILLER, heads, size).to(dtype)
    states[:, :, total:] = torch.nan
    query, key, value = (x.transpose(1, 2)[0].transpose(0, 1) for x in states)
    return query, key, value, bounds_of(lengths)


def bounds_of(lengths: list[int]) -> Tensor:
    return F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()


def plainly(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, looked: Tensor, far: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One softmax per sequence, in float64."""
    context, received = torch.zeros(query.shape).double(), torch.zeros(len(key)).double()
    for begin, end, first, last in zip(bounds, bounds[1:], looked, looked[1:], strict=False):
        own, others = slice(begin, end), slice(first, last)
        scores = torch.einsum("qhd,khd->hqk", query[own].double(), key[others].double()) * query.shape[2] ** -0.5
        if far is not None:
            scores = scores.masked_fill(far[own, others], -torch.inf)
        weights = scores.softmax(-1)
        context[own] = torch.einsum("hqk,khd->qhd", weights, value[others].double())
        received[others] = weights.sum(1).mean(0)
    return context, received


FULL, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize(("size", "dtype"), [(32, FULL), (64, FULL), (64, BRAIN), (96, HALF), (128, BRAIN)])
def test_context_and_sums(size: int, dtype: torch.dtype) -> None:
    """Ragged, with an empty sequence, one of a single row, and filler that is not a number."""
    query, key, value, bounds = rows_of(RAGGED, size, dtype)
    context, received = attention(query, key, value, bounds, 70, size**-0.5, sums=True)
    wanted, sums = plainly(query, key, value, bounds, bounds)
    error = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(context.double(), wanted, atol=error, rtol=error)  # filler is zero
    torch.testing.assert_close(received.double(), sums, atol=1e-5, rtol=1e-5)  # in float32, whatever comes in
    assert context.dtype == dtype


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(0, 10_000), st.integers(0, 200))
@settings(max_examples=4, deadline=None)
def test_every_query_gives_one(lengths: list[int], seed: int, spare: int) -> None:
    """What the keys of a sequence receive adds up to its queries; a bound above the longest changes nothing."""
    torch.manual_seed(seed)
    query, key, value, bounds = rows_of(lengths, 32, torch.float32)
    longest = max(lengths)
    context, received = attention(query, key, value, bounds, longest, 0.3, sums=True)
    given = torch.stack([part.sum() for part in received.split([*lengths, FILLER])])
    torch.testing.assert_close(given, torch.tensor([*map(float, lengths), 0.0]))
    again = attention(query, key, value, bounds, longest + spare, 0.3, sums=True)
    if longest + spare <= 128:  # then in as large blocks: in equal bits
        assert torch.equal(context, again[0])
        assert torch.equal(received, again[1])
    torch.testing.assert_close(context, again[0])


@pytest.mark.parametrize("dtype", [FULL, BRAIN])
def test_batch_mates_change_no_bit(dtype: torch.dtype) -> None:
    """A decision by these sums is the same in any batch, and when it is taken again."""
    query, key, value, bounds = rows_of([40, 70, 9], 32, dtype)
    together = attention(query, key, value, bounds, 70, 0.2, sums=True)
    for one, two in zip(together, attention(query, key, value, bounds, 70, 0.2, sums=True), strict=True):
        assert torch.equal(one, two)
    some = slice(40, 110)
    alone = attention(query[some], key[some], value[some], bounds_of([70]), 70, 0.2, sums=True)
    for one, two in zip(together, alone, strict=True):
        assert torch.equal(one[some], two)


@pytest.mark.parametrize("apart", [False, True])
def test_windows_and_other_rows(apart: bool) -> None:
    """A window counts input positions, which have gaps; rows that look may be fewer than those looked at."""
    lengths, size = [9, 4, 70, 0], 32
    query, key, value, looked = rows_of(lengths, size, torch.float32)
    at = torch.cat(
        [number * 500 + torch.arange(n) * 2 for number, n in enumerate(lengths)] + [torch.full((FILLER,), 0)]
    )
    own, bounds, index = query, looked, at
    if apart:  # every third row looks
        some = torch.cat([torch.arange(a, b, 3) for a, b in zip(looked.tolist(), looked[1:].tolist(), strict=False)])
        own, bounds, index = query[some], bounds_of([3, 2, 24, 0]), at[some]
    others = {"looked_bounds": looked, "looked_index": at} if apart else {}
    context, received = attention(own, key, value, bounds, 70, size**-0.5, not apart, window=5, index=index, **others)
    wanted, sums = plainly(own, key, value, bounds, looked, (index[:, None] - at[None]).abs() > 5)
    torch.testing.assert_close(context.double(), wanted, atol=1e-5, rtol=1e-5)
    if not apart:
        torch.testing.assert_close(received.double(), sums, atol=1e-5, rtol=1e-5)


def retired(keep: Tensor, stay: Tensor | None, index: Tensor, bounds: Tensor, covered: bool) -> list[list[int]]:
    """Rows of each sequence that stay, one by one."""
    found = []
    for begin, end in zip(bounds.tolist(), bounds[1:].tolist(), strict=False):
        rows = [row for row in range(begin, end) if keep[row] > 0.5 or (stay is not None and stay[index[row]])]
        found.append(rows or (list(range(begin, end))[:1] if stay is not None and not covered else []))
    return found


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.sampled_from([None, 0.0, 0.1]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 10_000),
)
@settings(max_examples=12, deadline=None)
def test_rows_leave_and_the_others_close_up(
    lengths: list[int], share: float, protected: float | None, covered: bool, numbers: bool, seed: int
) -> None:
    """By a decision in bool or numbers; all, none, and some to stay in any case; filler decides nothing."""
    generator = torch.Generator().manual_seed(seed)
    total, width, trash = sum(lengths), 130, 60 * len(lengths)
    index = torch.cat([60 * i + torch.randperm(60, generator=generator)[:n].sort()[0] for i, n in enumerate(lengths)])
    index = torch.cat([index, torch.full((7,), trash)])
    hidden = torch.randn(1, total + 7, width, generator=generator).bfloat16()
    keep = torch.rand(total + 7, generator=generator) < share
    keep = keep.float() * 0.9 if numbers else keep
    stay = None
    if protected is not None:
        stay = torch.rand(trash + 1, generator=generator) < protected
        stay[trash] = False
    left = torch.zeros(trash + 1, width)
    states, here, ends, source = retire(hidden, keep, stay, index, bounds_of(lengths), left, trash, covered)
    wanted = retired(keep, stay, index, bounds_of(lengths), covered)
    rows = torch.tensor([row for some in wanted for row in some], dtype=torch.long)
    alive, filler = len(rows), total + 7 - len(rows)
    assert ends.tolist() == bounds_of([len(some) for some in wanted]).tolist()
    assert torch.equal(here, F.pad(index[rows], (0, filler), value=trash))
    assert torch.equal(source, F.pad(rows, (0, filler)))
    assert torch.equal(states[0, :alive], hidden[0, rows])
    assert torch.isfinite(states).all()
    gone = torch.ones(total + 7, dtype=torch.bool).index_fill(0, rows, False) & (index < trash)
    assert torch.equal(left, torch.zeros(trash + 1, width).index_copy(0, index[gone], hidden[0, gone].float()))


@given(st.lists(st.integers(0, 90), min_size=1, max_size=4), st.integers(1, 30), st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_ranks(lengths: list[int], values: int, seed: int) -> None:
    """As by two stable sorts, with ties and infinities; filler that is not a number is in nobody's way."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(values, (sum(lengths) + FILLER,), generator=generator) / values
    scores[torch.rand(len(scores), generator=generator) < 0.1] = torch.inf
    scores[sum(lengths) :] = torch.nan
    found = rank(scores[None], bounds_of(lengths), 100)
    parts = [part.argsort(descending=True, stable=True).argsort() for part in scores.split([*lengths, FILLER])[:-1]]
    assert torch.equal(found, F.pad(torch.cat(parts), (0, FILLER))[None])


@pytest.mark.parametrize(("width", "dtype"), [(24, FULL), (200, BRAIN)])
def test_difference_of_two_logits(width: int, dtype: torch.dtype) -> None:
    predict = predictor(16, width, 1.0).to(dtype)
    for parameter in predict.parameters():
        torch.nn.init.normal_(parameter)
    hidden = torch.randn(1, 37, width).to(dtype)
    norm, last = predict[2], predict[4]
    with torch.no_grad():
        found = difference(hidden, norm.weight, norm.bias, norm.eps, last.weight, last.bias)
        logits = predict.double()[2:](hidden.double())
    torch.testing.assert_close(found.double(), logits[..., 1] - logits[..., 0], atol=1e-4, rtol=1e-5)


@pytest.fixture
def kernels_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What runs on a GPU runs here; the names of the kernels that did."""
    called = []

    def noted(name: str, *args: Any) -> Any:
        called.append(name)
        return fused(name, *args)

    monkeypatch.setattr(static, "fused", noted)
    monkeypatch.setattr(cuda, "fused", noted)
    library = torch.library.Library("skim", "IMPL")
    library.impl("retire", static.retire_on_device, "CPU")
    library.impl("rank", static.rank_on_device, "CPU")
    library.impl("attend", static.attend_on_device, "CPU")
    yield called
    library._destroy()


@pytest.mark.parametrize(
    ("family", "method"), [("bert", TopK(start=1)), ("modernbert", LTP(final_token_threshold=0.2))]
)
def test_whole_models(family: str, method: Method, kernels_here: list[str]) -> None:
    """Static rows by these kernels give what dynamic rows give by plain operations; ModernBERT has windows."""
    compressed, batch = skim.compress(plain(family), method).eval(), batch_of(family)
    found = []
    for form in (False, True):
        with torch.inference_mode(), skim.execution(compressed, "packed", static=form):
            found.append(compressed(**batch).logits)
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    assert compressed.trace.relative_flops() < 1
    assert {"attention", "retire"} <= set(kernels_here)
    assert not REFUSED
