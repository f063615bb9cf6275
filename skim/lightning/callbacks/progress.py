"""Progress of a run as it is shown: a bar on a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

EVERY = 30.0  # seconds between two lines of a log, at least
SHARE = 1 / 40  # and this share of the time so far: a week's log has some 300 of them
REDRAWN = 0.25  # seconds between two looks of a bar; reading a loss waits for the device
HIDDEN = ("layer_", "gflops", "formula/", "method/")  # of an evaluation: too many to be read


def progress_of(folder: str | Path, bar: bool = True) -> Shown:
    """Choose how progress is shown: a bar on a terminal, else lines.

    Args:
        folder: the run's.
        bar: False: lines on a terminal as well.
    """
    console = Console() if bar else Console(force_terminal=False)
    return Bar(console, Path(folder)) if console.is_terminal else Lines(console, Path(folder))


@contextmanager
def counted(console: Console, what: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar over something that takes a while, or a line that says that it begins.

    Args:
        console: where to.
        what: it is.
        total: steps; what is yielded is called when one more is done, or with how many are.
    """
    if not console.is_terminal:
        console.print(what, highlight=False, soft_wrap=True)
        yield lambda done=1: None
        return
    with Progress(*columns(), console=console, transient=True) as progress:
        task = progress.add_task(what, total=total, shown="")
        yield lambda done=1: progress.advance(task, done)


def columns() -> list[Any]:
    """Columns of a bar, none of which wraps: what, the bar in the room that is left, counts, time left, numbers."""
    whole = Column(no_wrap=True)
    return [
        TextColumn("{task.description}", table_column=whole),
        BarColumn(bar_width=None),
        MofNCompleteColumn(table_column=whole),
        TimeRemainingColumn(compact=True, table_column=whole),
        TextColumn("{task.fields[shown]}", table_column=whole),
    ]


class Shown(ProgressBar):
    """Says where a run goes, how long it is, and what its evaluations come to.

    Args:
        console: where to.
        folder: the run's.
        clock: seconds, rising.
    """

    def __init__(self, console: Console, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.console, self.folder, self.clock = console, folder, clock
        self.is_enabled = True  # Lightning asks for it: not on the other ranks
        self.steps = 0

    def enable(self) -> None:
        self.is_enabled = True

    def disable(self) -> None:
        self.is_enabled = False

    def print(self, *args: Any, **_: Any) -> None:
        """A line of its own."""
        if self.is_enabled:
            self.console.print(Text(" ".join(map(str, args))), soft_wrap=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.steps = cast(Any, pl_module).plan.steps
        begun = f", from step {trainer.global_step:,} on" if trainer.global_step else ""
        devices = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
        device = trainer.strategy.root_device.type
        self.print(f"{self.folder}: {self.steps:,} steps{begun}, {devices}{device}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        values = trainer.callback_metrics
        names = [name for name in values if name.startswith("val/") and not any(part in name for part in HIDDEN)]
        text = ", ".join(f"{name[4:].replace('_', ' ')} {float(values[name]):.4f}" for name in names)
        self.print(f"step {trainer.global_step:,}: {text}")

    def training(self, trainer: pl.Trainer) -> dict[str, str]:
        """Numbers of the last training step, for people."""
        module = cast(Any, trainer.lightning_module)
        trace, loss = module.trace, module.loss
        with torch.no_grad():
            numbers = {"keep": trace.keep_ratio().mean(), "FLOPs": trace.relative_flops()}
        shown = numbers if loss is None else {"loss": loss, **numbers}
        return {name: f"{float(value):.3f}" for name, value in shown.items()}


class Lines(Shown):
    """A line every so often, for logs and terminals that show no bar."""

    def __init__(self, console: Console, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, folder, clock)
        self.started = self.said = clock()
        self.first = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.started = self.said = self.clock()
        self.first = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        step = trainer.global_step
        if step == self.first or not self.due():
            return
        left = (self.clock() - self.started) / (step - self.first) * (self.steps - step)
        numbers = ", ".join(f"{name} {value}" for name, value in self.training(trainer).items())
        self.print(f"step {step:,} of {self.steps:,}: {numbers}, {timedelta(seconds=round(left))} left")

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.due():
            self.print(f"evaluation: {batch_idx + 1:,} of {int(sum(trainer.num_val_batches)):,} batches")

    def due(self) -> bool:
        """Tell whether it is time for another line; if so, the time counts from now."""
        now = self.clock()
        if not self.is_enabled or now - self.said < max(EVERY, SHARE * (now - self.started)):
            return False
        self.said = now
        return True


class Bar(Shown):
    """One bar over all steps of the training, and one over each evaluation; they fit 80 columns."""

    def __init__(self, console: Console, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, folder, clock)
        self.progress: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.drawn = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.begin("training", self.steps, trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        step = trainer.global_step
        if self.due() or step == self.steps:
            name = cast(Any, pl_module).stage
            numbers = " ".join(f"{name} {value}" for name, value in self.training(trainer).items())
            self.draw("training", completed=step, shown=numbers, description=(name and name.name) or "training")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begin("evaluation", int(sum(trainer.num_val_batches)))

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.due():
            self.draw("evaluation", completed=batch_idx + 1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.progress is not None:
            self.progress.remove_task(self.tasks.pop("evaluation"))
        super().on_validation_end(trainer, pl_module)

    def print(self, *args: Any, **kwargs: Any) -> None:
        super().print(*args, **kwargs)
        if self.progress is not None:
            self.progress.refresh()

    def begin(self, what: str, total: int, completed: int = 0) -> None:
        """Start a bar; nothing on ranks that show none."""
        if not self.is_enabled:
            return
        if self.progress is None:
            # drawn between batches and never by a thread of its own, which would take time from whoever is running
            self.progress = Progress(*columns(), console=self.console, auto_refresh=False)
            self.progress.start()
        self.tasks[what] = self.progress.add_task(what, total=total, completed=completed, shown="")
        self.progress.refresh()

    def draw(self, what: str, **values: Any) -> None:
        """Bring a bar up to date."""
        if self.progress is not None:
            self.progress.update(self.tasks[what], refresh=True, **values)

    def due(self) -> bool:
        """Tell whether it is time to draw the numbers again; if so, the time counts from now."""
        now = self.clock()
        if self.progress is None or now - self.drawn < REDRAWN:
            return False
        self.drawn = now
        return True

    def teardown(self, *_: Any, **__: Any) -> None:
        if self.progress is not None:
            self.progress.stop()
        self.progress = None

    def on_exception(self, *_: Any) -> None:
        self.teardown()
