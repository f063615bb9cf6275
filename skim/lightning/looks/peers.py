"""``what=peers``: time beside what else a user could run, on the task's texts, of a run or of a pretrained model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text

from skim.benchmark import KeepShare, machine
from skim.benchmark.file import make_room
from skim.benchmark.rows import Settings, measure
from skim.benchmark.runtimes import Call
from skim.benchmark.table import rows_table
from skim.engine.inputs import inputs_of
from skim.errors import SkimError
from skim.files import write_json
from skim.lightning.looks.loaded import Loaded, is_run, load, pretrained
from skim.methods import Method
from skim.options.words import shown
from skim.report.found import PEERS


def look(cfg: DictConfig, console: Console) -> None:
    """Time the model, its backbone and its peers at each batch size; writes ``peers.json`` and prints a table each.

    Raises:
        SkimError: the run or the data cannot be had, or ``peers.json`` cannot be written.
    """
    loaded = load(cfg) if is_run(cfg) else pretrained(cfg)
    path = loaded.folder / PEERS
    make_room(path)
    sizes = list(map(int, cfg.benchmark.batch_sizes))
    scores = Scores(loaded) if cfg.benchmark.score else None
    found = {
        str(size): timed(loaded, cfg.benchmark, size, console, scores if size == max(sizes) else None) for size in sizes
    }
    about = {"task": loaded.cfg.task.name, "backbone": loaded.cfg.backbone.name, "clock": cfg.benchmark.clock}
    asked = {name: cfg.benchmark[name] for name in ("samples", "repeats", "score")}
    subject = f"ckpt={cfg.ckpt}" if is_run(cfg) else " ".join(f"{key}={about[key]}" for key in ("backbone", "task"))
    told = " ".join(f"benchmark.{name}={shown(value)}" for name, value in asked.items())
    about |= {"command": f"python evaluate.py {subject} what=peers {told}"}
    scored = {} if scores is None else {"monitor": loaded.parts.task.monitor, "scored": scores.rows}
    write_json(path, {**about, **scored, "machine": machine(device(loaded)), "batch_sizes": found})
    console.print(Text(str(path)), soft_wrap=True)


class Scores:
    """Scores of candidates that answer by themselves, by the task's metric on its evaluation split.

    Args:
        loaded: the run.

    Attributes:
        rows: of the split.

    Raises:
        SkimError: there is no run, or the model's answer is more than one tensor, of which runtimes give the first.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.task, self.device, self.rows = loaded.parts.task, device(loaded), 0
        if not (loaded.folder / "results.json").is_file():
            raise SkimError("benchmark.score=true scores the answers of a trained model.\nName a run: ckpt=<run>")
        with torch.inference_mode():
            (batch, *_) = loaded.parts.sampled(1, 1)
            output = loaded.parts.model(**{name: value.to(self.device) for name, value in inputs_of(batch).items()})
        if "logits" not in output:
            raise SkimError(
                f"benchmark.score=true: task={self.task.name} reads more of the model than its logits, and other "
                "runtimes are asked for its first output alone.\nLeave it out: benchmark.score=false."
            )

    def __call__(self, call: Call) -> float:
        """Score one candidate."""
        metrics, self.rows = self.task.metrics(), 0
        for batch in self.task.val_dataloader():
            output = call(**{name: tensor.to(self.device) for name, tensor in inputs_of(batch).items()})
            self.task.update(metrics, answered(output), batch)
            self.rows += len(batch["input_ids"])
        return float(metrics.compute()[self.task.monitor])


def answered(output: Any) -> Any:
    """The logits of a candidate, ``output.logits`` in float32 on the CPU: a model's output, a mapping or an array."""
    logits = output["logits"] if isinstance(output, Mapping) else output  # transformers' outputs are mappings
    return SimpleNamespace(logits=torch.as_tensor(logits).float().cpu())


def timed(
    loaded: Loaded, options: DictConfig, size: int, console: Console, scores: Scores | None = None
) -> dict[str, Any]:
    """Time one batch size, and print its table at once."""
    batches = list(loaded.parts.sampled(size, options.samples))
    texts = sum(len(batch["input_ids"]) for batch in batches)
    tokens = sum(float(batch["attention_mask"].sum()) for batch in batches) / texts
    scripted: dict[str, Method] = {f"scripted, keep {share:g}": KeepShare(share) for share in options.keep}
    settings = Settings(tuple(options.dtypes), True, options.repeats, 1, options.clock)
    title = f"{loaded.cfg.task.name}, {loaded.cfg.backbone.name}: {texts} texts of {tokens:.1f} tokens, batch {size}"
    rows, left_out = measure(loaded.parts.model, batches, scripted, settings, f"batch {size}", scores)
    console.print(rows_table(rows, title, left_out, machine(device(loaded)), options.clock))
    return {"texts": texts, "tokens": tokens, "rows": [asdict(row) for row in rows], "not_timed": left_out}


def device(loaded: Loaded) -> Any:
    """Device of the model."""
    return next(loaded.parts.model.parameters()).device
