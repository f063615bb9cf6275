"""Steering towards a budget."""

from __future__ import annotations

import pytest
import torch

from skim.errors import SkimError
from skim.methods.budget import Budget


def simulate(target: float, resistance: float, steps: int) -> list[float]:
    """A plant that answers like a model: spending falls with the coefficient, slowly, and the task pulls it up."""
    budget, logit, course = Budget(target, warmup=0.3), 5.0, []
    for step in range(steps):
        spent = torch.sigmoid(torch.tensor(logit))
        budget.step(step / steps, spent)
        slope = float(spent * (1 - spent)) + 0.02
        logit += 200 / steps * (resistance * (1 - float(spent)) - float(budget.coefficient) * slope)
        course.append(float(torch.sigmoid(torch.tensor(logit))))
    return course


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("resistance", [0.05, 0.5])
@pytest.mark.parametrize("steps", [200, 2000])
def test_ends_at_the_target_and_does_not_fall_below_it_on_the_way(target: float, resistance: float, steps: int) -> None:
    course = simulate(target, resistance, steps)
    assert course[-1] == pytest.approx(target, abs=0.03)
    assert min(course) > target - 0.04  # what a model has skimmed away in between, its weights have not learned to use


def test_goal_falls_over_the_warmup_and_stays() -> None:
    budget = Budget(0.4, warmup=0.5)
    assert [budget.goal(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1.0, 0.7, 0.4, 0.4])


def test_state_is_saved() -> None:
    budget = Budget(0.4, warmup=0.5)
    budget.step(0.5, torch.tensor(0.9))
    other = Budget(0.4, warmup=0.5)
    other.load_state_dict(budget.state_dict())
    assert float(other.coefficient) == float(budget.coefficient) > 0


@pytest.mark.parametrize("target", [0.0, -0.1, 1.1])
def test_impossible_targets_are_refused(target: float) -> None:
    with pytest.raises(SkimError, match="Budget\\(target="):
        Budget(target, warmup=0.3)
