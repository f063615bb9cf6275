"""Jobs of a sweep, by a launcher of Hydra: one that fails, or whose process dies, leaves the others alone."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from hydra.plugins.launcher import Launcher
from rich.console import Console

from skim.signals import Stopped, numbers
from skim.sweeps.folder import Job
from skim.sweeps.progress import Progress

PATIENCE = 15  # seconds for processes of a killed sweep to end
SAVING = 60  # seconds for jobs in processes of their own to save, when their sweep is ended


@contextlib.contextmanager
def killable(jobs: Sequence[Job]) -> Iterator[None]:
    """Let SIGTERM end a sweep as Ctrl-C does, between its jobs and while other processes compute them.

    Those are told, and have time to save; joblib would kill them. At a second signal the sweep ends without them.

    Args:
        jobs: of the sweep.

    Raises:
        Stopped: SIGTERM has come, or a cluster's own signal.
    """
    heard: list[int] = []

    def stop(number: int, frame: object) -> None:
        heard.append(number)
        if len(heard) == 1:
            save(jobs)
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in numbers()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def save(jobs: Sequence[Job]) -> None:
    """Have the jobs that other processes of this machine compute save and end, and wait for that."""
    beside = [job for job in map(again, jobs) if job.state == "running" and job.process not in (None, os.getpid())]
    if beside:
        os.write(2, b"the jobs that are running save, and end; once more ends them now\n")
    for job in beside:
        with contextlib.suppress(ProcessLookupError):
            os.kill(job.process or 0, signal.SIGTERM)
    settle(beside, SAVING)


def launch(launcher: Launcher, options: Any, jobs: Sequence[Job], console: Console, batch: int | None = None) -> None:
    """Run the jobs that are not done, as :func:`launched` does; SIGTERM and Ctrl-C end them.

    Args:
        launcher: set up with :class:`skim.sweeps.job.Recorded`.
        options: the launcher's, of ``hydra.launcher``.
        jobs: of one sweep.
        console: for the progress of all jobs.
        batch: jobs that are launched at a time.
    """
    with killable(jobs):
        launched(launcher, options, jobs, console, batch)


def launched(launcher: Launcher, options: Any, jobs: Sequence[Job], console: Console, batch: int | None = None) -> None:
    """Run the jobs that are not done; afterwards each says for itself what became of it."""
    died: Counter[int] = Counter()
    settle(jobs)
    left = [job for job in map(again, jobs) if job.state not in ("done", "running", "pruned")]
    width = processes(options)
    with Progress(jobs, console, table=width > 1):
        while left:
            now = list(islice(left, batch))
            try:
                launcher.launch([lines(job, width) for job in now], initial_job_idx=now[0].number)
            except Exception:  # a process that the system killed, with those beside it: joblib ends them all
                dead = [job for job in map(again, now) if job.state == "interrupted"]
                died.update(job.number for job in dead)
                if not dead:
                    raise
                for job in dead:
                    if died[job.number] > 1:
                        job.note("failed", error="its process was killed, twice; out of memory?", ended=time.time())
                tried = {job.number for job in now if again(job).state not in ("waiting", "interrupted")}
            else:
                tried = {job.number for job in now}
            left = [again(job) for job in left if job.number not in tried]


def again(job: Job) -> Job:
    """Read a job as it is now."""
    return Job.at(job.folder)


def settle(jobs: Sequence[Job], patience: float = PATIENCE) -> None:
    """Wait some seconds for jobs that still run, of a sweep that is over: their processes end a moment after it."""
    until = time.monotonic() + patience
    while time.monotonic() < until and any(again(job).state == "running" for job in jobs):
        time.sleep(0.2)


def processes(options: Any) -> int:
    """Count the jobs that run side by side on this machine, as joblib's launcher has been asked; 1 for any other."""
    if "joblib" not in str(options.get("_target_")):
        return 1
    asked = int(options.n_jobs)
    return asked if asked > 0 else max(cores() + 1 + asked, 1)


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lines(job: Job, width: int) -> list[str]:
    """List the overrides of a job for the launcher; jobs side by side share the cores, if nobody has said how."""
    found = job.launched()
    if not any(line.startswith("print_config=") for line in found):
        found.append("print_config=false")  # a tree of each job hides what differs
    if width > 1 and job.config["hardware"].get("threads") is None:
        found.append(f"hardware.threads={max(cores() // width, 1)}")
    return found
