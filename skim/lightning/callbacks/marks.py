"""A rank that hangs: each says how far it has come, and when nobody moves any more, the one behind is named."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch.distributed import distributed_c10d

LOOK = 1.0  # seconds between two looks
GRACE = 20.0  # seconds that other ranks leave to the first, which writes down how the run has ended
FORWARD, BACKWARD, STEP, BEHIND, VALIDATION = range(5)
WORDS = (
    "the forward pass of training batch {}",
    "the backward pass of training batch {}",
    "the step after training batch {}",
    "what follows training batch {}",
    "batch {} of an evaluation",
)


class Looks(threading.Thread):
    """Publishes how far this rank has come, and looks at the others.

    Args:
        store: that all ranks share.
        rank: of this process.
        ranks: how many there are.
        timeout: seconds in which no rank moves on, after which the run is given up.
        give_up: told what has happened; ends the run.
        clock: in seconds.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        ranks: int,
        timeout: float,
        give_up: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(daemon=True, name="marks")
        self.store, self.rank, self.ranks, self.give_up, self.clock = store, rank, ranks, give_up, clock
        self.timeout = timeout + (GRACE if rank else 0.0)
        self.here: tuple[int, ...] = (0, 0, FORWARD, 0)
        self.over = threading.Event()
        self._seen: list[Any] = []
        self._since = clock()

    def run(self) -> None:
        while not self.over.wait(LOOK):
            with contextlib.suppress(RuntimeError):  # a store that is gone: so is its rank, see skim.lightning.ranks
                if (said := self.look()) is not None and not self.over.is_set():
                    self.give_up(said)
                    return

    def look(self) -> str | None:
        """Publish and compare; say which rank is behind, if none has moved on for so long."""
        self.store.set(f"skim/mark/{self.rank}", json.dumps(self.here))
        keys = [f"skim/mark/{rank}" for rank in range(self.ranks)]
        if not self.store.check(keys):
            return None
        marks = [json.loads(mark) for mark in self.store.multi_get(keys)]  # one question, however many ranks there are
        if marks != self._seen:
            self._seen, self._since = marks, self.clock()
        waited = self.clock() - self._since
        if waited < self.timeout or min(marks) == max(marks):
            return None
        behind = [rank for rank, mark in enumerate(marks) if mark == min(marks)]
        *_, phase, index = min(marks)
        said = f"rank {behind[0]} hangs" if len(behind) == 1 else f"ranks {', '.join(map(str, behind))} hang"
        return (
            f"{said} in {WORDS[phase].format(index + 1)}, at step {min(marks)[0] + 1}: the others have waited "
            f"{waited:.0f} s for it (hardware.timeout).\nDoes a device, a file system or a callback not answer? "
            "The run goes on by resume=<its folder>."
        )


class Marks(Callback):
    """Notes how far this rank has come, where a run has several.

    Args:
        timeout: seconds, see ``hardware.timeout``.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.give_up: Callable[[str], object] = print
        self._looks: Looks | None = None
        self._batch = 0

    def _begin(self, trainer: pl.Trainer) -> None:
        if trainer.world_size > 1 and self._looks is None:
            store = distributed_c10d._get_default_store()
            self._looks = Looks(store, trainer.global_rank, trainer.world_size, self.timeout, self.give_up)
            self._looks.start()

    def _end(self) -> None:
        if self._looks is not None:
            self._looks.over.set()
            self._looks = None

    def _note(self, trainer: pl.Trainer, phase: int, index: int) -> None:
        if self._looks is not None:
            self._looks.here = (trainer.global_step, self._batch, phase, index)

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._begin(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        self._batch = index
        self._note(trainer, FORWARD, index)

    def on_before_backward(self, trainer: pl.Trainer, *_: Any) -> None:
        self._note(trainer, BACKWARD, self._batch)

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
        self._note(trainer, STEP, self._batch)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._note(trainer, BEHIND, self._batch)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: Any, index: int, dataloader_idx: int = 0
    ) -> None:
        self._note(trainer, VALIDATION, index)

    def on_train_end(self, *_: Any) -> None:
        self._end()

    def on_exception(self, *_: Any) -> None:
        self._end()
