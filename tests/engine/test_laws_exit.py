"""The laws of DESIGN.md for early exit, in every backbone family: whole sequences leave, at layers of their own."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

import skim
from skim.engine.trace import Trace
from skim.methods.early_exit import HALTINGS, EarlyExit, entropy
from tests.families import FAMILIES, batch_of, enliven, has, labels_of, plain
from tests.ragged import assert_flops, assert_same

LENGTHS = (13, 9, 6, 11)
families = pytest.mark.parametrize("family", [name for name in FAMILIES if has(name, "classification")])
everywhere = pytest.mark.parametrize("halting", HALTINGS)


def depths(trace: Trace) -> Tensor:
    """Layers that each sequence went through, ``(B,)``."""
    return torch.stack([layer.feeding.counts() > 0 for layer in trace.layers]).sum(0)


@torch.no_grad()
def shifts(compressed: nn.Module, batch: dict) -> list[float]:
    """What to move the decisions by: for entropy, to in between those that there are, which can lie close together."""
    method = compressed.method
    if method.halting != "entropy":
        return [0.0, *(sign * step / 4 for step in range(1, 12) for sign in (1, -1))]
    method.shift.fill_(200.0)
    compressed(**batch)
    found = torch.cat([entropy(logits) for logits in compressed.trace.carry.logits]).sort().values
    return (method.threshold / ((found[1:] + found[:-1]) / 2)).log().tolist()


@functools.cache
def found(family: str, halting: str) -> nn.Module:
    """A model whose sequences leave at different layers, one of them at the end; seeds and shifts are tried."""
    batch = batch_of(family)
    for seed in range(30):
        method = EarlyExit(halting, patience=1, threshold=0.7)
        compressed = skim.compress(plain(family, seed=seed), method).eval()
        enliven(method, seed)
        for shift in shifts(compressed, batch):
            if method.shift is not None:
                method.shift.fill_(shift)
            with torch.no_grad():
                compressed(**batch)
            left = depths(compressed.trace)
            if len(left.unique()) > 1 and left.max() == len(compressed.trace.layers):
                return compressed
    raise AssertionError("no seed in 30 gave exits at different layers")


def exiting(family: str, halting: str, device: str = "cpu") -> tuple[nn.Module, dict]:
    model = copy.deepcopy(found(family, halting)).to(device)
    return model, {name: value.to(device) for name, value in batch_of(family).items()}


@families
@everywhere
def test_1_identity(family: str, halting: str, device: str) -> None:
    """Nobody's answer is ever settled: the plain model's outputs, though the head was read behind every layer."""
    compressed, batch = exiting(family, halting, device)
    if halting == "patience":
        compressed.method.patience = 99
    else:
        compressed.method.shift.fill_(200.0)
    with torch.no_grad():
        wanted = skim.decompress(copy.deepcopy(compressed))(**batch).logits
        for execution in FAMILIES[family].executions:
            with skim.execution(compressed, execution):
                assert_same(compressed(**batch).logits, wanted, what=execution)
            assert (compressed.trace.keep_ratio() == 1).all()
            assert compressed.trace.relative_flops() > 1  # asking is not free


@families
@everywhere
def test_2_masked_is_packed_is_narrowed(family: str, halting: str, device: str) -> None:
    compressed, batch = exiting(family, halting, device)
    outputs, traces = {}, {}
    with torch.no_grad():
        for execution in FAMILIES[family].executions:
            with skim.execution(compressed, execution):
                outputs[execution] = compressed(**batch, output_hidden_states=True)
            traces[execution] = compressed.trace
        plainly = skim.decompress(compressed)(**batch).logits
    masked, trace = outputs.pop("masked"), traces["masked"]
    left = depths(trace)
    assert len(left.unique()) > 1
    early = left < len(trace.layers)
    assert ((masked.logits - plainly).abs().amax(1) > 1e-3)[early].all()
    assert_same(masked.logits[~early], plainly[~early], what="those who stayed to the end")
    for execution, output in outputs.items():
        assert traces[execution].execution == execution
        assert torch.equal(depths(traces[execution]), left)
        assert_same(traces[execution].flops(), trace.flops(), what="flops")
        assert_same(output.logits, masked.logits, what=execution)
        for i, (one, other) in enumerate(zip(output.hidden_states, masked.hidden_states, strict=True)):
            assert_same(one, other, batch["attention_mask"], what=f"{execution} hidden_states[{i}]")


@families
@everywhere
def test_3_batch_invariance(family: str, halting: str, device: str) -> None:
    compressed, batch = exiting(family, halting, device)
    views = {"order, mates and padding": ([2, 0, 3], 19), "alone": ([1], 9), "alone, padded": ([2], 8)}
    for execution in FAMILIES[family].executions:
        with torch.no_grad(), skim.execution(compressed, execution):
            wanted, left = compressed(**batch).logits, depths(compressed.trace)
            flops = compressed.trace.flops()
            for view, (rows, width) in views.items():
                other = batch_of(family, tuple(LENGTHS[i] for i in rows), width)
                again = compressed(**{name: value.to(device) for name, value in other.items()}).logits
                assert torch.equal(depths(compressed.trace), left[rows]), f"{execution} {view}"
                assert_same(compressed.trace.flops(), flops[rows], what=f"{execution} {view} flops")
                assert_same(again, wanted[rows], what=f"{execution} {view}")


@families
@everywhere
def test_4_gradients(family: str, halting: str, device: str) -> None:
    """In training nobody leaves; every exit's loss reaches every weight that the plain model's loss reaches."""
    compressed, batch = exiting(family, halting, device)
    inputs = batch | {name: value.to(device) for name, value in labels_of("classification", batch).items()}
    plainly = skim.decompress(copy.deepcopy(compressed)).train()
    plainly(**inputs).loss.backward()
    output = compressed.train()(**inputs)
    assert (depths(compressed.trace) == len(compressed.trace.layers)).all()
    (output.loss + compressed.method.loss(compressed.trace)).backward()
    reached = {name for name, parameter in plainly.named_parameters() if parameter.grad is not None}
    for name, parameter in compressed.named_parameters():
        if name in reached or name.startswith("method."):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        if name.startswith("method."):
            assert parameter.grad.abs().max() > 0, name


@families
@everywhere
def test_5_flops_are_true(family: str, halting: str) -> None:
    """Readings of the head included, of those who are still there."""
    compressed, batch = exiting(family, halting)
    whole = FAMILIES[family].packs and not compressed.skim_walk.head.per_token  # a head over pads is not counted
    for rows in [slice(0, 4)] if whole else [slice(i, i + 1) for i in range(4)]:
        some = {name: value[rows] for name, value in batch.items()}
        some = {name: value[:, some["attention_mask"].bool().any(0)] for name, value in some.items()}
        assert_flops(compressed, some)
    assert torch.as_tensor(compressed.trace.layers[0].sequence_cost > 0).all()
    assert compressed.trace.layers[-1].sequence_cost == 0.0


@families
@everywhere
def test_6_round_trip(family: str, halting: str, tmp_path) -> None:
    compressed, batch = exiting(family, halting)
    if halting != "patience":
        compressed.method.shift.fill_(0.01)
    skim.save_pretrained(compressed, tmp_path)
    loaded = skim.from_pretrained(tmp_path)
    assert loaded.method.options() == compressed.method.options()
    plainly, report = type(compressed).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, compressed(**batch).logits)
        undone = skim.decompress(compressed)
        assert "forward" not in vars(undone)
        assert torch.equal(plainly.eval()(**batch).logits, undone(**batch).logits)
