"""Pareto front: what a metric can be had for, by each kind of cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from skim.report.runs import BASELINES, Setting, Spread

WORDS = {"packed_dense": "packed dense", "padded_hf": "padded"}  # baselines of times


class Axis(NamedTuple):
    """Kind of cost: a name for files, a title for people, and the cost of a setting, ``None`` where it is not known."""

    name: str
    title: str
    cost: Callable[[Setting], Spread | None]


def axes(settings: Sequence[Setting], baselines: Sequence[str] = tuple(BASELINES)) -> list[Axis]:
    """List the costs that are known of some setting: relative FLOPs, time at each batch size, and parameters.

    Args:
        settings: of runs.
        baselines: over which times are shown.
    """
    found = [Axis("relative_flops", "relative FLOPs", lambda s: s.relative_flops)]
    timed = {key for setting in settings for key in setting.times if key[1] in baselines}
    for size, baseline in sorted(timed, key=lambda key: (baselines.index(key[1]), key[0])):
        title = f"time / {WORDS[baseline]}, batch {size}"
        cost = lambda s, key=(size, baseline): s.times.get(key)  # noqa: E731
        found.append(Axis(f"time_{baseline}_{size}", title, cost))
    if any(setting.parameters for setting in settings):
        found.append(Axis("parameters", "parameters", lambda s: s.parameters))
    return found


def front(settings: Sequence[Setting], cost: Callable[[Setting], Spread | None]) -> list[Setting]:
    """Find the settings that none beats: of the others, those as cheap are worse, and those as good cost more.

    Args:
        settings: of one task; higher metrics are better.
        cost: of a setting; one without, or whose metric is no number (a training that diverged), is not on the front.

    Returns:
        By rising cost, and rising metric.
    """
    measured = [(spent.mean, -s.metric.mean, s) for s in settings if (spent := cost(s)) is not None and s.metric]
    known = [point for point in measured if all(map(math.isfinite, point[:2]))]
    best, found = float("-inf"), []
    for _, loss, setting in sorted(known, key=lambda point: point[:2]):
        if -loss > best:
            best = -loss
            found.append(setting)
    return found
