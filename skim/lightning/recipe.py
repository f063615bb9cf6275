"""From a composed config to a finished run: build, fit, evaluate, export. ``train.py`` calls it.

A run's folder holds ``config.yaml`` (``config_tree.txt`` to be read), ``metrics.csv``, ``checkpoints/last.ckpt`` (to
resume) and ``best.ckpt`` (the weights of the best evaluation), ``model/`` (to load with ``skim.from_pretrained`` or
plain transformers; with a model card), ``results.json`` and ``report.html``.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from safetensors.torch import save_file

from skim.benchmark import compare, machine
from skim.calibration import check_survivors, check_target
from skim.checkpoint import DESCRIBED, add_checksums
from skim.errors import Interrupted, SkimError, first_line
from skim.files import filling
from skim.lightning.assembly import allow, callbacks_of, leave_unused, module_of, part_of, trainer_of
from skim.lightning.build import COMPANION, Parts, build
from skim.lightning.callbacks.checkpoints import BestCheckpoint, LastStageStopping
from skim.lightning.callbacks.finite import Finite
from skim.lightning.callbacks.marks import Marks
from skim.lightning.callbacks.progress import Shown
from skim.lightning.callbacks.resume import check_resumable
from skim.lightning.callbacks.sentences import Sentences
from skim.lightning.check import check, method_of
from skim.lightning.config_tree import config_tree
from skim.lightning.distill import weights_of
from skim.lightning.folder import begin, concluded, continue_log, failed, tidy
from skim.lightning.hardware import scaled
from skim.lightning.landing import land, measure
from skim.lightning.loggers.told import flat
from skim.lightning.module import SkimModule
from skim.lightning.notes import notes_of
from skim.lightning.ranks import watched
from skim.lightning.rate import tuned
from skim.merging import parameters_of
from skim.methods import method_name
from skim.options.check import typed
from skim.options.words import shown
from skim.report.card import write_card
from skim.report.heatmap import SkimmedText, read, write_texts
from skim.report.page import write_page
from skim.results import Results
from skim.resume import AUTO, again, changes, checkpoint_of, done, found, passed_over
from skim.saving import save_pretrained
from skim.signals import HEARD

EXAMPLES = 6  # evaluation texts that a report shows


@dataclass
class Run:
    """A finished run, as far as the process that made it needs to know."""

    results: Results
    skimmed: list[SkimmedText]  # a few evaluation sentences; none on other ranks than the first
    folder: Path


def train(cfg: DictConfig, folder: Path, command: str) -> Run:
    """Run one training and leave its folder behind.

    Args:
        cfg: composed from ``conf/train.yaml``.
        folder: the run's folder; results of an earlier run in it are replaced.
        command: as typed by the user; goes to ``results.json``.

    Raises:
        SkimError: for anything the user can mend; raised before the folder is written to, where that can be known.
    """
    started, auto = time.monotonic(), cfg.resume == AUTO  # the clock of the machine may be set back in the meantime
    cfg, changed = settled(cfg, folder)
    if auto and (differs := done(cfg, folder)) is not None:
        return finished(folder, differs)
    callbacks = callbacks_of(cfg)
    console = next((callback.console for callback in callbacks if isinstance(callback, Shown)), Console(quiet=True))
    announce(cfg, changed, console)
    pl.seed_everything(cfg.seed, verbose=False)
    parts = build(cfg)
    prepare(cfg, parts)
    marks = Marks(cfg.hardware.timeout)
    trainer = trainer_of(cfg, [*callbacks, marks], epochs=round(sum(stage.epochs for stage in parts.stages)))
    allow(trainer, cfg.hardware.timeout)
    cfg, tested = tuned(cfg, parts, trainer.world_size)
    if not cfg.task.get("global_batch"):
        parts.stages = scaled(parts.stages, trainer.num_nodes * trainer.num_devices, cfg.train.lr_scaling)
    module = module_of(cfg, parts)
    results = Results.of(cfg, parts.task.name, command)
    skimmed: list[SkimmedText] = []
    results.notes += [] if tested is None else [tested.note]
    for note in (*results.notes, *parts.notes):
        console.print(note, highlight=False, soft_wrap=True)
    with (
        concluded(folder, results, cfg.resume, trainer, started),
        watched(partial(failed, folder, results, started)) as marks.give_up,
    ):
        if trainer.is_global_zero:
            begin(folder, cfg)
            continue_log(folder, cfg, trainer.loggers)
            if tested is not None:
                tested.draw(folder)
        fit(trainer, module, parts, cfg)
        fitted(results, trainer, parts)
        inputs = parts.sampled(32, cfg.train.calibrate) if cfg.train.calibrate else None
        weights = land(trainer, module, inputs, cfg.callbacks.export, console)
        results.exported, results.calibration = weights[0].checkpoint, weights[0].calibration
        results.checkpoints = {one.checkpoint: asdict(one.evaluation) for one in weights}
        results.classes, results.by_length = weights[0].classes, weights[0].by_length
        results.parameters = parameters_of(parts.model)
        measure(results, weights[0].values, trainer, module)
        if trainer.is_global_zero:
            with trainer.precision_plugin.forward_context():
                module.eval().to(trainer.strategy.root_device)
                results.notes += notes_of(results, parts, parts.sampled(32, 256))
                skimmed = examples(parts)
                if (sentences := part_of(trainer, Sentences)) is not None:
                    sentences.show(trainer, module)
                if cfg.benchmark.enabled:
                    results.latency = latency(parts, cfg.benchmark, console)
                    results.timed_on = timed_on(trainer, parts.model)
            export(parts, folder / "model")
            results.wall_seconds = time.monotonic() - started
            results.status = "done"
            write_card(folder / "model", results.to_dict())
            write_texts(folder, skimmed)
            write_page(folder / "report.html", results.to_dict(), skimmed)
            results.write(folder)  # when all else is there: whoever finds it takes the run for finished
            tidy(folder)
    return Run(results, skimmed, folder)


def finished(folder: Path, differs: list[str]) -> Run:
    """Leave a run as it is that has finished before.

    Args:
        folder: of the run.
        differs: options in which this command differs from the one that made it.
    """
    lines = [f"{folder} has finished: nothing is left to do, and its results stay as they are"]
    if differs:
        lines.append(f"not looked at: {', '.join(differs)}; to train on, resume={folder}")
    if rank_zero_only.rank == 0:
        print("\n".join(lines), file=sys.stderr)
        tidy(folder)
    return Run(Results.read(folder), [], folder)


def settled(cfg: DictConfig, folder: Path) -> tuple[DictConfig, list[str]]:
    """The config with this run's folder and the file that it goes on from, and what it changes of that run.

    Raises:
        SkimError: values that no run can use, and a checkpoint that none can go on from.
    """
    check(cfg)
    if cfg.paths.run is not None and Path(str(cfg.paths.run)).resolve() != folder.resolve():
        raise SkimError(f"paths.run={cfg.paths.run} is filled in when a run begins.\nChoose its folder: hydra.run.dir=")
    method = method_of(cfg)
    options = method.settled()
    said = [f"method.{name}: {shown(cfg.method[name])} -> {shown(value)}" for name, value in options.items()]
    weights = weights_of(cfg, method)
    said += [f"train.{name}: null -> {value:g}, for there is a teacher" for name, value in weights.items() if value]
    cfg = cast(DictConfig, OmegaConf.merge(cfg, {"method": options, "train": weights}))
    cfg = found(cfg, folder) if cfg.resume == AUTO else again(cfg, folder)
    changed, resume = [], None
    if cfg.resume is not None:
        resume = checkpoint_of(cfg.resume)
        changed = [*passed_over(resume), *changes(cfg)]
        check_resumable(resume)
    filled = {"paths": {"run": str(folder)}, "resume": resume and str(resume)}
    if cfg.hardware.threads is not None:
        torch.set_num_threads(cfg.hardware.threads)
    return cast(DictConfig, OmegaConf.merge(cfg, filled)), [*changed, *said]


@rank_zero_only
def announce(cfg: DictConfig, changed: list[str], console: Console) -> None:
    """Say what is going to be run."""
    names = {"task": cfg.task.name, "method": method_name(cfg.method._target_), "backbone": cfg.backbone.name}
    said = ", ".join(f"{group}={name}" for group, name in names.items())
    lines = [f"{said}: loading data and model"]
    lines += [*([] if cfg.resume is None else [f"going on from {cfg.resume}"]), *changed]
    if cfg.print_config:
        console.print(config_tree(cfg), highlight=False)
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def prepare(cfg: DictConfig, parts: Parts) -> None:
    """Refuse a training that has no end, cannot reach its target, or leaves the model nothing to read.

    Only then the model recomputes activations, if ``train.gradient_checkpointing`` asks for it.
    """
    if parts.task.endless and (cfg.trainer.max_steps < 1 or cfg.train.eval_every is None):
        raise SkimError(
            f"task={parts.task.name} streams its training data, which have no end and no epochs.\n"
            "Set train.max_steps=<optimizer steps> and train.eval_every=<batches between evaluations>."
        )
    if cfg.train.gradient_checkpointing:
        if not parts.model.supports_gradient_checkpointing:
            raise SkimError(f"train.gradient_checkpointing: transformers has none for {type(parts.model).__name__}.")
        parts.model.gradient_checkpointing_enable()
    sample = parts.sampled(32, 256)
    with typed("method"):
        check_target(parts.model, sample)
    check_survivors(parts.model, sample, calibrates=cfg.train.calibrate > 0)


def fit(trainer: pl.Trainer, module: SkimModule, parts: Parts, cfg: DictConfig) -> None:
    """Train, from the start or from the checkpoint that ``resume`` names."""
    if "skips" in module.method.does:
        leave_unused(trainer)
    for logger in trainer.loggers:
        logger.log_hyperparams(flat(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))))
    try:
        trainer.fit(module, datamodule=parts.task, ckpt_path=cfg.resume, weights_only=True)
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    except (RuntimeError, ConnectionError, EOFError) as error:
        if not cfg.hardware.num_workers or (lost := lost_worker(error)) is None:
            raise
        advice = "Out of memory? Fewer hardware.num_workers need less, and 0 loads in the run's own process."
        raise Interrupted(lost, advice) from error
    finally:
        HEARD.waits = False
    HEARD.answer()


def lost_worker(error: Exception) -> str | None:
    """How a process that loads data has ended, if an error is about that; else ``None``."""
    if not isinstance(error, RuntimeError):  # before torch has noticed
        return f"a DataLoader worker does not answer any more: {first_line(error)}"
    said = [str(one).partition(". ")[0] for one in (error.__cause__, error)]
    return next((one for one in said if one.startswith("DataLoader worker")), None)


def fitted(results: Results, trainer: pl.Trainer, parts: Parts) -> None:
    """Write down how training went: rows, machine, steps, and what was lost on the way."""
    best, stopping = part_of(trainer, BestCheckpoint), part_of(trainer, LastStageStopping)
    finite = part_of(trainer, Finite)
    results.count(parts.task.report)
    results.notes += parts.notes
    device, threads = str(trainer.strategy.root_device), torch.get_num_threads()
    results.machine = {"device": device, "threads": threads, "precision": trainer.precision}
    results.steps = trainer.global_step
    if finite is not None and finite.skipped:
        results.steps_skipped = len(finite.skipped)
        results.notes.append(
            f"train.nonfinite=skip: {results.steps_skipped} of {results.steps} steps are left out, the first of them "
            f"step {finite.skipped[0]}."
        )
    if stopping is not None and stopping.step is not None:
        results.stopped_early = {"step": stopping.step, "of": stopping.of, "patience": cast(int, stopping.patience)}
    if best is not None and best.lost is not None:
        results.notes.append(
            f"resume: best.ckpt, of step {best.lost}, was not beside the checkpoint that this run goes on from: the "
            "best is of the evaluations since."
        )


def export(parts: Parts, folder: Path) -> None:
    """Write the model, its tokenizer, and what was trained beside it."""
    with filling(folder, last=DESCRIBED) as part:
        save_pretrained(parts.model, part)
        parts.tokenizer.save_pretrained(part)
        if parts.companion is not None:
            # what it shares with the model is stored twice: it is put where it was, whatever is loaded first
            state = {name: tensor.detach().cpu().clone() for name, tensor in parts.companion.state_dict().items()}
            save_file(state, part / COMPANION)
            add_checksums(part)


def examples(parts: Parts) -> list[SkimmedText]:
    """A few evaluation texts, as the model reads them."""
    task = parts.task
    return read(parts.model, parts.tokenizer, task.example_texts(EXAMPLES), task.label_names, task.single_texts)


def timed_on(trainer: pl.Trainer, model: Any) -> dict[str, str]:
    """The machine and precision that a model is timed on."""
    return {"machine": machine(next(model.parameters()).device), "precision": str(trainer.precision)}


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
