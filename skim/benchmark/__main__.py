"""The command ``python -m skim.benchmark``; see :mod:`skim.benchmark`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from skim.benchmark.file import make_room
from skim.benchmark.rows import CLOCKS, DTYPES
from skim.benchmark.shapes import SHAPES, shape_rows
from skim.benchmark.table import rows_table
from skim.benchmark.timing import machine, usable
from skim.errors import SkimError, message
from skim.files import write_json


def parser() -> argparse.ArgumentParser:
    """The options of ``python -m skim.benchmark``."""
    options = argparse.ArgumentParser(prog="python -m skim.benchmark", description="Time shapes with random weights.")
    options.add_argument("--backbone", choices=sorted(SHAPES), default="minilm")
    options.add_argument("--batch", type=int, nargs="+", default=[32], help="sequences per batch")
    options.add_argument("--length", type=int, nargs="+", default=[128], help="tokens per sequence (the longest)")
    options.add_argument("--ragged", action="store_true", help="lengths between a quarter and all of --length")
    options.add_argument("--keep", type=float, nargs="*", default=[1.0, 0.5, 0.3], help="mean keep ratios over layers")
    options.add_argument("--halt", type=float, nargs="*", default=[], help="mean shares of tokens that have not halted")
    options.add_argument("--funnel", nargs="*", default=[], help="layers per block of Funnel pooling, such as 2,2,2")
    options.add_argument("--dtype", choices=sorted(DTYPES), nargs="+", default=["fp32"], help="one or several in turns")
    options.add_argument("--peers", action="store_true", help="time what a user would run instead, too")
    options.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    options.add_argument("--repeats", type=int, default=10, help="counted runs of each candidate")
    options.add_argument("--warmup", type=int, default=3, help="runs before them")
    options.add_argument("--threads", type=int, help="CPU threads")
    options.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: seconds of CPU, if it is shared")
    options.add_argument("--seed", type=int, default=0, help="of weights, ids and lengths")
    options.add_argument("--json", type=Path, help="file to write the numbers to")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = parser().parse_args(arguments)
    threads = [] if options.threads is None else [options.threads]
    try:
        for name, numbers in (
            ("batch", options.batch),
            ("length", options.length),
            ("threads", threads),
        ):
            if any(number < 1 for number in numbers):
                raise SkimError(f"--{name} {min(numbers)} must be at least 1.")
        if options.json is not None:
            make_room(options.json)
        for number in threads:
            torch.set_num_threads(number)
        options.device = usable(options.device)
        rows = [row for b in options.batch for n in options.length for row in timed(options, b, n)]
    except SkimError as error:
        print(f"error: {message(error)}", file=sys.stderr)
        return 2
    if options.json is not None:
        about = {"backbone": options.backbone, "dtype": options.dtype, "clock": options.clock}
        about["machine"] = machine(options.device)
        write_json(options.json, {**about, "rows": rows})
    return 0


def timed(options: argparse.Namespace, batch: int, length: int) -> list[dict[str, Any]]:
    """Time one shape and print its table at once: a long list of shapes shows what it has."""
    rows, left_out = shape_rows(options, batch, length)
    ragged = f"{length // 4}-{length}" if options.ragged else str(length)
    title = f"{options.backbone}, batch {batch}, {ragged} tokens, {' and '.join(options.dtype)}"
    Console().print(rows_table(rows, title, left_out, machine(options.device), options.clock))
    return [{"batch": batch, "length": length, **asdict(row)} for row in rows]


if __name__ == "__main__":
    sys.exit(main())
