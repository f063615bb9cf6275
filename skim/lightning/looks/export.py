"""``what=export``: an ONNX file in which tokens leave, checked on the run's texts, and timed beside a dense one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from skim.benchmark.timing import machine, time_side_by_side
from skim.compression import uncompressed
from skim.engine.inputs import inputs_of
from skim.errors import SkimError
from skim.export.exporting import Check, export
from skim.export.loaded import load as opened
from skim.lightning.looks.loaded import Loaded, load


def look(cfg: DictConfig, console: Console) -> None:
    """Export a run's model, and say how it compares with torch; with ``timed``, also how long it takes.

    Raises:
        SkimError: the model cannot be exported, or the file differs from it.
    """
    loaded = load(cfg)
    chosen = {name: cfg.export[name] for name in ("operators", "precision", "batch")}
    file = Path(str(cfg.export.file)) if cfg.export.file is not None else loaded.folder / "export" / "model.onnx"
    loaded.parts.model.to("cpu")
    loaded.parts.task.setup("validate")
    batches = [inputs_of(batch) for batch in loaded.parts.task.val_dataloader()]
    check = export(loaded.parts.model, file, tokenizer=loaded.parts.tokenizer, inputs=batches, **chosen)
    console.print(report(check))
    if cfg.timed:
        console.print(timed(loaded, file, batches, cfg))
    console.print(Text(str(file)), soft_wrap=True)


def report(check: Check) -> Text:
    """Say in a few lines how a file compares."""
    return Text(
        f"{check.bytes / 2**20:.1f} MB; compared with torch on {check.texts} texts, in which tokens take part in "
        f"{check.kept:.3f} of the layers:\nlargest difference {check.difference:.1e} where the same tokens survive, "
        f"{check.mean_difference:.1e} in the mean of all; other tokens survive in {check.flipped} texts"
    )


def timed(loaded: Loaded, file: Path, batches: list[dict[str, Any]], cfg: DictConfig) -> Table:
    """Time the file in its runtimes beside the same export of the dense model: CPU seconds, one thread, in turns.

    Texts go one at a time for a file that takes one, and else in the batches of ``batch_size``.
    """
    chosen = {name: cfg.export[name] for name in ("operators", "precision", "batch")}
    runtimes = ["onnxruntime"] if chosen["operators"] == "fused" else ["onnxruntime", "openvino"]
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder) / "dense.onnx"
        with uncompressed(loaded.parts.model):
            export(loaded.parts.model, dense, inputs=batches[:1], **chosen)
        candidates: dict[str, Callable[[], object]] = {}
        given = [{name: value.numpy() for name, value in batch.items()} for batch in batches]
        texts = sum(len(batch["input_ids"]) for batch in given)
        for runtime in runtimes:
            for name, path in (("dense", dense), (loaded.parts.model.method.name, file)):
                try:
                    model = opened(path, runtime, threads=1)  # type: ignore[arg-type]
                except SkimError as error:
                    if runtime == "openvino":
                        raise SkimError(f"{error}\nOr time it without: timed=false.") from error
                    raise
                candidates[f"{name}, {runtime}"] = lambda model=model: [model(**batch) for batch in given]
        times = time_side_by_side(candidates, cfg.benchmark.repeats, clock=time.process_time)
    alone = "one text at a time" if chosen["batch"] == "one" else f"batches of {cfg.batch_size}"
    table = Table(
        title=f"{chosen['precision']}, {alone}, {texts} texts, one thread, {machine(torch.device('cpu'))}",
        title_justify="left",
    )
    for name in ("model, runtime", "ms CPU / text", "/ dense"):
        table.add_column(name, justify="left" if "model" in name else "right")
    for name, timing in times.items():
        first = times[f"dense, {name.rpartition(', ')[2]}"]
        table.add_row(name, f"{timing.median_ms / texts:.3f}", f"{timing.median_ms / first.median_ms:.2f}")
    return table
