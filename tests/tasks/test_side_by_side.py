"""Two processes that read and tokenise the same data at the same time."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np

from tasks.text import Text


def prepared(files: dict[str, str], tokenizer: Any, together: Any, out: Path) -> None:
    """Load and tokenise in a process; leave whether it found the tokens made, and which they are."""
    task = Text(name="text", files=files)
    task.setup_tokenizer(tokenizer)
    together.wait()
    task.setup("fit")
    ids = [token for row in task._rows["train"]["input_ids"] for token in row]
    np.savez(out, ids=ids, made=not task.report["from_cache"]["train"])


def test_one_of_them_makes_the_tokens_and_the_other_waits(tmp_path: Path, tokenizer: Any) -> None:
    files = {part: str(tmp_path / f"{part}.csv") for part in ("train", "validation")}
    for file in files.values():
        Path(file).write_text("text,label\n" + "".join(f"a good film {i % 7 * 'very '},{i % 2}\n" for i in range(3000)))
    context = multiprocessing.get_context("fork")
    together, outs = context.Barrier(2), [tmp_path / f"{i}.npz" for i in range(2)]
    both = [context.Process(target=prepared, args=(files, tokenizer, together, out)) for out in outs]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    found = [np.load(out) for out in outs]
    assert sorted(bool(one["made"]) for one in found) == [False, True]
    assert np.array_equal(found[0]["ids"], found[1]["ids"])
