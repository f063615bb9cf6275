"""Numbers: bounds of half precision beside float32, derivatives in float64, and the same bits from the same seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import skim
from skim.engine.trace import Trace
from tests.laws.cases import Case
from tests.ragged import logits_of, on_real

# one that merges and one that halts stand for the chains, whose members are here alone as well
CHAINS = ("tome+ltp", "act+exit")


def dear(case: Case) -> bool:
    """Tell chains that are slow here."""
    return case.row.is_chain and case.method not in CHAINS


on_bert = pytest.mark.where(lambda case: case.family == "bert", once=True, dear=dear)

# of logits, as a share of the largest (or of 1), in sequences of which the same tokens stay and the same become one;
# about twice the largest error that a method shows here
BOUNDS = {torch.bfloat16: 0.05, torch.float16: 0.006}
AGREE = {torch.bfloat16: 0.9, torch.float16: 0.98}  # of the decisions, token by token and layer by layer


def places(trace: Trace) -> Tensor:
    """Where each token's row is in each layer, ``(L, B, N)``: at its own place or another's; -1 where it has left."""
    found = []
    for rows in (layer.feeding for layer in trace.layers):
        alive = rows.alive()
        at = torch.arange(alive.shape[1]).expand(alive.shape) if rows.merged is None else rows.merged
        found.append(at.masked_fill(~alive.bool(), -1))
    return torch.stack(found)


@on_bert
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_autocast_is_within_its_bound_of_float32(case: Case, dtype: torch.dtype) -> None:
    """In every execution; a decision that lies within the rounding may fall otherwise, few do."""
    model, batch = case.compressed(), case.some(case.batch())
    mask = batch["attention_mask"].bool()
    for execution in case.executions:
        with torch.no_grad(), skim.execution(model, execution):
            wanted, decided = logits_of(model(**batch)), places(model.trace)
            with torch.autocast("cpu", dtype):
                found = logits_of(model(**batch))
        agree = places(model.trace) == decided
        assert agree[:, mask].float().mean() >= AGREE[dtype]
        alike = (agree | ~mask).all(-1).all(0)
        assert alike.any()
        for name, value in wanted.items():
            error = on_real((found[name].float() - value), mask)[alike].abs().max()
            error = error / value[alike].abs().max().clamp(min=1.0)
            print(f"{case} {execution} {name} {dtype}: {error:.1e}, {int(alike.sum())} of {len(alike)} alike")
            assert error <= BOUNDS[dtype]


@pytest.fixture
def in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let methods compute in the model's float64 what they compute in float32 in every model."""
    monkeypatch.setattr(Tensor, "float", lambda self: self.double())


def assert_derivatives(case: Case, model: nn.Module, inputs: dict[str, Tensor], said: Callable[[Any], Tensor]) -> None:
    """Compare derivatives with central differences, as torch's gradcheck in its fast mode: in random directions.

    Of weights below, between and in the method; in longer steps, and less exactly, where a method carries float32 in
    every model. Gradcheck itself would go through a failing one entry by entry.
    """
    step, near, absolute = (1e-6, 1e-4, 1e-6) if case.row.tolerance < 1e-6 else (1e-3, 1e-2, 2e-3)
    places = ("word_embeddings.weight", "layer.0.attention.self.query.weight", "layer.1.output.dense.weight", "method.")
    values = {
        n: p.detach().double().requires_grad_() for n, p in model.named_parameters() if any(i in n for i in places)
    }

    def at(moved: dict[str, Tensor]) -> Tensor:
        return said(functional_call(model, values | moved, (), inputs))

    output = at({})
    weights = torch.randn(output.shape, dtype=output.dtype)
    found = torch.autograd.grad((output * weights).sum(), list(values.values()), allow_unused=True)
    gradients = {n: torch.zeros(()) if g is None else g for n, g in zip(values, found, strict=True)}
    for place in places:
        ways = {name: torch.randn(value.shape, dtype=value.dtype) for name, value in values.items() if place in name}
        length = sum(float((way**2).sum()) for way in ways.values()) ** 0.5
        ends = [at({n: values[n] + s * step / length * way for n, way in ways.items()}) for s in (1, -1)]
        difference = float(((ends[0] - ends[1]) * weights).sum()) / (2 * step)
        derivative = sum(float((gradients[n] * way).sum()) for n, way in ways.items()) / (length or 1.0)
        assert derivative == pytest.approx(difference, rel=near, abs=absolute), place


@on_bert
def test_gradcheck_as_it_runs(case: Case, in_double: None) -> None:
    """What the tokens that stay compute, packed: decisions stand, and carry no gradient."""
    model, batch = case.compressed().double(), case.some(case.batch())
    mask = batch["attention_mask"]
    assert_derivatives(case, model, batch, lambda output: on_real(output.logits, mask))
    assert model.trace.execution == "packed"


# hard forwards and smooth backwards, a step has no derivative: tests/methods/test_golden*.py hold these gradients
STRAIGHT = ("transkimmer", "act")


@pytest.mark.where(
    lambda case: (
        case.family == "bert" and case.row.make().trains_masked and not any(n in case.method for n in STRAIGHT)
    ),
    once=True,
    dear=dear,
)
def test_gradcheck_of_relaxed_decisions(case: Case, in_double: None) -> None:
    """Of the task's loss and the method's penalties together, with every decision in doubt."""
    model = case.compressed().double().train()
    case.row.blur(model.method)
    inputs = case.labelled(case.some(case.batch()))
    assert_derivatives(case, model, inputs, lambda output: output.loss + model.method.loss(model.trace))


def learned(case: Case, seed: int) -> list[Tensor]:
    """Train for two steps from a seed, with dropout and a method's own noise; every weight and buffer, and logits."""
    model = case.compressed().train()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.1
    torch.manual_seed(seed)
    inputs = case.labelled(case.some(case.batch()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(2):
        loss = model(**inputs).loss
        model.method.step(step / 2, model.trace)
        (loss + model.method.loss(model.trace)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        logits = model.eval()(**case.some(case.batch())).logits
    return [*(value.clone() for value in model.state_dict().values()), logits]


@on_bert
def test_the_same_seed_gives_the_same_bits(case: Case) -> None:
    one, other = learned(case, 1), learned(case, 1)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    if case.method in ("dense", "transkimmer"):
        assert not all(torch.equal(a, b) for a, b in zip(one, learned(case, 2), strict=True))
