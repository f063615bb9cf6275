"""A finished run, rebuilt from its folder to be looked at."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor

from skim.benchmark import usable
from skim.budgets import TIMES, set_budget
from skim.checkpoint import LEARNED, parsed, read_method, restore
from skim.compression import walk_of
from skim.engine.dtype import fastest
from skim.errors import SkimError, reading
from skim.files import whole, write_json
from skim.lightning.build import Parts, build
from skim.lightning.recipe import EXAMPLES
from skim.methods import METHODS, REGISTERED, method_name, path_of
from skim.options.check import PLACES
from skim.options.tree import Chosen, exists, leaves, no_option
from skim.published.files import tensors_of
from skim.report.card import write_card
from skim.report.heatmap import read, write_texts
from skim.report.page import write_page
from skim.resume import newest, passed_over, recorded
from skim.saving import CARD
from tasks.data.source import HOLDOUT

log = logging.getLogger("skim")

# options of a run that mean something once it has been trained
READ = re.compile(
    r"task\.(?!(batch_size|tokens_per_batch)$).*|method\.(?!stages($|\.)).*|backbone\..*|trainer\.precision|hardware\.(precision|num_workers)"
    r"|formulas|seed|train\.gradient_checkpointing"
)
SHOWN = ("task.*", "method.*", "backbone.*", "hardware.precision", "hardware.num_workers", "formulas", "seed")
FILLED = ("export", "redundancy", "search")  # folders of a run that looks fill
# those that evaluate.py has options of its own for
OWN = {
    "task.eval_batch_size": "batch_size",
    "task.max_eval_samples": "max_samples",
    "execution": "execution",
    "hardware.accelerator": "hardware.accelerator",
    "hardware.threads": "hardware.threads",
}


@dataclass
class Loaded:
    """A run, ready to be looked at."""

    parts: Parts
    cfg: DictConfig  # the run's own, with the caller's changes
    folder: Path

    def seen(self, batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """Batches as the model sees them, where it is."""
        device, companion = next(self.parts.model.parameters()).device, self.parts.companion
        for batch in batches:
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            yield batch if companion is None else self.parts.task.corrupt(batch, companion)[0]


def load(cfg: DictConfig) -> Loaded:
    """Rebuild a run from its folder, with the weights of its exported model or of one of its checkpoints.

    Raises:
        SkimError: no run there, a checkpoint of another backbone or method, or a number of rows that is none.
    """
    check_budget(cfg)
    folder, checkpoint = run_of(Path(cfg.ckpt))
    check_links(folder)
    before = recorded(folder, [*cfg.trust_modules, *map(path_of, REGISTERED.values())])  # to register is to allow
    check_overrides(cfg.overrides, before, folder)
    before = cast(DictConfig, OmegaConf.merge(before, cfg.overrides))
    task: dict[str, Any] = {"eval_batch_size": cfg.batch_size, "tokens_per_batch": None}
    if cfg.max_samples is not None:
        task["max_eval_samples"] = cfg.max_samples
    predicts = cfg.what == "predict"
    if cfg.split is not None:
        part = "test" if predicts else "validation"
        task["test_split" if predicts else "eval_split"] = cfg.split
        if cfg.split != HOLDOUT:  # which are rows of the training file
            task["files"] = {part: (before.task.get("files") or {}).get(cfg.split.partition("_")[0])}
    exported = folder / "model"
    complete = (exported / "skim.json").is_file()
    if complete and before.task.get("label_names", ()) is None:  # came from the training rows, which may not be here
        names = parsed(exported / "config.json").get("id2label", {})
        with reading(exported / "config.json", "the config of a model"):
            task["label_names"] = [names[str(i)] for i in range(len(names))] or None
    source = str(exported) if complete else None
    start: dict[str, Any] = {"init_from": source, "resume": None, "train": {"distill": 0.0, "distill_hidden": 0.0}}
    run = OmegaConf.merge(before, start | {"execution": cfg.execution, "task": task})
    assert isinstance(run, DictConfig)
    if checkpoint is None and not complete:
        checkpoint = newest(folder)
        if checkpoint is None:
            raise SkimError(
                f"{folder} holds neither model/ nor a whole checkpoints/last.ckpt: the run did not get that far."
            )
        for line in passed_over(checkpoint):
            log.warning("%s", line)
    parts = build(run, purpose="predict" if predicts else "validate")
    if checkpoint is not None:
        with reading(checkpoint, "a checkpoint of a run"):
            state = dict(tensors_of(checkpoint)["state_dict"])
        if not whole(checkpoint):
            raise SkimError(f"{checkpoint} is cut or damaged: its checksum differs. Name another checkpoint.")
        for name, module in (("model.", parts.model), ("companion.", parts.companion)):
            if module is not None:
                own = {k.removeprefix(name): v for k, v in state.items() if k.startswith(name)}
                restore(module, own, checkpoint)
    else:
        method = walk_of(parts.model).method
        restore(method, read_method(exported, type(method))[1], exported / LEARNED)
    if cfg.budget is not None:
        set_budget(parts.model, cfg.budget)
    for module in (parts.model, parts.companion):
        if module is not None:
            module.eval().to(device_of(cfg), dtype_of(cfg))
    if cfg.dtype is not None:  # the numbers are the model's own, and autocast would only cast them again
        run.trainer.precision = "32-true"
    return Loaded(parts, run, folder)


def is_run(cfg: DictConfig) -> bool:
    """Tell whether a look is at a run, and not at a pretrained model."""
    return not OmegaConf.is_missing(cfg, "ckpt") and cfg.ckpt is not None


def pretrained(cfg: DictConfig) -> Loaded:
    """Build a pretrained model without a run: ``backbone`` on ``task``, with ``method`` if one is named.

    Its run is made of the options' defaults; the head is a new one, which no look at the encoder reads.
    """
    sections = {place: asdict(cast(Any, options())) for place, options in PLACES["train"].items()}
    defaults: dict[Any, Any] = sections.pop("") | sections
    run = OmegaConf.merge(
        defaults,
        {"method": {"_target_": METHODS["dense"]}, "trainer": {"precision": "32-true"}, "execution": cfg.execution},
        OmegaConf.masked_copy(cfg, [group for group in ("backbone", "task", "method") if cfg.get(group)]),
        {"seed": cfg.redundancy.seed, "task": {"eval_batch_size": cfg.batch_size}},
    )
    assert isinstance(run, DictConfig)
    if cfg.overrides:
        raise SkimError(
            f"overrides.{next(iter(cfg.overrides))}: there is no run whose options could be changed.\n"
            "Give them as they are: task.files.train=mine.csv, backbone.overrides.<option>=<value>."
        )
    for option, value in (("max_eval_samples", cfg.max_samples), ("eval_split", cfg.split)):
        if value is not None:
            run.task[option] = value
    pl.seed_everything(run.seed, verbose=False)
    parts = build(run, purpose="validate")
    parts.model.eval().to(device_of(cfg), dtype_of(cfg))
    named = (run.task.name, method_name(run.method._target_), run.backbone.name, "pretrained")
    return Loaded(parts, run, Path(str(cfg.folder)) if cfg.folder is not None else Path("runs", *named))


def device_of(cfg: DictConfig) -> torch.device:
    """Choose the device that a look computes on."""
    accelerator = str(cfg.hardware.accelerator)
    return usable("cuda" if accelerator == "gpu" else accelerator)  # Lightning's word, torch's word


def dtype_of(cfg: DictConfig) -> torch.dtype:
    """Choose the dtype of the model that is looked at; says so where the user leaves it to skim.

    Raises:
        SkimError: a look that trains, or that reads states, whose numbers are those of the run.
    """
    if cfg.dtype is None:
        return torch.float32
    if cfg.what in ("throughput", "redundancy"):
        raise SkimError(
            f"dtype={cfg.dtype} is for inference, and what={cfg.what} is not about that.\nLeave dtype away; numbers "
            "of a training are hardware.precision of its run."
        )
    if cfg.dtype != "auto":
        return getattr(torch, cfg.dtype)
    choice = fastest(device_of(cfg))
    Console().print(f"{choice}", markup=False, highlight=False)
    return choice.dtype


def check_budget(cfg: DictConfig) -> None:
    """Refuse a budget where the numbers would stand in ``results.json``, beside those of the run's own budget.

    Raises:
        SkimError: there, and where ``targets`` says it.
    """
    if cfg.budget is not None and cfg.what in ("curve", "latency", "throughput", "depth", "redundancy"):
        own = "takes targets" if cfg.what == "curve" else "writes beside the metrics of the budget that the run has"
        raise SkimError(
            f"budget={cfg.budget}: what={cfg.what} {own}.\n"
            f"Use what=curve targets=[{cfg.budget}], with timed=true for latency."
        )


def run_of(path: Path) -> tuple[Path, Path | None]:
    """A run's folder, and a checkpoint of it if it is one that is named; its ``model/`` stands for the run.

    Raises:
        SkimError: there is no run.
    """
    checkpoint = path if path.suffix == ".ckpt" else None
    folder = path.parent.parent if checkpoint else path
    if not checkpoint and not (folder / "config.yaml").is_file() and (folder.parent / "config.yaml").is_file():
        folder = folder.parent  # of what is in a run: model/, checkpoints/
    if path.exists() and (folder / "config.yaml").is_file():
        return folder, checkpoint
    if (path / "skim.json").is_file():
        raise SkimError(
            f"ckpt={path} is a model without its run: it does not say what it was trained on, nor how to evaluate it.\n"
            f"Name the run that it came from, or look at it in Python: skim.from_pretrained({str(path)!r})."
        )
    raise SkimError(
        f"ckpt={path} is not a run: there is no {folder / 'config.yaml'}.\n"
        "Name a run's folder (runs/<task>/<method>/<backbone>/<stamp>) or a file in its checkpoints/."
    )


def check_links(folder: Path) -> None:
    """Refuse a run in which a file that a look may write is a link to elsewhere: a stranger may have made it.

    Folders for large files may lie on other disks: what a look writes in them is the card of a model, and its times.

    Raises:
        SkimError: there is such a link.
    """
    for path in [*folder.iterdir(), folder / "model" / CARD, folder / "model" / TIMES]:
        if not path.is_symlink() or (path.is_dir() and path.name not in FILLED):
            continue
        if not Path(os.path.realpath(path)).is_relative_to(folder.resolve()):
            raise SkimError(
                f"{path} is a link to {os.path.realpath(path)}, and what is written there would go to another folder.\n"
                "Remove the link, or copy the run with its files: cp -rL"
            )


def check_overrides(overrides: DictConfig, run: DictConfig, folder: Path) -> None:
    """Refuse to change an option that the run does not have, or that was for its training alone."""
    tree, asked = (cast(dict[str, Any], OmegaConf.to_container(config)) for config in (run, overrides))
    options = Chosen(tree, {}, tree)
    for key, _ in leaves(asked):
        if not exists(key, options):
            raise no_option(key, options, f"overrides of {folder}: ")
        if key in OWN:
            raise SkimError(
                f"overrides.{key}: evaluate.py has an option of its own for this; write {OWN[key]}=<value>."
            )
        if not READ.fullmatch(key):
            raise SkimError(
                f"overrides.{key} would change nothing: it is for training, and the run has been trained.\n"
                f"Options of a run that evaluation reads: {', '.join(SHOWN)}."
            )


def trainer_of(loaded: Loaded, console: Console, bar: bool = True) -> pl.Trainer:
    """Lightning's Trainer where the model is, in the run's precision on a GPU and in float32 elsewhere.

    Args:
        loaded: the run.
        console: of the look.
        bar: whether each of its loops has a bar, on a terminal.
    """
    device = next(loaded.parts.model.parameters()).device
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=loaded.cfg.trainer.precision if device.type == "cuda" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=bar and console.is_terminal,
        use_distributed_sampler=False,
    )


def finished(folder: Path) -> dict[str, Any]:
    """The ``results.json`` of a run, to be added to."""
    path = folder / "results.json"
    if not path.is_file():
        raise SkimError(f"{folder} has no results.json to write measurements into: the run did not finish.")
    return parsed(path)


def for_report(loaded: Loaded, results: dict[str, Any]) -> None:
    """Write a run's ``results.json`` and, from the same numbers, its ``report.html`` with the model's texts."""
    task, tokenizer = loaded.parts.task, loaded.parts.tokenizer
    skimmed = read(loaded.parts.model, tokenizer, task.example_texts(EXAMPLES), task.label_names, task.single_texts)
    write_json(loaded.folder / "results.json", results)
    write_texts(loaded.folder, skimmed)
    write_page(loaded.folder / "report.html", results, skimmed)
    if (loaded.folder / "model" / "config.json").is_file():
        write_card(loaded.folder / "model", results)
