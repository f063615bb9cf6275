"""Token Merging: what joins what, what becomes of it, and what the paper computes by it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import skim
from skim.engine.static import StaticTokens
from skim.engine.tokens import Sequences, TokenBatch
from skim.engine.walk import FORMS
from skim.errors import SkimError
from skim.methods.tome import ToMe, matched
from tests.families import batch_of, plain
from tests.ragged import assert_same

Row = tuple[list[int], Tensor]  # the tokens that a row merges, that of its place first, and its state ``(D,)``


def merged(rows: list[Row], into: dict[int, int]) -> list[Row]:
    """Merge rows of one sequence, by their numbers, as a loop over them does."""
    made = []
    for k, (members, _) in enumerate(rows):
        if k in into:
            continue
        group = [k, *(j for j in into if into[j] == k)]
        sizes = torch.tensor([float(len(rows[j][0])) for j in group])
        states = torch.stack([rows[j][1] for j in group])
        made.append((members + [n for j in group[1:] for n in rows[j][0]], (sizes @ states) / sizes.sum()))
    return made


def chosen(rows: list[Row], free: list[bool], r: int) -> dict[int, int]:
    """The paper's bipartite soft matching, edge by edge: which row joins which."""
    edges = []
    for a in range(0, len(rows), 2):
        found = [
            (float(torch.cosine_similarity(rows[a][1], rows[b][1], 0)), a, b)
            for b in range(1, len(rows), 2)
            if free[a] and free[b]
        ]
        edges += [max(found)] if found else []
    return {a: b for _, a, b in sorted(edges, reverse=True)[: max(r, 0)]}


@st.composite
def stories(draw: st.DrawFn) -> tuple[Tensor, list[Any]]:
    """Who is real, ``(B, N)``, and rounds: tokens that stay, or for each row where it goes."""
    batch, positions = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    bits = st.lists(st.booleans(), min_size=batch * positions, max_size=batch * positions)
    lots = st.lists(st.integers(0, 99), min_size=positions, max_size=positions)
    real = torch.tensor(draw(bits)).view(batch, positions)
    rounds: list[Any] = []
    for _ in range(draw(st.integers(1, 4))):
        stay = draw(st.booleans())
        rounds.append(torch.tensor(draw(bits)).view(batch, positions) if stay else [draw(lots) for _ in range(batch)])
    return real, rounds


@given(stories())
@settings(max_examples=50, deadline=None)
def test_forms_join_and_retire_as_a_loop_over_tokens_does(story: tuple) -> None:
    """Join after retire, retire after join, join after join: each token has its row's last state, wherever that is."""
    real, rounds = story
    batch, positions = real.shape
    hidden = torch.randn(batch, positions, 2)
    sequences = Sequences(real, torch.zeros_like(real))
    rows = [[([n], hidden[b, n]) for n in range(positions) if real[b, n]] for b in range(batch)]
    last = hidden.clone()
    forms: dict[str, TokenBatch] = {name: form.start(hidden, sequences) for name, form in FORMS.items()}
    forms["static"] = StaticTokens.start(hidden, sequences)
    for what in rounds:
        joins, into = torch.zeros(batch, positions, dtype=torch.bool), torch.zeros(batch, positions, dtype=torch.long)
        for b in range(batch):
            if isinstance(what, Tensor):
                rows[b] = [row for row in rows[b] if what[b, row[0][0]]] or rows[b][:1]
                continue
            stays = [k for k in range(len(rows[b])) if what[b][k] % 2] or [*range(len(rows[b]))]
            goes = {k: stays[what[b][k] // 2 % len(stays)] for k in range(len(rows[b])) if k not in stays}
            for k, place in goes.items():
                joins[b, rows[b][k][0][0]], into[b, rows[b][k][0][0]] = True, place
            rows[b] = merged(rows[b], goes)
        for b in range(batch):
            rows[b] = [(members, state * 2 + 1) for members, state in rows[b]]  # who is there moves on
            for members, state in rows[b]:
                last[b, members] = state
        for name, tokens in forms.items():
            here = tokens.occupancy
            if isinstance(what, Tensor):
                tokens = tokens.retire(here.rows(what.float()))
            else:
                tokens = tokens.join(here.rows(joins), here.rows(into))
            forms[name] = tokens.with_hidden(tokens.hidden * 2 + 1)
    for name, tokens in forms.items():
        occupancy = tokens.occupancy
        there = occupancy.weights > 0.5
        assert occupancy.counts().long().tolist() == [len(row) for row in rows], name
        assert occupancy.position.expand_as(there)[there].tolist() == [row[0][0] for here in rows for row in here], name
        assert occupancy.sizes[there].tolist() == [len(row[0]) for here in rows for row in here], name
        assert torch.allclose(tokens.restore()[real], last[real], atol=1e-4), name
        assert occupancy.alive()[real].sum() == sum(len(row[0]) for here in rows for row in here), name


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(0, 8))
@settings(max_examples=60, deadline=None)
def test_edges_are_those_of_a_loop_over_pairs(seed: int, sequences: int, places: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(sequences, places, 3, generator=generator)
    free = torch.rand(sequences, places, generator=generator) < 0.7
    best, others = matched(states, free)
    for line in range(sequences):
        rows = [([n], states[line, n]) for n in range(places)]
        wanted = chosen(rows, free[line].tolist(), places)
        assert (best[line] > -torch.inf).nonzero().flatten().tolist() == sorted(wanted)
        assert all(others[line, a] == b for a, b in wanted.items())
        order = best[line].argsort(descending=True)[: len(wanted)].tolist()
        assert order == list(wanted)


def reference(model: nn.Module, ids: Tensor, r: float, inflection: float, proportional: bool) -> tuple[Tensor, list]:
    """BERT over one unpadded text ``(N,)`` by the equations and plain matrix products; [CLS] is first."""
    base, heads = model.bert, model.config.num_attention_heads
    layers, gone, counts = len(base.encoder.layer), 0.0, []
    rows = [([n], state) for n, state in enumerate(base.embeddings(input_ids=ids[None])[0])]
    for i, layer in enumerate(base.encoder.layer):
        counts.append(len(rows))
        states = torch.stack([state for _, state in rows])
        part = layer.attention.self
        q, k, v = (
            linear(states).unflatten(1, (heads, -1)).transpose(0, 1) for linear in (part.query, part.key, part.value)
        )
        scores = (q @ k.transpose(1, 2)) / q.shape[-1] ** 0.5
        if proportional:
            scores = scores + torch.tensor([float(len(members)) for members, _ in rows]).log()
        attended = layer.attention.output((scores.softmax(-1) @ v).transpose(0, 1).flatten(1), states)
        rows = [(members, state) for (members, _), state in zip(rows, attended, strict=True)]
        gone += r * (1 + inflection * (2 * i / (layers - 1) - 1))
        rest = round(len(ids) * (1 - gone))
        rows = merged(rows, chosen(rows, [members[0] > 0 for members, _ in rows], len(rows) - rest))
        states = torch.stack([state for _, state in rows])
        states = layer.output(layer.intermediate(states), states)
        rows = [(members, state) for (members, _), state in zip(rows, states, strict=True)]
    restored = torch.zeros(len(ids), states.shape[1])
    for members, state in rows:
        restored[members] = state
    return restored, counts


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"inflection": -1.0}, {"proportional": False}, {"r": 0.5}])
def test_it_is_what_the_paper_says(options: dict[str, Any]) -> None:
    model = plain("bert", "tokens")
    ids = batch_of("bert", (13,))["input_ids"][0]
    options = {"r": 0.2, "inflection": 0.0, "proportional": True} | options
    wanted, counts = reference(model, ids, **options)
    compressed = skim.compress(copy.deepcopy(model), ToMe(**options))
    for execution in ("masked", "packed", "narrowed"):
        with skim.execution(compressed, execution):
            assert_same(compressed.bert(input_ids=ids[None]).last_hidden_state[0], wanted, what=execution)
        assert compressed.trace.counts()[:, 0].tolist() == counts
    chained = skim.compress(copy.deepcopy(model), skim.Chain([ToMe(**options), skim.LayerDrop([0, 1, 2])])).eval()
    assert_same(chained.bert(input_ids=ids[None]).last_hidden_state[0], wanted, what="in a chain")


@torch.no_grad()
def test_a_shift_and_a_target_move_r() -> None:
    compressed = skim.compress(plain("bert"), ToMe(target=0.6)).eval()
    batches = [batch_of("bert", (40, 31, 22)), batch_of("bert", (17, 35, 9))]
    assert skim.calibrate(compressed, batches) == pytest.approx(0.6, abs=0.02)
    assert compressed.method.shift < 0
    compressed.method.shift.fill_(0.08)
    compressed(**batches[0])
    assert compressed.trace.relative_flops() > 1  # nothing is merged, and what looking for it costs is told


def test_it_refuses_to_merge_nothing() -> None:
    compressed = skim.compress(plain("bert"), ToMe(r=0))
    with pytest.raises(SkimError, match=r"r=0.0.* merges nothing"):
        compressed.method.check_fit()
    with pytest.raises(SkimError, match="funnel and tome cannot be in one chain"):
        skim.compress(plain("bert"), skim.Chain(["funnel", "tome"]))
