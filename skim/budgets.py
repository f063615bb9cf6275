"""The budget of a model that was trained for a range of them: set without training, by a table that is saved with it.

``model = skim.from_pretrained("<run>", budget=0.4)``, and later ``model.budget = 0.7``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from skim.engine.adapters import whole_of
from skim.engine.walk import walk_of
from skim.methods.base import Method


def set_budget(model: nn.Module, budget: float) -> None:
    """Let a model spend a budget of the range that it was trained for, from now on: as ``model.budget = budget``.

    Args:
        model: compressed.
        budget: relative FLOPs; 1 is the dense model itself.

    Raises:
        SkimError: it was trained for one budget, or for another range.
    """
    walk_of(model).method.meet(budget)


@contextmanager
def spending(method: Method, budget: float | None = None) -> Iterator[Method]:
    """Let a method spend a budget for the length of a ``with``, and afterwards the one that it had.

    Args:
        method: with a table.
        budget: at first; ``None``: the one that it has.
    """
    standing = method.aims_at
    assert standing is not None
    try:
        if budget is not None:
            method.meet(budget)
        yield method
    finally:
        method.meet(standing)


class SetBudget:
    """``model.budget`` of a compressed model; set on its class, as :class:`skim.engine.trace.LastTrace`."""

    def __get__(self, model: Any, owner: type | None = None) -> Any:
        if model is None:
            return self
        if "skim_walk" not in vars(whole_of(model)):  # another instance of that class: as if nothing stood here
            if "budget" in vars(model):
                return vars(model)["budget"]
            raise AttributeError(f"'{type(model).__name__}' object has no attribute 'budget'")
        return walk_of(model).method.aims_at

    def __set__(self, model: Any, budget: float) -> None:
        if "skim_walk" not in vars(whole_of(model)):
            vars(model)["budget"] = budget
        else:
            set_budget(model, budget)
