"""One process that trains and evaluates again and again holds no more than after the first times."""

from __future__ import annotations

import gc
import os
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from skim.lightning.callbacks.memory import pages
from skim.lightning.looks import evaluate
from skim.lightning.recipe import train
from tests.runs import composed, looking, watched_by

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

TINY = [
    *("task=builtin", "backbone=tiny", "recipe=plain", "hardware=cpu", "hardware.threads=1", "benchmark.enabled=false"),
    *("backbone.overrides.num_hidden_layers=2", "backbone.overrides.hidden_size=32"),
    *("backbone.overrides.intermediate_size=32", "backbone.overrides.num_attention_heads=2"),
    *("print_config=false", "callbacks.progress=false", "task.max_eval_samples=32", "train.calibrate=32"),
    *("task.batch_size=8", "method=transkimmer", "method.target=0.6"),
]
WORKERS = "hardware.num_workers=1"  # so that there is a process to leave behind


def held() -> dict[str, int]:
    """Count what a process can leave open, files, threads, children, and keep, tensors, models, captured graphs."""
    gc.collect()
    tasks = list(Path("/proc/self/task").iterdir())
    kinds = [type(one) for one in gc.get_objects()]
    return {
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(tasks),
        "children": len(list(chain(*((task / "children").read_text().split() for task in tasks)))),
        "tensors": sum(issubclass(kind, torch.Tensor) for kind in kinds),
        "modules": sum(issubclass(kind, nn.Module) for kind in kinds),
        "graphs": sum(kind is torch.cuda.CUDAGraph for kind in kinds),
    }


def cycle(folder: Path) -> None:
    """Train three steps, in two stages, and evaluate the run from its folder."""
    train(composed(*TINY, WORKERS, "task.train_rows=24", "train.epochs=1"), folder, "")
    evaluate(looking(folder, "what=metrics", "max_samples=16"))


def cycles(folder: Path, warm: int, count: int) -> tuple[dict[str, int], dict[str, int], list[int]]:
    """Run cycles; what was held before and after those that count, and the pages behind each of them."""
    for i in range(warm):
        cycle(folder / f"warm{i}")
    before, sizes = held(), []
    for i in range(count):
        cycle(folder / str(i))
        gc.collect()
        sizes.append(pages())
    return before, held(), sizes


def test_trainings_and_evaluations_leave_nothing_behind(tmp_path: Path) -> None:
    """Nothing open, no tensor and no model; other objects by the few hundreds, until caches of libraries are full."""
    cycle(tmp_path / "warm")
    before, objects = held(), sys.getallocatedblocks()
    for i in range(2):
        cycle(tmp_path / str(i))
    assert held() == before
    assert sys.getallocatedblocks() - objects < 5000


@pytest.mark.slow
def test_two_hundred_trainings_and_evaluations_leave_memory_as_it_was(tmp_path: Path, share: float) -> None:
    before, after, sizes = cycles(tmp_path, warm=max(2, round(20 * share)), count=round(200 * share))
    warm, late = max(sizes[: max(1, len(sizes) // 5)]), max(sizes[-max(1, len(sizes) // 5) :])
    print(
        f"{len(sizes)} cycles: {before}, then {after}; pages of 4 KiB {warm:,} in the first fifth, {late:,} in the last"
    )
    assert after == before
    assert late <= 1.02 * warm


class Sizes(pl.Callback):
    """The pages of the process, every 20 steps."""

    def __init__(self) -> None:
        self.pages: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step % 20 == 0:
            self.pages.append(pages())


@pytest.mark.slow
def test_ten_thousand_steps_leave_memory_as_it_was(tmp_path: Path, share: float) -> None:
    """With an evaluation and a checkpoint every hundred of them."""
    steps, sizes = round(10_000 * share), Sizes()
    epochs = [f"task.train_rows={8 * 100}", f"train.epochs={-(-steps // 100)}", f"train.max_steps={steps}"]
    before = held()
    results = watched_by(sizes, composed(*TINY, *epochs), tmp_path / "run").results
    fifth = len(sizes.pages) // 5
    warm, late = max(sizes.pages[:fifth]), max(sizes.pages[-fifth:])
    print(f"{results.steps:,} steps: {before}, then {held()}; pages {warm:,} in the first fifth, {late:,} in the last")
    assert results.steps == steps
    assert late <= 1.02 * warm
