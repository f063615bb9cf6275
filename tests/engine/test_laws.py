"""The laws of DESIGN.md, for every backbone family and every head that transformers has for it.

Laws 1 to 6, with Transkimmer and scripted drops; test_laws_methods.py has the methods that prune by attention, and
tests/methods/test_golden.py law 7. The families come from tests/families.py: a family is supported
when it stands in that table and this file is green.
"""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

import skim
from tests.families import FAMILIES, PAIRS, batch_of, labels_of, plain
from tests.ragged import Scripted, assert_flops, assert_same, is_ragged, logits_of, on_real, transkimmer

everywhere = pytest.mark.parametrize(("family", "head"), PAIRS)
families = pytest.mark.parametrize("family", FAMILIES)


def to(batch: dict, device: str) -> dict:
    return {name: value.to(device) for name, value in batch.items()}


@everywhere
def test_1_identity(family: str, head: str, device: str) -> None:
    """A method told to drop nothing gives the plain Hugging Face model's outputs, in every execution."""
    model, batch = plain(family, head).to(device), to(batch_of(family) | labels_of(head, batch_of(family)), device)
    mask = batch["attention_mask"]
    compressed = skim.compress(copy.deepcopy(model), "dense")
    with torch.no_grad():
        wanted = model(**batch, output_hidden_states=True)
        for execution in FAMILIES[family].executions:
            with skim.execution(compressed, execution):
                found = compressed(**batch, output_hidden_states=True)
            assert type(found) is type(wanted)
            assert set(found) == set(wanted) - {"mems"}
            if head != "answers":  # transformers' span loss has the pads in its denominator
                assert_same(found.loss, wanted.loss, what=f"{execution} loss")
            for name, value in logits_of(wanted).items():
                assert_same(found[name], value, mask, what=f"{execution} {name}")
            for i, (one, other) in enumerate(zip(found.hidden_states, wanted.hidden_states, strict=True)):
                assert_same(one, other, mask, what=f"{execution} hidden_states[{i}]")
            assert compressed.trace.relative_flops() == 1.0


@everywhere
def test_2_masked_is_packed_is_narrowed(family: str, head: str, device: str) -> None:
    """Removing tokens gives what masking them gives; and they were removed, a different number from each sequence."""
    model, batch = plain(family, head).to(device), to(batch_of(family), device)
    compressed = transkimmer(model, batch)
    outputs, traces = {}, {}
    with torch.no_grad():
        for execution in FAMILIES[family].executions:
            with skim.execution(compressed, execution):
                outputs[execution] = compressed(**batch, output_hidden_states=True)
            traces[execution] = compressed.trace
    masked, trace = outputs.pop("masked"), traces["masked"]
    assert is_ragged(trace.counts(), trace.lengths)
    plainly = model(**batch)
    assert any((logits_of(plainly)[name] - value).abs().max() > 1e-3 for name, value in logits_of(masked).items())
    for execution, output in outputs.items():
        assert torch.equal(traces[execution].counts(), trace.counts().long())
        assert torch.equal(traces[execution].alive(), trace.alive())
        assert_same(traces[execution].flops(), trace.flops(), what="flops")
        for name, value in logits_of(masked).items():
            assert_same(output[name], value, batch["attention_mask"], what=f"{execution} {name}")
        for i, (one, other) in enumerate(zip(output.hidden_states, masked.hidden_states, strict=True)):
            assert_same(one, other, batch["attention_mask"], what=f"{execution} hidden_states[{i}]")


@families
def test_2_training_removes_nothing_that_inference_keeps(family: str, device: str) -> None:
    """Training in masked execution without noise gives the outputs of packed inference: no accuracy can leak."""
    model, batch = plain(family, "tokens").to(device), to(batch_of(family), device)
    compressed = transkimmer(model, batch, noise_until=0.0)
    with torch.no_grad():
        inferred = compressed(**batch)
        assert compressed.trace.execution != "masked"
    trained = compressed.train()(**batch)
    assert compressed.trace.execution == "masked"
    assert compressed.trace.layers[-1].kept().requires_grad
    assert_same(trained.logits, inferred.logits, batch["attention_mask"], what="logits")


@everywhere
def test_3_batch_invariance(family: str, head: str, device: str) -> None:
    """A sequence's output depends on no batch mate, no order and no amount of padding."""
    lengths = (13, 9, 6, 11)
    model, batch = plain(family, head).to(device), to(batch_of(family, lengths), device)
    compressed = transkimmer(model, batch)
    order, fewer = [2, 0, 3, 1], [1, 3]
    views = {
        "order": (order, to(batch_of(family, tuple(lengths[i] for i in order)), device)),
        "padding": (list(range(4)), to(batch_of(family, lengths, width=19), device)),
        "mates": (fewer, to(batch_of(family, tuple(lengths[i] for i in fewer)), device)),
        **{f"alone {i}": ([i], to(batch_of(family, (lengths[i],)), device)) for i in range(4)},
    }
    for execution in FAMILIES[family].executions:
        with torch.no_grad(), skim.execution(compressed, execution):
            wanted = compressed(**batch)
            for view, (rows, other) in views.items():
                found = compressed(**other)
                mask, here = batch["attention_mask"][rows].bool(), other["attention_mask"].bool()
                for name, value in logits_of(wanted).items():
                    value, again = value[rows], found[name]
                    if value.shape[:2] == mask.shape:
                        value, again = value[mask], again[here]
                    assert_same(again, value, what=f"{execution} {view} {name}")


@everywhere
def test_4_gradients(family: str, head: str, device: str) -> None:
    """Every parameter of the method, and every one of the backbone that the plain model's loss reaches, learns."""
    model, batch = plain(family, head).to(device).train(), to(batch_of(family), device)
    inputs = batch | to(labels_of(head, batch_of(family)), device)
    compressed = transkimmer(model, batch, noise_until=0.0).train()
    model(**inputs).loss.backward()
    loss = compressed(**inputs).loss
    method = compressed.method
    (loss + method.loss(compressed.trace)).backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    for name, parameter in compressed.named_parameters():
        if name in reached:
            assert parameter.grad is not None, name
        if name.startswith("method."):
            assert parameter.grad.abs().max() > 0, name
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@families
def test_5_flops_are_true(family: str) -> None:
    """The formula equals torch's counter: on the ragged packed batch, or one sequence at a time where none packs.

    On the CPU; a GPU may spend more on attention than the tokens need, and gains by it.
    """
    compressed = transkimmer(plain(family), batch_of(family))
    packs = FAMILIES[family].packs
    lengths = [(13, 9, 6, 11)] if packs else [(13,), (9,), (6,)]
    for some in lengths:
        with skim.execution(compressed, "packed" if packs else "narrowed"):
            assert_flops(compressed, batch_of(family, some))
        assert compressed.trace.relative_flops() < 1
    with skim.execution(skim.compress(skim.decompress(compressed), "dense"), "packed" if packs else "narrowed"):
        assert_flops(compressed, batch_of(family, (13,)))
        assert torch.equal(compressed.trace.flops(), compressed.trace.dense_flops)


@families
def test_2_and_5_between_the_halves(family: str, device: str) -> None:
    """Tokens that leave after attention are in its FLOPs and not in the feed-forward's; masked is packed there, too."""
    batch = to(batch_of(family), device)
    script = torch.rand(4, *batch["input_ids"].shape, device=device) < 0.8
    compressed = skim.compress(plain(family, "tokens").to(device), Scripted(script, ("cls",), between=True))
    outputs = {}
    for execution in FAMILIES[family].executions:
        with torch.no_grad(), skim.execution(compressed, execution):
            outputs[execution] = compressed(**batch).logits
        assert is_ragged(compressed.trace.counts(), compressed.trace.lengths)
        assert_same(outputs[execution], outputs["masked"], batch["attention_mask"], what=execution)
        first = compressed.trace.layers[0]
        assert torch.equal(first.attending.counts(), compressed.trace.lengths)
        assert (first.feeding.counts() < compressed.trace.lengths).any()
    if device != "cpu":
        return
    if FAMILIES[family].packs:
        assert_flops(compressed, batch)
    else:
        compressed.method.script = script[:, :1]
        assert_flops(compressed, {name: value[:1] for name, value in batch.items()})
    assert compressed.trace.relative_flops() < 1


@everywhere
def test_6_round_trip(family: str, head: str, tmp_path) -> None:
    """Saved and loaded, by skim and by plain transformers, a model says the same; and compress can be undone."""
    model, batch = plain(family, head), batch_of(family)
    names = set(model.state_dict())
    compressed = transkimmer(model, batch)
    assert type(compressed) is type(model)
    assert {name for name in compressed.state_dict() if not name.startswith("method.")} == names
    with torch.no_grad():
        wanted, plainly = compressed(**batch), model(**batch)
    skim.save_pretrained(compressed, tmp_path)
    loaded = skim.from_pretrained(tmp_path)
    theirs, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    undone = skim.decompress(compressed)
    assert undone is compressed
    assert not hasattr(undone, "method")
    with torch.no_grad():
        for name, value in logits_of(wanted).items():
            assert torch.equal(loaded(**batch)[name], value)
        for name, value in logits_of(plainly).items():
            mask = batch["attention_mask"]
            assert torch.equal(on_real(undone(**batch)[name], mask), on_real(value, mask))
            assert torch.equal(on_real(theirs.eval()(**batch)[name], mask), on_real(value, mask))
    assert set(undone.state_dict()) == names
    assert type(theirs).__module__.startswith(transformers.__name__)
