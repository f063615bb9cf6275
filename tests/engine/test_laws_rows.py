"""The laws of DESIGN.md for the methods whose rows are not all tokens: ACT, where some have halted, and Funnel, where
several are one.

Laws 1 to 6 over the families of tests/families.py; law 7 is tests/methods/test_golden_act.py. ACT needs rows that look
at others than themselves, so it runs where the family says that its rows can; Funnel runs everywhere.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import skim
from skim.engine.tokens import TokenBatch
from skim.engine.trace import Trace
from skim.errors import SkimError
from skim.methods import Method
from skim.methods.act import ACT
from skim.methods.funnel import Funnel
from skim.methods.target import Target
from tests.families import FAMILIES, batch_of, has, labels_of, plain
from tests.ragged import assert_flops, assert_same, is_ragged, on_real

METHODS: dict[str, Callable[[], Method]] = {
    "act_gate": lambda: ACT(temperature=0.5),
    "act_mix": lambda: ACT(mix="act", share_head=False),
    "act_published": lambda: ACT(mix="act", final_remainder=False, ponder_reduction="sum", tau=1e-3),
    "funnel": lambda: Funnel(),
    "funnel_all": lambda: Funnel(pool_q_only=False),
    "funnel_max": lambda: Funnel(pooling="max", separate_cls=False, truncate_seq=True),
    "funnel_decoder": lambda: Funnel(residual=True, decoder_layers=1, stride=3),
}
ONE_LAYER = {"num_hidden_groups": 1, "inner_group_num": 1, "num_hidden_layers": 5}  # ALBERT, as it is published
MODELS = (*FAMILIES, "albert-shared")
LENGTHS = (13, 9, 6, 11)


def family_of(model: str) -> str:
    return model.removesuffix("-shared")


def head_of(model: str) -> str:
    return "tokens" if has(family_of(model), "tokens") else "classification"


def model_of(model: str) -> nn.Module:
    return plain(family_of(model), head_of(model), **(ONE_LAYER if model.endswith("-shared") else {}))


@functools.cache
def looks_apart(model: str) -> bool:
    return skim.compress(model_of(model), "dense").skim_walk.backbone.looks_apart


def applies(model: str, name: str) -> bool:
    """No ACT where rows cannot look apart, and Funnel pools keys and values anyway; variants run here and there."""
    if name in ("act_published", "funnel_all"):
        return model in ("bert", "albert-shared", "modernbert", "esm")
    return looks_apart(model) or name.startswith("funnel")


CASES = [(model, name) for model in MODELS for name in METHODS if applies(model, name)]
everywhere = pytest.mark.parametrize(("model", "name"), CASES)


def where(*names: str, models: tuple[str, ...] = MODELS) -> pytest.MarkDecorator:
    """Those of the cases, for what variants share."""
    cases = [case for case in CASES if case[1] in names and case[0] in models]
    return pytest.mark.parametrize(("model", "name"), cases)


def executions(model: str, name: str) -> tuple[str, ...]:
    """Every way to run it; halted rows do not make a rectangle narrower."""
    return tuple(e for e in FAMILIES[family_of(model)].executions if e != "narrowed" or "act" not in name)


def to(batch: dict, device: str) -> dict:
    return {key: value.to(device) for key, value in batch.items()}


def labelled(model: str, batch: dict) -> dict:
    labels = labels_of(head_of(model), {key: value.cpu() for key, value in batch.items()})
    return batch | to(labels, batch["input_ids"].device)


@functools.cache
def found(model: str, name: str) -> nn.Module:
    """A compressed model whose rows differ in number from sequence to sequence.

    Halting units are drawn anew until tokens halt after at least two layers, some run to the end, and nothing changes
    if all probabilities do by a thousandth: no decision hangs on rounding.
    """
    compressed = skim.compress(model_of(model), METHODS[name]()).eval()
    method, batch = compressed.method, batch_of(family_of(model))
    if isinstance(method, Funnel):
        return compressed
    for seed in range(300):
        torch.manual_seed(seed)
        for unit in method.units:
            unit.weight.data.normal_(std=0.4)
            unit.bias.data.fill_(-0.8 if model != "albert-shared" else -1.5)
        alive = []
        for shift in (1e-3, -1e-3, 0.0):
            method.shift.fill_(shift)
            with torch.no_grad(), skim.execution(compressed, "masked"):
                compressed(**batch)
            alive.append(compressed.trace.alive())
        clear = all(torch.equal(some, alive[-1]) for some in alive)
        if clear and is_ragged(compressed.trace.counts(), compressed.trace.lengths):
            return compressed
    raise AssertionError("no seed in 300 gave ragged halts")


def ragged(model: str, name: str, device: str = "cpu") -> tuple[nn.Module, dict]:
    """Such a model, in evaluation mode, and the batch of which that is known."""
    return copy.deepcopy(found(model, name)).to(device), to(batch_of(family_of(model)), device)


@where("act_gate", "funnel")
def test_1_identity(model: str, name: str, device: str) -> None:
    """Nobody halts, or there is one block: the plain model's outputs."""
    plainly, batch = model_of(model).to(device), to(batch_of(family_of(model)), device)
    method = METHODS[name]()
    if isinstance(method, Funnel):
        method = Funnel(blocks=(len(skim.compress(model_of(model), "dense").skim_walk.costs),))
    compressed = skim.compress(copy.deepcopy(plainly), method)
    if isinstance(method, ACT):
        method.shift.fill_(1e4)
    with torch.no_grad():
        wanted = plainly(**batch, output_hidden_states=True)
        for execution in executions(model, name):
            with skim.execution(compressed, execution):
                output = compressed(**batch, output_hidden_states=True)
            assert compressed.trace.execution == execution
            assert (compressed.trace.keep_ratio() == 1).all()
            assert_same(output.logits, wanted.logits, batch["attention_mask"], what=f"{execution} logits")
            for i, (one, other) in enumerate(zip(output.hidden_states, wanted.hidden_states, strict=True)):
                assert_same(one, other, batch["attention_mask"], what=f"{execution} hidden_states[{i}]")


@everywhere
def test_2_masked_is_packed_is_narrowed(model: str, name: str, device: str) -> None:
    """Rows that are gone give what rows that are masked give, to those who run and to those who halted or merged."""
    compressed, batch = ragged(model, name, device)
    outputs, traces = {}, {}
    with torch.no_grad():
        for execution in executions(model, name):
            with skim.execution(compressed, execution):
                outputs[execution] = compressed(**batch, output_hidden_states=True)
            traces[execution] = compressed.trace
        method = compressed.method
        plainly = skim.decompress(compressed)(**batch)
    masked, trace = outputs.pop("masked"), traces["masked"]
    check_counts(method, trace)
    assert on_real(masked.logits - plainly.logits, batch["attention_mask"]).abs().max() > 1e-3
    assert outputs
    for execution, output in outputs.items():
        assert traces[execution].execution == execution
        assert torch.equal(traces[execution].counts().long(), trace.counts().long())
        assert torch.equal(traces[execution].alive(), trace.alive())
        assert_same(traces[execution].flops(), trace.flops(), what="flops")
        assert_same(output.logits, masked.logits, batch["attention_mask"], what=f"{execution} logits")
        for i, (one, other) in enumerate(zip(output.hidden_states, masked.hidden_states, strict=True)):
            assert_same(one, other, batch["attention_mask"], what=f"{execution} hidden_states[{i}]")
        for field in ("probability", "updates", "remainders") if "act" in name else ():
            one, other = (getattr(which.carry, field) for which in (traces[execution], trace))
            assert_same(one, other, what=f"{execution} {field}")
            assert not one[~trace.sequences.real].any()


def check_counts(method: Method, trace: Trace) -> None:
    """Rows fall in number, and to different numbers; what Funnel leaves of 13, 9, 6 and 11 tokens is known."""
    counts = trace.counts().long()
    if isinstance(method, ACT):
        assert is_ragged(counts, trace.lengths)
        return
    rows, wanted = list(LENGTHS), []
    for i in range(len(counts)):
        if i == method.decoder:
            rows = list(LENGTHS)
        elif i in method.merged_before and method.truncate_seq:
            rows = [n // method.stride for n in rows]
        elif i in method.merged_before:
            rows = [1 + math.ceil((n - 1) / method.stride) for n in rows]
        wanted.append(rows)
    assert counts.tolist() == wanted
    assert len(set(map(tuple, wanted))) >= 2


@where("act_gate", "act_mix", models=("bert",))
def test_2_no_rectangle_gets_narrower_by_halting(model: str, name: str) -> None:
    compressed, batch = ragged(model, name)
    with skim.execution(compressed, "narrowed"), pytest.raises(SkimError, match="execution=packed"):
        compressed(**batch)


@where("act_mix", "funnel", "funnel_all", "funnel_max", "funnel_decoder")
def test_2_training_is_packed(model: str, name: str, device: str) -> None:
    """No decision has a gradient, so training runs without the rows that are gone, and to the same gradients."""
    compressed, batch = ragged(model, name, device)
    compressed.train().double()  # in which both sum up to the same, whatever the order
    method, inputs = compressed.method, labelled(model, batch)
    grads = {}
    for execution in ("auto", "masked", "narrowed")[: 2 if "act" in name else 3]:
        compressed.zero_grad()
        with skim.execution(compressed, execution):
            loss = compressed(**inputs).loss + method.loss(compressed.trace)
        loss.backward()
        grads[execution] = {key: value.grad for key, value in compressed.named_parameters() if value.grad is not None}
        assert compressed.trace.execution == (executions(model, name)[1] if execution == "auto" else execution)
        check_counts(method, compressed.trace)
    masked = grads["masked"]
    scale = max(value.abs().max().item() for value in masked.values())
    tolerance = (1e-6 if "act" in name else 1e-9) * scale  # ACT's probabilities are float32 in every model
    assert scale > 1e-3
    for execution, others in grads.items():
        assert set(others) == set(masked)
        for key, value in others.items():
            assert (value - masked[key]).abs().max() <= tolerance, f"{execution} {key}"


@where("act_gate")
def test_2_relaxed_training_is_hard(model: str, name: str, device: str) -> None:
    """Relaxed decisions have a gradient of their own and nobody else's value: nothing leaks."""
    compressed, batch = ragged(model, name, device)
    with torch.no_grad():
        inferred = compressed(**batch)
        alive = compressed.trace.alive()
        assert compressed.trace.execution == "packed"
    trained = compressed.train()(**batch)
    assert compressed.trace.execution == "masked"
    assert compressed.trace.layers[-1].kept().requires_grad
    assert torch.equal(compressed.trace.alive(), alive)
    assert_same(trained.logits, inferred.logits, batch["attention_mask"], what="logits")


@everywhere
def test_3_batch_invariance(model: str, name: str, device: str) -> None:
    """A sequence's output depends on no batch mate, no order and no amount of padding."""
    compressed, batch = ragged(model, name, device)
    views = {"order, mates and padding": ([2, 0, 3], 19), **{f"alone {i}": ([i], LENGTHS[i] + i) for i in (0, 2)}}
    for execution in executions(model, name):
        with torch.no_grad(), skim.execution(compressed, execution):
            wanted = compressed(**batch)
            counts, flops = compressed.trace.counts(), compressed.trace.flops()
            for view, (rows, width) in views.items():
                other = to(batch_of(family_of(model), tuple(LENGTHS[i] for i in rows), width), device)
                again = compressed(**other)
                assert torch.equal(compressed.trace.counts(), counts[:, rows]), f"{execution} {view}"
                assert torch.equal(compressed.trace.flops(), flops[rows]), f"{execution} {view}"
                one, two = again.logits, wanted.logits[rows]
                if one.shape[:2] == other["attention_mask"].shape:
                    one, two = one[other["attention_mask"].bool()], two[batch["attention_mask"][rows].bool()]
                assert_same(one, two, what=f"{execution} {view}")


@where("act_gate", "act_mix", "act_published", "funnel")
def test_4_gradients(model: str, name: str, device: str) -> None:
    """Whatever the plain model's loss reaches, the loss reaches here; and the task alone reaches all of the method."""
    compressed, batch = ragged(model, name, device)
    inputs = labelled(model, batch)
    plainly = skim.decompress(copy.deepcopy(compressed)).train()
    plainly(**inputs).loss.backward()
    compressed.train()(**inputs).loss.backward()
    reached = {key for key, parameter in plainly.named_parameters() if parameter.grad is not None}
    for key, parameter in compressed.named_parameters():
        if key in reached or key.startswith("method."):
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
        if key.startswith("method."):
            assert parameter.grad.abs().max() > 0, key


@where("act_gate", "act_mix", "act_published", models=("bert", "albert-shared", "modernbert"))
@pytest.mark.parametrize("target", [None, 0.5])
def test_4_gradients_of_the_penalty(model: str, name: str, target: float | None, device: str) -> None:
    """They press every unit towards halting earlier, in relaxed decisions and in none."""
    compressed, batch = ragged(model, name, device)
    method = compressed.train().method
    if target is not None:
        method.target, method.steering = target, Target(target, warmup=0.0).to(device)
    method.zero_grad()
    compressed(**batch)
    method.step(1.0, compressed.trace)
    loss = method.loss(compressed.trace)
    assert loss > 0
    loss.backward()
    for key, parameter in method.named_parameters():
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().max() > 0, key
        if key.endswith("bias") and name == "act_gate":
            assert parameter.grad < 0


@everywhere
def test_5_flops_are_true(model: str, name: str) -> None:
    """Of queries that are fewer than keys, and of keys and values that halted tokens keep where layers are shared."""
    compressed, batch = ragged(model, name)
    for execution in executions(model, name)[1:]:
        alone = execution == "narrowed"  # who runs in a rectangle computes its filler rows: one sequence has none
        # of one row XLNet's einsum makes no matrix product, which torch's counter does not see: 6 tokens leave one
        for length in (13, 9, 11) if alone else (0,):
            with skim.execution(compressed, execution):
                assert_flops(compressed, batch_of(family_of(model), (length,)) if alone else batch)
            assert compressed.trace.execution == execution
            assert compressed.trace.relative_flops() < 1


@where("act_gate", "act_published")
def test_5_who_has_halted_costs_nothing(model: str, name: str) -> None:
    """Everybody after the first layer: the others do not run, in the trace of every execution."""
    compressed, batch = ragged(model, name)
    compressed.method.shift.fill_(-1e4)
    assert_flops(compressed, batch)
    first, lengths = compressed.trace.layers[0], compressed.trace.lengths
    flops = first.cost(lengths, lengths, lengths) + compressed.method.flops_per_token(0) * lengths
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


@pytest.mark.parametrize("model", [model for model in MODELS if looks_apart(model)])
def test_5_sequences_that_have_halted_cost_nothing(model: str) -> None:
    """Nobody looks at their keys and values, so none are made: FLOPs depend on no batch mate."""
    compressed, batch = ragged(model, "act_gate")
    compressed.method.__class__ = Some
    compressed.method.which = torch.tensor([False, True, True, False])
    assert_flops(compressed, batch)
    trace = compressed.trace
    assert trace.counts()[-1].bool().tolist() == [True, False, False, True]
    with torch.no_grad(), skim.execution(compressed, "packed"):
        packed = compressed(**batch).logits
    with torch.no_grad(), skim.execution(compressed, "masked"):
        masked = compressed(**batch).logits
    assert_same(packed, masked, batch["attention_mask"])
    assert torch.equal(compressed.trace.flops(), trace.flops())
    for row, done in enumerate(compressed.method.which.tolist()):
        compressed.method.which = torch.tensor([done])
        with torch.no_grad():
            compressed(**batch_of(family_of(model), (LENGTHS[row],)))
        assert torch.equal(compressed.trace.flops(), trace.flops()[row : row + 1])


@where("act_gate", "act_mix", "funnel_decoder")
def test_6_round_trip(model: str, name: str, tmp_path) -> None:
    """Saved and loaded, by skim and by plain transformers, a model says the same; and compress can be undone."""
    compressed, batch = ragged(model, name)
    mask = batch["attention_mask"]
    if "act" in name:
        compressed.method.shift.fill_(0.01)
    skim.save_pretrained(compressed, tmp_path)
    loaded = skim.from_pretrained(tmp_path)
    assert type(loaded.method) is type(compressed.method)
    assert loaded.method.options() == compressed.method.options()
    state = compressed.method.state_dict()
    assert ("shift" in state) == ("act" in name)
    assert set(loaded.method.state_dict()) == set(state)
    plainly, report = type(compressed).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, compressed(**batch).logits)
        assert torch.equal(loaded.trace.counts(), compressed.trace.counts())
        wanted = skim.decompress(compressed)(**batch).logits
        assert torch.equal(on_real(plainly.eval()(**batch).logits, mask), on_real(wanted, mask))


@where(*METHODS, models=("bert", "modernbert", "deberta-v3"))
def test_an_empty_text_changes_nothing_for_the_others(model: str, name: str) -> None:
    compressed, batch = ragged(model, name)
    gap = batch_of(model, (*LENGTHS[:2], 0, *LENGTHS[2:]))
    others = [0, 1, 3, 4]
    with torch.no_grad():
        for execution in executions(model, name):
            with skim.execution(compressed, execution):
                found, wanted = compressed(**gap), compressed(**batch)
            assert_same(found.logits[others], wanted.logits, batch["attention_mask"], what=execution)


def test_the_table_has_every_family_and_both_methods() -> None:
    assert {name for model, name in CASES if model == "bert"} == set(METHODS)
    assert {model for model, _ in CASES} == set(MODELS)
    apart = {model for model, name in CASES if name == "act_gate"}
    assert {"albert", "albert-shared", "roberta", "esm", "modernbert", "eurobert", "distilbert"} <= apart
    assert not apart & {"mobilebert", "deberta-v3", "xlnet", "mpnet"}
