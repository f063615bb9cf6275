"""Efficient transfer: three probes, their features and scores, and whose time is measured."""

from __future__ import annotations

import numpy as np
import pytest

from skim.analysis.redundancy.ridge import Ridge
from skim.analysis.redundancy.rows import Rows
from skim.analysis.redundancy.transfer import transfer_steps
from skim.errors import SkimError
from tests.analysis.redundancy.planted import FIRST, LAYERS, SECOND, WIDTH, planted


def test_layers_then_neurons_beside_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    read: list[int] = []
    blocks = Rows.blocks

    def watched(rows: Rows, neurons: np.ndarray | None = None, size: int = 256):
        read.append(rows.neurons if neurons is None else len(neurons))
        return blocks(rows, neurons, size)

    monkeypatch.setattr(Rows, "blocks", watched)
    steps = transfer_steps(
        planted(Ridge()), WIDTH, 2, [SECOND, FIRST], lambda top: runs.append(top) or 10.0 * top + len(runs), repeats=3
    )
    assert [(step.name, step.top, step.features) for step in steps] == [
        ("all layers", LAYERS - 1, LAYERS * WIDTH),
        ("layers", 2, 3 * WIDTH),
        ("neurons", 2, 2),
    ]
    assert runs == [5, 2] * 3, "measured in turn, and once for the steps that share it"
    assert [step.extraction_seconds for step in steps] == [53, 24, 24], "the median of each"
    assert [set(step.scores) for step in steps] == [{"train", "dev", "test"}] * 3
    assert [step.scores["test"] for step in steps] == pytest.approx([1.0] * 3, abs=0.01)
    assert all(step.training_seconds > 0 for step in steps)
    assert set(read) == {LAYERS * WIDTH, 3 * WIDTH, 2}, "a probe reads its own columns and no others"


@pytest.mark.parametrize(
    ("top", "neurons", "repeats", "message"),
    [
        (6, [1], 1, "places 0 to 5"),
        (1, [], 1, "at least one neuron"),
        (1, [3, 17], 1, "places 0 to 1"),
        (1, [3], 0, "repeats=0"),
    ],
)
def test_transfers_that_cannot_be_are_refused(top: int, neurons: list[int], repeats: int, message: str) -> None:
    with pytest.raises(SkimError, match=message):
        transfer_steps(planted(Ridge()), WIDTH, top, neurons, lambda _: 0.0, repeats)
