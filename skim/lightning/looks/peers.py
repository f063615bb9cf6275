"""``what=peers``: time beside what else a user could run, on the task's texts, of a run or of a pretrained model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text

from skim.benchmark import KeepShare, machine
from skim.benchmark.file import make_room
from skim.benchmark.rows import Settings, measure
from skim.benchmark.table import rows_table
from skim.lightning.looks.loaded import Loaded, is_run, load, pretrained
from skim.methods import Method
from skim.results import write_json

PEERS = "peers.json"


def look(cfg: DictConfig, console: Console) -> None:
    """Time the model, its backbone and its peers at each batch size; writes ``peers.json`` and prints a table each.

    Raises:
        SkimError: the run or the data cannot be had, or ``peers.json`` cannot be written.
    """
    loaded = load(cfg) if is_run(cfg) else pretrained(cfg)
    path = loaded.folder / PEERS
    make_room(path)
    found = {str(size): timed(loaded, cfg.benchmark, int(size), console) for size in cfg.benchmark.batch_sizes}
    about = {"task": loaded.cfg.task.name, "backbone": loaded.cfg.backbone.name, "clock": cfg.benchmark.clock}
    write_json(path, {**about, "machine": machine(device(loaded)), "batch_sizes": found})
    console.print(Text(str(path)), soft_wrap=True)


def timed(loaded: Loaded, options: DictConfig, size: int, console: Console) -> dict[str, Any]:
    """Time one batch size, and print its table at once."""
    batches = list(loaded.parts.sampled(size, options.samples))
    texts = sum(len(batch["input_ids"]) for batch in batches)
    tokens = sum(float(batch["attention_mask"].sum()) for batch in batches) / texts
    scripted: dict[str, Method] = {f"scripted, keep {share:g}": KeepShare(share) for share in options.keep}
    settings = Settings(tuple(options.dtypes), True, options.repeats, 1, options.clock)
    title = f"{loaded.cfg.task.name}, {loaded.cfg.backbone.name}: {texts} texts of {tokens:.1f} tokens, batch {size}"
    rows, left_out = measure(loaded.parts.model, batches, scripted, settings, title=f"batch {size}")
    console.print(rows_table(rows, title, left_out, machine(device(loaded)), options.clock))
    return {"texts": texts, "tokens": tokens, "rows": [asdict(row) for row in rows], "not_timed": left_out}


def device(loaded: Loaded) -> Any:
    """Device of the model."""
    return next(loaded.parts.model.parameters()).device
