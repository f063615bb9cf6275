"""From a composed config to a finished run: build, fit, evaluate, export. What ``train.py`` calls.

A run's folder holds ``config.yaml``, ``metrics.csv``, ``checkpoints/last.ckpt`` (to resume) and ``best.ckpt`` (the
weights of the best evaluation), ``model/`` (to load with ``skim.from_pretrained`` or plain transformers),
``results.json`` and ``report.html``.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console
from safetensors.torch import save_file

from skim.benchmark import compare
from skim.compression import execution, walk_of
from skim.errors import SkimError
from skim.lightning.budget import check_survivors, check_target
from skim.lightning.build import COMPANION, Parts, build
from skim.lightning.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, LastStageStopping
from skim.lightning.callbacks.progress import progress_of
from skim.lightning.check import check
from skim.lightning.landing import elsewhere, evaluated, land
from skim.lightning.module import SkimModule
from skim.lightning.notes import notes_of
from skim.methods import method_name
from skim.options.check import typed
from skim.report.heatmap import SkimmedText, read
from skim.report.page import write_page
from skim.results import Results
from skim.resume import LAST, changes, checkpoint_of
from skim.saving import save_pretrained

Part = TypeVar("Part", bound=Callback)
EXAMPLES = 6  # evaluation texts that a report shows
LEFT_BEHIND = (
    "results.json",
    "report.html",
    "evaluation.json",
    "curve.json",
    "curve.png",
    "curve.svg",
    "tokens.html",
    "tokens.svg",
    "model",
    "checkpoints",
)


def trainer_of(cfg: DictConfig, folder: Path, parts: Parts, console: Console) -> pl.Trainer:
    """Lightning's Trainer with the loggers and callbacks of a run."""
    every = cfg.train.get("eval_every")  # older runs have no choice
    best = BestCheckpoint(folder / "checkpoints", parts.task.monitor)
    callbacks: list[Callback] = [best]  # judges an evaluation before anyone asks
    if cfg.callbacks.patience is not None:
        callbacks.append(LastStageStopping(best, cfg.callbacks.patience))
    callbacks.append(progress_of(console, folder))
    callbacks.append(LastCheckpoint(folder / "checkpoints", cfg.callbacks.get("save_every")))
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
        max_epochs=sum(stage.epochs for stage in parts.stages) if cfg.train.max_steps < 0 else -1,
        max_steps=cfg.train.max_steps,
        gradient_clip_val=cfg.train.clip,
        accumulate_grad_batches=cfg.train.accumulate,
        val_check_interval=every or 1.0 / cfg.train.evals_per_epoch,
        check_val_every_n_epoch=None if every else 1,
        log_every_n_steps=cfg.callbacks.log_every,
        callbacks=callbacks,
        logger=loggers,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the task's sampler knows its rank, and never repeats a sample in evaluation
    )


def part_of(trainer: pl.Trainer, kind: type[Part]) -> Part | None:
    """The trainer's callback of a kind."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)  # type: ignore[attr-defined]


@dataclass
class Run:
    """A finished run, as far as the process that made it needs to know."""

    results: Results
    skimmed: list[SkimmedText]  # a few evaluation sentences
    folder: Path


def train(cfg: DictConfig, folder: Path, command: str) -> Run:
    """Run one training and leave its folder behind.

    Args:
        cfg: composed from ``conf/train.yaml``.
        folder: the run's folder; what an earlier run left there is replaced.
        command: what the user typed; goes to ``results.json``.

    Raises:
        SkimError: for anything the user can mend; raised before the folder is written to, where that can be known.
    """
    started = time.time()
    check(cfg)
    changed: list[str] = []
    if cfg.resume is not None:
        changed = changes(cfg)
        cfg = cast(DictConfig, OmegaConf.merge(cfg, {"resume": str(checkpoint_of(cfg.resume))}))
    console = Console() if cfg.callbacks.progress else Console(force_terminal=False)
    if rank_zero_only.rank == 0:
        names = {"task": cfg.task.name, "method": method_name(cfg.method._target_), "backbone": cfg.backbone.name}
        said = ", ".join(f"{group}={name}" for group, name in names.items())
        console.print(f"{said}: loading data and model", highlight=False, soft_wrap=True)
        if cfg.resume is not None:
            console.print("\n".join([f"going on from {cfg.resume}", *changed]), highlight=False, soft_wrap=True)
    if cfg.hardware.threads is not None:
        torch.set_num_threads(cfg.hardware.threads)
    pl.seed_everything(cfg.seed, verbose=False)
    parts = build(cfg)
    if parts.task.endless and (cfg.train.max_steps < 1 or cfg.train.get("eval_every") is None):
        raise SkimError(
            f"task={parts.task.name} streams its training data, which have no end and no epochs.\n"
            "Set train.max_steps=<optimizer steps> and train.eval_every=<batches between evaluations>."
        )
    sample = parts.sampled(32, 256)
    with typed("method"):
        check_target(parts.model, sample)
    check_survivors(parts.model, sample, calibrates=cfg.train.calibrate > 0)
    if cfg.train.gradient_checkpointing:
        if not parts.model.supports_gradient_checkpointing:
            raise SkimError(f"train.gradient_checkpointing: transformers has none for {type(parts.model).__name__}.")
        parts.model.gradient_checkpointing_enable()
    module = SkimModule(
        parts.model,
        parts.task,
        parts.stages,
        distill=cfg.train.distill,
        distill_temperature=cfg.train.distill_temperature,
        distill_from=cfg.train.distill_from,
        teacher=parts.teacher,
        method_after=cfg.train.method_after or 0.0,
        calibrate_on=parts.sampled(32, cfg.train.calibrate) if cfg.train.calibrate else None,
        formulas=cfg.get("formulas") or (),
        companion=parts.companion,
        loss=parts.task.training_loss(cfg.train.label_smoothing),
    )
    try:
        trainer = trainer_of(cfg, folder, parts, console)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise SkimError(f"hardware cannot be used as configured: {str(error).splitlines()[0]}") from error
    if trainer.is_global_zero:
        clear(folder, cfg.resume)
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    results = Results.of(cfg, parts.task.name, command)
    try:
        return finish(cfg, folder, started, parts, module, trainer, results, console)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        said = f"interrupted{goes_on(folder, cfg.resume)}" if interrupted else f"{type(error).__name__}: {error}"
        if trainer.is_global_zero:
            results.notes.append(said)
            results.wall_seconds = time.time() - started
            results.write(folder)
        if interrupted:
            raise KeyboardInterrupt(said) from None
        raise
    finally:
        if cfg.logger.wandb is not None:
            from skim.lightning.dashboard import conclude

            conclude(results)


def goes_on(folder: Path, resumed: str | None) -> str:
    """Say from where an interrupted run can go on: from a checkpoint of its own, or the one it began with."""
    if not (folder / LAST).is_file():
        if resumed is not None:
            return f" before it wrote a checkpoint of its own; resume={resumed} goes on from there once more"
        return " before it wrote a checkpoint: start it anew (callbacks.save_every=<steps> writes one more often)"
    step = torch.load(folder / LAST, map_location="cpu", weights_only=True, mmap=True)["global_step"]
    here = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    return f"; resume={here} goes on from step {step}"


def clear(folder: Path, resume: str | None) -> None:
    """Make the folder; a run that replaces another must not be mistaken for it if it dies half way."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in LEFT_BEHIND:
        path = folder / name
        if resume is not None and path.resolve() in Path(resume).resolve().parents:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def finish(
    cfg: DictConfig,
    folder: Path,
    started: float,
    parts: Parts,
    module: SkimModule,
    trainer: pl.Trainer,
    results: Results,
    console: Console,
) -> Run:
    """The run itself: fit, calibrate, measure, export."""
    model, task = parts.model, parts.task
    best, stopping = part_of(trainer, BestCheckpoint), part_of(trainer, LastStageStopping)
    assert best is not None
    try:
        trainer.fit(module, datamodule=task, ckpt_path=cfg.resume, weights_only=True)
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    device = trainer.strategy.root_device
    results.count(task.report)
    results.machine = {"device": str(device), "threads": torch.get_num_threads(), "precision": cfg.hardware.precision}
    results.steps = trainer.global_step
    if stopping is not None and stopping.step is not None:
        results.stopped_early = {"step": stopping.step, "of": stopping.of, "patience": stopping.patience}
    if best.lost is not None:
        results.notes.append(
            f"resume: best.ckpt, of step {best.lost}, was not beside the checkpoint that this run goes on from: the "
            "best is of the evaluations since."
        )
    inputs = parts.sampled(32, cfg.train.calibrate) if cfg.train.calibrate else None
    weights = land(trainer, module, task, best, inputs, cfg.callbacks.export, console)
    results.exported, results.calibration = weights[0].checkpoint, weights[0].calibration
    results.checkpoints = {one.checkpoint: asdict(one.evaluation) for one in weights}
    results.classes = weights[0].classes
    measure(results, weights[0].values, trainer, module, parts)
    if not trainer.is_global_zero:
        return Run(results, [], folder)
    module.eval().to(device)
    with trainer.precision_plugin.forward_context():
        results.notes += notes_of(results, parts, parts.sampled(32, 256))
    save_pretrained(model, folder / "model")
    parts.tokenizer.save_pretrained(folder / "model")
    if module.companion is not None:
        # what it shares with the model is stored twice: it is put where it was, whatever is loaded first
        state = {name: tensor.detach().cpu().clone() for name, tensor in module.companion.state_dict().items()}
        save_file(state, folder / "model" / COMPANION)
    with trainer.precision_plugin.forward_context():
        skimmed = read(model, parts.tokenizer, task.example_texts(EXAMPLES), task.label_names, task.single_texts)
        if cfg.benchmark.enabled:
            results.latency = latency(parts, cfg.benchmark, console)
    results.wall_seconds = time.time() - started
    results.status = "done"
    results.write(folder)
    write_page(folder / "report.html", results.to_dict(), skimmed)
    return Run(results, skimmed, folder)


def measure(results: Results, values: dict[str, float], trainer: pl.Trainer, module: SkimModule, parts: Parts) -> None:
    """Evaluate elsewhere and in masked execution: that must agree with how it runs, and the report shows that it does.

    Args:
        results: to be filled.
        values: of the evaluation as the model will run.
        trainer: to run the others.
        module: with the weights to be exported.
        parts: of the run.
    """
    method = walk_of(parts.model).method
    results.take(values, parts.task.monitor)
    results.metrics |= elsewhere(trainer, module, parts.task)
    results.notes += [note for part in ("train", "validation") for note in parts.task.notes(part)]
    if method.name != "dense":
        with execution(parts.model, "masked"):
            masked = evaluated(trainer, module, datamodule=parts.task)
        results.masked_metrics = Results.metrics_of(masked)


def latency(parts: Parts, settings: DictConfig, console: Console | None = None) -> dict[str, Any]:
    """The model as it runs, packed dense and padded Hugging Face on the same batches; see :mod:`skim.benchmark`."""
    console = console or Console()
    measured = {}
    for batch_size in settings.batch_sizes:
        batches = parts.sampled(int(batch_size), settings.samples)
        if not console.is_terminal:  # there, the benchmark draws a bar
            console.print(f"latency at batch size {batch_size}: {len(batches):,} batches", highlight=False)
        measured[str(batch_size)] = compare(parts.model, batches, repeats=settings.repeats)
    return measured
