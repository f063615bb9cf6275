"""Laws of the sampler, and padding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from skim.errors import SkimError
from tasks.data.batches import POOL, LengthBatches, Rows, TokenBatches


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], int, int, bool]:
    world = draw(st.integers(1, 5))
    lengths = draw(st.lists(st.integers(2, 60), min_size=world, max_size=300))
    return lengths, draw(st.integers(1, 17)), world, draw(st.booleans())


def epoch(lengths, size: int, world: int, shuffle: bool, number: int = 0, seed: int = 3) -> list[list[list[int]]]:
    """``[rank][step]`` -> rows."""
    ranks = []
    for rank in range(world):
        sampler = LengthBatches(lengths, size, shuffle, seed, rank=rank, world_size=world)
        sampler.set_epoch(number)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler)
    return ranks


@given(cases())
@settings(max_examples=200, deadline=None)
def test_every_row_once_and_as_many_batches_on_each_rank(case: tuple) -> None:
    lengths, size, world, shuffle = case
    ranks = epoch(lengths, size, world, shuffle)
    uneven = size == 1 and len(lengths) % world > 0
    assert {len(steps) for steps in ranks} == {math.ceil(len(lengths) / (size * world)) - uneven}
    batches = [batch for steps in ranks for batch in steps]
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    sizes = {len(batch) for batch in batches}
    assert min(sizes) >= 1
    assert max(sizes) <= size + uneven
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(6, 200), st.integers(6, 17), st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_step_has_the_same_rows_on_any_number_of_processes(rows: int, size: int, shuffle: bool) -> None:
    lengths = np.random.default_rng(rows).integers(3, 40, rows)

    def steps(world: int) -> list[list[int]]:
        ranks = [
            LengthBatches(lengths, size, shuffle, rank=rank, world_size=world, whole=True) for rank in range(world)
        ]
        return [[row for batch in step for row in batch] for step in zip(*ranks, strict=True)]

    assert steps(2) == steps(1)
    assert len(steps(3)) in (len(steps(1)), rows // 3)  # no rank gets a batch of no rows


def test_a_global_batch_of_fewer_rows_than_processes_is_refused() -> None:
    with pytest.raises(SkimError, match="2 rows per step cannot be shared out over 4 processes"):
        LengthBatches([3] * 9, 2, False, rank=0, world_size=4, name="validation", whole=True)


def test_a_global_budget_of_tokens_is_shared_out() -> None:
    sampler = TokenBatches([8] * 12, 32, False, whole=True, rank=1, world_size=2)
    assert {len(batch) for batch in sampler} == {2}
    with pytest.raises(SkimError, match=r"a row takes 8 tokens of a batch, and task.tokens_per_batch=14 over 2 proc"):
        TokenBatches([8] * 12, 14, False, whole=True, rank=1, world_size=2)


def test_no_rank_gets_an_empty_batch() -> None:
    assert epoch([9, 8, 7, 6, 5], 1, 4, False) == [[[0, 1]], [[2]], [[3]], [[4]]]


@given(cases())
@settings(max_examples=50, deadline=None)
def test_reproducible_by_seed_and_epoch(case: tuple) -> None:
    lengths, size, world, shuffle = case
    assert epoch(lengths, size, world, shuffle, number=2) == epoch(lengths, size, world, shuffle, number=2)


def test_epochs_and_seeds_differ_in_training_and_not_in_evaluation() -> None:
    lengths = np.random.default_rng(0).integers(3, 40, 500)
    assert epoch(lengths, 8, 2, True, number=0) != epoch(lengths, 8, 2, True, number=1)
    assert epoch(lengths, 8, 2, True, seed=3) != epoch(lengths, 8, 2, True, seed=4)
    assert epoch(lengths, 8, 2, False, number=0) == epoch(lengths, 8, 2, False, number=1)


def test_batches_hold_similar_lengths_and_steps_are_even_over_ranks() -> None:
    lengths = np.random.default_rng(0).geometric(0.1, 3 * POOL * 32) + 2
    ranks = epoch(lengths, 16, 2, True)
    padded = sum(len(batch) * lengths[batch].max() for steps in ranks for batch in steps)
    assert lengths.sum() / padded > 0.93
    gaps = [abs(int(lengths[a].max()) - int(lengths[b].max())) for a, b in zip(*ranks, strict=True)]
    assert np.mean(gaps) < 1.5


def test_evaluation_begins_with_the_longest() -> None:
    (steps,) = epoch([3, 9, 5, 7, 9], 2, 1, False)
    assert steps == [[1, 4], [3, 2], [0]]


def test_fewer_rows_than_processes() -> None:
    with pytest.raises(SkimError, match="validation: 2 rows cannot be shared out over 4 processes"):
        LengthBatches([3, 4], 8, False, rank=0, world_size=4, name="validation")


def budgeted(lengths, tokens: int, world: int, shuffle: bool, number: int = 0) -> list[list[list[int]]]:
    """``[rank][step]`` -> rows, by a budget of tokens."""
    ranks = []
    for rank in range(world):
        sampler = TokenBatches(lengths, tokens, shuffle, seed=3, rank=rank, world_size=world)
        sampler.set_epoch(number)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler)
    return ranks


@given(cases(), st.integers(60, 700))
@settings(max_examples=150, deadline=None)
def test_a_budget_of_tokens_holds_on_every_rank_and_every_row_comes_once(case: tuple, tokens: int) -> None:
    lengths, _, world, shuffle = case
    ranks, again = (budgeted(lengths, tokens, world, shuffle, number) for number in (0, 1))
    assert {len(steps) for steps in ranks} == {len(steps) for steps in again}  # of both epochs: the schedule's
    assert len({len(steps) for steps in ranks}) == 1
    batches = [batch for steps in ranks for batch in steps]
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert min(len(batch) for batch in batches) >= 1
    above = [b for b in batches if len(b) * max(lengths[row] for row in b) > tokens]
    assert len(above) < world  # rows that did not come out even over the ranks; none on one


def test_a_budget_is_used_and_holds_similar_lengths() -> None:
    lengths = np.random.default_rng(0).geometric(0.05, 20_000) + 2
    for shuffle in (False, True):
        ranks = budgeted(lengths, 2048, 2, shuffle)
        padded = [len(batch) * lengths[batch].max() for steps in ranks for batch in steps]
        assert lengths.sum() / sum(padded) > 0.92
        assert np.mean(padded) > 0.9 * 2048
    first, second = (budgeted(lengths, 2048, 2, True, number)[0] for number in (0, 1))
    mates = {row: set(batch) for batch in first for row in batch}
    shared = [len(mates[row] & set(batch)) / len(batch) for batch in second for row in batch if row in mates]
    assert np.mean(shared) < 0.5  # rows meet others in the next epoch


def test_a_row_above_the_budget_is_refused() -> None:
    with pytest.raises(SkimError, match=r"train: a row takes 9 tokens of a batch, and task.tokens_per_batch=8 is"):
        TokenBatches([3, 9], 8, True, rank=0, world_size=1, name="train")


@pytest.fixture
def table() -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [[1, 2, 3], [4], [5, 6]],
            "salient": [[True, False, True], [True], [False, True]],
            "labels": [0.5, 1.5, 2.5],
            "length": [3, 1, 2],
        }
    )


def test_padding_right_and_left(table: Dataset) -> None:
    right = Rows(table, {"input_ids": 9}, hidden=("length",))[[2, 0]]
    assert right["input_ids"].tolist() == [[5, 6, 9], [1, 2, 3]]
    assert right["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert right["salient"].tolist() == [[False, True, False], [True, False, True]]
    assert right["labels"].tolist() == [2.5, 0.5]
    assert set(right) == {"row", "input_ids", "attention_mask", "salient", "labels"}
    assert right["input_ids"].dtype == right["attention_mask"].dtype == torch.int64
    left = Rows(table, {"input_ids": 9}, left=True)[[2, 0]]
    assert left["input_ids"].tolist() == [[9, 5, 6], [1, 2, 3]]
    assert left["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_gives_the_sampler_s_batches(table: Dataset, workers: int) -> None:
    sampler = LengthBatches([3, 1, 2], 2, shuffle=False)
    batches = list(DataLoader(Rows(table, {}), sampler=sampler, batch_size=None, num_workers=workers))
    assert [batch["length"].tolist() for batch in batches] == [[3, 2], [1]]
