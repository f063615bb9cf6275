"""Runs of ``train.py`` in processes that are killed: each is a fork of this one, which has imported everything.

A process counts its own events (steps of the optimizer, batches of an evaluation, files that are half written, brought
to the disk, renamed) and is killed at one of them, or after a random time.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from unittest import mock

import datasets
import torch

from skim.lightning.module import SkimModule
from skim.train import start
from tests.lightning.test_resume_exactly import differences
from tests.runs import environment

FORK = multiprocessing.get_context("fork")
PATIENCE = 1800  # seconds for a run of a few steps, on a busy machine


class Events:
    """Counts the events of a process, and kills it at one.

    Args:
        fatal: the number of the event at which it dies; ``None``: it lives.
        told: gets a line for each event.
    """

    def __init__(self, fatal: int | None, told: Path) -> None:
        self.count, self.fatal, self.told = 0, fatal, told

    def __call__(self, kind: str) -> None:
        self.count += 1
        with self.told.open("a") as file:
            file.write(f"{kind}\n")
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, owner: Any, name: str, kind: str) -> Any:
        """Patch a function such that each call is an event."""
        real = getattr(owner, name)

        def call(*given: Any, **more: Any) -> Any:
            self(kind)
            return real(*given, **more)

        return mock.patch.object(owner, name, call)

    @contextlib.contextmanager
    def watched(self) -> Any:
        """Patch all that shall be an event."""
        save = torch.save

        def half(data: bytes, file: IO[bytes], kind: str) -> None:
            file.write(data[: len(data) // 2])
            file.flush()
            self(kind)
            file.write(data[len(data) // 2 :])

        def saves(content: Any, file: IO[bytes]) -> None:
            buffer = io.BytesIO()
            save(content, buffer)
            half(buffer.getvalue(), file, "half of a checkpoint")

        def writes(path: Path, data: bytes) -> int:
            with path.open("wb") as file:
                half(data, file, f"half of {path.name}")
            return len(data)

        def synced(file: int) -> None:
            self("fsync")

        with contextlib.ExitStack() as patches:
            for patch in (
                mock.patch.object(torch, "save", saves),
                mock.patch.object(Path, "write_bytes", writes),
                mock.patch.object(os, "fsync", synced),
                self.before(os, "replace", "replace"),
                self.before(SkimModule, "training_step", "step"),
                self.before(SkimModule, "configure_gradient_clipping", "gradients"),
                self.before(SkimModule, "validation_step", "evaluation"),
            ):
                patches.enter_context(patch)
            yield


def lives(
    command: Sequence[str],
    folder: Path,
    cache: Path,
    ranks: int = 1,
    fatal: int | None = None,
    at: int = 0,
    seconds: float | None = None,
) -> tuple[int, list[str]]:
    """Run ``train.py`` in processes of its own.

    Args:
        command: overrides, without ``hydra.run.dir``.
        folder: of the run; what it prints goes to ``<folder>.log``.
        cache: of data sets.
        ranks: processes.
        fatal: the event at which one of them is killed, and all others then.
        at: which one.
        seconds: after which all are killed, if they still live.

    Returns:
        The exit code of the first one, -9 if it was killed, and the events of the one at which ``at`` points.
    """
    told = [events_of(folder, rank) for rank in range(ranks)]
    shared = environment(0)

    def run(rank: int) -> None:
        os.setsid()
        log = os.open(folder.with_name(f"{folder.name}.log{rank}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.argv = ["train.py", *command, f"hydra.run.dir={folder}"]
        if ranks > 1:
            os.environ.update({**shared, "LOCAL_RANK": str(rank), "RANK": str(rank)})
        datasets.config.HF_DATASETS_CACHE = cache
        code: Any = 0
        try:
            with Events(fatal if rank == at else None, told[rank]).watched():
                start()
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code or 0)

    for path in told:
        path.unlink(missing_ok=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    processes = [FORK.Process(target=run, args=[rank]) for rank in range(ranks)]
    for process in processes:
        process.start()
    left = [process.sentinel for process in processes]
    try:
        while left:
            ended = multiprocessing.connection.wait(left, timeout=PATIENCE if seconds is None else seconds)
            left = [one for one in left if one not in ended]
            for process in processes:
                if process.sentinel in ended:
                    process.join()  # it is told of a moment before it can be asked how it ended
            if not ended or any(process.exitcode for process in processes):
                break  # the machine is gone, with all of them
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)  # and its workers
            process.join()
    assert seconds is not None or ended, f"no end in {PATIENCE} s, see {folder}.log0"
    events = told[at].read_text().splitlines() if told[at].exists() else []
    if codes[at] == -signal.SIGKILL or (all(not code for code in codes) and None in codes):
        return -signal.SIGKILL, events  # whatever the others, which lost one of them, have made of it
    return next((code for code in codes if code), 0), events


@dataclass
class Outcome:
    """Kills that a configuration has survived.

    Attributes:
        kills: by what the process was about to do.
        runs: that have finished, each the same as the undisturbed one.
        seed: of the moments.
    """

    kills: Counter[str]
    runs: int
    seed: int

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.kills.items()))
        return f"{self.kills.total()} kills survived in {self.runs} runs, seed {self.seed}: {kinds}"


def survives(command: Sequence[str], folder: Path, kills: int, seed: int, ranks: int = 1) -> Outcome:
    """Kill a run at random moments until it has been killed so often; each time it finishes, it is as undisturbed.

    Args:
        command: overrides, with ``resume=auto``.
        folder: to work in.
        kills: how many, over as many runs as it takes.
        seed: of the moments.
        ranks: processes of a run.

    Raises:
        AssertionError: a run ends in an error, or as another one than without kills.
    """
    draw = random.Random(seed)
    straight = folder / "straight"
    code, _ = lives(command, straight, folder / "cache-straight", ranks)
    assert code == 0, log_of(straight)
    counts = [len(events_of(straight, rank).read_text().splitlines()) for rank in range(ranks)]
    outcome, number = Outcome(Counter(), 0, seed), 0
    while outcome.kills.total() < kills or number:
        run, cache = folder / f"run-{outcome.runs}", folder / f"cache-{outcome.runs}"
        timed = draw.random() < 0.2
        more = outcome.kills.total() < kills
        at = draw.randrange(ranks)
        moment: dict[str, Any] = {"fatal": draw.randint(1, counts[at]), "at": at} if more else {}
        if more and timed:
            moment = {"seconds": draw.uniform(0.5, 6.0)}
        code, seen = lives(command, run, cache, ranks, **moment)
        if code == -signal.SIGKILL:
            outcome.kills[seen[-1] if "fatal" in moment else "by the clock"] += 1
            number += 1
            continue
        assert code == 0, f"{moment}, kill {number} of seed {seed}\n{log_of(run)}"
        found = apart(straight, run)
        assert not found, f"seed {seed}, run {outcome.runs}, {number} kills: {found}\n{log_of(run)}"
        outcome.runs, number = outcome.runs + 1, 0
    return outcome


def events_of(run: Path, rank: int) -> Path:
    """The file to which a process of a run tells its events."""
    return run.with_name(f"{run.name}.events{rank}")


def log_of(run: Path) -> str:
    """The end of what the processes of a run have printed."""
    return "\n".join(path.read_text()[-3000:] for path in sorted(run.parent.glob(f"{run.name}.log*")))


def apart(one: Path, other: Path) -> list[str]:
    """List what is not the same in the folders of two runs; times and paths may differ."""
    found = []
    files = [sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()) for run in (one, other)]
    if files[0] != files[1]:
        found.append(f"files {sorted(set(files[0]) ^ set(files[1]))}")
    for name in ("last.ckpt", "best.ckpt"):
        if not all((run / "checkpoints" / name).is_file() for run in (one, other)):
            continue
        held = [torch.load(run / "checkpoints" / name, weights_only=True) for run in (one, other)]
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "current_model_state"):
            if part in held[0]:
                found += differences(held[0][part], held[1].get(part), f"{name}/{part}")
    for file in (one / "model").rglob("*.safetensors"):
        if file.read_bytes() != (other / file.relative_to(one)).read_bytes():
            found.append(file.name)
    rows = [list(csv.DictReader(io.StringIO((run / "metrics.csv").read_text()))) for run in (one, other)]
    if rows[0] != rows[1]:
        found.append(f"metrics.csv: steps {[[row['step'] for row in some] for some in rows]}")
        pairs = zip(*rows, strict=False)
        found += [f"{k} of step {a['step']}: {a[k]} {b.get(k)}" for a, b in pairs for k in a if a[k] != b.get(k)][:5]
    results = [told(run) for run in (one, other)]
    found += [
        f"results.json {key}: {results[0][key]} {results[1].get(key)}"
        for key in results[0]
        if results[0][key] != results[1].get(key)
    ]
    return found


def told(run: Path) -> dict[str, Any]:
    """What ``results.json`` says, without times, and with the run's folder by a name."""
    results = json.loads((run / "results.json").read_text().replace(str(run), "<run>"))
    for name in ("wall_seconds", "latency", "training", "git_commit"):  # somebody may edit meanwhile
        results.pop(name)
    results["config"].pop("resume")
    return results
