"""The size of a process that trains: holes in the heap go back, and only when it has grown."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from skim.lightning.callbacks import memory
from skim.lightning.callbacks.memory import EVERY, TrimsHeap, pages


def steps(callback: TrimsHeap, count: int) -> None:
    for step in range(count):
        trainer: Any = SimpleNamespace(global_step=step)
        callback.on_train_batch_end(trainer, None)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_holes_go_back_to_the_system() -> None:
    callback = TrimsHeap()
    assert callback.trim is not None
    steps(callback, 1)
    # every second block is freed, below the size from which glibc maps each by itself: the end of the heap stays in use
    blocks = [torch.ones(2**14) for _ in range(2000)]
    full = pages()
    del blocks[::2]
    assert pages() > full - 2000
    callback.before = 0
    steps(callback, 1)
    assert pages() < full - 10_000  # of 16,000 pages that are holes now
    assert len(blocks) == 1000


def test_only_a_process_that_has_grown_is_trimmed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([100, 100, 149, 151, 120, 120])
    monkeypatch.setattr(memory, "pages", lambda: next(sizes))
    trims: list[int] = []
    callback = TrimsHeap()
    callback.trim = trims.append  # type: ignore[assignment]
    steps(callback, 3 * EVERY + 1)  # looks at 100, 149, 151, and then at 120
    assert trims == [0, 0]
    assert callback.before == 120
