"""The end of a sweep: settings side by side, and jobs that failed with their error."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from skim.report.compared import runs_table
from skim.sweeps.folder import Job, Sweep
from skim.sweeps.job import LOG
from skim.sweeps.progress import labels


def print_summary(jobs: Sequence[Job], sweep: Sweep, console: Console) -> None:
    """Print the table of settings of what has finished, then what has not.

    Args:
        jobs: that were asked for.
        sweep: theirs.
        console: to print on.
    """
    results = [found for job in jobs if (found := job.results()) is not None]
    if results:
        console.print(runs_table(results))
    for job, name in zip(jobs, labels(jobs), strict=True):
        if job.state != "done":
            log = f" ({job.folder / LOG})" if (job.folder / LOG).is_file() else ""
            said = f"{job.state}: {job.error}" if job.error else job.state
            console.print(Text(f"job {job.number} {name}: {said}{log}", "bold red"), soft_wrap=True)
    numbers = {job.number for job in jobs}
    if others := [job for job in sweep.jobs() if job.number not in numbers]:
        console.print(f"{len(others)} more jobs in {sweep.folder} are not of this command.", highlight=False)
    if results:
        console.print(f"python -m skim.report {sweep.folder}", highlight=False, soft_wrap=True)
