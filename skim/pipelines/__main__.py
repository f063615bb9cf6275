"""Texts per second of pipelines, in turns: transformers' own beside skim's, dense and with a method.

$ python -m skim.pipelines <dense> <pruned> texts.txt --rows 512 --threads 1
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice

import torch
from rich.console import Console
from rich.table import Table

from skim.benchmark.timing import machine, time_side_by_side
from skim.errors import SkimError, message
from skim.pipelines.making import folder_of, pipeline, task_of
from skim.pipelines.rows import rows_of

SIZE = 32  # texts of a batch of transformers'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m skim.pipelines", description=__doc__)
    parser.add_argument("dense", help="a dense model, which transformers runs as well")
    parser.add_argument("pruned", help="the same with a method")
    parser.add_argument("texts", help=".txt, .jsonl, .csv or .parquet")
    parser.add_argument("--field", default="text", help="field of a row that has several")
    parser.add_argument("--rows", type=int, default=512, help="texts, the first of the file")
    parser.add_argument("--max-length", type=int, default=128, help="tokens at which texts are cut")
    parser.add_argument("--repeats", type=int, default=3, help="counted passes of each, after one that is not")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="seconds, or seconds of CPU")
    options = parser.parse_args(arguments)
    try:
        Console().print(race(options))
    except SkimError as error:
        print(f"error: {message(error)}", file=sys.stderr)
        return 2
    return 0


def race(options: argparse.Namespace) -> Table:
    """Time the candidates in turns and make their table.

    Raises:
        SkimError: a model or a file that cannot be read, or no text in it.
    """
    import transformers

    torch.set_num_threads(options.threads)
    some = (row for _, row in islice(rows_of(options.texts), options.rows))
    texts = [row if isinstance(row, str) else str(row.get(options.field, "")) for row in some]
    if not any(texts):
        raise SkimError(f"{options.texts} holds no text in {options.field!r}; name its field: --field.")
    task = task_of(options.dense)
    cut = {"truncation": True, "max_length": options.max_length}
    named = {"dense": options.dense, "pruned": options.pruned}
    ours = {name: pipeline(task, model, device=options.device, **cut) for name, model in named.items()}
    theirs = transformers.pipeline(task=task, model=str(folder_of(options.dense)), device=options.device, **cut)  # type: ignore[call-overload]
    candidates: dict[str, Callable[[], object]] = {
        "transformers": lambda: theirs(texts, batch_size=SIZE),
        "transformers, sorted": lambda: theirs(sorted(texts, key=len), batch_size=SIZE),
        "skim, dense": lambda: ours["dense"](texts),
        f"skim, {ours['pruned'].walk.method.name if ours['pruned'].walk else 'pruned'}": lambda: ours["pruned"](texts),
    }
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    times = time_side_by_side(candidates, options.repeats, clock=clock, title="pipelines")
    tokens = ours["dense"].spent.tokens / (options.repeats + 1)
    title = f"{len(texts)} texts of {tokens / len(texts):.1f} tokens, {machine(torch.device(options.device))}"
    caption = f"{options.clock} time, in turns; medians of {options.repeats}; transformers in batches of {SIZE}"
    table = Table(title=title, title_justify="left", caption=caption)
    for name in ("pipeline", "texts / s", "min - max", "/ sorted", "relative\nFLOPs"):
        table.add_column(name, justify="left" if name == "pipeline" else "right", no_wrap=True)
    base = times["transformers, sorted"].median_ms
    spent = ["-", "-", *(f"{one.spent.relative_flops:.3f}" for one in ours.values())]
    for (name, timing), flops in zip(times.items(), spent, strict=True):
        speeds = [1000 * len(texts) / ms for ms in (timing.median_ms, timing.max_ms, timing.min_ms)]
        row = (f"{speeds[0]:.1f}", f"{speeds[1]:.1f} - {speeds[2]:.1f}", f"{base / timing.median_ms:.2f}", flops)
        table.add_row(name, *row)
    return table


if __name__ == "__main__":
    sys.exit(main())
