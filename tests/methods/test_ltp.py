"""LTP's own: thresholds, stages, the relaxed decision and its temperature, the penalty and what a log shows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import skim
from skim.engine.masked import MaskedTokens
from skim.engine.tokens import Sequences
from skim.methods import Spec
from skim.methods.ltp import LOWEST, LTP, hard_keep, ramp, soft_keep
from skim.methods.threshold import Manual
from tests.families import LAYERS, batch_of, plain


def built(layers: int = 4, **options) -> LTP:
    method = LTP(**options)
    method.build(Spec(layers=layers, width=8))
    return method


def occupancy(length: int = 5) -> MaskedTokens:
    real = torch.ones(1, length, dtype=torch.bool)
    return MaskedTokens.start(torch.zeros(1, length, 1), Sequences(real, ~real)).occupancy


def compressed(**options) -> nn.Module:
    return skim.compress(plain("bert"), LTP(**options)).train()


def test_thresholds_start_on_a_ramp_that_misses_its_end_by_one_step() -> None:
    """As published: zero-based, so the first layer's is zero and the last layer's is (L - 1) / L of it."""
    assert ramp(0.01, 4).tolist() == pytest.approx([0.0, 0.0025, 0.005, 0.0075])
    method = built(final_token_threshold=0.4)
    assert method.thresholds().tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3])
    method.delta.data[2] = 0.05
    assert method.thresholds().tolist() == pytest.approx([0.0, 0.1, 0.25, 0.3])
    assert {name for name, _ in method.named_parameters()} == {"delta"}
    assert {name for name, _ in method.named_buffers()} == {"base", "shift"}


def test_soft_decisions() -> None:
    score = torch.tensor([0.0, 0.1, 0.12, 0.2], requires_grad=True)
    threshold = torch.tensor(0.1, requires_grad=True)
    kept = soft_keep(score, threshold, 0.01, torch.zeros(()))
    assert kept.tolist() == pytest.approx(
        [1 / (1 + math.exp(10)), 0.5, 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-10))]
    )
    kept.sum().backward()
    slopes = (kept * (1 - kept) / 0.01).detach()
    assert score.grad.tolist() == pytest.approx(slopes.tolist())
    assert float(threshold.grad) == pytest.approx(-float(slopes.sum()), rel=1e-5)


def test_soft_decisions_are_taken_at_the_thresholds_that_hard_ones_are_taken_at() -> None:
    """A shift scales both, so that training goes on at the budget that a calibration has set."""
    score, threshold, shift = torch.tensor([0.09, 0.11, 0.19, 0.21]), torch.tensor(0.1), torch.tensor(-0.7)
    assert hard_keep(score, threshold, shift).tolist() == [False, False, False, True]
    assert (soft_keep(score, threshold, 1e-4, shift) > 0.5).tolist() == [False, False, False, True]


def test_hard_decisions() -> None:
    """At its threshold a token stays; a threshold of zero still asks for a trace of attention."""
    score = torch.tensor([0.0, LOWEST / 2, 0.1, 0.09, 0.11])
    assert hard_keep(score, torch.tensor(0.1), torch.zeros(())).tolist() == [False, False, True, False, True]
    assert hard_keep(score, torch.tensor(0.0), torch.zeros(())).tolist() == [False, False, True, True, True]
    assert hard_keep(score, torch.tensor(-1.0), torch.zeros(())).tolist() == [False, False, True, True, True]
    assert hard_keep(score, torch.tensor(0.1), torch.tensor(0.15)).tolist() == [False, False, True, True, True]
    assert hard_keep(score, torch.tensor(0.1), torch.tensor(-0.1)).tolist() == [False, False, False, False, False]


def test_relaxed_in_soft_training_only() -> None:
    """Evaluation is hard in both stages, and the hard stage is so in training too."""
    method, score = built(final_token_threshold=0.4), torch.tensor([[0.05, 0.09, 0.11, 0.2, 0.5]])
    for training, stage, relaxed in ((True, "soft", True), (True, "hard", False), (False, "soft", False)):
        method.train(training).enter(stage)
        kept = method.keep(1, score, occupancy())
        assert kept.requires_grad == relaxed
        assert (kept.dtype == torch.bool) != relaxed
        assert (kept > 0.5).tolist() == [[False, False, True, True, True]]
        assert method.trains_masked == (stage == "soft")


def test_the_temperature_falls_geometrically() -> None:
    method = built(final_token_threshold=0.4, temperature=1e-3, temperature_start=1e-1).train()
    score = torch.full((1, 5), 0.11)
    for progress, temperature in ((-1.0, 1e-1), (0.0, 1e-1), (0.5, 1e-2), (1.0, 1e-3), (2.0, 1e-3)):
        method.step(progress)
        wanted = 1 / (1 + math.exp(-0.01 / temperature))
        assert method.keep(1, score, occupancy()).tolist() == [pytest.approx([wanted] * 5, rel=1e-4)]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [({}, 2e-3), ({"temperature": 0.1}, 0.4), ({"preset": "paper"}, 1e-3), ({"temperature_start": 0.5}, 0.5)],
)
def test_where_the_temperature_starts(options: dict, wanted: float) -> None:
    assert built(**options).temperature_start == wanted


def test_readings_are_the_thresholds_that_act_and_what_moves_them() -> None:
    method = built(final_token_threshold=0.4, target=0.5, temperature=1e-3, temperature_start=1e-1)
    method.delta.data[0] = 0.02
    method.shift.fill_(math.log(2))
    method.step(0.5)
    readings = method.readings()
    assert list(readings) == ["shift", "goal", "temperature", *(f"threshold/layer_{i}" for i in range(4))]
    goal = method.budget.goal(0.5)
    wanted = [math.log(2), goal, 1e-2, 0.01, 0.05, 0.1, 0.15]
    assert [float(value) for value in readings.values()] == pytest.approx(wanted)
    assert not any(value.requires_grad for value in readings.values() if isinstance(value, torch.Tensor))
    method.enter("hard")  # decisions have no temperature, and nothing steers
    assert list(method.readings()) == ["shift", *(f"threshold/layer_{i}" for i in range(4))]


def test_the_penalty_is_the_share_that_enters_feed_forwards() -> None:
    """Of real tokens, mean over layers: pads are in neither side."""
    model = compressed(final_token_threshold=0.02, temperature=0.005, temperature_start=0.005)
    found = []
    for width in (13, 20):
        model(**batch_of("bert", (13, 9), width))
        trace = model.trace
        shares = [layer.feeding.kept[trace.sequences.real].sum() / 22 for layer in trace.layers]
        penalty = model.method.penalties(trace)["kept"]
        torch.testing.assert_close(penalty, torch.stack(shares).mean())
        found.append(float(penalty.detach()))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert 0.1 < found[0] < 0.9
    model.method.enter("hard")
    model(**batch_of("bert"))
    assert model.method.penalties(model.trace) == model.method.weights() == {}
    assert float(model.method.loss(model.trace)) == 0.0


def test_the_coefficient_sets_in_over_the_warmup() -> None:
    method = built(coefficient=0.5, warmup=0.4)
    for progress, wanted in ((0.0, 0.0), (0.2, 0.25), (0.4, 0.5), (1.0, 0.5)):
        method.step(progress)
        assert method.weights() == {"kept": pytest.approx(wanted)}
    assert built(preset="paper", coefficient=0.5).weights() == {"kept": 0.5}


def test_a_target_steers_the_soft_stage_only() -> None:
    model = compressed(target=0.3, warmup=0.0, final_token_threshold=0.0)
    method = model.method
    model(**batch_of("bert"))
    method.step(0.5, model.trace)
    coefficient = float(method.budget.coefficient)
    assert coefficient > 0, "it spends more than it should"
    assert list(method.terms(model.trace)) == ["relative_flops"]
    torch.testing.assert_close(method.loss(model.trace), coefficient * model.trace.relative_flops().float())
    method.enter("hard")
    model(**batch_of("bert"))
    method.step(0.9, model.trace)
    assert float(method.budget.coefficient) == coefficient
    assert method.weights() == {}


def test_the_first_layer_learns() -> None:
    """Its threshold starts at zero; published, such a layer has no decision and never gets one."""
    default, paper = (compressed(preset=preset, temperature=0.05) for preset in ("default", "paper"))
    for model in (default, paper):
        model(**batch_of("bert"))
        model.method.step(1.0)
        model.method.loss(model.trace).backward()
    assert [default.method.wants_received(i) for i in range(LAYERS)] == [True, True, True]
    assert [paper.method.wants_received(i) for i in range(LAYERS)] == [False, True, True]
    assert paper.method.delta.grad[0] == 0
    assert paper.method.delta.grad[1] != 0


@pytest.mark.parametrize("stage", ["soft", "hard"])
def test_a_layer_whose_threshold_is_not_above_zero_takes_no_scores_in_hard_decisions(stage: str) -> None:
    model = compressed(final_token_threshold=0.02)
    method = model.method
    method.enter(stage)
    model.train(stage == "hard")

    def scored() -> list[bool]:
        model(**batch_of("bert"))
        asked = [method.wants_received(i) for i in range(LAYERS)]
        assert [layer.sums_cost > 0 for layer in model.trace.layers] == asked
        return asked

    assert scored() == [False, True, True], "the ramp begins at zero"
    alive = model.trace.alive()
    assert alive[0].sum() == model.trace.lengths.sum()
    assert alive[1].sum() < alive[0].sum(), "nobody left, so nothing is shown"
    method.delta.data.copy_(torch.tensor([0.01, -0.5, 0.0]))  # which no version counter sees
    assert scored() == [True, False, True]
    method.shift.fill_(-0.5)  # scales thresholds, and changes no sign
    assert scored() == [True, False, True]
    method.load_state_dict({**method.state_dict(), "delta": torch.full((LAYERS,), -1.0)})
    assert scored() == [False, False, False]
    model.train()
    method.enter("soft")
    assert scored() == [True, True, True], "or it could not learn its way back"


def test_a_forward_reads_its_thresholds_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time the host would wait for the GPU."""
    model, reads = compressed(final_token_threshold=0.02).eval(), []
    tolist = torch.Tensor.tolist
    model(**batch_of("bert"))
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(tensor) or tolist(tensor))
        model(**batch_of("bert"))
    assert [model.method.wants_received(i) for i in range(LAYERS)] == [False, True, True]
    assert [len(read) for read in reads if read.is_floating_point()] == [LAYERS]


@pytest.mark.parametrize("order", ["cast, then compressed", "compressed, then cast"])
@pytest.mark.parametrize("stage", ["soft", "hard"])
def test_thresholds_stay_float32_in_a_model_of_half_precision(stage: str, order: str, tmp_path: Path) -> None:
    model, method = plain("bert"), LTP(final_token_threshold=0.02, target=0.6)
    if order.startswith("cast"):
        model.to(torch.bfloat16)
    skim.compress(model, method).train()
    method.delta.data.copy_(torch.tensor([0.001234567, -0.0, 0.002345678]))
    method.shift.fill_(0.01234567)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    model.to(torch.bfloat16)
    assert {tensor.dtype for name, tensor in model.state_dict().items() if "method." not in name} >= {torch.bfloat16}
    method.enter(stage)
    out = model(**batch_of("bert"), labels=torch.arange(4) % 3)
    method.step(0.5, model.trace)
    (out.loss + method.loss(model.trace)).backward()
    assert out.logits.dtype == torch.bfloat16
    assert (method.delta.grad is not None) == (stage == "soft")
    assert {tensor.dtype for tensor in method.state_dict().values()} == {torch.float32}
    skim.save_pretrained(model, tmp_path / "half")
    after = skim.from_pretrained(tmp_path / "half").method.state_dict()
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    for name in ("base", "delta", "shift"):
        assert torch.equal(after[name], before[name]), name


def test_transkimmers_predictors_take_the_models_dtype_and_its_steering_does_not() -> None:
    method = skim.Transkimmer(target=0.5)
    model = skim.compress(plain("bert").to(torch.bfloat16), method).train()
    model(**batch_of("bert"))
    method.step(0.5, model.trace)
    assert {parameter.dtype for parameter in method.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in method.buffers()} == {torch.float32}


def test_the_manual_ramp_costs_no_scores_where_it_cannot_prune() -> None:
    method = Manual()
    method.build(Spec(layers=3, width=8))
    assert [method.wants_received(i) for i in range(3)] == [False, True, True]
    assert not any(Manual(final_token_threshold=0.0).wants_received(i) for i in range(3))
