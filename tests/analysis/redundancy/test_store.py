"""States on the disk: gone on with, and made anew where they are damaged."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from skim.analysis.redundancy.store import Store


def made(folder: Path) -> Store:
    return Store(folder, {"weights": "1"}, (4, 2, 3), "float32", (0, 1), {"labels": np.arange(4)})


def test_states_that_are_damaged_are_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = made(tmp_path / "states")
    with store.open() as files:
        for first in (0, 2):
            files.write(first, np.full((2, 2, 3), first + 1.0), np.ones((2, 2), bool))
            files.block_done(whole=first == 2)
    assert made(tmp_path / "states").whole
    for name in ("values.npy", "labels.npy"):
        path = tmp_path / "states" / name
        before = path.read_bytes()
        path.write_bytes(before[:-4] + b"\1\2\3\4")
        caplog.clear()
        with caplog.at_level(logging.WARNING, "skim"):
            again = made(tmp_path / "states")
        assert (again.done, again.whole) == (0, False)
        assert f"{name} is not as it was written" in caplog.text
        with again.open() as files:
            files.write(0, np.ones((4, 2, 3)), np.ones((4, 2), bool))
            files.block_done(whole=True)
