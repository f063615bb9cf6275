"""The three forms of a TokenBatch agree, whatever is retired."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skim.engine.masked import MaskedTokens
from skim.engine.narrowed import NarrowedTokens
from skim.engine.packed import PackedTokens
from skim.engine.tokens import Sequences
from skim.engine.walk import FORMS


@st.composite
def stories(draw: st.DrawFn) -> tuple[Sequences, list[Tensor]]:
    """Sequences with any holes, any of their tokens protected, and some rounds of keep decisions, ``(B, N)`` each."""
    batch, positions = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    rounds = draw(st.integers(0, 4))
    bits = st.lists(st.booleans(), min_size=batch * positions, max_size=batch * positions)
    real, chosen, *keeps = (torch.tensor(draw(bits)).view(batch, positions) for _ in range(rounds + 2))
    protected = real & chosen
    covered = bool((protected.any(1) | ~real.any(1)).all()) and draw(st.booleans())
    return Sequences(real, protected, covered), keeps


@given(stories())
@settings(max_examples=300, deadline=None)
def test_forms_agree(story: tuple[Sequences, list[Tensor]]) -> None:
    sequences, keeps = story
    hidden = torch.arange(sequences.real.numel(), dtype=torch.float).view(*sequences.real.shape, 1) + 1
    forms = {name: form.start(hidden, sequences) for name, form in FORMS.items()}
    for keep in keeps:
        earlier = dict(forms)
        before = {name: tokens.restore().clone() for name, tokens in forms.items()}
        for name, tokens in forms.items():
            retired = tokens.retire(tokens.occupancy.rows(keep.float()))
            forms[name] = retired.with_hidden(retired.hidden * 2)  # who is still there has moved on
        check(forms, sequences)
        for name, tokens in earlier.items():  # batches are immutable: the earlier one still says what it said
            real = sequences.real
            assert torch.equal(tokens.restore()[real], before[name][real]), name
    check(forms, sequences)


def check(forms: dict, sequences: Sequences) -> None:
    masked: MaskedTokens = forms["masked"]
    real, alive = sequences.real, masked.occupancy.alive()
    assert not (alive & ~real).any()
    assert (alive | ~sequences.protected).all(), "a protected token left"
    assert torch.equal(alive.any(1), real.any(1)), "a sequence lost its last token"
    for name, tokens in forms.items():
        assert torch.equal(tokens.occupancy.counts().long(), alive.sum(1)), name
        assert torch.equal(tokens.occupancy.alive(), alive), name
        assert torch.equal(tokens.restore()[real], masked.restore()[real]), name
        assert tokens.hidden.shape[:2] == tokens.occupancy.position.shape, name
    packed, narrowed = forms["packed"], forms["narrowed"]
    where = torch.arange(real.shape[1]).expand_as(real)
    assert torch.equal(packed.occupancy.rows(where), packed.occupancy.position)
    taken = narrowed.occupancy.weights
    assert torch.equal(narrowed.occupancy.rows(where)[taken], narrowed.occupancy.position[taken])
    assert packed.hidden.shape[1] == alive.sum()
    if narrowed.left is not None:
        assert narrowed.hidden.shape[1] == max(int(alive.sum(1).max()), 1)


@given(stories())
@settings(max_examples=100, deadline=None)
def test_packed_rectangle_and_length_groups_hold_every_row_once(story: tuple[Sequences, list[Tensor]]) -> None:
    sequences, keeps = story
    tokens = PackedTokens.start(torch.zeros(*sequences.real.shape, 1), sequences)
    for keep in keeps:
        tokens = tokens.retire(tokens.occupancy.rows(keep.float()))
    occupancy = tokens.occupancy
    slots, taken = occupancy.rectangle
    assert torch.equal(torch.zeros_like(taken).view(-1).index_fill(0, slots, 1).view_as(taken), taken)
    assert torch.equal(slots // taken.shape[1], occupancy.index // taken.shape[1])
    for multiple in (1, 4):
        rows, back, there, groups = occupancy.blocks(multiple)
        assert torch.equal(rows[back], torch.arange(len(back)))
        assert torch.equal(there.nonzero().squeeze(1), back.sort().values)
        assert sum(group.sequences * group.length for group in groups) == len(rows)
        start = 0
        for (
            size,
            length,
            full,
        ) in groups:  # each stretch of a group is one whole sequence, its last row again at the end
            span = slice(start, start + size * length)
            sequence = occupancy.index[rows[span]].view(size, length) // taken.shape[1]
            assert (sequence == sequence[:, :1]).all()
            assert bool(there[span].all()) == full
            assert length % multiple == 0
            start += size * length


@given(stories(), st.data())
@settings(max_examples=200, deadline=None)
def test_spread_largest_and_rank(story: tuple[Sequences, list[Tensor]], data: st.DataObject) -> None:
    """All forms agree with a plain reading, one sequence at a time, and ties go by position."""
    sequences, keeps = story
    batch, positions = sequences.real.shape
    few = st.lists(st.integers(-2, 2), min_size=batch * positions, max_size=batch * positions)  # so that many are equal
    values = torch.tensor(data.draw(few)).view(batch, positions).float()
    forms = {name: form.start(torch.zeros(batch, positions, 1), sequences) for name, form in FORMS.items()}
    for keep in [torch.ones(batch, positions), *keeps]:
        for name, tokens in forms.items():
            occupancy = (tokens := tokens.retire(tokens.occupancy.rows(keep.float()))).occupancy
            forms[name] = tokens
            here = occupancy.rows(values)
            number = torch.arange(batch) + 1.0
            spread = occupancy.spread(number).expand(here.shape)
            largest, rank = occupancy.largest(here), occupancy.rank(here)
            assert largest.shape == (batch,)
            assert rank.shape == here.shape
            sequence = occupancy.rows(number[:, None].expand(batch, positions))
            for b, alive in enumerate(occupancy.alive().tolist()):
                mine = [p for p in range(positions) if alive[p]]
                places = sorted(mine, key=lambda p: (-values[b, p].item(), p))
                assert largest[b] == max((values[b, p].item() for p in mine), default=-torch.inf), name
                rows = (sequence == b + 1) & (occupancy.weights > 0.5)
                at = occupancy.position.expand(here.shape)[rows].tolist()
                assert sorted(at) == mine
                assert (spread[rows] == b + 1).all(), name
                assert dict(zip(at, rank[rows].tolist(), strict=True)) == {p: i for i, p in enumerate(places)}, name


def test_masked_gradients_reach_a_decision_through_keep_and_through_the_state() -> None:
    """A retired token's decision has a gradient: the difference between the state it has and the one it would have."""
    sequences = Sequences(torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.bool))
    hidden = torch.tensor([[[1.0], [2.0], [3.0]]])
    keep = torch.tensor([[1.0, 0.0, 1.0]], requires_grad=True)
    tokens = MaskedTokens.start(hidden, sequences).retire(keep)
    tokens = tokens.with_hidden(hidden * 10)
    assert tokens.restore().squeeze().tolist() == [10.0, 2.0, 30.0]
    tokens.restore().sum().backward()
    assert keep.grad.tolist() == [[9.0, 18.0, 27.0]]


def test_gradients_reach_decisions_on_rows_that_were_merged_since() -> None:
    """A window counts as much as its rows on average, and is their weighted mean."""
    sequences = Sequences(torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.bool))
    keep = torch.ones(1, 4, requires_grad=True)
    tokens = MaskedTokens.start(torch.tensor([[[1.0], [3.0], [5.0], [9.0]]]), sequences).retire(keep)
    merged = tokens.pool(2, torch.zeros(1, 4, dtype=torch.bool))
    assert merged.hidden.squeeze().tolist() == [2.0, 7.0]
    assert torch.autograd.grad(merged.occupancy.counts().sum(), keep, retain_graph=True)[0].tolist() == [[0.5] * 4]
    assert torch.autograd.grad(merged.hidden.sum(), keep)[0].tolist() == [[-0.5, 0.5, -1.0, 1.0]]


@pytest.mark.parametrize("form", [PackedTokens, NarrowedTokens])
def test_gradients_flow_into_states_that_left(form: type) -> None:
    """Training without decisions to learn may run packed: a token that left early still trains the layers below."""
    sequences = Sequences(torch.tensor([[True, True, True], [True, True, False]]), torch.zeros(2, 3, dtype=torch.bool))
    hidden = torch.arange(1.0, 7.0).view(2, 3, 1).requires_grad_()
    tokens = form.start(hidden, sequences)
    for keep in ([[1, 0, 1], [1, 1, 1]], [[1, 0, 0], [0, 1, 1]]):
        tokens = tokens.retire(tokens.occupancy.rows(torch.tensor(keep).float()))
        tokens = tokens.with_hidden(tokens.hidden * 10)
    (tokens.restore() * sequences.real[..., None]).sum().backward()
    assert hidden.grad.squeeze(-1).tolist() == [[100.0, 1.0, 10.0], [10.0, 100.0, 0.0]]
