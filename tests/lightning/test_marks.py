"""A rank that hangs or dies in a real run of two processes is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from torch.distributed import HashStore

from skim.lightning.callbacks.marks import BACKWARD, FORWARD, GRACE, Looks
from tests.runs import ROOT, SMALL


class Fails(pl.Callback):
    """Lets a rank hang for ever, or die, before its third batch.

    Args:
        rank: of the process.
        how: ``hang``, or the name of a signal.
    """

    def __init__(self, rank: int, how: str) -> None:
        self.rank, self.how = rank, how

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        if (trainer.global_rank, index) == (self.rank, 2):
            if self.how == "hang":
                threading.Event().wait()
            os.kill(os.getpid(), signal.Signals[self.how])


def test_who_is_behind_is_named_when_nobody_moves_any_more() -> None:
    now, told, store = [0.0], [], HashStore()
    first, second = (Looks(store, rank, 2, 10.0, told.append, lambda: now[0]) for rank in range(2))
    for looks in (first, second):
        looks.here = (6, 6, FORWARD, 6)
        looks.look()
    second.here = (6, 6, BACKWARD, 6)
    second.look()
    assert first.look() is None, "it has just moved"
    now[0] = 9.0
    assert first.look() is None
    now[0] = 10.5
    said = "rank 0 hangs in the forward pass of training batch 7, at step 7: the others have waited 10 s for it"
    assert (first.look() or "").startswith(said)
    assert second.look() is None, "the first one writes down how the run has ended, if it can"
    now[0] = 10.5 + GRACE
    assert (second.look() or "").startswith("rank 0 hangs")
    first.here = second.here
    assert first.look() is None, "nobody is behind"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "how", "says"),
    [
        (1, "hang", "error: rank 1 hangs in what follows training batch 2, at step 3: the others have waited"),
        (0, "hang", "error: rank 0 hangs in what follows training batch 2, at step 3: the others have waited"),
        (1, "SIGKILL", "error: rank 1 has ended by SIGKILL, and the run with it."),
        (0, "SIGKILL", "error on rank 1: rank 0 is gone"),
    ],
)
def test_the_run_ends_and_names_the_rank(rank: int, how: str, says: str, tmp_path: Path) -> None:
    fails = {"_target_": f"{Fails.__module__}.{Fails.__name__}", "rank": rank, "how": how}
    command = [
        *(sys.executable, "train.py", *SMALL[:-1], "hardware=ddp_cpu", "hardware.timeout=5", "method=dense"),
        *("task.max_train_samples=96", "task.batch_size=8", "callbacks.save_every=1", f"hydra.run.dir={tmp_path}/run"),
        *(f"+callbacks.fails.{key}={value}" for key, value in fails.items()),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "said").open("w") as said:  # a pipe would stay open in a rank that outlives the first
        done = subprocess.run(command, cwd=ROOT, env=env, stdout=said, stderr=said, timeout=900, check=False)
    assert done.returncode in ((1, 2) if (rank, how) != (0, "SIGKILL") else (-signal.SIGKILL,))
    assert says in (tmp_path / "said").read_text()
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    if (rank, how) != (0, "SIGKILL"):
        assert says[len("error: ") :] in json.loads((tmp_path / "run" / "results.json").read_text())["notes"][-1]
