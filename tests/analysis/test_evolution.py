"""The evolutionary search over lengths of layers: it finds what was planted, and repeats itself."""

from __future__ import annotations

import random

import pytest

from skim.analysis.evolution import Lengths, Rated, crossed, evolve, front, mutated, spread

BEST = (1.0, 0.9, 0.35, 0.35, 0.1, 0.05)  # of all configurations of its cost
START = [tuple(ratio**i for i in range(1, 7)) for ratio in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)]


def planted(lengths: Lengths) -> Rated:
    """Quality that is lost in the first layer that keeps less than the planted one, and gains nothing by more."""
    lost = sum(max(best - own, 0) * (6 - i) for i, (best, own) in enumerate(zip(BEST, lengths, strict=True)))
    return Rated(lengths, -lost, sum(lengths) / 6)


def test_it_finds_a_planted_optimum_that_no_constant_ratio_comes_near() -> None:
    cost = sum(BEST) / 6
    found = front(evolve(START, planted, 1500, seed=1))
    near = max(one.score for one in found if one.spent <= cost + 0.02)
    constant = max(
        one.score for one in map(planted, [tuple(r**i for i in range(1, 7)) for r in (0.6, 0.62, 0.64, 0.66)])
    )
    assert near > -0.3
    assert constant < -0.8


def test_a_score_that_is_no_number_beats_nobody() -> None:
    def rate(lengths: Lengths) -> Rated:
        return planted(lengths) if lengths[0] > 0.7 else Rated(lengths, float("nan"), 0.01)

    found = front(evolve(START, rate, 40))
    assert found
    assert all(one.lengths[0] > 0.7 for one in found)
    assert len(evolve(START, lambda lengths: Rated(lengths, float("nan"), 0.1), 40)) == len(START)


def test_more_is_found_with_more_evaluations_and_none_is_rated_twice() -> None:
    asked: list[Lengths] = []

    def rate(lengths: Lengths) -> Rated:
        asked.append(lengths)
        return planted(lengths)

    few, many = evolve(START, rate, 50), evolve(START, rate, 400)
    assert (len(few), len(many)) == (50, 400)
    assert few == many[:50]  # a longer search begins as the shorter one: so it can go on where that ended
    assert len(set(asked[50:])) == 400
    assert evolve(START, planted, 100, seed=2)[6:] != many[6:100]

    def area(some: list[Rated]) -> float:
        return sum(max(one.score for one in some if one.spent <= cost) for cost in (0.3, 0.4, 0.5, 0.6, 0.8))

    assert area(many) > area(few)


def test_it_ends_where_there_is_nothing_new() -> None:
    assert len(evolve([(0.0,), (1.0,)], lambda lengths: Rated(lengths, lengths[0], lengths[0]), 10_000)) == 101


@pytest.mark.parametrize("seed", range(20))
def test_lengths_never_rise(seed: int) -> None:
    lots = random.Random(seed)
    one = tuple(sorted((round(lots.random(), 2) for _ in range(5)), reverse=True))
    other = mutated(one, lots)
    for made in (other, mutated(other, lots), crossed(one, other)):
        assert list(made) == sorted(made, reverse=True)
        assert all(0 <= share <= 1 for share in made)
    assert all(
        own == pytest.approx((a + b) / 2, abs=0.0051) for own, a, b in zip(crossed(one, other), one, other, strict=True)
    )


def test_a_front_and_what_is_picked_of_it() -> None:
    some = [Rated((k / 10,), score, k / 10) for k, score in enumerate((0.1, 0.4, 0.3, 0.5, 0.5, 0.9, 0.2))]
    best = front(some)
    assert [one.spent for one in best] == [0.0, 0.1, 0.3, 0.5]
    assert [one.spent for one in spread(best, 2)] == [0.0, 0.5]
    assert [one.spent for one in spread(best, 3)] == [0.0, 0.3, 0.5]
    assert spread(best, 9) == best
