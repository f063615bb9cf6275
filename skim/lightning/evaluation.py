"""Looking at a finished run again: metrics, time, and what it does to a sentence. What ``evaluate.py`` calls."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from skim.compression import walk_of
from skim.errors import SkimError, unknown
from skim.lightning.budget import calibrate
from skim.lightning.build import Parts, build
from skim.lightning.module import SkimModule
from skim.lightning.recipe import latency
from skim.lightning.results import Results, write_json
from skim.report.heatmap import read, show, write_html
from skim.report.svg import sentence, write_svg
from skim.report.table import print_run


@dataclass
class Loaded:
    """A run, ready to be looked at."""

    parts: Parts
    cfg: DictConfig  # the run's own, with the caller's changes
    folder: Path


def load(cfg: DictConfig) -> Loaded:
    """Rebuild a run from its folder, with the weights of its exported model or of one of its checkpoints.

    Raises:
        SkimError: no run there, or a checkpoint of another backbone or method.
    """
    path = Path(cfg.ckpt)
    checkpoint = path if path.suffix == ".ckpt" else None
    folder = path.parent.parent if checkpoint else path
    if not path.exists() or not (folder / "config.yaml").is_file():
        raise SkimError(
            f"ckpt={path} is no run: there is no {folder / 'config.yaml'}.\n"
            "Name a run's folder (runs/<task>/<method>/<backbone>/<stamp>) or a file in its checkpoints/."
        )
    before = OmegaConf.merge(OmegaConf.load(folder / "config.yaml"), cfg.overrides)
    assert isinstance(before, DictConfig)
    task: dict[str, Any] = {"eval_batch_size": cfg.batch_size}
    if cfg.max_samples is not None:
        task["max_eval_samples"] = cfg.max_samples
    if cfg.split is not None:
        task["eval_split"] = cfg.split
    exported = folder / "model"
    whole = (exported / "skim.json").is_file()
    start: dict[str, Any] = {"init_from": str(exported) if whole else None, "resume": None, "train": {"distill": 0.0}}
    run = OmegaConf.merge(before, start | {"execution": cfg.execution, "task": task})
    assert isinstance(run, DictConfig)
    if checkpoint is None and not whole:
        checkpoint = folder / "checkpoints" / "last.ckpt"
        if not checkpoint.is_file():
            raise SkimError(f"{folder} holds neither model/ nor checkpoints/last.ckpt: the run did not get that far.")
    parts = build(run, stage="validate")
    if checkpoint is not None:
        try:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        except (RuntimeError, KeyError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise SkimError(
                f"{checkpoint} cannot be read as a checkpoint: {str(error).splitlines()[0][:200]}"
            ) from error
        restore(parts.model, {k[6:]: v for k, v in state.items() if k.startswith("model.")}, checkpoint)
    else:
        from safetensors.torch import load_file

        restore(walk_of(parts.model).method, load_file(folder / "model" / "method.safetensors"), folder / "model")
    parts.model.eval().to(device_of(cfg.device))
    return Loaded(parts, run, folder)


def restore(module: nn.Module, state: dict[str, torch.Tensor], source: Path) -> None:
    """Load weights that must fit exactly; a SkimError in a few words if they are of another backbone or method."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[:3]]
        raise SkimError(
            f"{source} does not fit this backbone and method:\n" + "\n".join(line[:200] for line in lines)
        ) from None


def device_of(name: str) -> torch.device:
    """``auto`` is CUDA if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise SkimError(f"device={name} cannot be used here: {str(error).splitlines()[0]}") from None


def measured(loaded: Loaded, command: str, console: Console) -> Results:
    """Evaluate a loaded run as the model is now."""
    module = SkimModule(loaded.parts.model, loaded.parts.task)
    device = next(loaded.parts.model.parameters()).device
    trainer = pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=loaded.cfg.hardware.precision if device.type == "cuda" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=console.is_terminal,
        use_distributed_sampler=False,
    )
    values = trainer.validate(module, datamodule=loaded.parts.task, verbose=False)[0]
    results = Results.of(loaded.cfg, loaded.parts.task.name, command)
    results.take(values, loaded.parts.task.monitor)
    results.samples = dict(loaded.parts.task.report["rows"])
    results.status = "done"
    return results


def metrics(cfg: DictConfig, console: Console) -> None:
    """Evaluate; writes ``evaluation.json`` beside the run's ``results.json``."""
    loaded = load(cfg)
    results = measured(loaded, f"python evaluate.py ckpt={cfg.ckpt} what=metrics", console).to_dict()
    write_json(loaded.folder / "evaluation.json", results)
    print_run(results, loaded.folder)


def curve(cfg: DictConfig, console: Console) -> None:
    """One trained model at several budgets, without training again: its decisions are shifted, see ``calibrate``.

    Writes ``curve.json``, a list of results.
    """
    loaded = load(cfg)
    method = walk_of(loaded.parts.model).method
    if method.shift is None:
        raise SkimError(f"what=curve moves a method's decisions, and {method.name} takes none that could be moved.")
    inputs = loaded.parts.task.sample_batches(cfg.batch_size, 512)
    points = []
    for target in cfg.targets:
        method.target = float(target)
        calibrate(loaded.parts.model, inputs)
        point = measured(loaded, f"python evaluate.py ckpt={cfg.ckpt} what=curve", console)
        point.target = float(target)
        points.append(point.to_dict())
        named = ", ".join(f"{name} {value:.4f}" for name, value in point.metrics.items())
        console.print(
            f"target {float(target):.2f}: relative FLOPs {point.relative_flops:.3f}, {named}", highlight=False
        )
    write_json(loaded.folder / "curve.json", points)


def tokens(cfg: DictConfig, console: Console) -> None:
    """Print sentences, each token shaded by the layer at which it retired; writes ``tokens.html``, ``tokens.svg``."""
    if cfg.text is None:
        raise SkimError('what=tokens needs a sentence: text="a gripping , funny film" (quote it for the shell).')
    texts = [str(cfg.text)] if not OmegaConf.is_list(cfg.text) else [str(text) for text in cfg.text]
    loaded = load(cfg)
    skimmed = read(loaded.parts.model, loaded.parts.tokenizer, texts, loaded.parts.task.label_names)
    show(skimmed, console)
    write_html(loaded.folder / "tokens.html", skimmed)
    write_svg(loaded.folder / "tokens.svg", sentence(skimmed[0]))
    console.print(f"\n{loaded.folder / 'tokens.html'}, and the first text as tokens.svg", highlight=False)


def time_it(cfg: DictConfig, console: Console) -> None:
    """Measure latency; writes it into the run's ``results.json``."""
    loaded = load(cfg)
    path = loaded.folder / "results.json"
    if not path.is_file():
        raise SkimError(f"{loaded.folder} has no results.json to write latencies into: the run did not finish.")
    results = json.loads(path.read_text())
    results["latency"] = latency(loaded.parts, cfg.benchmark)
    write_json(path, results)
    print_run(results, loaded.folder)


LOOKS: dict[str, Callable[[DictConfig, Console], None]] = {
    "metrics": metrics,
    "tokens": tokens,
    "latency": time_it,
    "curve": curve,
}


def evaluate(cfg: DictConfig) -> None:
    """One look at a run, of the kind that ``cfg.what`` names."""
    if cfg.what not in LOOKS:
        raise unknown("what", cfg.what, LOOKS)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    LOOKS[cfg.what](cfg, Console())
