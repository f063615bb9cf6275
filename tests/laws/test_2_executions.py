"""Law 2: masked = packed = narrowed, with real drops of different size per sequence; and training leaks nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import skim
from skim.engine.trace import Trace
from tests.families import FAMILIES
from tests.laws.cases import Case
from tests.ragged import assert_same, entering, logits_of, on_real


def filled(case: Case, value: Tensor, mask: Tensor) -> Tensor:
    """Set what a head that averages says of no token at all to zero: it is not a number."""
    if not case.pools:
        return value
    empty = ~mask.bool().any(1)
    assert value[empty].isnan().all()
    return value.masked_fill(empty.view(-1, *[1] * (value.dim() - 1)), 0.0)


def assert_agree(case: Case, outputs: dict[str, Any], traces: dict[str, Trace], mask: Tensor) -> None:
    """Every execution has the rows, FLOPs, logits and hidden states of the masked one."""
    masked, trace = outputs["masked"], traces["masked"]
    for execution, output in outputs.items():
        found = traces[execution]
        assert found.execution == execution
        assert torch.equal(entering(found).long(), entering(trace).long())
        assert torch.equal(found.alive(), trace.alive())
        assert_same(found.flops(), trace.flops(), what="flops")
        for name, value in logits_of(masked).items():
            one, other = filled(case, output[name], mask), filled(case, value, mask)
            assert_same(one, other, mask, what=f"{execution} {name}")
        for i, (one, other) in enumerate(zip(output.hidden_states, masked.hidden_states, strict=True)):
            assert_same(one, other, mask, what=f"{execution} hidden_states[{i}]")


@torch.no_grad()
def run(case: Case, model: nn.Module, batch: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Trace]]:
    """Run a batch in each execution: outputs and traces."""
    outputs, traces = {}, {}
    for execution in case.executions:
        with skim.execution(model, execution):
            outputs[execution] = model(**batch, output_hidden_states=True)
        traces[execution] = model.trace
    return outputs, traces


@pytest.mark.where(lambda case: True, heads=FAMILIES)
def test_2_masked_is_packed_is_narrowed(case: Case, device: str) -> None:
    """Removing rows gives what masking them gives, to those who stay, and to those who halted, merged or left."""
    compressed, batch = case.compressed(device), case.batch(device)
    mask = batch["attention_mask"]
    outputs, traces = run(case, compressed, batch)
    with torch.no_grad():
        plainly = logits_of(skim.decompress(copy.deepcopy(compressed))(**case.some(batch)))
    masked, trace = outputs["masked"], traces["masked"]
    assert trace.lengths.tolist() == mask.sum(1).tolist()
    assert case.row.is_ragged(trace)
    there = mask.bool().any(1)
    moved = [
        on_real(logits_of(masked)[name][there] - value, mask[there]).abs().max() for name, value in plainly.items()
    ]
    assert case.method == "dense" or max(moved) > 1e-3
    assert_agree(case, outputs, traces, mask)


@pytest.mark.where(lambda case: case.row.trains_relaxed)
def test_2_relaxed_training_is_hard(case: Case, device: str) -> None:
    """Training through decisions, without noise, gives the outputs of inference: no accuracy can leak."""
    compressed, batch = case.compressed(device), case.batch(device)
    with torch.no_grad():
        inferred = compressed(**batch).logits
    alive = compressed.trace.alive()
    assert compressed.trace.execution == case.executions[1]
    case.row.harden(compressed.method)
    trained = compressed.train()(**batch).logits
    assert compressed.trace.execution == "masked"
    assert compressed.trace.layers[-1].feeding.kept.requires_grad
    assert torch.equal(compressed.trace.alive(), alive)
    assert_same(trained, inferred, batch["attention_mask"], what="logits")


@pytest.mark.where(lambda case: case.row.trains_packed)
def test_2_hard_training_is_packed(case: Case, device: str) -> None:
    """Where no gradient passes through decisions, training runs without the rows, and to the same gradients."""
    compressed = case.compressed(device).train().double()  # in which both sum up to the same, whatever the order
    inputs, method = case.labelled(case.batch(device)), compressed.method
    if method.stages:
        method.enter(method.stages[-1])
    losses, grads = {}, {}
    for execution in ("auto", *case.executions):
        compressed.zero_grad()
        with skim.execution(compressed, execution):
            losses[execution] = compressed(**inputs).loss + method.loss(compressed.trace)
        losses[execution].backward()
        grads[execution] = {name: p.grad for name, p in compressed.named_parameters() if p.grad is not None}
        assert compressed.trace.execution == (case.executions[1] if execution == "auto" else execution)
        assert case.row.is_ragged(compressed.trace)
    masked = grads["masked"]
    scale = max(value.abs().max().item() for value in masked.values())
    assert scale > 1e-3
    for execution, others in grads.items():
        assert_same(losses[execution], losses["masked"], tolerance=case.row.tolerance, what=f"{execution} loss")
        assert {name for name in others if "method." not in name} == {name for name in masked if "method." not in name}
        for name, value in others.items():
            error = (value - masked[name]).abs().max()
            assert error <= case.row.tolerance * scale, f"{execution} {name}: off by {error:.1e}"
