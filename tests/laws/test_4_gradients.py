"""Law 4: gradients reach every parameter of a method, and every weight that the plain model's loss reaches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import skim
from tests.families import batch_of
from tests.laws.cases import Case


def trained(case: Case, device: str = "cpu") -> tuple[Any, Any]:
    """Take a case's model in training, and its method, with every decision in doubt."""
    compressed = case.compressed(device).train()
    case.row.blur(compressed.method)
    return compressed, compressed.method


def unused(compressed: Any) -> set[Any]:
    """Find the weights of layers that did not run, and nowhere else."""
    walk, ran = compressed.skim_walk, (set(), set())
    for layer, entry in zip(walk.backbone.layers(walk.base), compressed.trace.layers, strict=True):
        ran[entry.ran].update(layer.parameters())
    return ran[False] - ran[True]


def test_4_gradients(case: Case, device: str) -> None:
    """Of the task's loss and the method's; all are finite, though a row of the batch is empty."""
    compressed, method = trained(case, device)
    inputs = case.labelled(case.some(case.batch(device), pools_only=True))
    plainly = skim.decompress(copy.deepcopy(compressed))
    plainly(**inputs).loss.backward()
    reached = {name for name, parameter in plainly.named_parameters() if parameter.grad is not None}
    loss = compressed(**inputs).loss
    for name, parameter in method.named_parameters():
        (alone,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        assert alone.abs().max() > 0, f"{name}, of the task alone"
    (loss + method.loss(compressed.trace)).backward()
    skipped = unused(compressed)
    for name, parameter in compressed.named_parameters():
        if (name in reached and parameter not in skipped) or name.startswith("method."):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        if name.startswith("method."):
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.where(lambda case: case.row.steer is not None)
def test_4_gradients_of_a_target(case: Case, device: str) -> None:
    """The penalty of a target reaches every parameter, too, and presses to compute less."""
    compressed, method = trained(case, device)
    case.row.steer(method)
    method.to(device)
    compressed(**case.batch(device))
    method.step(0.5, compressed.trace)
    loss = method.loss(compressed.trace)
    assert loss > 0
    loss.backward()
    for name, parameter in method.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.where(lambda case: not case.pools)
def test_4_texts_of_nothing_leave_a_training_finite(case: Case) -> None:
    """Losses, gradients, steering and, in double precision without gradients, outputs."""
    batch = batch_of(case.family, (0, 0), width=5)
    compressed, method = trained(case)
    if case.row.steer is not None:
        case.row.steer(method)
    output = compressed(**case.labelled(batch))
    assert torch.isfinite(output.logits).all()
    method.step(0.3, compressed.trace)
    assert all(torch.isfinite(buffer).all() for buffer in method.buffers())
    penalty = method.loss(compressed.trace)
    assert torch.isfinite(penalty)
    (output.logits.sum() + penalty).backward()
    assert all(torch.isfinite(p.grad).all() for p in compressed.parameters() if p.grad is not None)
    assert compressed.trace.relative_flops() == 1
    assert (compressed.trace.keep_ratio() == 1).all()
    with torch.no_grad():
        assert torch.isfinite(compressed.double().eval()(**batch).logits).all()
