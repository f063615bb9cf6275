"""Halted tokens on whole models: they cost nothing, they are looked at, and every execution counts them alike."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import skim
from skim.engine.tokens import TokenBatch
from skim.errors import SkimError
from skim.methods.act import ACT
from tests.families import batch_of, plain, rows_of
from tests.laws.cases import Case
from tests.ragged import Scripted, assert_flops, assert_same

halting = pytest.mark.where(lambda case: isinstance(case.row.make(), ACT))
gated = pytest.mark.where(lambda case: case.method == "act_gate")


@halting
def test_2_every_execution_updates_alike(case: Case, device: str) -> None:
    compressed, batch = case.compressed(device), case.batch(device)
    carried = []
    for execution in case.executions:
        with torch.no_grad(), skim.execution(compressed, execution):
            compressed(**batch)
        carried.append(compressed.trace.carry)
    for field in ("probability", "updates", "remainders"):
        one, other = (getattr(carry, field) for carry in carried)
        assert_same(one, other, what=field)
        assert not one[~batch["attention_mask"].bool()].any()


@halting
def test_2_no_rectangle_gets_narrower_by_halting(case: Case) -> None:
    compressed, batch = case.compressed(), case.batch()
    with skim.execution(compressed, "narrowed"), pytest.raises(SkimError, match="execution=packed"):
        compressed(**batch)


@gated
def test_4_the_penalty_presses_to_halt_earlier(case: Case, device: str) -> None:
    """Without a target as with one."""
    for target in (False, True):
        compressed, batch = case.compressed(device).train(), case.batch(device)
        method = compressed.method
        if target:
            case.row.steer(method)
            method.to(device)
        compressed(**batch)
        method.step(1.0, compressed.trace)
        loss = method.loss(compressed.trace)
        assert loss > 0
        loss.backward()
        assert all(unit.bias.grad < 0 for unit in method.units)


@gated
def test_5_who_has_halted_costs_nothing(case: Case) -> None:
    """Everybody after the first layer: the others do not run, in the trace of every execution."""
    compressed, batch = case.compressed(), case.batch()
    compressed.method.shift.fill_(-1e4)
    assert_flops(compressed, batch)
    first, lengths = compressed.trace.layers[0], compressed.trace.lengths
    flops = first.cost(lengths, lengths, lengths) + 2.0 * compressed.method.spec.width * lengths
    for execution in ("masked", "packed"):
        for gradients in (False, True):
            with skim.execution(compressed, execution), torch.set_grad_enabled(gradients):
                compressed(**batch)
            assert torch.equal(compressed.trace.flops(), flops), f"{execution}, gradients {gradients}"


class Some(ACT):
    """All tokens of some sequences halt after the first layer, and as many of the others as otherwise."""

    def probability(self, i: int, hidden: torch.Tensor) -> torch.Tensor:
        return torch.where(self.done, 1.0, super().probability(i, hidden))

    def after_layer(self, i: int, before: TokenBatch, tokens: TokenBatch) -> TokenBatch:
        self.done = tokens.occupancy.spread(self.which if i == 0 else torch.zeros_like(self.which))
        return super().after_layer(i, before, tokens)


@gated
def test_5_sequences_that_have_halted_cost_nothing(case: Case) -> None:
    """Nobody looks at their keys and values, so none are made: FLOPs depend on no batch mate."""
    compressed, batch = case.compressed(), case.batch()
    there = batch["attention_mask"].bool().any(1).nonzero().flatten()
    method: Any = compressed.method
    method.__class__ = Some
    method.which = torch.zeros(len(batch["input_ids"]), dtype=torch.bool)
    method.which[there[1:3]] = True
    assert_flops(compressed, batch)
    trace, which = compressed.trace, method.which
    assert (trace.counts()[-1].bool() == (~which & (trace.lengths > 0))).all()
    logits = []
    for execution in ("packed", "masked"):
        with torch.no_grad(), skim.execution(compressed, execution):
            logits.append(compressed(**batch).logits)
    assert_same(*logits, batch["attention_mask"])
    assert torch.equal(compressed.trace.flops(), trace.flops())
    for row in there.tolist():
        method.which = which[row : row + 1]
        with torch.no_grad():
            compressed(**rows_of(case.family, batch, [row]))
        assert torch.equal(compressed.trace.flops(), trace.flops()[row : row + 1])


class Drawn(Scripted):
    """Retires before each layer and halts after it, as two scripts say; in some layers neither."""

    does = frozenset({"halts", "retires"})

    def __init__(self, keep: torch.Tensor, run: torch.Tensor, protect: tuple[str, ...] = ("cls",)) -> None:
        super().__init__(keep, protect)
        self.run = run

    def after_layer(self, i: int, before: TokenBatch, tokens: TokenBatch) -> TokenBatch:
        stand = before.occupancy.follow(before.hidden, tokens.occupancy)  # a masked row that has halted stays as it is
        hidden = torch.where((tokens.occupancy.weights > 0.5)[..., None], tokens.hidden, stand)
        tokens = tokens.with_hidden(hidden)
        return tokens.halt(tokens.occupancy.rows(self.run[i].to(hidden)))


@pytest.mark.parametrize("family", ["bert", "albert-shared"])
def test_2_and_5_tokens_retire_among_halted_ones(family: str) -> None:
    """Who retires is looked at no longer, though others have halted before, also where keys and values are kept."""
    batch, fell = batch_of(family), 0
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        keep, run = (torch.rand(5, *batch["input_ids"].shape, generator=generator) < 0.85 for _ in range(2))
        keep[seed % 4] = True
        compressed = skim.compress(copy.deepcopy(plain(family, "tokens")), Drawn(keep, run)).eval()
        outputs, traces = [], []
        for execution in ("masked", "packed"):
            with torch.no_grad(), skim.execution(compressed, execution):
                outputs.append(compressed(**batch, output_hidden_states=True))
            traces.append(compressed.trace)
        for one, other in zip(*(output.hidden_states for output in outputs), strict=True):
            assert_same(one, other, batch["attention_mask"])
        assert_same(outputs[0].logits, outputs[1].logits, batch["attention_mask"])
        assert torch.equal(traces[0].alive(), traces[1].alive())
        assert torch.equal(traces[0].flops(), traces[1].flops())
        assert_flops(compressed, batch)
        memory = [layer.looked_at for layer in traces[1].layers if layer.looked_at is not None]
        fell += int((memory[-1].counts() < memory[0].counts()).any())
    assert fell > 3


class Once(skim.Method):
    """Halts some tokens behind one layer, and lets others leave behind the next; asks for nothing in the others."""

    does = frozenset({"halts"})

    def __init__(self, at: int = 1) -> None:
        super().__init__()
        self.at = at

    def after_layer(self, i: int, before: TokenBatch, tokens: TokenBatch) -> TokenBatch:
        running = (tokens.occupancy.weights > 0.5)[..., None]  # a masked row that has halted keeps its state
        earlier = before.occupancy.follow(before.hidden, tokens.occupancy)
        tokens = tokens.with_hidden(torch.where(running, tokens.hidden, earlier))
        stays = tokens.occupancy.rows(tokens.sequences.position) % 3 > 0
        return tokens.halt(stays) if i == self.at else tokens

    def after_attention(self, i: int, tokens: TokenBatch, received: Tensor | None) -> TokenBatch:
        stays = tokens.occupancy.rows(tokens.sequences.position) != 4
        return tokens.retire(stays) if i == self.at + 1 else tokens


@pytest.mark.parametrize("family", ["bert", "albert-shared", "modernbert"])
def test_rows_that_run_on_are_looked_at_as_they_are(family: str) -> None:
    """Also in layers between two that halt: the memory has the states that rows have by now, and no older ones."""
    options = {} if family == "albert-shared" else {"num_hidden_layers": 5}
    model, batch = skim.compress(plain(family, **options), Once()).eval(), batch_of(family)
    found = {}
    for execution in ("masked", "packed"):
        with torch.no_grad(), skim.execution(model, execution):
            found[execution] = model(**batch).logits, model.trace.flops()
    assert_same(found["packed"][0], found["masked"][0])
    assert torch.equal(found["packed"][1], found["masked"][1])
    assert_flops(model, batch)


@pytest.mark.where(lambda case: case.method == "act_mix")
def test_4_layers_that_nobody_reaches_have_gradients_all_the_same(case: Case) -> None:
    """Of zero: who trains on several devices waits for those of every weight."""
    compressed = case.compressed().train()
    compressed.method.shift.fill_(-1e4)
    compressed(**case.labelled(case.some(case.batch(), pools_only=True))).loss.backward()
    assert compressed.trace.execution == "packed"
    assert not compressed.trace.counts()[1:].any()
    walk = compressed.skim_walk
    grads = [p.grad for layer in walk.backbone.layers(walk.base) for p in layer.parameters()]
    assert grads
    assert all(grad is not None for grad in grads)
