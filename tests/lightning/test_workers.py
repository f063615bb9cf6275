"""Processes that load data: one that is killed, and signals that are not for them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from skim.errors import Interrupted
from tests.lightning.test_resume_exactly import COMMON
from tests.runs import composed, watched_by

RUN = ["task=builtin", *COMMON, "method=dense", "task.train_rows=52", "hardware.num_workers=1"]


class Sends(pl.Callback):
    """Sends a signal to the processes that load training data, after the second step."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            for process in multiprocessing.active_children():
                os.kill(process.pid or 0, self.number)


def test_a_worker_that_is_killed_ends_the_run_with_the_way_on(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match=r"^(a )?DataLoader worker ") as caught:
        watched_by(Sends(signal.SIGKILL), composed(*RUN), tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert f"; resume={tmp_path} goes on from step " in lines[0]
    assert "hardware.num_workers" in lines[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_signals_to_the_run(number: int, tmp_path: Path) -> None:
    """A terminal and a cluster send them to all processes, and the run needs its batches until it has saved."""
    assert watched_by(Sends(number), composed(*RUN), tmp_path).results.status == "done"
