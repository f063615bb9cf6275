"""Progress of a sweep: one table of all jobs where there is a terminal for it, else a line when a job ends."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from skim.report.fitted import plain
from skim.sweeps.folder import Job
from skim.sweeps.job import LOG

EVERY = 1.0  # seconds between two looks
ENDED = ("done", "failed", "pruned")
COLOURS = {"done": "green", "failed": "bold red", "running": "blue", "interrupted": "yellow"}


class Progress:
    """Show what jobs are doing while a launcher runs them.

    Args:
        jobs: of one sweep.
        console: to print on.
        table: whether to show a table that is redrawn; jobs that print to the same terminal would spoil it.
    """

    def __init__(self, jobs: Sequence[Job], console: Console, table: bool) -> None:
        self.jobs = {job.number: job for job in jobs}
        self.names = dict(zip(self.jobs, labels(jobs), strict=True))
        self.console = console
        self.live = Live(console=console, auto_refresh=False) if table and console.is_terminal else None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.look(silent=True)

    def __enter__(self) -> Progress:
        done = sum(job.state == "done" for job in self.jobs.values())
        before = f", {done} of them done before" if done else ""
        self.console.print(f"{len(self.jobs)} jobs{before}", highlight=False)
        if self.live is not None:
            self.live.start()
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.over.set()
        self.thread.join()
        self.look()
        if self.live is not None:
            self.live.stop()

    def watch(self) -> None:
        """Look at the jobs from time to time."""
        while not self.over.wait(EVERY):
            self.look()

    def look(self, silent: bool = False) -> None:
        """Read the jobs that have not ended, and show what has changed."""
        for number, before in self.jobs.items():
            if before.state in ENDED and not silent:
                continue
            now = Job.at(before.folder)
            self.jobs[number] = now
            if now.state in ENDED and now.state != before.state and not silent and self.live is None:
                self.console.print(self.line(now), soft_wrap=True)
        if self.live is not None:
            self.live.update(self.table(), refresh=True)

    def line(self, job: Job) -> Text:
        """Write one line on a job that has ended."""
        ended = sum(one.state in ENDED for one in self.jobs.values())
        text = Text(f"[{ended}/{len(self.jobs)}] ")
        text.append(job.state, COLOURS.get(job.state, ""))
        return text.append(f" {job.number} {self.names[job.number]}: {outcome(job)}, {clock(job.seconds)}")

    def table(self) -> Table:
        """Make a table of the jobs that have something to tell, as many as the terminal has room for."""
        counts = Counter(job.state for job in self.jobs.values())
        table = plain(caption=", ".join(f"{count} {state}" for state, count in counts.items()))
        for title in ("job", "", "state", "time", ""):
            table.add_column(title, justify="right" if title in ("job", "time") else "left", no_wrap=True)
        order = {"running": 0, "failed": 1, "waiting": 3}
        jobs = sorted(self.jobs.values(), key=lambda job: (order.get(job.state, 2), job.number))
        for job in jobs[: max(self.console.height - 4, 4)]:
            state = Text(job.state, COLOURS.get(job.state, "dim"))
            time = clock(job.seconds) if job.seconds else ""
            table.add_row(str(job.number), self.names[job.number], state, time, outcome(job))
        return table


def labels(jobs: Sequence[Job]) -> list[str]:
    """Name jobs by the overrides that not all of them have."""
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return [" ".join(o.lstrip("+") for o in job.overrides if o not in shared) for job in jobs]


def outcome(job: Job) -> str:
    """Say in a few words what a job has come to: its result, its error, or the last that it has printed."""
    results = job.results() if job.state == "done" else None
    if results is not None:
        metric = results["metrics"].get(results["monitor"])
        measured = "" if metric is None else f"{results['monitor']} {metric:.4f}, "
        return f"{measured}relative FLOPs {results['relative_flops']:.3f}"
    return (job.error or last_line(job)) if job.state in ("failed", "running") else ""


def last_line(job: Job) -> str:
    """Read the last line of a job's log; empty where it has none."""
    try:
        with (job.folder / LOG).open("rb") as file:
            file.seek(max(file.seek(0, 2) - 2000, 0))
            written = file.read().decode("utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(written) if line.strip()), "")


def clock(seconds: float) -> str:
    """Write a time as minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
