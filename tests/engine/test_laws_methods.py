"""The laws of DESIGN.md for the methods that prune by received attention, in every backbone family.

The methods come from the table in tests/ragged.py, the families from tests/families.py. The head reads every token
where the family has such a head, so that the states of retired tokens are compared as well. Shifts (the knob that
turns decisions up and down after training) are part of it: MobileBERT's is not zero.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

import skim
from skim.methods.ltp import LTP
from skim.methods.pruning import SCORE_NORMS
from skim.methods.target import Target
from tests.families import FAMILIES, batch_of, has, labels_of, plain
from tests.ragged import PRUNERS, assert_flops, assert_same, entering, is_ragged, on_real, pruner

families = pytest.mark.parametrize("family", FAMILIES)
everywhere = pytest.mark.parametrize("name", PRUNERS)
IN_TRAINING = ("ltp", "topk")
LENGTHS = (13, 9, 6, 11)


def head_of(family: str) -> str:
    return "tokens" if has(family, "tokens") else "classification"


@functools.cache
def found(family: str, name: str) -> nn.Module:
    return pruner(plain(family, head_of(family)), batch_of(family), name)


def pruned(family: str, name: str, device: str = "cpu") -> tuple[nn.Module, dict]:
    """A model that prunes raggedly, in evaluation mode, and the batch of which that is known."""
    model = copy.deepcopy(found(family, name)).to(device)
    return model, to(batch_of(family), device)


def to(batch: dict, device: str) -> dict:
    return {key: value.to(device) for key, value in batch.items()}


def labelled(family: str, batch: dict) -> dict:
    labels = labels_of(head_of(family), {key: value.cpu() for key, value in batch.items()})
    return batch | {key: value.to(batch["input_ids"].device) for key, value in labels.items()}


@families
@everywhere
def test_1_identity(family: str, name: str, device: str) -> None:
    """Thresholds of zero, or a keep rate of one, give the plain model's outputs, though scores are taken."""
    compressed, batch = pruned(family, name, device)
    compressed.method.shift.fill_(200.0)
    plainly = skim.decompress(copy.deepcopy(compressed))
    mask = batch["attention_mask"]
    with torch.no_grad():
        wanted = plainly(**batch, output_hidden_states=True)
        for execution in FAMILIES[family].executions:
            with skim.execution(compressed, execution):
                output = compressed(**batch, output_hidden_states=True)
            assert (compressed.trace.keep_ratio() == 1).all()
            assert_same(output.logits, wanted.logits, mask, what=f"{execution} logits")
            for i, (one, other) in enumerate(zip(output.hidden_states, wanted.hidden_states, strict=True)):
                assert_same(one, other, mask, what=f"{execution} hidden_states[{i}]")


@families
@everywhere
def test_2_masked_is_packed_is_narrowed(family: str, name: str, device: str) -> None:
    """Removing tokens between the halves gives what masking them gives, for those who stay and those who left."""
    compressed, batch = pruned(family, name, device)
    outputs, traces = {}, {}
    with torch.no_grad():
        for execution in FAMILIES[family].executions:
            with skim.execution(compressed, execution):
                outputs[execution] = compressed(**batch, output_hidden_states=True)
            traces[execution] = compressed.trace
        plainly = skim.decompress(compressed)(**batch)
    masked, trace = outputs.pop("masked"), traces["masked"]
    assert is_ragged(entering(trace), trace.lengths)
    assert on_real(masked.logits - plainly.logits, batch["attention_mask"]).abs().max() > 1e-3
    for execution, output in outputs.items():
        assert traces[execution].execution == execution
        assert torch.equal(entering(traces[execution]), entering(trace).long())
        assert torch.equal(traces[execution].alive(), trace.alive())
        assert_same(traces[execution].flops(), trace.flops(), what="flops")
        assert_same(output.logits, masked.logits, batch["attention_mask"], what=f"{execution} logits")
        for i, (one, other) in enumerate(zip(output.hidden_states, masked.hidden_states, strict=True)):
            assert_same(one, other, batch["attention_mask"], what=f"{execution} hidden_states[{i}]")


@families
@pytest.mark.parametrize("name", IN_TRAINING)
def test_2_hard_training_is_packed(family: str, name: str, device: str) -> None:
    """Where no gradient passes through decisions, training runs without the retired, and to the same gradients."""
    compressed, batch = pruned(family, name, device)
    compressed.train().double()  # in which both sum up to the same, whatever the order
    method, inputs = compressed.method, labelled(family, batch)
    if name == "ltp":
        method.enter("hard")
    losses, grads = {}, {}
    for execution in ("auto", "masked"):
        compressed.zero_grad()
        with skim.execution(compressed, execution):
            loss = compressed(**inputs).loss + method.loss(compressed.trace)
        loss.backward()
        trace = compressed.trace
        losses[execution] = loss.detach()
        grads[execution] = {key: value.grad for key, value in compressed.named_parameters() if value.grad is not None}
        assert is_ragged(entering(trace), trace.lengths)
        assert trace.execution == ("masked" if execution == "masked" else FAMILIES[family].executions[1])
        assert not any(part.startswith("method.") and grad.any() for part, grad in grads[execution].items())
    assert_same(losses["auto"], losses["masked"], tolerance=1e-9, what="loss")
    assert {key for key in grads["auto"] if "method." not in key} == {k for k in grads["masked"] if "method." not in k}
    assert any(value.abs().max() > 1e-3 for value in grads["masked"].values())
    scale = max(value.abs().max().item() for value in grads["masked"].values())
    for key, value in grads["auto"].items():
        assert (value - grads["masked"][key]).abs().max() <= 1e-9 * scale, key


@families
@pytest.mark.parametrize("name", ["ltp", "ltp_alive"])
def test_2_soft_training_becomes_hard(family: str, name: str, device: str) -> None:
    """At temperature zero the relaxed decisions are the hard ones: nothing leaks that evaluation would not have."""
    compressed, batch = pruned(family, name, device)
    method = compressed.method
    with torch.no_grad():
        inferred = compressed(**batch)
        alive = compressed.trace.alive()
        assert compressed.trace.execution != "masked"
    method.temperature = method.temperature_start = 1e-8
    trained = compressed.train()(**batch)
    assert compressed.trace.execution == "masked"
    assert compressed.trace.layers[-1].feeding.kept.requires_grad
    assert torch.equal(compressed.trace.alive(), alive)
    assert_same(trained.logits, inferred.logits, batch["attention_mask"], what="logits")


@families
@pytest.mark.parametrize("name", [name for name in PRUNERS if "padded" not in name])
def test_3_batch_invariance(family: str, name: str, device: str) -> None:
    """A sequence's output depends on no batch mate, no order and no amount of padding."""
    compressed, batch = pruned(family, name, device)
    views = {"order, mates and padding": ([2, 0, 3], 19), "alone": ([1], 9), "alone, padded": ([2], 8)}
    for execution in FAMILIES[family].executions:
        with torch.no_grad(), skim.execution(compressed, execution):
            wanted = compressed(**batch)
            counts = entering(compressed.trace)
            for view, (rows, width) in views.items():
                other = to(batch_of(family, tuple(LENGTHS[i] for i in rows), width), device)
                again = compressed(**other)
                assert torch.equal(entering(compressed.trace), counts[:, rows]), f"{execution} {view}"
                mask, here = batch["attention_mask"][rows].bool(), other["attention_mask"].bool()
                whole = again.logits.shape[:2] != here.shape
                one, two = again.logits, wanted.logits[rows]
                if not whole:
                    one, two = one[here], two[mask]
                assert_same(one, two, what=f"{execution} {view}")


@pytest.mark.parametrize("family", ["bert", "deberta-v3"])
def test_3_scores_by_the_padded_length_change_with_the_padding(family: str) -> None:
    """The published score; why it is not the default."""
    compressed, _ = pruned(family, "ltp_manual_padded")
    counts = []
    for width in (13, 26):
        with torch.no_grad():
            compressed(**batch_of(family, LENGTHS, width))
        counts.append(entering(compressed.trace).sum(1))
    assert (counts[1][1:] <= counts[0][1:]).all()
    assert counts[1][-1] < counts[0][-1]


def soft(family: str, device: str) -> tuple[nn.Module, dict]:
    """A model in the soft stage, at a temperature at which every token is in doubt."""
    compressed, batch = pruned(family, "ltp", device)
    compressed.method.temperature = compressed.method.temperature_start = 0.0025
    return compressed.train(), labelled(family, batch)


def decides_something(family: str, gradient: Tensor) -> Tensor:
    """Gradients of the thresholds that matter: MobileBERT's layers cannot be split, so after its last one none does."""
    return gradient[:-1] if family == "mobilebert" else gradient


@families
def test_4_gradients_of_the_task(family: str, device: str) -> None:
    """The task's loss reaches every threshold, and every weight that the plain model's loss reaches."""
    compressed, inputs = soft(family, device)
    plainly = skim.decompress(copy.deepcopy(compressed))
    plainly(**inputs).loss.backward()
    compressed(**inputs).loss.backward()
    gradient = compressed.method.delta.grad
    assert torch.isfinite(gradient).all()
    assert (decides_something(family, gradient) != 0).all()
    reached = {key for key, parameter in plainly.named_parameters() if parameter.grad is not None}
    for key, parameter in compressed.named_parameters():
        if key in reached:
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key


@families
@pytest.mark.parametrize("target", [None, 0.5])
def test_4_gradients_of_the_penalty(family: str, target: float | None, device: str) -> None:
    """They reach thresholds and, through the scores, attention: the last layer's, though nobody attends after it."""
    compressed, inputs = soft(family, device)
    method = compressed.method
    if target is not None:
        method.target, method.steering = target, Target(target, warmup=0.0).to(device)
    compressed(**inputs)
    method.step(0.5, compressed.trace)
    method.loss(compressed.trace).backward()
    gradient = method.delta.grad
    assert torch.isfinite(gradient).all()
    gradient = gradient if target is None else decides_something(family, gradient)
    assert (gradient != 0).all()
    assert gradient[-1] < 0  # in earlier layers either sign is right: who stays shares the attention of who left
    walk = compressed.skim_walk
    last = walk.backbone.layers(walk.base)[-1]
    touched = [part.grad.abs().max() for part in last.parameters() if part.grad is not None]
    assert touched
    assert max(touched) > 0 or family == "mobilebert"


@families
@everywhere
def test_5_flops_are_true(family: str, name: str) -> None:
    """Scores included: two FLOPs per head and pair of tokens, in the layers that are asked for them."""
    compressed, batch = pruned(family, name)
    if not FAMILIES[family].packs:  # whoever runs in a rectangle computes its filler rows: one sequence has none
        batch = batch_of(family, LENGTHS[:1])
    assert_flops(compressed, batch)
    trace = compressed.trace
    assert trace.execution == FAMILIES[family].executions[1]
    assert entering(trace)[-1].sum() < trace.lengths.sum()
    asked = [layer.sums_cost for layer in compressed.trace.layers]
    heads = compressed.config.num_attention_heads
    assert asked == [2.0 * heads * compressed.method.wants_received(i) for i in range(len(asked))]
    assert any(asked)


@families
def test_6_round_trip(family: str, tmp_path) -> None:
    """Saved and loaded, learned thresholds and the shift say the same; the backbone loads into plain transformers."""
    check_round_trip(family, "ltp", tmp_path)


@pytest.mark.parametrize("family", ["bert", "mpnet"])
@pytest.mark.parametrize("name", [name for name in PRUNERS if name != "ltp"])
def test_6_round_trip_of_every_method(family: str, name: str, tmp_path) -> None:
    check_round_trip(family, name, tmp_path)


def check_round_trip(family: str, name: str, folder) -> None:
    compressed, batch = pruned(family, name)
    compressed.method.shift.fill_(0.01)
    if hasattr(compressed.method, "base"):
        compressed.method.base.mul_(1.01)
    skim.save_pretrained(compressed, folder)
    loaded = skim.from_pretrained(folder)
    assert type(loaded.method) is type(compressed.method)
    assert loaded.method.options() == compressed.method.options()
    state = compressed.method.state_dict()
    assert "shift" in state
    assert set(loaded.method.state_dict()) == set(state)
    assert all(torch.equal(loaded.method.state_dict()[key], value) for key, value in state.items())
    plainly, report = type(compressed).from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    mask = batch["attention_mask"]
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, compressed(**batch).logits)
        wanted = skim.decompress(compressed)(**batch).logits
        assert torch.equal(on_real(plainly.eval()(**batch).logits, mask), on_real(wanted, mask))


def first_received(compressed: nn.Module, batch: dict, execution: str) -> tuple[Tensor, Tensor]:
    """What tokens received in the first layer, at their input positions, ``(B, N)``; and the logits."""
    method, taken = compressed.method, []
    score = method.score
    method.score = lambda received, occupancy: taken.append((received, occupancy)) or score(received, occupancy)
    try:
        with skim.execution(compressed, execution):
            logits = compressed(**batch).logits.detach()
    finally:
        del method.score
    received, occupancy = taken[0]
    real = occupancy.sequences.real
    at = occupancy.rows(torch.arange(real.numel()).view_as(real))
    places = torch.zeros(real.shape, dtype=received.dtype).index_put(
        (at // real.shape[1], at % real.shape[1]), received
    )
    return places.detach() * real, logits


@families
def test_attention_dropout_does_not_reach_the_scores(family: str) -> None:
    """Dropout would make them unfair to whom it strikes, and training unlike evaluation."""
    compressed, batch = pruned(family, "ltp")
    mask = batch["attention_mask"]
    wanted, undisturbed = first_received(compressed, batch, "masked")
    drop_attention(compressed)
    compressed.train()
    for stage, executions in {"hard": FAMILIES[family].executions, "soft": ("masked",)}.items():
        compressed.method.enter(stage)
        for execution in executions:
            received, logits = first_received(compressed, batch, execution)
            assert_same(received, wanted, what=f"{stage} {execution}")
            if stage == "hard":  # dropout is at work: or this test would see nothing
                assert on_real(logits - undisturbed, mask).abs().max() > 1e-3


def drop_attention(compressed: nn.Module) -> None:
    """Attention dropout of a half, wherever the family has it; hidden states keep theirs of zero."""
    walk = compressed.skim_walk
    for layer in walk.backbone.layers(walk.base):
        owner, _, name = next(path for path in ATTENTION_DROPOUT if has_path(layer, path)).rpartition(".")
        module = layer.get_submodule(owner)
        if isinstance(getattr(module, name), float):
            setattr(module, name, 0.5)
        else:
            getattr(module, name).p = 0.5


def has_path(module: nn.Module, path: str) -> bool:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module is not None


ATTENTION_DROPOUT = (
    *("attention.self.dropout", "attention.attn.dropout", "attention.attention_dropout", "attention.dropout"),
    *("attn.attention_dropout", "self_attn.attention_dropout", "rel_attn.dropout"),
)


@families
def test_scores_in_half_precision(family: str) -> None:
    """Under autocast a threshold has float32 scores to be compared with."""
    compressed, batch = pruned(family, "ltp")
    for execution in FAMILIES[family].executions:
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                wanted, _ = first_received(compressed, batch, execution)
                with torch.autocast("cpu", torch.bfloat16):
                    received, _ = first_received(compressed, batch, execution)
            assert received.dtype == torch.float32
            assert not torch.equal(received, wanted)
            assert_same(received, wanted, tolerance=2e-2, what=execution)


def test_the_table_has_every_method_that_prunes_by_received_attention() -> None:
    made = {name: make() for name, make in PRUNERS.items()}
    assert {method.name for method in made.values()} == {"ltp", "ltp_manual", "ltp_relative", "ltp_rising", "topk"}
    assert {method.score_norm for method in made.values()} == set(SCORE_NORMS)
    assert isinstance(made["ltp"], LTP)
