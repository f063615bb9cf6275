"""Signals that end a run: Ctrl-C, ``kill``, and a cluster's before it takes the machine away. Imports nothing heavy.

In training a signal waits for a step at which a checkpoint is whole; elsewhere it ends the run at once.

| in a job of | signal | the run |
|---|---|---|
| anybody | SIGINT (Ctrl-C) | as at SIGTERM, with exit code 130; a second one ends it at once |
| nobody | SIGTERM | writes its checkpoint, says how to go on, and ends with exit code 143 |
| submitit | SIGUSR2 (or SUBMITIT_PREEMPT_SIGNAL) | writes its checkpoint and ends; submitit queues the job again |
| SLURM | SIGUSR1 | writes its checkpoint, queues the job again and ends |
| both | SIGTERM | writes its checkpoint and trains on: the cluster says by another signal when it shall end |

A job that is queued again finds its own folder and goes on there, see :func:`skim.resume.again`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from skim.errors import SkimError

SAVES = b"interrupted: the run saves at the end of this step, and ends; once more ends it now\n"
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # the first that is set counts


class Stopped(BaseException):
    """A signal has ended the run; no error, and so nothing that a sweep or a library may catch on the way.

    Args:
        number: of the signal.
        said: how the run goes on.
    """

    def __init__(self, number: int, said: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{said}")
        self.number = number

    @property
    def requeued(self) -> bool:
        """True if the job will be queued again."""
        return self.number == requeue_signal()


class Heard:
    """Signals that this process has heard: there is one, :data:`HEARD`, as a process has one set of handlers.

    Attributes:
        number: of the last signal that has not been answered.
        waits: whether a step of training will answer it.
        on: whether this process listens at all.
        interrupted: whether Ctrl-C was among them.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.waits = self.on = self.interrupted = False

    def __call__(self, number: int, frame: object) -> None:
        if number == signal.SIGINT:
            if self.interrupted or not self.waits:
                raise KeyboardInterrupt
            self.interrupted = True
            os.write(2, SAVES)  # nothing else may be written from here: the signal may have come in the middle of it
        self.number = number
        if not self.waits:
            self.answer()

    def answer(self) -> None:
        """End the run if a signal has asked for that.

        Raises:
            Stopped: it has.
        """
        number, self.number, self.waits = self.number, None, False
        if number is not None and ends(number):
            raise Stopped(number)


HEARD = Heard()


def requeue_signal() -> int | None:
    """The signal after which the job of this process is queued again; ``None`` outside a cluster."""
    if "SUBMITIT_EXECUTOR" in os.environ:
        return int(getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"))
    batch = "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    return signal.SIGUSR1 if batch and os.name == "posix" else None


def ends(number: int) -> bool:
    """Tell whether a run shall end at a signal, and not only write its checkpoint."""
    return number == signal.SIGINT or requeue_signal() in (None, number)


def rank() -> int:
    """The number of this process among those of a run."""
    return next((int(os.environ[name]) for name in RANKS if name in os.environ), 0)


def numbers() -> set[int]:
    """The signals that a run listens to; not to Ctrl-C if it was started in the background, to be spared by that."""
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    return {int(signal.SIGTERM), *(() if ignored else (int(signal.SIGINT),)), *filter(None, [requeue_signal()])}


def deaf(worker: int = 0) -> None:
    """Leave signals to the process that has started this one to load data, and that goes on till it has saved.

    Ctrl-C and clusters send them to all processes of a run. A loader asks its workers to end by other means, and they
    see by themselves when it is gone.
    """
    for number in numbers():
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def heeded() -> Iterator[None]:
    """Listen to signals while a run lasts; what ends it is handed on to whoever queues the job again.

    Only the main thread of a process can listen; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, HEARD) for number in numbers()}
    HEARD.number, HEARD.on, HEARD.interrupted = None, True, False
    try:
        yield
    except Stopped as stopped:
        if rank():  # the first process speaks for all, and Lightning kills it where another ends with an error
            raise SystemExit(0) from None
        if stopped.requeued:
            requeue(stopped, before[stopped.number])
        raise
    finally:
        HEARD.on, HEARD.number, HEARD.waits = False, None, False
        for number, handler in before.items():
            signal.signal(number, handler)


def requeue(stopped: Stopped, handler: object) -> None:
    """Have the job queued again: by submitit, whose handler was there before, or by SLURM itself.

    Raises:
        SkimError: SLURM does not.
    """
    if callable(handler):
        handler(stopped.number, None)
        return
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SkimError(
            f"{stopped}, but SLURM did not queue job {job} again: {getattr(error, 'stderr', '') or error}\n"
            "Is the job submitted with --requeue? Start it by hand: it goes on by resume=<its folder>."
        ) from error
