"""``what=latency`` and ``what=throughput``: time of inference and of training, beside dense."""

from __future__ import annotations

import math
from itertools import islice

import torch
from omegaconf import DictConfig
from rich.console import Console

from skim.benchmark import compare_training, machine
from skim.lightning import recipe
from skim.lightning.looks.loaded import finished, for_report, load, trainer_of
from skim.report.table import print_run


def latency(cfg: DictConfig, console: Console) -> None:
    """Measure latency; writes it into the run's ``results.json``."""
    loaded = load(cfg)
    results = finished(loaded.folder)
    trainer = trainer_of(loaded, console)
    with trainer.precision_plugin.forward_context():
        results["latency"] = recipe.latency(loaded.parts, cfg.benchmark)
    options = f"benchmark.samples={cfg.benchmark.samples} benchmark.repeats={cfg.benchmark.repeats}"
    command = f"python evaluate.py ckpt={cfg.ckpt} what=latency {options}"
    results["timed_on"] = recipe.timed_on(trainer, loaded.parts.model) | {"command": command}
    for_report(loaded, results)
    print_run(results, loaded.folder, console)


def throughput(cfg: DictConfig, console: Console) -> None:
    """Measure training, in samples per second; writes it into the run's ``results.json``.

    Raises:
        SkimError: no training data, or such without labels.
    """
    size = cfg.benchmark.train_batch_size
    loaded = load(cfg)
    results = finished(loaded.folder)
    model, task = loaded.parts.model, loaded.parts.task
    task.setup("fit")
    task.batch_size = size
    # what a training of that batch size would see first: shuffled, and grouped by length
    batches = list(islice(task.train_dataloader(), math.ceil(cfg.benchmark.samples / size)))
    with torch.no_grad():
        batches = list(loaded.seen(batches))
    if loaded.cfg.train.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    forward = trainer_of(loaded, console).precision_plugin.forward_context
    results["training"] = {
        "batch_size": size,
        "samples": sum(len(batch["input_ids"]) for batch in batches),
        "machine": machine(next(model.parameters()).device),
        "timings": compare_training(model, batches, repeats=cfg.benchmark.repeats, forward=forward),
    }
    for_report(loaded, results)
    print_run(results, loaded.folder, console)
