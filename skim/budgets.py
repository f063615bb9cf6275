"""The budget of a model that was trained for a range of them: set without training, by a table that is saved with it.

``model = skim.from_pretrained("<run>", budget=0.4)``, and later ``model.budget = 0.7``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from skim.engine.adapters import whole_of
from skim.engine.walk import walk_of
from skim.errors import SkimError
from skim.files import write_json
from skim.methods.base import Method

TIMES = "times.json"  # beside a model: what its budgets take, as what=curve has measured it

log = logging.getLogger("skim")


def set_budget(model: nn.Module, budget: float) -> None:
    """Let a model spend a budget of the range that it was trained for, from now on: as ``model.budget = budget``.

    It is the model's and not a thread's: a forward that another thread is in the middle of may follow either budget in
    each layer. Who serves several at once loads a model for each.

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


def write_times(folder: Path, machine: str, times: Mapping[int, Sequence[tuple[float, float]]]) -> Path:
    """Write down what budgets take beside the model in a folder.

    Args:
        folder: of the model.
        machine: that they were measured on, in words.
        times: by batch size pairs of a budget and the milliseconds of a batch.
    """
    path = folder / TIMES
    write_json(path, {"machine": machine, "milliseconds": times})
    return path


def fastest_enough(folder: Path, latency: float, batch_size: int = 1) -> float:
    """Choose the largest measured budget of a model that takes no longer than a bound; the log ``skim`` tells which.

    Args:
        folder: of the model, with the times that :func:`write_times` left.
        latency: milliseconds of a batch, at most.
        batch_size: sequences in it.

    Raises:
        SkimError: nothing was measured, or nothing that is as fast.
    """
    if isinstance(latency, bool) or not isinstance(latency, (int, float)) or not latency > 0:
        raise SkimError(f"max_latency_ms={latency!r} is not a number of milliseconds above 0.")
    path = folder / TIMES
    try:
        told = json.loads(path.read_text())
        machine = str(told["machine"])
        measured = {
            int(size): {float(budget): float(milliseconds) for budget, milliseconds in pairs}
            for size, pairs in told["milliseconds"].items()
            if pairs
        }
    except FileNotFoundError:
        raise SkimError(
            f"max_latency_ms={latency}: {folder} holds no {TIMES}, so nobody knows what its budgets take.\n"
            "Measure them: python evaluate.py ckpt=<run> what=curve timed=true"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SkimError(f"{path} is damaged. Measure again: what=curve timed=true") from error
    if batch_size not in measured:
        sizes = ", ".join(map(str, sorted(measured))) or "none"
        raise SkimError(
            f"max_latency_ms={latency}: times were measured at batch size {sizes}, and not at {batch_size}.\n"
            f"Measure it: python evaluate.py ckpt=<run> what=curve timed=true benchmark.batch_sizes=[{batch_size}]"
        )
    times = measured[batch_size]
    enough = [budget for budget, milliseconds in times.items() if milliseconds <= latency]
    if not enough:
        budget, fastest = min(times.items(), key=lambda pair: pair[1])
        raise SkimError(
            f"max_latency_ms={latency} is reached by no budget at batch size {batch_size}.\n"
            f"The fastest, {budget:g}, takes {fastest:.3g} ms on {machine}."
        )
    log.info("budget %g: %.3g ms at batch size %d, on %s", max(enough), times[max(enough)], batch_size, machine)
    return max(enough)
