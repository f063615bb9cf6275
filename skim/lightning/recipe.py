"""From a composed config to a finished run: build, fit, evaluate, export. What ``train.py`` calls.

A run's folder holds ``config.yaml``, ``metrics.csv``, ``checkpoints/last.ckpt`` (to resume), ``model/`` (to load with
``skim.from_pretrained`` or plain transformers), ``results.json`` and ``report.html``.
"""

from __future__ import annotations

import copy
import logging
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import transformers
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger
from rich.console import Console
from torch import nn

from skim import hub
from skim.backbones import families
from skim.benchmark import compare
from skim.compression import compress, execution, save_pretrained, walk_of
from skim.errors import SkimError
from skim.lightning.budget import calibrate, check_target
from skim.lightning.module import SkimModule
from skim.lightning.results import Results
from skim.report.heatmap import SkimmedText, read
from skim.report.page import write_page
from tasks.base import Task

NOISE = (
    ".*does not have many workers.*",
    ".*isinstance.treespec.*",
    ".*LeafSpec.*",
    ".*Experiment logs directory.*",  # it holds config.yaml, which the CSV logger leaves alone
    ".*smaller than the logging interval.*",
    ".*SpearmanCorrcoef.*",  # it keeps all targets, as it must
    ".*dirpath has changed.*",  # a resumed run has a folder of its own
)
TOLERANCE = 0.03  # how far from method.target a run may end before it is reported as missed


@dataclass
class Parts:
    """What a config builds."""

    task: Task
    tokenizer: Any
    model: nn.Module
    teacher: nn.Module | None = None


def build(cfg: DictConfig, stage: str = "fit") -> Parts:
    """The task with its data loaded, the tokenizer, and the compressed model (and its teacher, if one is asked for)."""
    quiet()
    task: Task = instantiate(cfg.task, seed=cfg.seed, num_workers=cfg.hardware.num_workers)
    start = dense_folder(cfg) if cfg.init_from else None
    source = start or (
        hub.model_path(cfg.backbone.hub_id, f"backbone={cfg.backbone.name}") if cfg.backbone.hub_id else None
    )
    if source is not None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    elif hasattr(task, "own_tokenizer"):
        tokenizer = task.own_tokenizer()
    else:
        raise SkimError(
            f"backbone={cfg.backbone.name} has no tokenizer of its own, and task={task.name} brings none.\n"
            "Use a pretrained backbone (backbone=minilm), or task=builtin."
        )
    config = backbone_config(cfg, tokenizer, source)
    family = families().get(config.model_type)
    longest = family.longest_input(config) if family is not None else None
    if longest is not None:  # some tokenizers say 1e30; what is longer than this is truncated and counted by the task
        tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    task.setup_tokenizer(tokenizer)
    task.setup(stage)
    for name, value in task.model_kwargs().items():
        setattr(config, name, value)
    plain = load_backbone(task, config, source)
    teacher = None
    if cfg.train.distill > 0:
        if start is None:
            raise SkimError("train.distill needs a teacher: set init_from=<folder of a dense run>, or train.distill=0.")
        teacher = compress(copy.deepcopy(plain), "dense").eval()
    method = instantiate(cfg.method)
    return Parts(task, tokenizer, compress(plain, method, cfg.execution), teacher)


def quiet() -> None:
    """Silence what is neither a result nor an error; warnings that a user can act on stay."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for noise in NOISE:
        warnings.filterwarnings("ignore", noise)


def backbone_config(cfg: DictConfig, tokenizer: Any, source: str | Path | None) -> Any:
    """The model's config: the checkpoint's or one from scratch, with the user's changes and the tokenizer's ids."""
    overrides = OmegaConf.to_container(cfg.backbone.overrides, resolve=True) or {}
    assert isinstance(overrides, dict)
    if source is None:
        config = transformers.AutoConfig.for_model(overrides.pop("model_type"), vocab_size=len(tokenizer))
    else:
        config = transformers.AutoConfig.from_pretrained(source)
    # set one by one: as keywords, what a family's config does not name would go to the model's constructor
    specials = {name: getattr(tokenizer, name) for name in ("pad_token_id", "cls_token_id", "sep_token_id")}
    for name, value in {**overrides, **specials}.items():
        setattr(config, name, value)
    return config


def load_backbone(task: Task, config: Any, source: str | Path | None) -> nn.Module:
    """The Hugging Face model with the task's head, in float32."""
    if source is None:
        return task.auto_class().from_config(config)
    try:
        # dtype: transformers takes the file's by default, and training in half precision is not what anyone asked for
        return task.auto_class().from_pretrained(source, config=config, dtype=torch.float32)
    except (RuntimeError, ValueError, OSError) as error:
        raise SkimError(
            f"{source} cannot be loaded as {task.auto_class().__name__} for task={task.name}:\n{error}"
        ) from error


def dense_folder(cfg: DictConfig) -> Path:
    """The exported model that ``init_from`` names; a SkimError if it is of another backbone or not there."""
    folder = Path(cfg.init_from)
    if (folder / "model" / "config.json").is_file():
        before = OmegaConf.load(folder / "config.yaml")
        if before.backbone.name != cfg.backbone.name:
            raise SkimError(
                f"init_from={folder} was trained with backbone={before.backbone.name}, this run has "
                f"backbone={cfg.backbone.name}.\nUse backbone={before.backbone.name}, or another init_from."
            )
        return folder / "model"
    if (folder / "config.json").is_file():
        return folder
    raise SkimError(
        f"init_from={folder} holds no trained model (neither model/config.json nor config.json).\n"
        "Name the folder of a finished run, such as runs/sst2/dense/minilm/<stamp>."
    )


class Lines(Callback):
    """One line per evaluation, for logs and terminals that show no progress bar."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        values = trainer.callback_metrics
        shown = [name for name in values if name.startswith("val/") and "layer_" not in name and "gflops" not in name]
        text = ", ".join(f"{name[4:].replace('_', ' ')} {float(values[name]):.4f}" for name in shown)
        self.console.print(f"step {trainer.global_step}: {text}", highlight=False)


def trainer_of(cfg: DictConfig, folder: Path, task: Task, console: Console) -> pl.Trainer:
    """Lightning's Trainer with the loggers and callbacks of a run."""
    progress = cfg.callbacks.progress and console.is_terminal
    callbacks: list[Callback] = [ModelCheckpoint(folder / "checkpoints", save_last=True, save_top_k=0)]
    callbacks.append(RichProgressBar(leave=True) if progress else Lines(console))
    if cfg.callbacks.patience is not None:
        callbacks.append(EarlyStopping(f"val/{task.monitor}", mode="max", patience=cfg.callbacks.patience))
    loggers: list[Any] = [CSVLogger(folder, name="", version="")]
    if cfg.logger.wandb is not None:
        from skim.lightning.dashboard import wandb_logger

        loggers.append(wandb_logger(cfg, folder))
    return pl.Trainer(
        default_root_dir=folder,
        accelerator=cfg.hardware.accelerator,
        devices=cfg.hardware.devices,
        precision=cfg.hardware.precision,
        strategy=cfg.hardware.strategy,
        max_epochs=cfg.train.epochs,
        max_steps=cfg.train.max_steps,
        gradient_clip_val=cfg.train.clip,
        accumulate_grad_batches=cfg.train.accumulate,
        val_check_interval=1.0 / cfg.train.evals_per_epoch,
        log_every_n_steps=cfg.callbacks.log_every,
        callbacks=callbacks,
        logger=loggers,
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the task's sampler knows its rank, and never repeats a sample in evaluation
    )


@dataclass
class Run:
    """A finished run, as far as the process that made it needs to know."""

    results: Results
    skimmed: list[SkimmedText]  # a few evaluation sentences; empty on tasks without single texts
    folder: Path


def train(cfg: DictConfig, folder: Path, command: str) -> Run:
    """Run one training and leave its folder behind.

    Args:
        cfg: composed from ``conf/train.yaml``.
        folder: the run's folder.
        command: what the user typed; goes to ``results.json``.

    Raises:
        SkimError: for anything the user can mend; raised before the folder is written to, where that can be known.
    """
    started = time.time()
    console = Console()
    if cfg.hardware.threads is not None:
        torch.set_num_threads(cfg.hardware.threads)
    pl.seed_everything(cfg.seed, verbose=False)
    parts = build(cfg)
    if cfg.resume:
        check_resume(cfg)
    check_target(parts.model, parts.task.sample_batches(32, 256))
    if cfg.train.gradient_checkpointing:
        parts.model.gradient_checkpointing_enable()
    module = SkimModule(
        parts.model,
        parts.task,
        teacher=parts.teacher,
        **{
            key: cfg.train[key]
            for key in ("lr", "method_lr", "weight_decay", "warmup", "distill", "distill_temperature")
        },
    )
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    trainer = trainer_of(cfg, folder, parts.task, console)
    # every rank was seeded alike so that weights agree; gate noise and dropout must not
    torch.manual_seed(cfg.seed + 1000 * trainer.global_rank)
    trainer.fit(module, datamodule=parts.task, ckpt_path=cfg.resume, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    results = Results.of(cfg, parts.task.name, command)
    results.samples = dict(parts.task.report["rows"])
    results.truncated = {part: count for part, count in parts.task.report["truncated"].items() if count}
    if getattr(parts.model.method, "target", None) is not None:
        parts.model.to(trainer.strategy.root_device)
        if cfg.train.calibrate:
            calibrate(parts.model, parts.task.sample_batches(32, cfg.train.calibrate))
    measure(results, trainer, module, parts)
    if not trainer.is_global_zero:
        return Run(results, [], folder)
    parts.model.eval()
    save_pretrained(parts.model, folder / "model")
    parts.tokenizer.save_pretrained(folder / "model")
    skimmed: list[SkimmedText] = read(parts.model, parts.tokenizer, parts.task.example_texts(6), parts.task.label_names)
    if cfg.benchmark.enabled:
        results.latency = latency(parts, cfg.benchmark)
    results.wall_seconds = time.time() - started
    results.status = "done"
    results.write(folder)
    write_page(folder / "report.html", results.to_dict(), skimmed)
    return Run(results, skimmed, folder)


def check_resume(cfg: DictConfig) -> None:
    """A checkpoint goes on only with the backbone and the method it was made with."""
    path = Path(cfg.resume)
    if not path.is_file():
        raise SkimError(f"resume={path} is no file; name a checkpoint such as runs/.../checkpoints/last.ckpt.")
    config = path.parent.parent / "config.yaml"
    if not config.is_file():
        raise SkimError(f"resume={path}: there is no config.yaml beside its checkpoints/ to compare this run with.")
    before = OmegaConf.load(config)
    for what, old, new in (
        ("backbone", before.backbone.name, cfg.backbone.name),
        ("method", before.method._target_, cfg.method._target_),
        ("task", before.task._target_, cfg.task._target_),
    ):
        if old != new:
            raise SkimError(f"resume={path} was made with {what}={old}, this run has {what}={new}; they must agree.")


def measure(results: Results, trainer: pl.Trainer, module: SkimModule, parts: Parts) -> None:
    """Evaluate as the model will run, and once more masked: the two must agree, and the report shows that they do."""
    walk = walk_of(parts.model)
    values = trainer.validate(module, datamodule=parts.task, verbose=False)[0]
    results.take(values, parts.task.monitor)
    if walk.method.name != "dense":
        with execution(parts.model, "masked"):
            masked = trainer.validate(module, datamodule=parts.task, verbose=False)[0]
        results.masked_metrics = {k: v for k, v in Results.metrics_of(masked).items()}
    target = getattr(walk.method, "target", None)
    if target is not None and abs(results.relative_flops - target) > TOLERANCE:
        results.notes.append(
            f"target missed: asked for relative FLOPs {target:.2f}, ended at {results.relative_flops:.3f}. "
            "Train longer, raise train.method_lr, or start from a dense run (init_from)."
        )


def latency(parts: Parts, settings: DictConfig) -> dict[str, Any]:
    """Packed, packed dense and padded Hugging Face on the same evaluation batches; see :mod:`skim.benchmark`."""
    measured = {}
    for batch_size in settings.batch_sizes:
        batches = parts.task.sample_batches(int(batch_size), settings.samples)
        measured[str(batch_size)] = compare(parts.model, batches, repeats=settings.repeats)
    return measured
