"""Evolutionary search over lengths of layers, for the front of quality and cost (Kim and Cho, ACL 2021, section 3.3).

A configuration is one share per layer, never rising. The population is the front of all that have been rated: each
generation mutates some of it and crosses some, and what the offspring dominates leaves. Nothing here knows a model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Lengths: TypeAlias = tuple[float, ...]

OFFSPRING = 30  # mutants, and as many crossed, of a generation, as published
MUTATES = 0.5  # probability that a layer's length does, as published
DIGITS = 2  # decimals of a share: finer ones keep the same tokens of most texts
TRIES = 10  # offspring per new one that is wanted, before a generation is as large as it gets


@dataclass(frozen=True)
class Rated:
    """A configuration and what it comes to.

    Attributes:
        lengths: share that stays in each layer.
        score: higher is better.
        spent: relative FLOPs.
    """

    lengths: Lengths
    score: float
    spent: float


def front(rated: Iterable[Rated]) -> list[Rated]:
    """Find those that none beats: by rising cost, and rising score, without those whose score is no number."""
    found: list[Rated] = []
    known = [one for one in rated if math.isfinite(one.score)]  # the correlation of a constant answer is none
    for one in sorted(known, key=lambda one: (one.spent, -one.score, one.lengths)):
        if not found or one.score > found[-1].score:
            found.append(one)
    return found


def mutated(lengths: Lengths, lots: random.Random) -> Lengths:
    """Draw each length anew with probability one half, between its neighbours': the new one before, the old one behind.

    One that is not drawn stays, or comes down with the one before.
    """
    made: list[float] = []
    for i, own in enumerate(lengths):
        most = made[-1] if made else 1.0
        least = lengths[i + 1] if i + 1 < len(lengths) else 0.0
        made.append(lots.uniform(min(least, most), most) if lots.random() < MUTATES else min(own, most))
    return rounded(made)


def crossed(one: Lengths, other: Lengths) -> Lengths:
    """Average the lengths of two, layer by layer."""
    return rounded([(a + b) / 2 for a, b in zip(one, other, strict=True)])


def rounded(lengths: Sequence[float]) -> Lengths:
    """Round shares to as many decimals as are told apart."""
    return tuple(round(float(share), DIGITS) for share in lengths)


def offspring(parents: Sequence[Lengths], known: Collection[Lengths], lots: random.Random) -> list[Lengths]:
    """Mutate and cross some of the parents; configurations that are not known, fewer where no new ones are found."""
    mutants = [mutated(lots.choice(parents), lots) for _ in range(OFFSPRING * TRIES)]
    crosses = [crossed(*lots.choices(parents, k=2)) for _ in range(OFFSPRING * TRIES)]
    found: dict[Lengths, None] = {}
    for children in (mutants, crosses):
        new = [child for child in dict.fromkeys(children) if child not in known and child not in found]
        found |= dict.fromkeys(new[:OFFSPRING])
    return list(found)


def evolve(start: Sequence[Lengths], rate: Callable[[Lengths], Rated], evaluations: int, seed: int = 0) -> list[Rated]:
    """Search for the front, beginning with some configurations.

    The same ratings lead to the same search: one that goes on with the ratings of an earlier one repeats it without
    rating anything again, and is where that was.

    Args:
        start: the first generation.
        rate: rates a configuration; called once for each.
        evaluations: how many are rated, those of the first generation among them.
        seed: of mutations and crossings.

    Returns:
        All that was rated, in its order.
    """
    lots = random.Random(seed)
    rated: dict[Lengths, Rated] = {}
    generation = list(dict.fromkeys(rounded(one) for one in start))
    while generation and len(rated) < evaluations:
        for lengths in generation[: evaluations - len(rated)]:
            rated[lengths] = rate(lengths)
        parents = [one.lengths for one in front(rated.values())]
        generation = offspring(parents, rated, lots) if parents else []
    return list(rated.values())


def spread(rated: Sequence[Rated], count: int) -> list[Rated]:
    """Pick at most ``count`` of a front, evenly over its costs, both ends among them."""
    if len(rated) <= count:
        return list(rated)
    low, high = rated[0].spent, rated[-1].spent
    wanted = [low + (high - low) * k / max(count - 1, 1) for k in range(count)]
    return sorted({min(rated, key=lambda one: abs(one.spent - cost)) for cost in wanted}, key=lambda one: one.spent)
