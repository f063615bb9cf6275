"""Pooling: which rows make a window, what becomes of its tokens, and what Funnel computes by it."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import skim
from skim.engine.pooling import POOLINGS, openings, pooled
from skim.engine.tokens import Sequences, TokenBatch
from skim.engine.walk import FORMS
from skim.errors import SkimError
from skim.methods import Spec
from skim.methods.act import ACT
from skim.methods.funnel import Funnel, full_windows, thirds
from tests.families import batch_of, labels_of, plain
from tests.methods.test_act import rows_into
from tests.ragged import assert_same

Row = tuple[list[int], Tensor]  # the tokens that a row merges, and its state ``(D,)``


def windows(rows: list[Row], alone: list[bool], stride: int, kind: str) -> list[Row]:
    """Merge the rows of one sequence, one after the other."""
    groups: list[list[int]] = []
    for k in range(len(rows)):
        open_ = groups and not alone[k] and not alone[groups[-1][0]] and len(groups[-1]) < stride
        groups[-1].append(k) if open_ else groups.append([k])
    reduce = torch.mean if kind == "mean" else torch.amax
    return [([n for k in g for n in rows[k][0]], reduce(torch.stack([rows[k][1] for k in g]), 0)) for g in groups]


@given(st.lists(st.lists(st.booleans(), max_size=9), max_size=4), st.integers(1, 4), st.sampled_from(POOLINGS))
@settings(max_examples=100, deadline=None)
def test_windows_are_what_a_loop_over_rows_gives(texts: list[list[bool]], stride: int, kind: str) -> None:
    """Rows that stay alone cut the stretches between which windows are laid; no window spans two sequences."""
    states = torch.randn(sum(map(len, texts)), 2)
    wanted, opens, at = [], [], 0
    for alone in texts:
        merged = windows([([at + k], states[at + k]) for k in range(len(alone))], alone, stride, kind)
        opens += [row[0][0] for row in merged]
        wanted += [row[1] for row in merged]
        at += len(alone)
    first = torch.tensor([k == 0 for alone in texts for k in range(len(alone))], dtype=torch.bool)
    found = openings(first, torch.tensor([flag for alone in texts for flag in alone], dtype=torch.bool), stride)
    assert found.nonzero().squeeze(1).tolist() == opens
    size = torch.tensor([*opens, at]).diff()
    if wanted:
        assert torch.allclose(pooled(states, torch.tensor(opens), size, kind, stride), torch.stack(wanted), atol=1e-6)


@st.composite
def stories(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[tuple[str, Any, Any]]]:
    """Who is real and who is protected, ``(B, N)``, and rounds of retiring and pooling in any order."""
    batch, positions = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    bits = st.lists(st.booleans(), min_size=batch * positions, max_size=batch * positions)

    def flags() -> Tensor:
        return torch.tensor(draw(bits)).view(batch, positions)

    real = flags()
    protected = real & flags() if draw(st.booleans()) else torch.zeros_like(real)
    rounds: list[tuple[str, Any, Any]] = []
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            rounds.append(("retire", flags(), None))
        else:
            rounds.append((draw(st.sampled_from(POOLINGS)), flags(), draw(st.integers(2, 4))))
    return real, protected, rounds


@given(stories())
@settings(max_examples=100, deadline=None)
def test_forms_merge_and_retire_as_a_loop_over_tokens_does(story: tuple) -> None:
    """Pool after retire, retire after pool, pool after pool: each token has the last state of its row, wherever."""
    real, protected, rounds = story
    batch, positions = real.shape
    hidden = torch.randn(batch, positions, 2)
    sequences = Sequences(real, protected)
    rows = [[([n], hidden[b, n]) for n in range(positions) if real[b, n]] for b in range(batch)]
    last = hidden.clone()
    forms: dict[str, TokenBatch] = {name: form.start(hidden, sequences) for name, form in FORMS.items()}
    for what, flags, stride in rounds:
        for b in range(batch):
            if what == "retire":
                stay = [row for row in rows[b] if flags[b, row[0][0]] or protected[b, row[0][0]]]
                rows[b] = stay or rows[b][:1]
            else:
                rows[b] = windows(rows[b], [bool(flags[b, row[0][0]]) for row in rows[b]], stride, what)
            rows[b] = [(members, state * 2 + 1) for members, state in rows[b]]  # who is there moves on
            for members, state in rows[b]:
                last[b, members] = state
        for name, tokens in forms.items():
            here = tokens.occupancy.rows(flags.float())
            if what == "retire":
                tokens = tokens.retire(here)
            else:
                tokens = tokens.pool(stride, here > 0.5, what)
            forms[name] = tokens.with_hidden(tokens.hidden * 2 + 1)
    alive = torch.zeros_like(real)
    for b in range(batch):
        for members, _ in rows[b]:
            alive[b, members] = True
    for name, tokens in forms.items():
        occupancy = tokens.occupancy
        assert occupancy.counts().long().tolist() == [len(row) for row in rows], name
        assert torch.equal(occupancy.alive(), alive), name
        assert torch.allclose(tokens.restore()[real], last[real], atol=1e-4), name
        there = occupancy.weights > 0.5
        at = [row[0][0] for here in rows for row in here]
        assert occupancy.position.expand_as(there)[there].tolist() == at, name


def test_windows_over_pads_average_them_in() -> None:
    """As published: a window is there if any of its tokens is, and pads weigh like tokens."""
    real = torch.tensor([[True, True, True, False, False], [True, False, False, False, False]])
    hidden = torch.arange(10.0).view(2, 5, 1)
    first = torch.zeros_like(real)
    first[:, 0] = True
    for form in ("masked", "narrowed"):
        tokens = FORMS[form].start(hidden, Sequences(real, first)).pool(2, first, "mean", pads=True)
        assert tokens.hidden.squeeze(2).tolist() == [[0.0, 1.5, 3.5], [5.0, 6.5, 8.5]]
        assert tokens.occupancy.weights.tolist() == [[True, True, False], [True, False, False]]
        assert tokens.occupancy.counts().tolist() == [2, 1]
        assert tokens.restore()[real].squeeze(1).tolist() == [0.0, 1.5, 1.5, 5.0]
    with pytest.raises(SkimError, match="execution=masked"):
        FORMS["packed"].start(hidden, Sequences(real, first)).pool(2, first[real], "mean", pads=True)


def test_merging_hands_on_the_gradient_of_decisions() -> None:
    """A window's state is the mean weighed by the decisions, and so is the decision on the window."""
    real = torch.ones(1, 4, dtype=torch.bool)
    tokens = FORMS["masked"].start(torch.zeros(1, 4, 1), Sequences(real, ~real))
    keep = torch.tensor([[1.0, 0.0, 1.0, 1.0]], requires_grad=True)
    assert tokens.retire(keep.detach()).pool(2, ~real).occupancy.counts().tolist() == [2]
    states = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    tokens = FORMS["masked"].start(states, Sequences(real, ~real))
    merged = tokens.retire(keep).pool(2, ~real)
    assert merged.hidden.flatten().tolist() == [2.5, 8.0]  # of tokens 0 and 2, and of the last one
    (by_state,) = torch.autograd.grad(merged.hidden[0, 0, 0], keep, retain_graph=True)
    assert by_state.tolist() == [[(1 - 2.5) / 2, 0.0, (4 - 2.5) / 2, 0.0]]
    (by_weight,) = torch.autograd.grad(merged.occupancy.weights[0, 0], keep)
    assert by_weight.tolist() == [[0.5, 0.0, 0.5, 0.0]]


@given(stories(), st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_full_windows_leave_no_window_short(story: tuple, stride: int) -> None:
    """Of each sequence its last tokens go, less than a window of them, and no protected one."""
    real, protected, _ = story
    for form in FORMS.values():
        tokens = form.start(torch.zeros(*real.shape, 1), Sequences(real, protected))
        alive = full_windows(tokens, stride).occupancy.alive()
        for row, whole, kept in zip(alive, real & ~protected, protected, strict=True):
            assert (row | ~kept).all()
            places = whole.nonzero().squeeze(1).tolist()
            stay = len(places) - len(places) % stride
            if stay or kept.any() or not places:
                assert (row & ~kept).nonzero().squeeze(1).tolist() == places[:stay]
            else:  # no sequence loses its last token
                assert row.nonzero().squeeze(1).tolist() == places[:1]


@pytest.mark.parametrize("form", FORMS)
def test_unpool_gives_every_token_a_row_again(form: str) -> None:
    real = torch.tensor([[True, True, True, False], [True, True, False, False]])
    tokens = FORMS[form].start(torch.randn(2, 4, 1), Sequences(real, ~real & real)).carrying("luggage")
    merged = tokens.pool(2, torch.zeros_like(tokens.hidden[..., 0], dtype=torch.bool))
    states = torch.randn(2, 4, 1)
    apart = merged.looking_at(tokens).unpool(states)
    assert merged.carry == apart.carry == "luggage"
    assert merged.looking_at(tokens).source is tokens
    assert apart.source is None
    assert type(apart) is type(merged)
    assert apart.occupancy.counts().tolist() == [3, 2]
    assert torch.equal(apart.restore()[real], states[real])
    assert apart.occupancy.merged is None


# what Funnel makes of them


def reference(model: nn.Module, ids: Tensor, options: dict[str, Any]) -> Tensor:
    """BERT over one unpadded text ``(N,)``, pooled before its second and third layer, by plain matrix products."""
    base, queries_only = model.bert, options.get("pool_q_only", True)
    rows = [([n], state) for n, state in enumerate(base.embeddings(input_ids=ids[None])[0])]
    for i, layer in enumerate(base.encoder.layer):
        before = torch.stack([state for _, state in rows])
        if i:
            alone = [options.get("separate_cls", True) and row[0] == [0] for row in rows]
            rows = windows(rows, alone, options.get("stride", 2), options.get("pooling", "mean"))
        after = torch.stack([state for _, state in rows])
        looked_at = before if queries_only else after
        part = layer.attention.self
        heads = model.config.num_attention_heads
        q, k, v = (
            linear(states).unflatten(1, (heads, -1)).transpose(0, 1)
            for linear, states in ((part.query, after), (part.key, looked_at), (part.value, looked_at))
        )
        context = ((q @ k.transpose(1, 2)) / q.shape[-1] ** 0.5).softmax(-1) @ v
        attended = layer.attention.output(context.transpose(0, 1).flatten(1), after)
        states = layer.output(layer.intermediate(attended), attended)
        rows = [(members, state) for (members, _), state in zip(rows, states, strict=True)]
    restored = torch.zeros(len(ids), states.shape[1])
    for members, state in rows:
        restored[members] = state
    return restored


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [{}, {"pool_q_only": False}, {"stride": 3, "pooling": "max"}, {"separate_cls": False, "pool_q_only": False}],
)
def test_it_is_what_the_paper_says(options: dict[str, Any]) -> None:
    model = plain("bert", "tokens")
    ids = batch_of("bert", (11,))["input_ids"][0]
    wanted = reference(model, ids, options)
    compressed = skim.compress(model, Funnel(**options))
    for execution in ("masked", "packed", "narrowed"):
        with skim.execution(compressed, execution):
            assert_same(compressed.bert(input_ids=ids[None]).last_hidden_state[0], wanted, what=execution)


@torch.no_grad()
def test_residual_adds_the_first_block_once() -> None:
    """At the head, or where decoder layers begin and nowhere else."""
    model, batch = plain("bert", "tokens"), batch_of("bert")
    mask = batch["attention_mask"].bool()

    def run(**options: Any) -> tuple[Any, dict[str, Tensor]]:
        compressed = skim.compress(copy.deepcopy(model), Funnel(**options)).eval()
        seen: dict[str, Tensor] = {}
        last = compressed.bert.encoder.layer[-1]
        hook = last.attention.self.query.register_forward_hook(lambda _, args, __: seen.update(into=args[0]))
        other = last.output.register_forward_hook(lambda _, __, out: seen.update(out=out))
        with skim.execution(compressed, "masked"):
            output = compressed.bert(**batch, output_hidden_states=True)
        hook.remove()
        other.remove()
        return output, seen

    without, _ = run()
    with_it, _ = run(residual=True)
    first_block = without.hidden_states[1]
    assert_same(with_it.last_hidden_state - without.last_hidden_state, first_block, mask)
    plainly, before = run(decoder_layers=1)
    added, after = run(decoder_layers=1, residual=True)
    assert plainly.last_hidden_state.shape == first_block.shape
    assert_same(after["into"] - before["into"], first_block, mask)
    assert_same(added.last_hidden_state, after["out"], mask)
    assert_same(plainly.last_hidden_state, before["out"], mask)
    assert_same(before["into"], plainly.hidden_states[2], mask)


@torch.no_grad()
def test_fewer_rows_are_computed() -> None:
    """Keys and values of the rows before they are merged, where only queries are; everything else of those after."""
    batch = batch_of("bert")
    rows = [13 + 9 + 6 + 11, 7 + 5 + 4 + 6, 4 + 3 + 3 + 4]
    for queries_only, keys in ((True, [rows[0], rows[0], rows[1]]), (False, rows)):
        compressed = skim.compress(plain("bert"), Funnel(pool_q_only=queries_only)).eval()
        for part, wanted in {"query": rows, "key": keys, "value": keys}.items():
            for i, layer in enumerate(compressed.bert.encoder.layer):
                with rows_into(getattr(layer.attention.self, part)) as seen:
                    compressed(**batch)
                assert seen == [wanted[i]], f"{part} {i}"
        assert compressed.trace.counts().sum(1).tolist() == rows
        assert (compressed.trace.layers_survived()[batch["attention_mask"].bool()] == 3).all()


@torch.no_grad()
def test_the_published_windows_depend_on_the_padding_and_the_default_ones_do_not() -> None:
    for preset, depends in (("paper", True), ("default", False)):
        compressed = skim.compress(plain("bert"), Funnel(preset=preset)).eval()
        wanted = compressed(**batch_of("bert", (6,))).logits
        assert compressed.trace.execution == ("masked" if depends else "packed")
        padded = compressed(**batch_of("bert", (6,), 9)).logits
        assert ((padded - wanted).abs().max() > 1e-3) == depends
        if depends:
            for execution in ("packed", "narrowed"):
                with pytest.raises(SkimError, match="preset=paper"):
                    compressed.skim_walk.execution = execution


@pytest.mark.parametrize("queries_only", [True, False])
def test_gradient_checkpointing_changes_no_gradient(queries_only: bool) -> None:
    batch = batch_of("bert")
    gradients = []
    for checkpointing in (False, True):
        compressed = skim.compress(plain("bert", "tokens"), Funnel(pool_q_only=queries_only)).train()
        if checkpointing:
            compressed.gradient_checkpointing_enable()
        with rows_into(compressed.bert.encoder.layer[1].intermediate) as calls:
            compressed(**batch, **labels_of("tokens", batch)).loss.backward()
        assert calls == [22] * (1 + checkpointing)
        assert compressed.trace.execution == "packed"
        gradients.append({name: p.grad for name, p in compressed.named_parameters() if p.grad is not None})
    one, other = gradients
    assert set(one) == set(other)
    for name, gradient in one.items():
        assert_same(other[name], gradient, tolerance=1e-6, what=name)


def adapted(model: nn.Module, targets: list[str]) -> nn.Module:
    """The model with LoRA adapters that do something."""
    torch.manual_seed(0)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, r=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model.eval()


class Halves(ACT):
    """Every other token halts after the first layer."""

    def probability(self, i: int, hidden: Tensor) -> Tensor:
        return (torch.arange(hidden.shape[1]) % 2 * (i == 0)).float().expand(hidden.shape[:2])


@torch.no_grad()
@pytest.mark.parametrize("make", [Funnel, Halves])
def test_adapters_on_attention(make: Any) -> None:
    """Whoever looks at others does so through the adapters; ModernBERT's sits where it cannot be taken apart."""
    model, batch = plain("bert"), batch_of("bert")
    without = skim.compress(copy.deepcopy(model), make())(**batch).logits
    compressed = skim.compress(adapted(model, ["query", "key", "value"]), make()).eval()
    found = compressed(**batch).logits
    counts = compressed.trace.counts().sum(1)
    assert compressed.trace.execution == "packed"
    assert counts[0] > counts[1] > 0
    assert (found - without).abs().max() > 1e-3
    merged = skim.compress(skim.decompress(compressed).merge_and_unload(), make()).eval()
    assert_same(merged(**batch).logits, found)
    compressed = skim.compress(adapted(plain("modernbert"), ["Wqkv"]), make()).eval()
    with pytest.raises(SkimError, match="Wo and Wi"):
        compressed(**batch_of("modernbert"))
    compressed = skim.compress(adapted(plain("modernbert"), ["Wo"]), make()).eval()
    assert torch.isfinite(compressed(**batch_of("modernbert")).logits).all()


# blocks and refusals


@pytest.mark.parametrize("layers", range(1, 14))
def test_thirds(layers: int) -> None:
    blocks = thirds(layers)
    assert sum(blocks) == layers
    assert len(blocks) == min(3, layers)
    assert sorted(blocks, reverse=True) == list(blocks)
    assert blocks[0] - blocks[-1] <= 1


def built(method: Funnel, layers: int = 6, looks_apart: bool = True) -> Funnel:
    method.build(Spec(layers=layers, width=8, looks_apart=looks_apart))
    return method


def test_blocks_say_where_windows_are_merged() -> None:
    assert built(Funnel()).merged_before == (2, 4)
    assert built(Funnel(blocks=[1, 2, 3])).merged_before == (1, 3)
    assert built(Funnel(blocks=(6,))).merged_before == ()
    assert (built(Funnel(decoder_layers=2)).merged_before, built(Funnel(decoder_layers=2)).decoder) == ((2, 3), 4)
    assert built(Funnel()).queries_only
    assert not built(Funnel(), looks_apart=False).queries_only
    assert not built(Funnel(pool_q_only=False)).queries_only


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"preset": "papr"}, "paper"),
        ({"pooling": "sum"}, "mean"),
        ({"stride": 1}, "at least 2"),
        ({"stride": 2.5}, "whole number"),
        ({"stride": None}, "whole number"),
        ({"stride": True}, "whole number"),
        ({"decoder_layers": 1.0}, "from 0 to 2"),
        ({"decoder_layers": None}, "from 0 to 2"),
        ({"decoder_layers": 3}, "from 0 to 2"),
        ({"decoder_layers": -1}, "from 0 to 2"),
        ({"blocks": []}, "at least 1"),
        ({"blocks": 3}, "at least 1"),
        ({"blocks": "33"}, "at least 1"),
        ({"blocks": ["a", "b"]}, "at least 1"),
        ({"blocks": [2, 2.5, 1.5]}, "at least 1"),
        ({"blocks": [True, 2]}, "at least 1"),
        ({"blocks": [3, 0]}, "at least 1"),
        ({"truncate_seq": True, "preset": "paper"}, "preset=default"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SkimError, match=says) as refused:
        Funnel(**options)
    assert next(iter(options)) in str(refused.value)


def test_what_the_backbone_cannot_is_refused() -> None:
    with pytest.raises(SkimError, match=r"add up to 3, such as \[1, 1, 1\]"):
        skim.compress(plain("bert"), Funnel(blocks=(4, 4, 4)))
    with pytest.raises(SkimError, match="add up to 2"):
        skim.compress(plain("bert"), Funnel(blocks=(1, 1, 1), decoder_layers=1))
    for family in ("deberta-v3", "mobilebert"):
        with pytest.raises(SkimError, match="Leave it out"):
            skim.compress(plain(family), Funnel(pool_q_only=True))
