"""``what=metrics``: the task's metrics and FLOPs."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from rich.console import Console

from skim.files import write_json
from skim.lightning.landing import elsewhere, evaluated
from skim.lightning.looks.loaded import Loaded, load, trainer_of
from skim.lightning.module import SkimModule
from skim.merging import parameters_of
from skim.report.classes import class_tables
from skim.report.table import print_run
from skim.results import Results


def measured(loaded: Loaded, command: str, trainer: pl.Trainer) -> Results:
    """Evaluate a loaded run as the model is now."""
    model, task = loaded.parts.model, loaded.parts.task
    device, dtype = (parameter := next(model.parameters())).device, parameter.dtype
    module = SkimModule(model, task, formulas=loaded.cfg.formulas, companion=loaded.parts.companion)
    values = evaluated(trainer, module, datamodule=task)
    classes, by_length = module.scores.classes, module.scores.by_length
    others = elsewhere(trainer, module, task)
    model.to(device)  # Lightning takes it off the device after each of its loops
    results = Results.of(loaded.cfg, task.name, command)
    results.take(values, task.monitor)
    results.metrics |= others
    results.classes, results.by_length = classes, by_length
    results.parameters = parameters_of(model)
    results.count(task.report)
    precision = trainer.precision if dtype == torch.float32 else str(dtype).removeprefix("torch.")
    results.machine = {"device": str(device), "threads": torch.get_num_threads(), "precision": precision}
    results.status = "done"
    return results


def look(cfg: DictConfig, console: Console) -> None:
    """Evaluate; writes ``evaluation.json`` beside the run's ``results.json``."""
    loaded = load(cfg)
    command = f"python evaluate.py ckpt={cfg.ckpt} what=metrics"
    results = measured(loaded, command, trainer_of(loaded, console)).to_dict()
    results["notes"] += loaded.parts.task.notes("validation")
    write_json(loaded.folder / "evaluation.json", results)
    print_run(results, loaded.folder, console, ["evaluation.json"])
    if results["classes"]:
        console.print()
        console.print(class_tables(results["classes"]))
