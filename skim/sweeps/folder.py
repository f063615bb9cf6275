"""The folder of a sweep: who is at work on it, and its jobs, matched by their resolved configuration.

    <sweep>/sweep.json              what was typed, by which version, and who claims the folder
    <sweep>/3-sst2-ltp/job.json     overrides, resolved configuration, state and error of job 3
    <sweep>/3-sst2-ltp/results.json written by the job at once or not at all; a job is done if this file says so

Files say what was; whether somebody is at work now, locks of the operating system say, which end with their process.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from skim.errors import SkimError, first_line
from skim.files import write_json
from skim.options.defaults import default_of
from skim.options.words import quoted
from skim.report.found import load
from skim.report.runs import deciding
from skim.results import SCHEMA
from skim.resume import newest, recorded

State: TypeAlias = Literal["waiting", "running", "done", "failed", "interrupted", "pruned"]
SWEEP, JOB = "sweep.json", "job.json"
NOTED = {"number": int, "overrides": list, "config": dict, "state": str}  # what is in the latter at least
CLAIM, RUNNING = ".claim", ".running"  # files that are locked while a sweep, or a job, is at work
SAME = ("seed", "init_from")  # seeds of one setting are jobs of their own


@dataclass(frozen=True)
class Asked:
    """A job that is asked for and has no number yet.

    Attributes:
        overrides: that make it, beside those of the sweep.
        composed: its whole configuration, with Hydra's own.
    """

    overrides: tuple[str, ...]
    composed: DictConfig

    @property
    def config(self) -> dict[str, Any]:
        """Resolve the configuration, without Hydra's own."""
        plain: Any = OmegaConf.to_container(OmegaConf.masked_copy(self.composed, self.keys), resolve=True)
        return plain

    @property
    def keys(self) -> list[str]:
        """List the groups and options that are not Hydra's."""
        return [str(key) for key in self.composed if key != "hydra"]

    def name(self, number: int) -> str:
        """Name the folder that the job has under a number: ``hydra.sweep.subdir``."""
        from hydra.core.hydra_config import HydraConfig

        before = HydraConfig.instance().cfg
        job = self.composed.hydra.job
        with read_write(job), open_dict(job):
            job.num, job.id = number, str(number)
        HydraConfig.instance().set_config(self.composed)
        try:
            return str(self.composed.hydra.sweep.subdir)
        finally:
            HydraConfig.instance().cfg = before


@dataclass(frozen=True)
class Job:
    """A job of a sweep, as its folder shows it at one moment.

    Attributes:
        folder: of the run.
        number: in the sweep; it keeps it when the sweep goes on.
        overrides: that make it.
        config: its resolved configuration.
        state: ``waiting`` has not begun, ``running`` has a process now, ``interrupted`` had one that ended without a
            word, ``pruned`` was stopped by a search.
        error: what a failed job ended with, on one line.
        seconds: from its beginning to its end, or to now.
        process: that computes it, or did last, if that is of this machine; else ``None``.
    """

    folder: Path
    number: int
    overrides: tuple[str, ...]
    config: dict[str, Any]
    state: State
    error: str | None = None
    seconds: float = 0.0
    process: int | None = None

    @classmethod
    def at(cls, folder: Path) -> Job:
        """Read the job of a folder."""
        said = noted(folder)
        job = cls(folder, said["number"], tuple(said["overrides"]), said["config"], said["state"], said.get("error"))
        if said.get("host") == socket.gethostname():
            job = replace(job, process=said.get("process"))
        began, ended = said.get("began"), said.get("ended")
        if began is not None:
            passed = (time.time() if ended is None else ended) - began
            job = replace(job, seconds=max(passed, 0.0))  # the clock may have been set back, or be another machine's
        if job.state == "running" and not locked(folder / RUNNING):
            job = replace(job, state="interrupted")
        if job.state in ("running", "waiting", "pruned"):
            return job
        if job.results() is not None:
            return replace(job, state="done", error=None)
        # a job that says that it is done, and whose results cannot be read, has to run again
        return replace(job, state="interrupted") if job.state == "done" else job

    def results(self) -> dict[str, Any] | None:
        """Load what the job has measured; ``None`` if it has not finished, or if the file is damaged."""
        try:
            results = load(self.folder / "results.json")
        except (SkimError, OSError):
            return None
        return results if results.get("status") == "done" else None

    def checkpoint(self) -> Path | None:
        """Find the newest whole checkpoint from which the job can go on; ``None`` if there is none."""
        return newest(self.folder)

    def launched(self) -> list[str]:
        """List the overrides with which a launcher of Hydra runs the job in its folder, from where it was left."""
        lines = [*self.overrides, f"hydra.sweep.subdir={quoted(self.folder.name)}"]
        checkpoint = self.checkpoint()
        if checkpoint is None:
            return lines
        if self.config["train"].get("lr_find"):  # the rate that it has found stands for the one that it was given
            lines.append(f"train.lr={recorded(self.folder).train.lr}")
        return [*lines, f"resume={quoted(str(checkpoint.resolve()))}"]

    def asked_anew(self, asked: Asked) -> Job:
        """Take over how an equal job is asked for now, such as on which hardware, if this one has still to run."""
        if self.state in ("done", "running", "pruned"):
            return self
        write_json(
            self.folder / JOB, {**noted(self.folder), "overrides": list(asked.overrides), "config": asked.config}
        )
        return replace(self, overrides=asked.overrides, config=asked.config)

    def note(self, state: State, **more: Any) -> None:
        """Write down a state, in the process that brings it about."""
        write_json(self.folder / JOB, {**noted(self.folder), "state": state, **more})

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the job while it runs.

        Raises:
            SkimError: another process runs it.
        """
        try:
            with FileLock(self.folder / RUNNING, timeout=5):  # a look at the lock takes it for a moment
                yield
        except Timeout:
            raise SkimError(f"{self.folder} is being computed by another process.") from None


def noted(folder: Path) -> dict[str, Any]:
    """Read a job's ``job.json``.

    Raises:
        SkimError: it is damaged.
    """
    try:
        said = json.loads((folder / JOB).read_text(encoding="utf-8"))
        whole = isinstance(said, dict) and all(isinstance(said[name], kind) for name, kind in NOTED.items())
        if whole and said["state"] in get_args(State):
            return said
        why = f"it has no {', '.join(NOTED)} as a sweep writes them"
    except (OSError, ValueError, KeyError) as error:
        why = first_line(error)
    raise SkimError(f"{folder / JOB} is damaged: {why}.\nMove {folder} out of the sweep: its job is computed anew.")


class Sweep:
    """The jobs of a sweep's folder.

    Args:
        folder: ``runs/sweeps/<stamp>``; it needs not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def about(self) -> dict[str, Any]:
        """Read ``sweep.json``; empty where there is none that can be read."""
        try:
            about = json.loads((self.folder / SWEEP).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return about if isinstance(about, dict) else {}

    @contextlib.contextmanager
    def claimed(self, command: str, overrides: Sequence[str], resumed: bool = True) -> Iterator[Sweep]:
        """Hold the folder while a sweep is at work on it; a claim ends with its process, however that ends.

        Args:
            command: as typed.
            overrides: as typed.
            resumed: whether it goes on with what is in the folder; else there may be no sweep in it.

        Raises:
            SkimError: another sweep is at work there, or was, or the folder is of another version.
        """
        if self.about and not resumed:
            raise SkimError(
                f"{self.folder} has a sweep in it: {self.about.get('command')}\n"
                f"Go on with it by sweep.resume={self.folder}, or choose another hydra.sweep.dir."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / CLAIM)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            by = self.about.get("claimed", {})
            who = f" (process {by['process']} on {by['host']}, since {by['since']})" if by else ""
            raise SkimError(
                f"Another sweep is at work in {self.folder}{who}.\n"
                "Wait until it has ended, or start one of your own without sweep.resume."
            ) from None
        try:
            before = self.about
            if before.get("schema", SCHEMA) != SCHEMA:
                raise SkimError(
                    f"{self.folder} is a sweep of another version of skim (results of schema {before['schema']}; this "
                    f"one writes {SCHEMA}).\nGo on with that version, or start a new sweep without sweep.resume."
                )
            if sorted(before.get("overrides", overrides)) != sorted(overrides):
                before = {}  # values were added, and count from now on
            claim = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
            write_json(
                self.folder / SWEEP,
                {"schema": SCHEMA, "command": command, "overrides": list(overrides), **before, "claimed": claim},
            )
            yield self
        finally:
            lock.release()

    def jobs(self) -> list[Job]:
        """Read all jobs by their number, as they are now."""
        return sorted((Job.at(path.parent) for path in self.folder.glob(f"*/{JOB}")), key=lambda job: job.number)

    def enlist(self, asked: Sequence[Asked], swept: Collection[str] = ()) -> list[Job]:
        """Find the job of each configuration that is asked for, or make one with the next number.

        Args:
            asked: jobs; one that is asked for twice is one job.
            swept: options that tell jobs apart though runs of one setting may differ in them, such as
                ``hardware.precision``.
        """
        jobs = self.jobs()
        known = {fingerprint(job.config, swept): job for job in reversed(jobs)}
        number = max((job.number for job in jobs), default=-1) + 1
        found: dict[str, Job] = {}
        for one in asked:
            mark = fingerprint(one.config, swept)
            if mark not in known:
                known[mark] = self.new(one, number)
                number += 1
            elif mark not in found:
                known[mark] = known[mark].asked_anew(one)
            found.setdefault(mark, known[mark])
        return list(found.values())

    def new(self, asked: Asked, number: int) -> Job:
        """Make the folder of a job."""
        job = Job(self.folder / asked.name(number), number, asked.overrides, asked.config, "waiting")
        if (job.folder / JOB).is_file():
            raise SkimError(
                f"hydra.sweep.subdir={job.folder.name} is the folder of two jobs.\n"
                "Let it name ${hydra:job.num}, as conf/hydra/skim.yaml does."
            )
        job.folder.mkdir(parents=True, exist_ok=True)
        write_json(
            job.folder / JOB,
            {"number": number, "overrides": list(job.overrides), "state": "waiting", "config": job.config},
        )
        return job


def fingerprint(config: dict[str, Any], swept: Collection[str] = ()) -> str:
    """Write the options that decide what a job computes as one text, equal for equal jobs of any version."""
    options = deciding(config, also=(*SAME, *swept))
    # what is at its default says nothing that a version without the option did not do
    told = {key: value for key, value in options.items() if default_of(key, config) != value}
    return json.dumps(told, sort_keys=True, default=str)


def locked(path: Path) -> bool:
    """Tell whether a process holds the lock of a file."""
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
