"""Halting: Graves' rule and its mix, who is computed and who is only looked at, presets and refusals."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import skim
import skim.engine.trace
import skim.methods.act
from skim.calibration import check_survivors
from skim.engine.packed import PackedTokens
from skim.engine.tokens import Charge, Sequences
from skim.engine.trace import LayerTrace
from skim.engine.walk import FORMS
from skim.errors import SkimError
from skim.flops import LayerCost
from skim.methods import Spec
from skim.methods.act import ACT, PUBLISHED, halting_step, runs_on
from tests.families import batch_of, labels_of, plain
from tests.ragged import assert_same

SHARED = {"num_hidden_groups": 1, "inner_group_num": 1, "num_hidden_layers": 5}
PARTS = ("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense")
share = st.floats(0, 1, width=32)


def built(method: Any, layers: int = 4, width: int = 3) -> Any:
    method.build(Spec(layers=layers, width=width))
    return method.eval()


# the rule


@given(st.lists(st.lists(share, min_size=4, max_size=4), min_size=1, max_size=8), st.floats(0.001, 0.5), st.booleans())
@settings(max_examples=100, deadline=None)
def test_what_a_token_spends_is_one(steps: list[list[float]], epsilon: float, ends: bool) -> None:
    """Weights of a token that halts sum up to 1; its probability rises, to 1; its remainder is what was missing."""
    summed, weights, halted = torch.zeros(4), torch.zeros(4), torch.zeros(4, dtype=torch.bool)
    for k, p in enumerate(torch.tensor(steps)):
        step = halting_step(p, summed, epsilon, last=ends and k == len(steps) - 1)
        new = ~halted
        assert torch.equal(step.halts, summed + p > 1 - epsilon) or (ends and k == len(steps) - 1)
        assert (step.remainder[step.halts] == 1 - summed[step.halts]).all()
        assert not step.remainder[~step.halts].any()
        assert ((step.weight >= 0) & (step.weight <= 1))[new].all()
        assert (step.probability >= summed)[new].all()
        assert (step.probability[step.halts] == 1).all()
        assert torch.equal(step.weight[~step.halts], p[~step.halts])
        weights += step.weight * new
        summed = torch.where(new, step.probability, summed)
        halted = halted | step.halts
    assert torch.allclose(weights[halted], torch.ones(()), atol=1e-6)
    assert (weights[~halted] <= 1 - epsilon + 1e-6).all()
    assert halted.all() or not ends


def test_relaxed_decisions_are_hard_with_a_gradient() -> None:
    total = torch.tensor([0.2, 0.98, 0.99, 1.2], requires_grad=True)
    goes_on = runs_on(total, epsilon=0.01, temperature=0.2)
    assert goes_on.tolist() == [1.0, 1.0, float(total[2] <= 0.99), 0.0]
    goes_on.sum().backward()
    soft = torch.sigmoid((0.99 - total.detach()) / 0.2)
    assert torch.allclose(total.grad, -soft * (1 - soft) / 0.2)


class Told(ACT):
    """Halting probabilities are what the states' first channel says."""

    def probability(self, i: int, hidden: Tensor) -> Tensor:
        return hidden[..., 0]


def one_token(states: Tensor, mix: str, epsilon: float, ends: bool) -> tuple[Tensor, float, float, float]:
    """Graves' mix of one token's states ``(L + 1, D)``, step by step: the end, updates, remainder, probability."""
    x, spent, remainder = states[0], 0.0, 0.0
    for k, y in enumerate(states[1:], start=1):
        last, p = k == len(states) - 1, float(y[0])
        asked = not last or (mix == "act" and not ends)
        if mix == "gate":
            x = y
            spent += p if asked else 0.0
            if spent > 1 - epsilon:
                return x, k, 0.0, spent
        elif not asked or spent + p > 1 - epsilon:
            remainder = 1 - spent
            return remainder * y + (1 - remainder) * x, k, remainder, 1.0
        else:
            x, spent = p * y + (1 - p) * x, spent + p
    return x, len(states) - 1, 0.0, spent


@given(st.integers(0, 10**6), st.sampled_from([("gate", True), ("act", True), ("act", False)]), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_the_mix_is_what_a_loop_over_tokens_gives(seed: int, kind: tuple[str, bool], layers: int) -> None:
    (mix, ends), epsilon = kind, 0.05
    generator = torch.Generator().manual_seed(seed)
    batch, positions = 3, 5
    states = torch.rand(layers + 1, batch, positions, 3, generator=generator)
    states[..., 0] *= 0.7
    real = torch.rand(batch, positions, generator=generator) < 0.8
    sequences = Sequences(real, torch.zeros_like(real))
    for form in ("masked", "packed"):
        method = built(Told(mix=mix, epsilon=epsilon, final_remainder=ends), layers)
        tokens = FORMS[form].start(states[0], sequences)
        for i in range(layers):
            rows = [tokens.occupancy.rows(channel) for channel in states[i + 1].unbind(-1)]
            tokens = method.after_layer(i, tokens, tokens.with_hidden(torch.stack(rows, -1)))
        found, state = tokens.restore(), tokens.carry
        for b, n in real.nonzero().tolist():
            x, updates, remainder, spent = one_token(states[:, b, n], mix, epsilon, ends)
            assert state.updates[b, n] == updates, form
            assert torch.allclose(found[b, n], x, atol=1e-5), form
            assert float(state.remainders[b, n]) == pytest.approx(remainder, abs=1e-5), form
            assert float(state.probability[b, n]) == pytest.approx(spent, abs=1e-5), form
        for values in (state.updates, state.remainders, state.probability):
            assert not values[~real].any()


def test_bias_and_shift() -> None:
    """Half of the probability is spent over all layers to begin with; shift scales it, and turns nothing into NaN."""
    method = built(ACT(), layers=10)
    method.units[0].weight.data.zero_()
    rows = torch.randn(2, 3)
    assert torch.allclose(method.probability(0, rows), torch.tensor(0.05))
    for shift, wanted in {0.5: 0.05 * math.exp(-0.5), -1.0: 0.05 * math.e, -1e4: 1.0, 1e4: 0.0}.items():
        method.shift.fill_(shift)
        assert torch.allclose(method.probability(0, rows), torch.tensor(wanted))
    assert built(ACT(preset="small"), layers=12).units[0].bias.item() == 0.0
    assert built(ACT(bias_init=-2.0)).units[0].bias.item() == -2.0


def test_units_that_would_learn_nothing_are_not_made() -> None:
    """Nobody decides after the last layer, unless what is left there stays unspent, as published."""
    for options, asked in (({}, 3), ({"mix": "act"}, 3), ({"mix": "act", "final_remainder": False}, 4)):
        method = built(ACT(share_head=False, **options))
        assert len(method.units) == asked
        assert [charged(method, i) for i in range(4)] == [6.0] * asked + [0.0] * (4 - asked)
        assert len(built(ACT(**options)).units) == 1
    assert not built(ACT(), layers=1).units


def charged(method: ACT, i: int) -> float:
    """FLOPs per token that the method charges in a layer."""
    real = torch.ones(1, 2, dtype=torch.bool)
    tokens = FORMS["packed"].start(torch.zeros(1, 2, method.spec.width), Sequences(real, ~real))
    return sum(float(charge.flops()) for charge in method.after_layer(i, tokens, tokens).charges) / 2


# the loss


def spent(updates: list[list[float]], remainders: list[list[float]]) -> Any:
    """A trace of a batch of 3 and 1 tokens that have come this far."""
    real = torch.tensor([[True] * 3, [True, False, False]])
    trace = skim.engine.trace.Trace(Sequences(real, real), "packed")
    trace.carry = skim.methods.act.Halting(torch.ones(2, 3), torch.tensor(updates), torch.tensor(remainders))
    return trace


def test_ponder_cost_and_its_weight() -> None:
    trace = spent([[2.0, 3, 4], [1, 0, 0]], [[0.5, 0.25, 0.0], [0.25, 0, 0]])
    mean = built(ACT(mix="act", tau=0.1, warmup=0.5))
    assert mean.penalties(trace) == {"ponder": torch.tensor(11 / 4)}
    assert built(ACT(mix="act", ponder_reduction="sum")).penalties(trace) == {"ponder": torch.tensor((9.75 + 1.25) / 2)}
    for progress, weight in ((0.0, 0.0), (0.25, 0.05), (0.5, 0.1), (1.0, 0.1)):
        mean.step(progress)
        assert mean.weights() == pytest.approx({"ponder": weight})
    assert float(mean.loss(trace)) == pytest.approx(0.1 * 11 / 4)
    assert built(ACT(preset="base"), 24).weights() == {"ponder": 2.5e-4}
    assert built(ACT(mix="act", target=0.5)).price(trace) == {"ponder": torch.tensor(11 / 16)}


@pytest.mark.parametrize("mix", ["gate", "act"])
def test_a_target_is_steered_to(mix: str) -> None:
    """The coefficient rises above the target and falls below it; with it, training spends less, by halting earlier."""
    model, batch = plain("bert"), batch_of("bert")
    compressed = skim.compress(model, ACT(mix=mix, target=0.6, warmup=0.0)).train()
    method = compressed.method
    method.units[0].bias.data.fill_(-0.2 if mix == "act" else -1.0)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    spent, coefficients = [], []
    for k in range(12):
        compressed(**batch)
        method.step(k / 12, compressed.trace)
        assert set(method.terms(compressed.trace)) == {"relative_flops" if mix == "gate" else "ponder"}
        optimizer.zero_grad()
        method.loss(compressed.trace).backward()
        optimizer.step()
        spent.append(float(compressed.trace.relative_flops()))
        coefficients.append(float(method.budget.coefficient))
    assert spent[0] > 0.9
    assert coefficients[0] > 1
    assert spent[-1] < 0.75
    assert coefficients[-1] != coefficients[0]
    method.shift.fill_(-1e4)
    compressed(**batch)
    method.step(1.0, compressed.trace)
    assert compressed.trace.relative_flops() < 0.6
    assert method.budget.coefficient < coefficients[-1]


# what is computed


@st.composite
def halts(draw: st.DrawFn) -> tuple[Tensor, list[Tensor]]:
    """Who is real, ``(B, N)``, and some rounds of who runs on."""
    batch, positions = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    bits = st.lists(st.booleans(), min_size=batch * positions, max_size=batch * positions)
    real, *rounds = (torch.tensor(draw(bits)).view(batch, positions) for _ in range(draw(st.integers(2, 5))))
    return real, rounds


@given(halts())
@settings(max_examples=80, deadline=None)
def test_forms_halt_alike(story: tuple[Tensor, list[Tensor]]) -> None:
    """Whoever has halted stays so, whatever is said of it later; all are looked at, with their last states."""
    real, rounds = story
    hidden = torch.arange(real.numel(), dtype=torch.float).view(*real.shape, 1) + 1
    masked, packed = (FORMS[form].start(hidden, Sequences(real, real)) for form in ("masked", "packed"))
    last, running = hidden.clone(), real
    for flags in rounds:
        running = running & flags
        masked, packed = (tokens.halt(tokens.occupancy.rows(flags.float())) for tokens in (masked, packed))
        looked_at = (packed.memory or packed).hidden[0, :, 0]  # nobody has halted: no memory
        assert torch.equal(looked_at, last[real].squeeze(1))
        masked, packed = (tokens.with_hidden(tokens.hidden * 2) for tokens in (masked, packed))
        last = torch.where(running[..., None], last * 2, last)
        for tokens in (masked, packed):
            assert torch.equal(tokens.occupancy.alive(), running)
            assert tokens.occupancy.counts().long().tolist() == running.sum(1).tolist()
            assert torch.equal((tokens.memory or tokens).occupancy.alive(), real)
            assert torch.equal(tokens.restore()[real], last[real])
        assert packed.hidden.shape[1] == running.sum()


@contextmanager
def rows_into(module: nn.Module) -> Iterator[list[int]]:
    """How many rows each call of a module gets."""
    seen: list[int] = []
    hook = module.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[:-1].numel()))
    try:
        yield seen
    finally:
        hook.remove()


def halting(family: str, spread: float, bias: float, **options: Any) -> tuple[nn.Module, dict]:
    """A model of which tokens halt after every layer but the last, and every sequence has some that do not."""
    compressed, batch = skim.compress(plain(family, **options), ACT()).eval(), batch_of(family)
    unit = compressed.method.units[0]
    unit.bias.data.fill_(bias)
    for seed in range(200):
        torch.manual_seed(seed)
        unit.weight.data.normal_(std=spread)
        with torch.no_grad():
            compressed(**batch)
        counts = compressed.trace.counts()
        if (counts.sum(1).diff() < 0).all() and counts[-1].all():
            return compressed, batch
    raise AssertionError("no seed in 200 lets tokens halt after every layer")


@torch.no_grad()
def test_only_running_tokens_are_computed() -> None:
    """Queries and feed-forward of those who run; keys and values of all who are looked at."""
    compressed, batch = halting("bert", 1.0, 0.0)
    layers = compressed.bert.encoder.layer
    watched = {part: [layer.get_submodule(part) for layer in layers] for part in PARTS}
    seen = {}
    for part, modules in watched.items():
        seen[part] = []
        for module in modules:
            with rows_into(module) as rows:
                compressed(**batch)
            seen[part] += rows
    total, running = int(compressed.trace.lengths.sum()), compressed.trace.counts().sum(1).tolist()
    assert seen["attention.self.query"] == seen["intermediate.dense"] == running
    assert seen["attention.self.key"] == seen["attention.self.value"] == [total] * 3


@pytest.mark.parametrize("gradients", [False, True])
def test_a_shared_layer_projects_what_has_halted_once(gradients: bool) -> None:
    """The layer after the one that changed a state makes its key and value; the next ones find them made."""
    compressed, batch = halting("albert", 0.5, -1.5, **SHARED)
    attention = compressed.albert.encoder.albert_layer_groups[0].albert_layers[0].attention
    seen = {}
    for part in ("query", "key", "value"):
        with rows_into(getattr(attention, part)) as rows, torch.set_grad_enabled(gradients):
            compressed(**batch)
        seen[part] = rows
    running = compressed.trace.counts().sum(1).tolist()
    assert seen["query"] == running
    assert seen["key"] == seen["value"] == [running[0], *running[:-1]]


def test_a_layer_that_nobody_enters_costs_nothing() -> None:
    real = torch.tensor([[True, True, True], [True, True, False]])
    cost = LayerCost(attention=10, pair=3, feed_forward=7, keys=4)
    sequences = Sequences(real, torch.zeros_like(real))
    for form in ("masked", "packed"):
        tokens = FORMS[form].start(torch.zeros(2, 3, 1), sequences)
        keep = torch.tensor([[True, False, True], [False, False, False]])
        tokens = tokens.halt(tokens.occupancy.rows(keep))
        occupancy, looked_at = tokens.occupancy, tokens.memory.occupancy
        own = (Charge(occupancy, 5.0),)
        some = LayerTrace(occupancy, occupancy, cost, 0.0, looked_at, charges=own)
        assert some.flops().tolist() == [2 * 17 + 4 * (3 - 2) + 3 * 2 * 3 + 5 * 2, 0.0]
        cached = LayerTrace(occupancy, occupancy, cost, 0.0, looked_at, occupancy, own)
        assert cached.flops().tolist() == [2 * 17 + 3 * 2 * 3 + 5 * 2, 0.0]
        nobody = tokens.halt(torch.zeros_like(tokens.hidden[..., 0])).occupancy
        assert not LayerTrace(nobody, nobody, cost, 0.0, looked_at, charges=(Charge(nobody, 5.0),)).flops().any()


def test_layers_that_nobody_enters_get_a_gradient_in_training() -> None:
    """Of zero: with several processes, a gradient that one of them does not make hangs the others."""
    model, batch = plain("bert"), batch_of("bert")
    inputs = batch | labels_of("classification", batch)
    plainly = copy.deepcopy(model).train()
    plainly(**inputs).loss.backward()
    compressed = skim.compress(model, ACT(mix="act")).train()
    compressed.method.shift.fill_(-1e4)
    (compressed(**inputs).loss + compressed.method.loss(compressed.trace)).backward()
    assert compressed.trace.execution == "packed"
    assert compressed.trace.counts().sum(1).tolist() == [39, 0, 0]
    parameters = dict(compressed.named_parameters())
    for name, parameter in plainly.named_parameters():
        if parameter.grad is not None:
            assert parameters[name].grad is not None, name
            assert torch.isfinite(parameters[name].grad).all(), name
    assert all(parameter.grad is not None for parameter in compressed.method.parameters())


@pytest.mark.parametrize("mix", ["gate", "act"])
def test_gradient_checkpointing_changes_no_gradient(mix: str) -> None:
    model, batch = plain("bert", "tokens"), batch_of("bert")
    inputs = batch | labels_of("tokens", batch)
    gradients = []
    for checkpointing in (False, True):
        compressed = skim.compress(copy.deepcopy(model), ACT(mix=mix, bias_init=-0.6)).train()
        torch.manual_seed(1)
        compressed.method.units[0].weight.data.normal_(std=0.4)
        if checkpointing:
            compressed.gradient_checkpointing_enable()
        with rows_into(compressed.bert.encoder.layer[1].intermediate) as calls:
            (compressed(**inputs).loss + compressed.method.loss(compressed.trace)).backward()
        assert len(calls) == 1 + checkpointing
        assert compressed.trace.counts()[-1].sum() < compressed.trace.lengths.sum()
        gradients.append({name: p.grad for name, p in compressed.named_parameters() if p.grad is not None})
    one, other = gradients
    assert set(one) == set(other)
    for name, gradient in one.items():
        assert_same(other[name], gradient, tolerance=1e-6, what=name)


# refusals


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"preset": "huge"}, "tiny"),
        ({"mix": "akt"}, "act"),
        ({"ponder_reduction": "max"}, "mean"),
        ({"epsilon": 0.0}, "above 0"),
        ({"epsilon": 1.0}, "below 1"),
        ({"tau": -0.1}, "at least 0"),
        ({"temperature": 0.0}, "above 0"),
        ({"target": 0.0}, "above 0"),
        ({"target": 1.2}, "at most 1"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SkimError, match=says) as refused:
        ACT(**options)
    assert next(iter(options)) in str(refused.value)


@pytest.mark.parametrize(("preset", "layers"), [("tiny", 6), ("small", 12), ("base", 24)])
def test_a_published_preset_needs_its_number_of_layers(preset: str, layers: int) -> None:
    method = built(ACT(preset=preset), layers)
    options = (method.mix, method.ponder_reduction, method.final_remainder, method.warmup)
    assert options == ("act", "sum", False, 0.0)
    with pytest.raises(SkimError, match="num_hidden_layers"):
        built(ACT(preset=preset), layers + 1)


def test_a_backbone_whose_rows_cannot_look_at_others_is_refused() -> None:
    for family in ("deberta-v3", "mobilebert"):
        with pytest.raises(SkimError, match="transkimmer"):
            skim.compress(plain(family), ACT())


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_halted_tokens_are_not_merged(form: str) -> None:
    real = torch.ones(1, 4, dtype=torch.bool)
    tokens = FORMS[form].start(torch.zeros(1, 4, 1), Sequences(real, ~real))
    halted = tokens.halt(tokens.occupancy.rows(torch.tensor([[1.0, 0, 1, 1]])))
    with pytest.raises(SkimError, match="pool first"):
        halted.pool(2, torch.zeros_like(halted.hidden[..., 0], dtype=torch.bool))


@pytest.mark.parametrize("form", ["masked", "packed"])
@pytest.mark.parametrize("whole", [False, True])
def test_tokens_that_leave_where_others_have_halted_are_looked_at_no_longer(form: str, whole: bool) -> None:
    """By themselves or with their sequence; the halted ones stay, and every state is found again."""
    real = torch.tensor([[True] * 4, [True, True, True, False]])
    hidden = torch.arange(1.0, 9).view(2, 4, 1)
    tokens = FORMS[form].start(hidden, Sequences(real, ~real & real))
    tokens = tokens.halt(tokens.occupancy.rows(torch.tensor([[1.0, 0, 1, 1], [1, 1, 0, 0]])))
    tokens = tokens.with_hidden(tokens.hidden + 10 * tokens.occupancy.weights[..., None])
    if whole:
        tokens = tokens.leave(torch.tensor([False, True]))
        alive, seen = [[1, 0, 1, 1], [0, 0, 0, 0]], [[1, 1, 1, 1], [0, 0, 1, 0]]
    else:
        tokens = tokens.retire(tokens.occupancy.rows(torch.tensor([[1.0, 1, 0, 1], [0, 1, 1, 1]])))
        alive, seen = [[1, 0, 0, 1], [0, 1, 0, 0]], [[1, 1, 0, 1], [0, 1, 1, 0]]
    assert tokens.occupancy.alive().int().tolist() == alive
    assert tokens.memory.occupancy.alive().int().tolist() == seen
    tokens = tokens.with_hidden(tokens.hidden + 100 * tokens.occupancy.weights[..., None])
    ran, runs = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]]), torch.tensor(alive)
    wanted = hidden.squeeze(-1) + 10 * ran + 100 * runs
    assert tokens.restore().squeeze(-1)[real].tolist() == wanted[real].tolist()
    again = tokens.halt(tokens.occupancy.rows(torch.tensor([[0.0, 0, 0, 1], [0, 0, 0, 0]])))
    assert again.memory.occupancy.alive().int().tolist() == seen
    assert again.restore().squeeze(-1)[real].tolist() == wanted[real].tolist()


@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_published_presets_may_halt_early(preset: str) -> None:
    """With a bias of zero nearly all tokens halt within three updates: nobody retires by that, so nobody objects."""
    updates = PUBLISHED[preset][0]
    model = plain("albert", num_hidden_layers=updates, inner_group_num=1, num_hidden_groups=1)
    compressed = skim.compress(model, ACT(preset=preset)).eval()
    check_survivors(compressed, [batch_of("albert")])


def test_hard_decisions_held_at_the_target_are_not_rewarded_for_pondering() -> None:
    method = ACT(mix="act", target=0.6)
    skim.compress(plain("bert"), method)
    for step in range(10):
        method.budget.step(step / 10, torch.tensor(0.6))
        assert abs(float(method.budget.coefficient)) < 1e-6


@pytest.mark.parametrize("mix", ["act", "gate"])
def test_half_precision_keeps_the_shift(mix: str) -> None:
    model = skim.compress(plain("bert").half(), ACT(mix=mix)).eval()
    assert model.method.shift.dtype == torch.float32
    with torch.no_grad():
        assert torch.isfinite(model(**batch_of("bert")).logits).all()


def test_a_first_state_in_half_precision_meets_a_layer_that_is_not() -> None:
    """As CUDA's autocast leaves them for ALBERT."""
    sequences = Sequences(torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.bool))
    method = ACT()
    method.build(Spec(layers=2, width=4))
    before = PackedTokens.start(torch.randn(1, 3, 4).bfloat16(), sequences)
    after = method.after_layer(0, before, before.with_hidden(torch.randn(1, 3, 4)))
    assert after.hidden.dtype == torch.float32
