"""A job of a sweep in the process that computes it: what becomes of it is written down, and goes no further."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig

from skim import started
from skim.errors import SkimError, first_line, message
from skim.signals import Stopped, rank
from skim.sweeps.folder import Job

LOG = "log.txt"  # what a job in a process of its own has printed
GRACE = 10  # seconds in which a job whose sweep is gone may save
STOPPED: list[int] = []  # jobs that a signal has ended in this process: it begins no other
HELD: list[FileLock] = []  # the GPU of this process, as long as it lives


class Pruned(Exception):
    """Ends a job that a search has given up; it is no failure."""


@dataclass(frozen=True)
class Recorded:
    """A job's main, for a launcher of Hydra to call: it ends without an exception, except for Ctrl-C.

    Attributes:
        main: takes the configuration of the job; its folder is Hydra's ``runtime.output_dir``.
        sweeper: the process of the sweep. Another process that this one has started ends with it.
        program: how the command begins, as :mod:`skim.started` has it: the script, and what ``-m`` names.
    """

    main: Callable[[DictConfig], Any]
    sweeper: int
    program: tuple[str, tuple[str, ...]]

    @classmethod
    def here(cls, main: Callable[[DictConfig], Any]) -> Recorded:
        """Wrap a main in the process of the sweep."""
        return cls(main, os.getpid(), ((started.TYPED or sys.argv)[0], tuple(started.program())))

    def __call__(self, cfg: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        job = Job.at(Path(HydraConfig.get().runtime.output_dir))
        if rank():  # of a job with several processes the first holds it, and says what became of it
            if job.results() is None:
                self.main(cfg)
            return
        beside = os.getpid() != self.sweeper and os.getppid() == self.sweeper
        if beside and STOPPED:
            return
        if beside:
            threading.Thread(target=end_with, args=[self.sweeper], daemon=True).start()
            if cfg.hardware.accelerator != "cpu" and cfg.hardware.devices == 1:
                take_gpu(job.folder.parent)
        with logged(job.folder / LOG) if beside else contextlib.nullcontext(), self.named(job):
            try:
                with job.claimed():
                    if job.results() is None:  # another process may have been faster
                        self.run(job, cfg)
            except SkimError as error:
                print(f"error: {message(error)}", file=sys.stderr)

    def run(self, job: Job, cfg: DictConfig) -> None:
        """Compute a job that is held."""
        who = {"process": os.getpid(), "host": socket.gethostname()}
        job.note("running", began=time.time(), ended=None, error=None, **who)
        try:
            self.main(cfg)
        except BaseException as left:
            # the main has said on stderr what a user can mend, and left by an exit code
            cause = left.__context__ if isinstance(left, SystemExit) and left.__context__ else left
            if isinstance(cause, (KeyboardInterrupt, Stopped)):
                job.note("interrupted", ended=time.time())
                STOPPED.append(job.number)
                raise
            if isinstance(cause, Pruned):
                job.note("pruned", ended=time.time())
                return
            job.note("failed", ended=time.time(), error=first_line(cause))
            if cause is left and isinstance(cause, SkimError):
                print(f"error: {message(cause)}", file=sys.stderr)
            elif cause is left:
                traceback.print_exc()
        else:
            job.note("done", ended=time.time())

    @contextlib.contextmanager
    def named(self, job: Job) -> Iterator[None]:
        """Let the command that ``results.json`` keeps be one that runs this job alone."""
        before = list(started.TYPED), list(started.MODULE)
        script, module = self.program
        started.remember([script, *job.overrides], module)
        try:
            yield
        finally:
            started.remember(*before)


def take_gpu(folder: Path) -> None:
    """Leave this worker of joblib one of the GPUs: one that nobody has yet, or that fewest share.

    To be called before CUDA has started; a worker that computes several jobs keeps its own.

    Args:
        folder: of the sweep, where locks say which are taken.
    """
    import torch

    if HELD:
        return
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(number) for number in range(torch.cuda.device_count())] if seen is None else seen.split(",")
    if len(gpus) < 2:
        return
    for sharing, gpu in ((number, gpu) for number in itertools.count() for gpu in gpus):
        lock = FileLock(folder / f".gpu-{gpu}-{sharing}")
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            HELD.append(lock)
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            return


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Send all that this process and those below it print to the end of a file."""
    streams = {1: sys.stdout, 2: sys.stderr}
    before = {number: os.dup(number) for number in streams}
    with path.open("ab", buffering=0) as file:
        for number, stream in streams.items():
            stream.flush()
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        for number, stream in streams.items():
            stream.flush()
            os.dup2(before[number], number)
            os.close(before[number])


def end_with(parent: int) -> None:
    """End this process when the one that has started it is gone; a training that it computes may save before.

    Nobody would look at what it computes, but the sweep that goes on finds the checkpoint.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)
