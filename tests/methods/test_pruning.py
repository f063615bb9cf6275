"""What LTP, its baselines and top-k share: scores, the knob called shift, who always stays; and the top-k schedule."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import skim
import skim.engine.kernels.cpu
import skim.engine.mask
from skim.engine.masked import MaskedTokens
from skim.engine.tokens import Occupancy, Sequences
from skim.engine.walk import FORMS
from skim.errors import SkimError
from skim.methods import Spec
from skim.methods.ltp import LTP
from skim.methods.pruning import Pruner
from skim.methods.threshold import Manual, Relative, Rising
from skim.methods.topk import TopK
from tests.families import FAMILIES, batch_of, labels_of, plain
from tests.ragged import assert_same

CLASSES: dict[str, Callable[..., Pruner]] = {
    "ltp": lambda **options: LTP(final_token_threshold=0.4, **options),
    "ltp_manual": lambda **options: Manual(final_token_threshold=0.4, **options),
    "ltp_relative": lambda **options: Relative(token_threshold=0.5, **options),
    "ltp_rising": lambda **options: Rising(final_token_threshold=0.8, **options),
    "topk": lambda **options: TopK(token_keep_rate=0.3, start=0, **options),
}
everywhere = pytest.mark.parametrize("name", CLASSES)


def built(method: Any, layers: int = 4) -> Any:
    method.build(Spec(layers=layers, width=8))
    return method


def sequences_of(lengths: list[int], protected: bool = False) -> Sequences:
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    first = torch.zeros_like(real)
    first[:, 0] = protected
    return Sequences(real, first & real)


def occupancy_of(lengths: list[int], protected: bool = False) -> Occupancy:
    sequences = sequences_of(lengths, protected)
    return MaskedTokens.start(torch.zeros(*sequences.real.shape, 1), sequences).occupancy


# scores


@pytest.mark.parametrize(
    ("norm", "wanted"),
    [
        ("fixed", [[1.5 / 128, 0.75 / 128], [2.0 / 128, 0.0]]),
        ("length", [[0.5, 0.25], [1.0, 0.5]]),
        ("alive", [[0.75, 0.375], [2.0, 1.0]]),
        ("padded", [[0.3, 0.15], [0.4, 0.2]]),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_scores_are_shares_of_the_attention(form: str, norm: str, wanted: list[list[float]]) -> None:
    """Divided by 128, by the input's real tokens (3 and 2), by those alive (2 and 1), or by the positions (5)."""
    real = torch.tensor([[True, True, True, False, False], [True, True, False, False, False]])
    tokens = FORMS[form].start(torch.zeros(2, 5, 1), Sequences(real, torch.zeros_like(real)))
    keep = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    occupancy = tokens.retire(tokens.occupancy.rows(keep)).occupancy
    received = occupancy.rows(torch.tensor([[1.5, 9.0, 0.75, 0.0, 0.0], [2.0, 9.0, 9.0, 9.0, 9.0]]))
    score = Manual(score_norm=norm).score(received, occupancy)
    assert score.shape == received.shape
    alive = occupancy.weights > 0.5
    assert score[alive].tolist() == pytest.approx([*wanted[0], wanted[1][0]])


def test_presets() -> None:
    assert [built(make()).score_norm for make in (LTP, Manual)] == ["fixed", "fixed"]
    for make in (LTP, Manual, Relative, Rising, TopK):
        default, paper = make(), make(preset="paper")
        assert default.protect == ("cls",)
        assert paper.protect == ()
        assert paper.score_norm == "padded"
        assert (default.retired_run_on, paper.retired_run_on) == (False, True)
        assert make(preset="paper", protect=("cls",)).protect == ("cls",)
    assert LTP(preset="paper", score_norm="alive").score_norm == "alive"


# the schedule of top-k


def published_rates(layers: int, rate: float) -> list[float]:
    """As in the published code: whole layers first, then a straight line, never below one in a hundred."""
    whole = max(3, math.ceil(0.15 * layers))
    rates = [1.0] * whole
    step = (rate - 1) / (layers - whole)
    for number in range(1, layers - whole + 1):
        rates.append(max(0.01, 1 + step * number))
    return rates


@pytest.mark.parametrize("rate", [-1.0, -0.6, 0.0, 0.2, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("layers", [4, 5, 7, 12, 21, 40])
def test_top_k_keeps_the_published_number(layers: int, rate: float) -> None:
    """Rounded half to even: 0.5 of 5 tokens are 2, and 0.75 of 6 are 4."""
    method = built(TopK(token_keep_rate=rate, protect=()), layers)
    lengths = list(range(1, 131))
    occupancy = occupancy_of(lengths)
    score = torch.rand(occupancy.sequences.real.shape)
    for i, share in enumerate(published_rates(layers, rate)):
        assert method.wants_received(i) == (i >= max(3, math.ceil(0.15 * layers)))
        if method.wants_received(i):
            kept = (method.keep(i, score, occupancy) & occupancy.sequences.real).sum(1)
            assert kept.tolist() == [round(share * n) for n in lengths], f"layer {i}"
    assert float(method.rate(layers - 1)) == pytest.approx(max(rate, 0.01))


def test_top_k_rounds_half_to_even() -> None:
    method, occupancy = built(TopK(token_keep_rate=0.5, protect=()), 5), occupancy_of([5, 6, 7, 10])
    score = torch.rand(4, 10)
    assert (method.keep(4, score, occupancy) & occupancy.sequences.real).sum(1).tolist() == [2, 3, 4, 5]
    assert (method.keep(3, score, occupancy) & occupancy.sequences.real).sum(1).tolist() == [4, 4, 5, 8]


def test_top_k_keeps_the_largest_and_counts_the_protected_among_them() -> None:
    score = torch.tensor([[0.1, 0.9, 0.5, 0.9, 0.8], [0.3, 0.3, 0.3, 0.3, 9.0]])
    for protected, wanted in ((False, [[1, 3], [0, 1]]), (True, [[0, 1], [0, 1]])):
        occupancy = occupancy_of([5, 4], protected)
        kept = built(TopK(token_keep_rate=0.45, start=3)).keep(3, score, occupancy) & occupancy.sequences.real
        assert [row.nonzero().flatten().tolist() for row in kept] == wanted


def test_top_k_leaves_short_inputs_whole() -> None:
    method = built(TopK(token_keep_rate=-1.0, start=0, min_tokens=6), 4)
    lengths = [3, 6, 7, 20, 200]
    occupancy = occupancy_of(lengths)
    kept = method.keep(3, torch.rand(len(lengths), 200), occupancy) & occupancy.sequences.real
    assert kept.sum(1).tolist() == [3, 6, 6, 6, 6]
    assert (method.keep(0, torch.rand(len(lengths), 200), occupancy) & occupancy.sequences.real).sum(1)[4] == 100


def test_top_k_counts_the_input_and_not_who_is_left() -> None:
    occupancy = occupancy_of([10])
    keep = (torch.arange(10) % 2).float()[None]
    tokens = MaskedTokens.start(torch.zeros(1, 10, 1), occupancy.sequences).retire(keep)
    method = built(TopK(token_keep_rate=0.3, start=3, protect=()))
    kept = method.keep(3, torch.arange(10.0)[None], tokens.occupancy)
    assert (kept & tokens.occupancy.alive()).nonzero()[:, 1].tolist() == [5, 7, 9]


# shift


SHIFTS = st.sampled_from([-1e4, -90.0, -3.0, -0.5, -0.01, 0.0, 0.01, 0.5, 3.0, 90.0, 1e4])


@given(st.integers(0, 10_000), st.sampled_from(sorted(CLASSES)), SHIFTS, SHIFTS, st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_a_larger_shift_never_keeps_fewer(seed: int, name: str, one: float, other: float, layer: int) -> None:
    method = built(CLASSES[name]()).eval()
    generator = torch.Generator().manual_seed(seed)
    occupancy = occupancy_of([7, 1, 5, 3])
    score = torch.rand(4, 7, generator=generator) * occupancy.sequences.real
    score[0, 3] = 0.0  # one that nobody looks at
    kept = []
    for shift in sorted((one, other)):
        method.shift.fill_(shift)
        kept.append(method.keep(layer, score, occupancy) & occupancy.sequences.real)
    assert not (kept[0] & ~kept[1]).any()
    if max(one, other) == 1e4:
        assert torch.equal(kept[1], occupancy.sequences.real)


@pytest.mark.parametrize("name", ["ltp", "ltp_manual", "ltp_relative", "ltp_rising"])
@pytest.mark.parametrize("shift", [-0.7, 0.4])
def test_shift_multiplies_thresholds(name: str, shift: float) -> None:
    """By exp(-shift): as if they had been configured so."""
    method, scaled = built(CLASSES[name]()), built(CLASSES[name]())
    method.shift.fill_(shift)
    if hasattr(scaled, "base"):
        scaled.base *= math.exp(-shift)
    for option in ("token_threshold", "final_token_threshold"):
        if hasattr(scaled, option):
            setattr(scaled, option, getattr(scaled, option) * math.exp(-shift))
    occupancy = occupancy_of([400, 300])
    score = torch.rand(2, 400)
    differs = False
    for i in range(1, 4):
        kept = method.eval().keep(i, score, occupancy)
        assert torch.equal(kept, scaled.eval().keep(i, score, occupancy))
        differs |= not torch.equal(kept, built(CLASSES[name]()).eval().keep(i, score, occupancy))
    assert differs


def test_shift_adds_to_the_rate_of_top_k() -> None:
    method = built(TopK(token_keep_rate=0.3, start=0))
    method.shift.fill_(0.2)
    assert [float(method.rate(i)) for i in range(4)] == pytest.approx([0.875, 0.75, 0.625, 0.5])
    method.shift.fill_(5.0)
    assert [float(method.rate(i)) for i in range(4)] == [1.0] * 4


def test_a_ramp_that_starts_at_zero_stays_zero() -> None:
    """However far thresholds are pushed: the first layer of a rising threshold never prunes."""
    method, occupancy = built(CLASSES["ltp_rising"]()), occupancy_of([5])
    method.shift.fill_(-1e4)
    assert method.keep(0, torch.rand(1, 5), occupancy).all()
    assert not method.keep(1, torch.rand(1, 5), occupancy).any()


# who always stays


@pytest.mark.parametrize("family", ["bert", "xlnet"])
@pytest.mark.parametrize("protect", [(), ("cls",)])
@everywhere
def test_no_sequence_loses_its_last_token(name: str, protect: tuple[str, ...], family: str) -> None:
    """With thresholds out of all reach, what the head reads is left, or, where nothing is protected, some token."""
    model = skim.compress(plain(family), CLASSES[name](protect=protect)).eval()
    batch = batch_of(family, (13, 9, 1))
    real = batch["attention_mask"].bool()
    steps = real.int().flip(1).cumsum(1).flip(1) if FAMILIES[family].left else real.int().cumsum(1)
    head_reads = (steps == 1) & real  # the last real token of XLNet, the first of others
    model.method.shift.fill_(-1e4)
    for execution in FAMILIES[family].executions:
        with torch.no_grad(), skim.execution(model, execution):
            logits = model(**batch).logits
        assert torch.isfinite(logits).all()
        assert model.trace.layers[-1].feeding.counts().tolist() == [1, 1, 1]
        if protect:
            assert torch.equal(model.trace.alive()[-1], head_reads)


def test_no_decision_is_taken_on_empty_sequences() -> None:
    for name in CLASSES:
        model = skim.compress(plain("bert"), CLASSES[name]()).eval()
        batch = batch_of("bert", (5, 0, 3))
        for execution in FAMILIES["bert"].executions:
            with torch.no_grad(), skim.execution(model, execution):
                assert torch.isfinite(model(**batch).logits[[0, 2]]).all()
            assert model.trace.counts()[:, 1].tolist() == [0, 0, 0]


def test_the_published_code_may_lose_all() -> None:
    """Only where it is asked for, and not where retired tokens are really gone."""
    model = skim.compress(plain("bert"), LTP(preset="paper", final_token_threshold=0.3)).eval()
    batch = batch_of("bert")
    model.method.shift.fill_(-1e4)
    with torch.no_grad():
        assert torch.isfinite(model(**batch).logits).all()
        assert model.trace.execution == "masked"
        assert model.trace.layers[-1].feeding.counts().tolist() == [0, 0, 0, 0]
        with skim.execution(model, "packed"):
            model(**batch)
        assert model.trace.layers[-1].feeding.counts().tolist() == [1, 1, 1, 1]


# training


@pytest.mark.parametrize("family", ["bert", "deberta-v3"])
@pytest.mark.parametrize("name", ["ltp soft", "ltp hard", "ltp_manual", "ltp_relative", "ltp_rising", "topk"])
def test_small_batches_train_as_each_sequence_alone(name: str, family: str) -> None:
    """One, two (on which the published code stops) and three sequences."""
    name, _, stage = name.partition(" ")
    method = CLASSES[name](**({"score_norm": "alive"} if name in ("ltp", "ltp_manual") else {}))
    method.shift.fill_(-0.5 if name == "ltp_rising" else 0.0)  # so that it prunes
    model = skim.compress(plain(family), method).train()
    if stage:
        method.enter(stage)
        method.step(0.5)
    lengths = (11, 7, 9)
    labels = torch.tensor([0, 1, 2])

    def losses(some: tuple[int, ...], theirs: Tensor) -> Tensor:
        model.zero_grad()
        found = F.cross_entropy(model(**batch_of(family, some)).logits, theirs, reduction="none")
        (found.mean() + method.loss(model.trace)).backward()
        assert all(torch.isfinite(part.grad).all() for part in model.parameters() if part.grad is not None)
        return found.detach()

    alone = torch.cat([losses((length,), labels[i : i + 1]) for i, length in enumerate(lengths)])
    assert (model.trace.layers[-1].feeding.counts() < 9).all()
    for size in (1, 2, 3):
        assert_same(losses(lengths[:size], labels[:size]), alone[:size], what=f"{size} sequences")
        assert model.trace.execution == ("masked" if stage == "soft" else FAMILIES[family].executions[1])


@pytest.mark.parametrize("name", ["ltp", "topk"])
def test_a_published_method_trains_on_two_sequences(name: str) -> None:
    model = skim.compress(plain("bert"), CLASSES[name](preset="paper")).train()
    batch = batch_of("bert", (9, 6))
    loss = model(**batch, **labels_of("classification", batch)).loss + model.method.loss(model.trace)
    loss.backward()
    assert torch.isfinite(loss)


# errors


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: LTP(temperature=0.0), "temperature=0.0"),
        (lambda: LTP(temperature=-1e-3), "temperature=-0.001"),
        (lambda: LTP(temperature_start=0.0), "temperature_start=0.0"),
        (lambda: LTP(final_token_threshold=1.0), "final_token_threshold=1.0"),
        (lambda: LTP(final_token_threshold=-0.01), "final_token_threshold=-0.01"),
        (lambda: Manual(final_token_threshold=1.5), "final_token_threshold=1.5"),
        (lambda: Relative(token_threshold=1.0), "token_threshold=1.0"),
        (lambda: Relative(token_threshold=-0.5), "token_threshold=-0.5"),
        (lambda: Rising(final_token_threshold=1.0), "threshold=1.0"),
        (lambda: TopK(token_keep_rate=1.1), "token_keep_rate=1.1"),
        (lambda: TopK(token_keep_rate=-1.1), "token_keep_rate=-1.1"),
        (lambda: TopK(start=-1), "start=-1"),
        (lambda: LTP(score_norm="lenght"), "Did you mean 'length'"),
        (lambda: Manual(score_norm="mean"), "score_norm='mean'): must be one of fixed, length"),
        (lambda: LTP(preset="papr"), "Did you mean 'paper'"),
        (lambda: TopK(preset="published"), "preset='published'"),
        (lambda: LTP(preset="paper", target=0.5), "target=0.5"),
        (lambda: LTP().enter("softer"), "Did you mean 'soft'"),
        (lambda: TopK().enter("hard"), "Unknown stage 'hard'"),
        (lambda: LTP(protect=("mask",)), "protect=('mask',)"),
        *((lambda make=make: make(target=1.5), "target=1.5") for make in (LTP, Manual, Relative, Rising, TopK)),
        *((lambda make=make: make(target=0.0), "target=0.0") for make in (LTP, Manual, Relative, Rising, TopK)),
    ],
)
def test_bad_options_are_refused(make: Callable[[], object], told: str) -> None:
    with pytest.raises(SkimError, match=re.escape(told)):
        make()


def test_the_ends_of_what_is_allowed() -> None:
    for rate in (-1, 1):
        assert built(TopK(token_keep_rate=rate)).token_keep_rate == rate
    assert built(LTP(final_token_threshold=0.0)).thresholds().tolist() == [0.0] * 4
    assert Manual(target=1.0).target == 1.0


def test_a_schedule_that_leaves_all_layers_whole_is_refused() -> None:
    """And says what would do; in the paper's preset it does nothing, as published."""
    with pytest.raises(SkimError, match=r"first 3 layers whole, and this backbone has 3\.\nUse start=1"):
        skim.compress(plain("bert"), "topk")
    with pytest.raises(SkimError, match="first 7 layers"):
        skim.compress(plain("bert"), TopK(start=7))
    model = skim.compress(plain("bert"), TopK(preset="paper")).eval()
    with torch.no_grad():
        model(**batch_of("bert"))
    assert model.trace.relative_flops() == 1


@pytest.mark.parametrize("family", ["bert", "deberta-v3"])
def test_an_attention_that_tells_nothing_is_refused(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a silent dense model."""
    real = skim.engine.kernels.padded.attention
    monkeypatch.setattr(skim.engine.kernels.cpu, "attention", lambda *args: (real(*args)[0], None))
    monkeypatch.setattr(skim.engine.mask, "column_sums", lambda *args: None)
    dense, model = plain(family), skim.compress(plain(family), Relative())
    with pytest.raises(SkimError, match=r"does not tell which token received.*\n?.*ltp_relative"):
        model(**batch_of(family))
    skim.compress(copy.deepcopy(dense), "dense")(**batch_of(family))  # who does not ask may run
