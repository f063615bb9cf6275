"""States of a split: what a neuron is called, and views that copy nothing."""

from __future__ import annotations

import numpy as np

from skim.analysis.redundancy.states import Splits, States


def states(rows: int = 5, numbers: tuple[int, ...] = (0, 2, 3), width: int = 4) -> States:
    values = np.arange(rows * len(numbers) * width, dtype=np.float32).reshape(rows, len(numbers), width)
    ran = np.ones((rows, len(numbers)), dtype=bool)
    return States(values, np.zeros(rows, dtype=np.int64), np.arange(rows), ran, numbers)


def test_a_neuron_is_called_by_its_layer_and_dimension_whatever_was_left_out() -> None:
    some = states()
    assert some.neurons == 12
    assert [some.place(neuron) for neuron in (0, 3, 4, 11)] == [(0, 0), (0, 3), (2, 0), (3, 3)]
    assert (some.flat[2, 5], some.values[2, 1, 1]) == (29, 29)
    assert np.shares_memory(some.flat, some.values)


def test_blocks_cover_every_row_once() -> None:
    rows = np.concatenate([np.arange(5)[block] for block in states().blocks(2)])
    assert rows.tolist() == [0, 1, 2, 3, 4]


def test_labels_without_names_are_numbers() -> None:
    assert Splits(states(), states(), states(), []).regression
    assert not Splits(states(), states(), states(), ["no", "yes"]).regression
