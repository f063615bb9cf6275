"""Answers for a file of texts: ``python -m skim.predict <model> texts.txt out.jsonl``.

$ python -m skim.predict runs/sst2/ltp/minilm/<stamp> texts.txt out.jsonl
$ cat texts.txt | python -m skim.predict sentence-transformers/all-MiniLM-L6-v2 - - --task feature-extraction

A line of the output for each row of the input, in order, as JSON: what ``skim.pipeline`` says of it. The input is .txt
(a text per line), .jsonl, .csv or .parquet with a field ``text`` (and ``text_pair``; ``question`` and ``context``), or
``-`` for lines of stdin. It is read as a stream. The output stands under its name when it is whole; till then it is
<output>.part, from which the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from skim.errors import SkimError, first_line, message
from skim.files import accepted, write_text
from skim.pipelines.rows import rows_of

FIELDS = {"question-answering": ("question", "context")}  # of a row, by task; elsewhere a text, and maybe its pair
SHOWN = 64  # rows between two changes of the bar


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        predict(options, console)
    except SkimError as error:
        console.print(f"error: {message(error)}", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on" if options.output != "-" else "interrupted")
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m skim.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("model", help="a run's folder, its model/, a folder of transformers, or a hub id")
    made.add_argument("input", help=".txt, .jsonl, .csv or .parquet; - is stdin, a text per line")
    made.add_argument("output", help=".jsonl; - is stdout")
    made.add_argument("--task", help="of skim.pipeline; that of the model's head if not given")
    made.add_argument("--batch-tokens", type=int, help="tokens of a forward at most, pads included")
    made.add_argument("--window", type=int, help="texts that are held, and sorted by length, at a time")
    made.add_argument("--device", help="cpu, cuda, cuda:1, mps; an accelerator if there is one")
    made.add_argument("--dtype", help="auto (in which the device infers fastest), float32, bfloat16, float16")
    made.add_argument("--threads", type=int, help="CPU threads of torch")
    made.add_argument("--top-k", type=int, help="labels, answers or words of a row")
    made.add_argument("--aggregation", help="for token-classification: none, simple, first, average or max")
    made.add_argument("--stride", type=int, help="overlap of the parts of a long text; else it is cut where it is long")
    return made


def predict(options: argparse.Namespace, console: Console) -> None:
    """Answer a file.

    Raises:
        SkimError: a file that cannot be read, a model without such a head, a row that cannot be answered.
    """
    from skim.pipelines.kinds import ALIASES
    from skim.pipelines.making import pipeline, task_of

    if options.threads is not None:
        import torch

        if options.threads < 1:
            raise SkimError(f"--threads {options.threads} must be at least 1.")
        torch.set_num_threads(options.threads)
    rows = rows_of(options.input)
    task = ALIASES.get(options.task, options.task) or task_of(options.model)
    pipe = pipeline(
        task,
        options.model,
        device=options.device,
        dtype=options.dtype,
        window=options.window,
        batch_tokens=options.batch_tokens,
        **of_task(task, options),
    )
    given_options = {name: value for name, value in vars(options).items() if value is not None}
    about = {**given_options, "task": task, "files": stamps(options.input, options.model)}
    with contextlib.ExitStack() as stack:
        write, done = stack.enter_context(output(options.output, about, console))
        bar = stack.enter_context(progress(console))
        shown = bar.add_task("predict", total=None, rows=done)
        started, count = time.perf_counter(), done
        for _ in islice(rows, done):
            pass
        taken = done

        def texts() -> Iterator[Any]:
            nonlocal taken
            for share, row in rows:
                taken += 1
                bar.update(shown, total=1.0, completed=share)
                yield given(row, task, taken)

        try:
            for answer in pipe(texts()):
                write(json.dumps(answer, ensure_ascii=False, default=float) + "\n")
                count += 1
                if count % SHOWN == 0:
                    bar.update(shown, rows=count)
        except SkimError:
            raise
        except OSError as error:  # a full disk, a pipe that was closed: no row is to blame
            raise SkimError(f"{options.input} to {options.output}: stopped after row {count:,}: {error}.") from error
        except Exception as error:  # of transformers and torch, about a row
            window = f"{count + 1} to {taken}" if taken > count + 1 else f"{taken}"
            raise SkimError(f"{options.input}, row {window}: cannot be answered: {first_line(error)}.") from error
    seconds = time.perf_counter() - started
    spent = pipe.spent
    answered = count - done
    console.print(
        f"{answered:,} texts in {seconds:.1f} s, {answered / seconds:,.1f} per second; {spent.tokens:,} tokens, "
        f"relative FLOPs {spent.relative_flops:.3f}" + ("" if options.output == "-" else f": {options.output}"),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def of_task(task: str, options: argparse.Namespace) -> dict[str, Any]:
    """Choose a pipeline's own options; without a stride, a text that is too long for the model is cut."""
    found: dict[str, Any] = {}
    if options.top_k is not None:
        if task not in ("text-classification", "fill-mask", "question-answering"):
            raise SkimError(f"--top-k is not for {task}.")
        found["top_k"] = options.top_k
    if options.aggregation is not None:
        if task != "token-classification":
            raise SkimError(f"--aggregation is for token-classification, and this is {task}.")
        found["aggregation_strategy"] = options.aggregation
    if options.stride is not None:
        strides = {"token-classification": "stride", "question-answering": "doc_stride"}
        if task not in strides:
            raise SkimError(f"--stride is for {' and '.join(strides)}, and this is {task}.")
        found[strides[task]] = options.stride
    if task in ("text-classification", "feature-extraction"):
        found["truncation"] = True
    if task == "fill-mask":
        found["tokenizer_kwargs"] = {"truncation": True}
    return found


def given(row: Any, task: str, number: int) -> Any:
    """Choose what a pipeline takes of a row.

    Raises:
        SkimError: a field is missing.
    """
    if isinstance(row, str) and task not in FIELDS:
        return row
    fields = FIELDS.get(task, ("text",))
    if not isinstance(row, dict) or any(not isinstance(row.get(name), str) for name in fields):
        raise SkimError(f"Row {number} has no text in {' and '.join(fields)}, which {task} reads: {str(row)[:80]}")
    if task in FIELDS:
        return {name: row[name] for name in fields}
    pair = row.get("text_pair")
    return row["text"] if pair is None or task != "text-classification" else {"text": row["text"], "text_pair": pair}


@contextlib.contextmanager
def output(name: str, about: dict[str, Any], console: Console) -> Iterator[tuple[Callable[[str], object], int]]:
    """Open the output: a function that writes a line, and the number of rows that an interrupted run left.

    Raises:
        SkimError: a folder that is not there, or a part of another command's.
    """
    if name == "-":
        yield sys.stdout.write, 0
        sys.stdout.flush()
        return
    path = Path(name)
    if path.suffix != ".jsonl":
        raise SkimError(f"{path} must end in .jsonl: the answers are a JSON line each; - is stdout.")
    if not path.parent.is_dir():
        raise SkimError(f"There is no folder {path.parent}.")
    part, said = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    with alone(path):
        done = 0
        if part.is_file():
            check_same(part, said, about)
            with part.open("r+b") as file:
                done = whole_lines(file)
            console.print(f"{part} is there: going on after row {done:,}", highlight=False, soft_wrap=True)
        else:
            write_text(said, json.dumps(about))
        with accepted(path), part.open("a", encoding="utf-8") as file:
            yield file.write, done
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        said.unlink()


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold an output while it is written.

    Raises:
        SkimError: another process writes it, or nobody can there.
    """
    from filelock import FileLock, Timeout

    lock = path.with_name(f"{path.name}.lock")
    try:
        held = FileLock(lock, timeout=0).acquire()
    except Timeout:
        raise SkimError(
            f"{path} is being written by another process.\nWait until it has ended, or write elsewhere."
        ) from None
    except OSError as error:
        raise SkimError(f"{path} cannot be written: {first_line(error)}.") from error
    with held:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def check_same(part: Path, said: Path, about: dict[str, Any]) -> None:
    """Refuse to go on with the part of another command, or one whose input or model is another now."""
    try:
        before = json.loads(said.read_text())
    except (OSError, ValueError):
        before = {}
    if before == about:
        return
    changed = [name for name, stamp in about["files"].items() if before.get("files", {}).get(name) != stamp]
    if {**before, "files": None} == {**about, "files": None} and changed:
        raise SkimError(
            f"{part} was begun before {changed[0]} was changed: its rows and those to come would not be of one kind.\n"
            "Delete it to begin anew, or write elsewhere."
        )
    raise SkimError(f"{part} is of another command, which did not end.\nDelete it, or write elsewhere.")


def stamps(*places: str) -> dict[str, list[int]]:
    """Size and time of change, in nanoseconds, of files that answers depend on; in a folder, of those of a model."""
    from skim.checkpoint import DESCRIBED

    found = {}
    for place in map(Path, places):
        files = [place] if place.is_file() else [*place.rglob("*.safetensors"), *place.rglob(DESCRIBED)]
        for file in sorted(files):
            about = file.stat()
            found[str(file)] = [about.st_size, about.st_mtime_ns]
    return found


def whole_lines(file: IO[bytes]) -> int:
    """Count the lines of a file, and cut off what an interruption left of one."""
    count = end = 0
    for line in file:
        if line.endswith(b"\n"):
            count, end = count + 1, end + len(line)
    file.truncate(end)
    return count


def progress(console: Console) -> Progress:
    """Make the bar: share of the file, rows, time; on a terminal only."""
    shown = (TextColumn("predict"), BarColumn(), TextColumn("{task.fields[rows]:,} rows"))
    return Progress(
        *shown, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )


if __name__ == "__main__":
    sys.exit(main())
