"""Models for a range of budgets: what they spend where, what is saved, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import skim
from skim.budgets import TIMES, spending, write_times
from skim.calibration import spend
from skim.methods import Method
from skim.methods.layer_drop import depth_of
from skim.methods.steering import Steering
from skim.methods.table import ANCHORS, Table, hats
from skim.tabulation import solve
from tests.families import LAYERS, batch_of, enliven, plain
from tests.methods.table import QUERIES
from tests.ragged import assert_same

LOW = 0.7
BATCHES = [batch_of("bert", tuple(range(4, 36)) * 2)]  # many decisions, so that few of them flip at once
METHODS: dict[str, Callable[[], Method]] = {
    "topk": lambda: skim.TopK(start=0, target=(LOW, 1.0)),
    "ltp": lambda: skim.LTP(target=(LOW, 1.0), score_norm="length", final_token_threshold=0.5),
    "transkimmer": lambda: skim.Transkimmer(bottleneck=4, target=(LOW, 1.0)),
    "act": lambda: skim.ACT(target=(LOW, 1.0)),
    "chain": lambda: skim.Chain([skim.LayerDrop(depths=(2, LAYERS)), skim.TopK(start=0, target=(0.4, 1.0))]),
}


@pytest.fixture(scope="module", params=METHODS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    """A model whose table is calibrated, with decisions that vary from token to token."""
    made = skim.compress(plain("bert"), METHODS[request.param]()).eval()
    enliven(made.method, 0)
    if isinstance(made.method, skim.Transkimmer):
        made.method.lifts.data = torch.linspace(-0.1, 0.1, ANCHORS).expand_as(made.method.lifts).clone()
    for name, parameter in made.named_parameters():
        if QUERIES.search(name):  # random attention is too flat for a threshold to tell tokens apart
            parameter.data *= 6
    skim.calibrate(made, BATCHES)
    return made


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**BATCHES[0]).logits


def test_a_full_budget_is_the_dense_model(model: nn.Module) -> None:
    model.budget = 1.0
    full = outputs(model)
    assert float(model.trace.relative_flops()) == 1.0
    with skim.uncompressed(model):
        assert torch.equal(full, outputs(model))
    model.budget = model.method.table.low
    assert not torch.allclose(full, outputs(model), atol=1e-3)


def test_what_is_asked_is_spent_and_rises_with_the_budget(model: nn.Module) -> None:
    low = model.method.table.low
    budgets = [low + k * (1 - low) / 7 for k in range(8)]  # not all at an anchor
    spent = []
    for budget in budgets:
        model.budget = budget
        assert model.budget == pytest.approx(budget)
        spent.append(spend(model, BATCHES))
    assert spent == sorted(spent)
    assert max(abs(one - budget) for one, budget in zip(spent, budgets, strict=True)) < 0.02


def test_a_saved_model_keeps_its_budget_and_takes_any_other(model: nn.Module, tmp_path: Path) -> None:
    model.budget = 0.8
    skim.save_pretrained(model, tmp_path)
    assert skim.from_pretrained(tmp_path).budget == pytest.approx(0.8)
    assert_same(outputs(skim.from_pretrained(tmp_path)), outputs(model))
    loaded = skim.from_pretrained(tmp_path, budget=0.9)
    model.budget = 0.9
    assert_same(outputs(loaded), outputs(model))
    for execution in ("masked", "packed"):
        with skim.execution(loaded, execution):
            assert_same(outputs(loaded), outputs(model))
    copied = pickle.loads(pickle.dumps(loaded))
    loaded.budget = 0.75
    assert copied.budget == pytest.approx(0.9)
    assert_same(outputs(copied), outputs(model))


@pytest.mark.parametrize("budget", [0.0, 0.39, 1.01, "half", True, float("nan")])
def test_budgets_out_of_the_range_are_refused(model: nn.Module, budget: float) -> None:
    model.budget = 0.8
    with pytest.raises(skim.SkimError, match=r"is not among those .* 0.[47] to 1") as error:
        model.budget = budget
    assert len(str(error.value).splitlines()) == 2
    assert model.budget == pytest.approx(0.8)


def test_the_number_of_layers_follows_the_budget(tmp_path: Path) -> None:
    model = skim.compress(plain("bert"), METHODS["chain"]())
    ran = {}
    for budget in (0.4, 0.444, 0.445, 0.7, 0.99, 1.0):
        model.budget = budget
        outputs(model)
        ran[budget] = sum(layer.ran for layer in model.trace.layers)
    assert list(ran.values()) == [2, 2, 3, 3, 3, 3]
    model.budget = 0.4
    skim.save_pretrained(model, tmp_path)
    again = skim.from_pretrained(tmp_path)
    assert_same(outputs(again), outputs(model))
    with pytest.raises(skim.SkimError, match="chooses layers by the budget"):
        skim.save_pretrained(model, tmp_path / "merged", merged=True)


def test_depth_and_tokens_save_alike() -> None:
    assert [depth_of(budget, 6) for budget in (0.2, 0.25, 0.251, 4 / 9, 0.5, 25 / 36, 0.7, 1.0)] == [
        3,
        3,
        4,
        4,
        5,
        5,
        6,
        6,
    ]


def test_depths_need_a_range_beside_them() -> None:
    with pytest.raises(skim.SkimError, match="no method of this chain has a range"):
        skim.compress(plain("bert"), skim.Chain([skim.LayerDrop(depths=(1, 3)), skim.TopK(start=0, target=0.5)]))
    with pytest.raises(skim.SkimError, match="needs another method beside it"):
        skim.compress(plain("bert"), skim.LayerDrop(depths=(1, 3))).method.check_fit()
    for depths in ((3, 3), (3, 2), (0, 2)):
        with pytest.raises(skim.SkimError, match=r"LayerDrop\(depths="):
            skim.LayerDrop(depths=depths)
    with pytest.raises(skim.SkimError, match="more than the 3 layers"):
        skim.compress(plain("bert"), skim.LayerDrop(depths=(1, 4)))


@pytest.mark.parametrize("method", [skim.TopK(start=0, target=0.6), skim.Transkimmer(), skim.LayerDrop(1)])
def test_a_model_for_one_budget_takes_no_other(method: Method, tmp_path: Path) -> None:
    model = skim.compress(plain("bert"), method)
    assert model.budget == method.target
    skim.save_pretrained(model, tmp_path)
    with pytest.raises(skim.SkimError, match=r"trained for (one budget, 0.6,|no budget)") as error:
        skim.from_pretrained(tmp_path, budget=0.5)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("target", [(0.5, 0.5), (1.0, 0.5), (0.0, 0.5), (0.5, 1.1), (0.5,), (0.2, 0.3, 0.4), ()])
def test_what_is_no_range_is_refused(target: tuple[float, ...]) -> None:
    with pytest.raises(skim.SkimError, match="TopK\\(target="):
        skim.TopK(target=target)  # type: ignore[arg-type]


def test_calibration_to_a_number_sets_that_budget() -> None:
    model = skim.compress(plain("bert"), METHODS["topk"]()).eval()
    model.budget = 1.0
    assert skim.calibrate(model, BATCHES, 0.8) == pytest.approx(0.8, abs=0.01) == spend(model, BATCHES)
    assert model.budget == pytest.approx(0.8)
    assert skim.calibrate(model, BATCHES, 1.0) == 1.0
    assert not model.method.shift.any()
    with pytest.raises(skim.SkimError, match="is not among those"):
        skim.calibrate(model, BATCHES, 0.5)


def test_a_range_may_begin_where_the_table_ends() -> None:
    assert Table(0.995, 1.0).anchors == [0.995]
    assert Table(0.5, 1.0).anchors[-1] == 0.99


def test_a_plain_model_of_the_same_class_has_no_budget() -> None:
    skim.compress(plain("bert"), "dense")
    other = plain("bert")
    assert not hasattr(other, "budget")
    other.budget = 3
    assert other.budget == 3


def test_a_budget_is_set_for_the_length_of_a_with() -> None:
    model = skim.compress(plain("bert"), METHODS["topk"]())
    model.budget = 0.9
    with spending(model.method, 0.75):
        assert model.budget == 0.75
    assert model.budget == 0.9


def test_hats_stand_between_two_anchors() -> None:
    for value, expected in ((0.2, [1, 0, 0]), (0.4, [0.5, 0.5, 0]), (0.5, [0, 1, 0]), (0.9, [0, 0, 1])):
        assert hats(value, [0.3, 0.5, 0.8]).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("start", [0.0, -4.0, 5.0])
def test_shifts_are_found_from_anywhere_and_at_jumps(start: float) -> None:
    smooth = lambda shift: float(torch.sigmoid(torch.tensor(shift)))  # noqa: E731
    known: list[tuple[float, float]] = []
    for goal in (0.9, 0.7, 0.3):
        assert smooth(solve(smooth, goal, start, known, 0.003)) == pytest.approx(goal, abs=0.003)
    assert len(known) < 24
    jump = lambda shift: 0.2 if shift < 1 else 0.8  # noqa: E731
    assert solve(jump, 0.3, start, [], 0.003) < 1 <= solve(jump, 0.6, start, [], 0.003)


def steered(apart: bool) -> dict[float, float]:
    """What a plant spends at three goals that are steered in each step, and resists the more the less it spends."""
    table = Table(0.2, 0.8)
    steering, steps = Steering(table, 0.3, apart), 300
    logits = dict.fromkeys((0.2, 0.5, 0.8), 5.0)
    for step in range(steps):
        for budget in logits:
            table.choose(budget)
            steering.choose(budget)
            spent = torch.sigmoid(torch.tensor(logits[budget]))
            steering.step(step / steps, spent)
            slope = float(spent * (1 - spent)) + 0.02
            logits[budget] += 0.5 * (0.3 * (1 - float(spent)) ** 2 - float(steering.coefficient) * slope)
    return {budget: float(torch.sigmoid(torch.tensor(logit))) for budget, logit in logits.items()}


def test_each_anchor_is_steered_to_its_own_goal() -> None:
    assert len(Table(0.2, 0.8).anchors) == ANCHORS
    apart = {budget: abs(spent - budget) for budget, spent in steered(apart=True).items()}
    assert max(apart.values()) < 0.05
    together = {budget: abs(spent - budget) for budget, spent in steered(apart=False).items()}
    assert max(together.values()) > max(apart.values())


# --- by latency -------------------------------------------------------------------------------------------------------


@pytest.fixture
def timed(tmp_path: Path) -> Path:
    """A model for a range, with times beside it as they would be measured."""
    skim.save_pretrained(skim.compress(plain("bert"), METHODS["topk"]()), tmp_path)
    write_times(tmp_path, "a slow machine", {1: [(0.7, 5.0), (0.85, 8.0), (1.0, 9.5)], 8: [(0.7, 20.0)]})
    return tmp_path


@pytest.mark.parametrize(
    ("latency", "batch_size", "budget"), [(5, 1, 0.7), (8.5, 1, 0.85), (100, 1, 1.0), (20, 8, 0.7)]
)
def test_the_largest_budget_within_a_latency(timed: Path, latency: float, batch_size: int, budget: float) -> None:
    model = skim.from_pretrained(timed, max_latency_ms=latency, batch_size=batch_size)
    assert model.budget == pytest.approx(budget)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_latency_ms": 4.9}, r"by no budget at batch size 1.\nThe fastest, 0.7, takes 5 ms on a slow machine"),
        ({"max_latency_ms": 9, "batch_size": 2}, "at batch size 1, 8, and not at 2"),
        ({"max_latency_ms": 9, "budget": 0.8}, "use one of them"),
        ({"max_latency_ms": 0}, "above 0"),
        ({"max_latency_ms": "9"}, "above 0"),
    ],
)
def test_latencies_that_cannot_be_are_refused(timed: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(skim.SkimError, match=said) as error:
        skim.from_pretrained(timed, **options)
    assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "holds no times.json"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"machine": "", "milliseconds": {"1": [[0.7, "fast"]]}}', "damaged"),
        ('{"machine": "", "milliseconds": {"1": []}}', "and not at 1"),
    ],
)
def test_times_that_are_missing_or_damaged_are_refused(timed: Path, content: str | None, said: str) -> None:
    (timed / TIMES).unlink()
    if content is not None:
        (timed / TIMES).write_text(content)
    with pytest.raises(skim.SkimError, match=said):
        skim.from_pretrained(timed, max_latency_ms=9)
