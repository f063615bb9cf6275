"""The folder of a run: emptied of the run before, with the config, and with a word on how a run has ended."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import CSVLogger, Logger

from skim.errors import Interrupted, first_line, reading
from skim.files import write_text
from skim.lightning.callbacks.checkpoints import earlier
from skim.lightning.config_tree import write_tree
from skim.lightning.loggers.curves import Curves, rows_of, write_rows
from skim.lightning.loggers.told import Shows
from skim.published.files import tensors_of
from skim.report.heatmap import TEXTS
from skim.results import Results
from skim.resume import LAST, PREVIOUS, newest
from skim.signals import Stopped

Ends: TypeAlias = KeyboardInterrupt | Stopped | Interrupted  # of a run that can go on from its last checkpoint
LEFT_BEHIND = (  # by an earlier run or look; config.yaml and the like are written over
    "results.json",
    "report.html",
    "lr_find.png",
    "operations.txt",
    "trace.json",
    TEXTS,
    "evaluation.json",
    "curve.json",
    "curve.png",
    "curve.svg",
    "skip.png",
    "skip.svg",
    "tokens.html",
    "tokens.svg",
    "redundancy",
    "model",
    "checkpoints",
    "metrics.csv",
    "tensorboard",
)
ADDED_TO = ("checkpoints", "tensorboard", "metrics.csv")  # by a run that goes on in its own folder


def begin(folder: Path, cfg: DictConfig) -> None:
    """Make the folder; a run that replaces another must not be mistaken for it if it dies half way.

    Interpolations are kept in ``config.yaml``: whoever changes ``hardware.devices`` later changes the trainer's too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    goes_on_here = cfg.resume is not None and folder.resolve() in Path(cfg.resume).resolve().parents
    if goes_on_here and Path(cfg.resume).name == PREVIOUS.name:
        (folder / LAST).unlink(missing_ok=True)  # it is damaged, and would become the previous one
    for name in LEFT_BEHIND:
        path = folder / name
        if goes_on_here and name in ADDED_TO:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg))
    write_tree(cfg, folder)


def continue_log(folder: Path, cfg: DictConfig, loggers: Sequence[Logger]) -> None:
    """Cut ``metrics.csv`` at the checkpoint from which a run goes on in its own folder: the rest comes once more."""
    log = folder / "metrics.csv"
    if cfg.resume is None or folder.resolve() not in Path(cfg.resume).resolve().parents:
        return
    step, pending = place(Path(cfg.resume))
    kept = [row for row in rows_of(log) if int(row["step"]) < step]
    if pending and not any(row["step"] == pending["step"] and pending.keys() <= row.keys() for row in kept):
        kept.append(pending)  # a checkpoint at the end of a step is written before what is logged of the step
    write_rows(log, kept)
    for logger in loggers:
        ours = isinstance(logger, CSVLogger) and Path(logger.log_dir).resolve() == folder.resolve()
        if ours and not isinstance(logger, Curves):  # Lightning's own begins the file anew
            logger.experiment.metrics.extend(kept)
            logger.save()


@contextmanager
def concluded(folder: Path, results: Results, resumed: str | None, trainer: Any, started: float) -> Iterator[None]:
    """Write ``results.json`` when a run fails, and let the loggers know how it has ended.

    Args:
        folder: of the run.
        results: as far as they go.
        resumed: the checkpoint that the run went on from.
        trainer: of the run; its loggers that show more than curves are told.
        started: when, by ``time.monotonic``.
    """
    loggers: list[Logger] = list(trainer.loggers)
    try:
        yield
    except BaseException as error:
        ended: BaseException = error
        if isinstance(error, (KeyboardInterrupt, Stopped, Interrupted)):
            ended = ending(error, goes_on(folder, resumed))
        if trainer.is_global_zero:
            if isinstance(error, Stopped) and error.requeued:
                results.status = "preempted"
            failed(folder, results, started, f"{type(error).__name__}: {error}" if ended is error else str(ended))
        if ended is error:
            raise
        raise ended from None
    finally:
        for logger in loggers:
            if isinstance(logger, Shows):
                told(logger, results)


def told(logger: Shows, results: Results) -> None:
    """Tell a logger how the run has ended. One that fails changes neither that end nor the other loggers."""
    try:
        logger.conclude(results)
    except Exception as error:
        print(f"{type(logger).__name__} was not told how the run has ended: {first_line(error)}.", file=sys.stderr)


def ending(error: Ends, said: str) -> Ends:
    """The same end of a run, with a word on how it goes on."""
    if isinstance(error, Interrupted):
        return error.with_way_on(said)
    return Stopped(error.number, said) if isinstance(error, Stopped) else KeyboardInterrupt(f"interrupted{said}")


def failed(folder: Path, results: Results, started: float, said: str) -> None:
    """Write ``results.json`` of a run that has failed.

    Args:
        folder: of the run.
        results: as far as they go.
        started: when, by ``time.monotonic``.
        said: what has happened.
    """
    results.notes.append(said)
    if results.status == "done":
        results.status = "failed"
    results.wall_seconds = time.monotonic() - started
    results.write(folder)


def goes_on(folder: Path, resumed: str | None) -> str:
    """Say from where an interrupted run can go on: from a checkpoint of its own, or the one it began with."""
    if (last := newest(folder)) is None:
        if resumed is not None:
            return f" before it wrote a checkpoint of its own; resume={resumed} goes on from there once more"
        return " before it wrote a checkpoint: start it anew (callbacks.save_every=<steps> writes one more often)"
    here = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    return f"; resume={here} goes on from step {place(last)[0]}"


def place(checkpoint: Path) -> tuple[int, dict[str, str]]:
    """The optimizer steps that a checkpoint has behind it, and the row of the log that was still to be written."""
    with reading(checkpoint, "a checkpoint of a run"):
        held = tensors_of(checkpoint, mmap=True)
        rows = (state.get("row") for state in held.get("callbacks", {}).values() if isinstance(state, dict))
        row: dict[str, Any] = next(filter(None, rows), {})
        return int(held["global_step"]), {name: str(value) for name, value in row.items()}


def tidy(folder: Path) -> None:
    """Remove the checkpoints that only a run which has not finished may need."""
    for path in [folder / PREVIOUS, *(folder / PREVIOUS).parent.glob(earlier("*"))]:
        path.unlink(missing_ok=True)
