"""The command ``python -m skim.benchmark.gpu``; see :mod:`skim.benchmark.gpu`."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from skim.benchmark.file import make_room
from skim.benchmark.gpu.kernels import kernels
from skim.benchmark.gpu.laws import laws, recovery
from skim.benchmark.gpu.rows import MARK, Row, table
from skim.benchmark.gpu.times import SHAPES_TIMED, times
from skim.benchmark.timing import machine, usable
from skim.errors import SkimError, first_line, message
from skim.files import write_json

SECONDS = 440  # for everything, so that it is over in eight minutes
LIMITS = {"laws": 110, "kernels": 60, "recovery": 40}  # seconds of a part; of a shape that is timed, the next
LIMIT, COMPILING = 100, 130


def parts() -> dict[str, Callable[[torch.device, bool, float], Iterator[Row]]]:
    """Everything there is to do, in its order: what is asked for first, first."""
    timed = {
        shape.name: lambda device, quick, until, shape=shape: times(shape, device, quick, until)
        for shape in SHAPES_TIMED
    }
    return {
        "laws": lambda device, quick, until: laws(device, quick),
        **timed,
        "kernels": lambda device, quick, until: kernels(device, quick),
        "recovery": lambda device, quick, until: recovery(device, quick),
    }


def parser() -> argparse.ArgumentParser:
    """The options of ``python -m skim.benchmark.gpu``."""
    options = argparse.ArgumentParser(prog="python -m skim.benchmark.gpu", description="Laws and times on a GPU.")
    options.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu")
    options.add_argument("--quick", action="store_true", help="tiny shapes: to see that everything runs")
    options.add_argument("--parts", nargs="+", metavar="PART", help=f"only these: {', '.join(parts())}")
    options.add_argument("--seconds", type=float, default=SECONDS, help="for everything; what does not fit is left out")
    options.add_argument("--here", action="store_true", help="in this process: a part that breaks the GPU breaks all")
    options.add_argument("--lines", action="store_true", help=argparse.SUPPRESS)  # rows for the process that asked
    options.add_argument("--json", type=Path, help="file to write the rows to")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0 if all that was asked for holds, else 1."""
    options = parser().parse_args(arguments)
    try:
        device = usable(options.device)
        names = options.parts or list(parts())
        if unknown := [name for name in names if name not in parts()]:
            raise SkimError(f"--parts {unknown[0]!r} is not one of {', '.join(parts())}.")
        if options.json is not None:
            make_room(options.json)
    except SkimError as error:
        print(f"error: {message(error)}", file=sys.stderr)
        return 2
    end = time.monotonic() + options.seconds
    rows: list[Row] = []
    for name in names:
        left = end - time.monotonic()
        limit = min(left, LIMITS.get(name, COMPILING if "compiled" in name else LIMIT))
        if limit < 5:
            rows.append(Row(name, "", "left out: no time"))
            continue
        run = here(name, device, options.quick, limit) if options.here else apart(name, options, limit)
        for row in run:
            print(row.line() if options.lines else progress(row), flush=True)
            rows.append(row)
    if options.json is not None:
        about = {"machine": machine(device), "rows": [asdict(row) for row in rows]}
        write_json(options.json, about)
    if not options.lines:
        Console(width=190).print(table(rows, f"skim on {machine(device)}"))
        print(f"{sum(row.good for row in rows)} of {len(rows)} rows as asked")
    return 0 if all(row.good for row in rows) else 1


def here(name: str, device: torch.device, quick: bool, limit: float) -> Iterator[Row]:
    """The rows of a part, run in this process; one that fails ends with a row that says so."""
    try:
        yield from parts()[name](device, quick, time.monotonic() + limit)
    except Exception as error:
        yield Row(name, "", f"{type(error).__name__}: {first_line(error)}"[:200])


def apart(name: str, options: argparse.Namespace, limit: float) -> Iterator[Row]:
    """The rows of a part, run in a process of its own, which is stopped at its limit."""
    command = [
        sys.executable,
        "-m",
        "skim.benchmark.gpu",
        "--here",
        "--lines",
        "--device",
        options.device,
        "--parts",
        name,
    ]
    command += ["--seconds", str(limit), *(["--quick"] if options.quick else [])]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        stop = threading.Timer(limit + 5, process.kill)
        stop.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(MARK):
                    with contextlib.suppress(ValueError, TypeError):
                        yield Row.of(line)
        finally:
            stop.cancel()
            process.kill()
        code = process.wait()
        if code not in (0, 1):
            errors.seek(0)
            told = [line.strip() for line in errors if line.strip()]
            why = "stopped at its limit" if code == -9 else (told[-1] if told else f"exit code {code}")
            yield Row(name, "", why[:200])


def progress(row: Row) -> str:
    """A row as it comes in."""
    return f"{row.part}: {row.name}: {row.verdict or f'{row.ms:.2f} ms'}"


if __name__ == "__main__":
    sys.exit(main())
