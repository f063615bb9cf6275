"""What is masked: how much, of what, with what in its place; and that it hangs on nothing but seed, epoch and place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from skim.errors import SkimError
from tasks.data.masking import Masking, Places, mixed, spread, uniform

MASK, SPECIAL, IDS = 3, 5, 100  # ids below SPECIAL are special


def drawn(rows: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, what may be chosen, and where words begin: padded rows with a special token here and there."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, IDS, (rows, width))
    real = np.arange(width) < rng.integers(1, width + 1, (rows, 1))
    return ids, real & (ids >= SPECIAL), rng.random((rows, width)) < 0.6


def placed(rows: np.ndarray, width: int, epoch: int = 1, seed: int = 1) -> Places:
    same = np.ones(len(rows), np.int64)
    return Places(seed * same, epoch * same, rows, np.arange(width)[None] * same[:, None])


def words_of(may: np.ndarray, begins: np.ndarray) -> list[list[int]]:
    """The columns of each word of one row, the slow way."""
    words: list[list[int]] = []
    for i in np.flatnonzero(may):
        if begins[i] or i == 0 or not may[i - 1]:
            words.append([])
        words[-1].append(int(i))
    return words


MASKINGS = some.builds(
    Masking, rate=some.sampled_from([0.05, 0.15, 0.5]), whole_words=some.booleans(), n_gram=some.integers(1, 4)
)


@settings(max_examples=60, deadline=None)
@given(masking=MASKINGS, seed=some.integers(0, 1000), width=some.integers(1, 40))
def test_what_may_not_be_is_never_chosen_and_words_stay_whole(masking: Masking, seed: int, width: int) -> None:
    _, may, begins = drawn(6, width, seed)
    chosen = masking.chosen(may, begins, placed(np.arange(6), width))
    assert not (chosen & ~may).any()
    assert (chosen.any(1) == may.any(1)).all(), "a row that has tokens has some to guess"
    for row in range(6):
        words = words_of(may[row], begins[row]) if masking.whole_words else [[i] for i in np.flatnonzero(may[row])]
        taken = [word for word in words if chosen[row][word].any()]
        assert all(chosen[row][word].all() for word in taken)
        longest = max(map(len, words), default=1)
        assert chosen[row].sum() < masking.rate * may[row].sum() + longest


@settings(max_examples=30, deadline=None)
@given(masking=MASKINGS, seed=some.integers(0, 1000), sizes=some.sampled_from([(6,), (1,) * 6, (2, 2, 2), (3, 1, 2)]))
def test_a_row_s_masks_do_not_depend_on_the_rows_beside_it(masking: Masking, seed: int, sizes: tuple[int, ...]) -> None:
    ids, may, begins = drawn(6, 30, seed)
    numbers = np.asarray([7, 3, 12, 0, 5, 2**40])
    whole = masking.chosen(may, begins, placed(numbers, 30))
    new = masking.corrupted(ids, whole, MASK, np.arange(SPECIAL, IDS), placed(numbers, 30))
    order = np.random.default_rng(seed).permutation(6)
    start = 0
    for size in sizes:
        part = order[start : start + size]
        start += size
        width = int(may[part].any(0).nonzero()[0].max(initial=0)) + 1  # another padding
        places = placed(numbers[part], width)
        found = masking.chosen(may[part][:, :width], begins[part][:, :width], places)
        assert (found == whole[part][:, :width]).all()
        again = masking.corrupted(ids[part][:, :width], found, MASK, np.arange(SPECIAL, IDS), places)
        assert (again == new[part][:, :width]).all()


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("n_gram", [1, 3])
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_the_share_is_right_on_average(rate: float, n_gram: int, whole_words: bool) -> None:
    _, may, begins = drawn(2000, 64, 0)
    full = may[:, :40].sum(1) > 25  # of short rows at least a word is taken, which may be more than the share
    may, begins = may[full], begins[full]
    masking = Masking(rate, whole_words, n_gram)
    chosen = masking.chosen(may, begins, placed(np.arange(len(may)), 64))
    assert chosen.sum() / may.sum() == pytest.approx(rate, rel=0.01)


def test_every_position_is_as_likely() -> None:
    may = np.ones((20000, 16), bool)
    share = Masking(0.25).chosen(may, may, placed(np.arange(len(may)), 16)).mean(0)
    assert share == pytest.approx(0.25, rel=0.05)


def test_what_stands_in_for_the_chosen_tokens() -> None:
    ids = np.random.default_rng(0).integers(SPECIAL, IDS, (2000, 64))
    chosen = np.zeros(ids.shape, bool)
    chosen[:, ::3] = True
    new = Masking().corrupted(ids, chosen, MASK, np.arange(SPECIAL, IDS), placed(np.arange(2000), 64))
    assert (new[~chosen] == ids[~chosen]).all()
    was, now = ids[chosen], new[chosen]
    other = 1 / (IDS - SPECIAL)  # a random token may be the right one
    assert (now == MASK).mean() == pytest.approx(0.8, abs=0.01)
    assert (now == was).mean() == pytest.approx(0.1 + 0.1 * other, abs=0.01)
    random = now[(now != MASK) & (now != was)]
    assert len(random) / len(now) == pytest.approx(0.1, abs=0.01)
    assert set(np.unique(random)) == set(range(SPECIAL, IDS)), "any ordinary token, and no special one"
    kept = Masking(replaced=0, randomised=0).corrupted(ids, chosen, MASK, np.arange(IDS), placed(np.arange(2000), 64))
    assert (kept == ids).all()


def test_epochs_seeds_and_rows_draw_anew() -> None:
    may = np.ones((1, 400), bool)
    kinds = [(0, 1, 1), (0, 2, 1), (0, 1, 2), (1, 1, 1)]
    masks = [Masking(0.5).chosen(may, may, placed(np.asarray([r]), 400, epoch=e, seed=s)) for r, e, s in kinds]
    for i, one in enumerate(masks):
        for other in masks[i + 1 :]:
            assert (one == other).mean() == pytest.approx(0.5, abs=0.12)


def test_lengths_of_spans_are_those_of_albert() -> None:
    lengths = Masking(n_gram=3).lengths(uniform(np.arange(60000)))
    shares = np.bincount(lengths, minlength=4)[1:] / len(lengths)
    assert shares == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.01)


def test_spans_reach_as_far_as_their_length_and_their_part() -> None:
    turn = np.asarray([[0.1, 0.9, 0.8, 0.7, 0.2, 0.95]])
    lengths = np.asarray([[2, 1, 1, 3, 1, 1]])
    assert spread(turn, lengths, np.zeros((1, 6))).tolist() == [[0.1, 0.1, 0.8, 0.7, 0.2, 0.7]]
    assert spread(turn, lengths, np.asarray([[0, 1, 1, 1, 1, 2]])).tolist() == [[0.1, 0.9, 0.8, 0.7, 0.2, 0.95]]


def test_the_hash_is_splitmix64() -> None:
    """The first outputs of the published generator for seed 1234567."""
    state = np.asarray([1234567 + i * 0x9E3779B97F4A7C15 & (2**64 - 1) for i in range(3)], np.uint64)
    assert mixed(state).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniform_numbers_are_uniform_and_their_keys_are_not_mixed_up() -> None:
    found = uniform(1, np.arange(300)[:, None], np.arange(300))
    assert 0 <= found.min() < 1e-3
    assert 1 - 1e-3 < found.max() < 1
    assert np.histogram(found, 10, (0, 1))[0] / found.size == pytest.approx(0.1, rel=0.05)
    assert len(np.unique(found)) == found.size
    assert abs(np.corrcoef(found[:, :-1].ravel(), found[:, 1:].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"replaced": 0.8, "randomised": 0.3}, "not above 1 together"),
    ],
)
def test_wrong_options(options: dict[str, float], says: str) -> None:
    with pytest.raises(SkimError, match=says):
        Masking(**options)  # type: ignore[arg-type]
