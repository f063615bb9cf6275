"""Looking at a finished run again: metrics, time, and what it does to a sentence. What ``evaluate.py`` calls."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track
from rich.text import Text
from torch import Tensor, nn

from skim.analysis.depth import Depths, by_corruption, by_tag, by_token, tagged
from skim.benchmark import compare_training, machine, usable
from skim.cli import message
from skim.compression import accepted, walk_of
from skim.errors import SkimError, unknown
from skim.lightning.budget import EXTREME, TOLERANCE, Batches, calibrate, spend
from skim.lightning.build import Parts, build, check
from skim.lightning.landing import elsewhere, evaluated
from skim.lightning.module import SkimModule
from skim.lightning.recipe import EXAMPLES, latency
from skim.loading import read_method, restore
from skim.options.tree import Chosen, exists, leaves, no_option
from skim.report.classes import class_tables
from skim.report.curve import write_curve
from skim.report.depth import depth_table, write_depth
from skim.report.heatmap import read, show, write_html
from skim.report.page import write_page
from skim.report.runs import CURVE, MOVED
from skim.report.svg import sentence, write_svg
from skim.report.table import curve_table, print_run
from skim.results import Results, write_json
from skim.resume import recorded
from skim.saving import LEARNED
from tasks.base import HOLDOUT

SAMPLES = 512  # evaluation inputs on which decisions are moved to a target; as many as train.calibrate takes
# an option of a run, in the words of a training
OF_THE_RUN = re.compile(r"(?<![\w./-])(task|method|backbone)\.[a-z]\w*(?=[\w.]*=)")
SLACK = 0.001  # relative FLOPs within which a floor or a ceiling still is the target


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
    whole("batch_size", cfg.batch_size)
    if cfg.max_samples is not None:
        whole("max_samples", cfg.max_samples)
    folder, checkpoint = run_of(Path(cfg.ckpt))
    before = recorded(folder)
    check_overrides(cfg.overrides, before, folder)
    before = cast(DictConfig, OmegaConf.merge(before, cfg.overrides))
    task: dict[str, Any] = {"eval_batch_size": cfg.batch_size}
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
        names = json.loads((exported / "config.json").read_text()).get("id2label", {})
        task["label_names"] = [names[str(i)] for i in range(len(names))] or None
    source = str(exported) if complete else None
    start: dict[str, Any] = {"init_from": source, "resume": None, "train": {"distill": 0.0}}
    run = OmegaConf.merge(before, start | {"execution": cfg.execution, "task": task})
    assert isinstance(run, DictConfig)
    if checkpoint is None and not complete:
        checkpoint = folder / "checkpoints" / "last.ckpt"
        if not checkpoint.is_file():
            raise SkimError(f"{folder} holds neither model/ nor checkpoints/last.ckpt: the run did not get that far.")
    parts = build(run, purpose="predict" if predicts else "validate")
    if checkpoint is not None:
        try:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        except (RuntimeError, KeyError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise SkimError(
                f"{checkpoint} cannot be read as a checkpoint: {str(error).splitlines()[0][:200]}"
            ) from error
        for name, module in (("model.", parts.model), ("companion.", parts.companion)):
            if module is not None:
                own = {k.removeprefix(name): v for k, v in state.items() if k.startswith(name)}
                restore(module, own, checkpoint)
    else:
        method = walk_of(parts.model).method
        restore(method, read_method(exported, type(method))[1], exported / LEARNED)
    accelerator = str(cfg.hardware.accelerator)
    device = usable("cuda" if accelerator == "gpu" else accelerator)  # Lightning's word, torch's word
    for module in (parts.model, parts.companion):
        if module is not None:
            module.eval().to(device)
    return Loaded(parts, run, folder)


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
        f"ckpt={path} is no run: there is no {folder / 'config.yaml'}.\n"
        "Name a run's folder (runs/<task>/<method>/<backbone>/<stamp>) or a file in its checkpoints/."
    )


def check_overrides(overrides: DictConfig, run: DictConfig, folder: Path) -> None:
    """Refuse to change an option that the run has not."""
    tree, asked = (cast(dict[str, Any], OmegaConf.to_container(config)) for config in (run, overrides))
    options = Chosen(tree, {}, tree)
    for key, _ in leaves(asked):
        if not exists(key, options):
            raise no_option(key, options, f"overrides of {folder}: ")


def trainer_of(loaded: Loaded, console: Console) -> pl.Trainer:
    """Lightning's Trainer where the model is, in the run's precision on a GPU and in float32 elsewhere."""
    device = next(loaded.parts.model.parameters()).device
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=loaded.cfg.hardware.precision if device.type == "cuda" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=console.is_terminal,
        use_distributed_sampler=False,
    )


def measured(loaded: Loaded, command: str, trainer: pl.Trainer) -> Results:
    """Evaluate a loaded run as the model is now."""
    model, task = loaded.parts.model, loaded.parts.task
    device = next(model.parameters()).device
    module = SkimModule(model, task, formulas=loaded.cfg.get("formulas") or (), companion=loaded.parts.companion)
    values = evaluated(trainer, module, datamodule=task)
    classes = module.classes
    others = elsewhere(trainer, module, task)
    model.to(device)  # Lightning takes it off the device after each of its loops
    results = Results.of(loaded.cfg, task.name, command)
    results.take(values, task.monitor)
    results.metrics |= others
    results.classes = classes
    results.count(task.report)
    results.machine = {"device": str(device), "threads": torch.get_num_threads(), "precision": trainer.precision}
    results.status = "done"
    return results


def metrics(cfg: DictConfig, console: Console) -> None:
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


def curve(cfg: DictConfig, console: Console) -> None:
    """One trained model at several budgets, without training again: its decisions are shifted.

    Writes ``curve.json``, a list of results, and a picture of it, ``curve.png`` and ``curve.svg``.

    Raises:
        SkimError: no targets or shifts, some that are none, or a method whose decisions cannot be moved.
    """
    if cfg.shifts is None:
        numbers("targets", cfg.targets, low=0, high=1)
    else:
        numbers("shifts", cfg.shifts, low=-EXTREME, high=EXTREME)
    loaded = load(cfg)
    method = walk_of(loaded.parts.model).method
    if method.shift is None:
        raise SkimError(f"what=curve moves a method's decisions, and {method.name} takes none that could be moved.")
    points = along(loaded, cfg, console)
    path = loaded.folder / CURVE
    write_json(path, points)
    console.print()
    console.print(curve_table(points))
    for file in (path, *write_curve(path)):
        console.print(Text(str(file)), soft_wrap=True)


def numbers(option: str, values: Any, low: float, high: float) -> None:
    """Refuse what is no list of at least one number within the bounds."""
    listed = list(values) if OmegaConf.is_list(values) else []
    wrong = [v for v in listed if isinstance(v, bool) or not isinstance(v, (int, float)) or not low <= v <= high]
    if not listed or wrong:
        raise SkimError(
            f"{option}={values} must be a list of at least one number, each from {low:g} to {high:g}: "
            f"{option}=[{'0.3,0.5' if low == 0 else '-0.5,0,0.5'}]."
        )


def along(loaded: Loaded, cfg: DictConfig, console: Console) -> list[dict[str, Any]]:
    """The points of a curve, each as a ``results.json``; the method is left as it was.

    At each target of ``cfg.targets``, or with each of ``cfg.shifts`` added to the shift that the run was saved with.
    What comes to the same as an earlier point is left out: at both, the model takes the same decisions.
    """
    model = loaded.parts.model
    method = walk_of(model).method
    trainer = trainer_of(loaded, console)
    precision = trainer.precision_plugin.forward_context
    inputs = loaded.parts.sampled(cfg.batch_size, SAMPLES)
    shift = method.shift
    assert shift is not None
    target, saved = method.target, float(shift)
    grid = cfg.shifts is not None
    values = [float(value) for value in (cfg.shifts if grid else cfg.targets)]
    points: list[dict[str, Any]] = []
    seen: dict[float, str] = {}  # what was spent, and by which point
    try:
        with precision():
            before = spend(model, inputs)
        for i, value in enumerate(values, 1):
            name = f"shift {value:+g}" if grid else f"target {value:g}"
            note = None
            # the spinner turns in a thread of its own, so it ends before anything is timed
            with console.status(f"{name}, {i} of {len(values)}"), precision():
                if grid:
                    shift.fill_(saved + value)
                else:
                    note = move(model, inputs, value)
                spent = spend(model, inputs)
            if spent in seen:
                said = f"{note or name}; left out, it comes to the same as {seen[spent]}"
                console.print(said, highlight=False, soft_wrap=True)
                continue
            seen[spent] = name
            point = measured(loaded, f"python evaluate.py ckpt={cfg.ckpt} what=curve", trainer)
            point.target = None if grid else value
            point.calibration = {"relative_flops_before": before, "shift": float(shift)}
            point.notes += [note] if note else []
            if cfg.timed:
                with precision():
                    point.latency = latency(loaded.parts, cfg.benchmark)
            points.append({**point.to_dict(), **({MOVED: value} if grid else {})})
            found = ", ".join(f"{metric} {score:.4f}" for metric, score in point.metrics.items())
            said = f"{note or name}: relative FLOPs {point.relative_flops:.3f}, {found}"
            console.print(said, highlight=False, soft_wrap=True)
    finally:
        method.target = target
        shift.fill_(saved)
    return points


def move(model: nn.Module, inputs: Batches, target: float) -> str | None:
    """Shift the method's decisions to spend ``target``, or as near as they go; returns what is to be said of a miss."""
    method = walk_of(model).method
    assert method.shift is not None
    method.target = target
    spent = calibrate(model, inputs)
    if abs(spent - target) <= SLACK:
        return None
    landed, above = float(method.shift), spent > target
    method.shift.fill_(-EXTREME if above else EXTREME)
    limit = spend(model, inputs)
    if (limit - target if above else target - limit) > SLACK:
        return f"target {target:g} cannot be reached, the {'floor' if above else 'ceiling'} is {limit:.3f}"
    method.shift.fill_(landed)
    return f"target {target:g} was missed, at {spent:.3f}" if abs(spent - target) > TOLERANCE else None


def tokens(cfg: DictConfig, console: Console) -> None:
    """Print sentences, each token shaded by the layer at which it retired; writes ``tokens.html``, ``tokens.svg``."""
    if cfg.text is None:
        raise SkimError('what=tokens needs a sentence: text="a gripping , funny film" (quote it for the shell).')
    texts = [str(cfg.text)] if not OmegaConf.is_list(cfg.text) else [str(text) for text in cfg.text]
    loaded = load(cfg)
    task = loaded.parts.task
    skimmed = read(loaded.parts.model, loaded.parts.tokenizer, texts, task.label_names, task.single_texts)
    show(skimmed, console)
    write_html(loaded.folder / "tokens.html", skimmed)
    write_svg(loaded.folder / "tokens.svg", sentence(skimmed[0]))
    console.print(f"\n{loaded.folder / 'tokens.html'}, and the first text as tokens.svg", highlight=False)


def predict(cfg: DictConfig, console: Console) -> None:
    """What the model says of the test split, or of ``split``; writes files beside the run's ``results.json``."""
    loaded = load(cfg)
    task, model = loaded.parts.task, loaded.parts.model
    loader = task.test_dataloader()
    found: dict[int, dict[str, Any]] = {}
    with torch.inference_mode(), trainer_of(loaded, console).precision_plugin.forward_context():
        batches = track(loader, "predict", console=console, disable=not console.is_terminal, transient=True)
        for batch in loaded.seen(batches):
            said = task.predictions(model(**accepted(model, batch)), batch)
            found.update(zip(batch["row"].tolist(), said, strict=True))
    for file in task.write_predictions([found[row] for row in sorted(found)], loaded.folder):
        console.print(Text(str(file)), soft_wrap=True)


def time_it(cfg: DictConfig, console: Console) -> None:
    """Measure latency; writes it into the run's ``results.json``."""
    loaded = load(cfg)
    results = finished(loaded.folder)
    with trainer_of(loaded, console).precision_plugin.forward_context():
        results["latency"] = latency(loaded.parts, cfg.benchmark)
    for_report(loaded, results)
    print_run(results, loaded.folder, console)


def throughput(cfg: DictConfig, console: Console) -> None:
    """Measure training, in samples per second; writes it into the run's ``results.json``.

    Raises:
        SkimError: no training data, or such without labels.
    """
    size = cfg.benchmark.train_batch_size
    whole("benchmark.train_batch_size", size)
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


def whole(option: str, value: Any) -> None:
    """Refuse what is no whole number from 1; null is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SkimError(f"{option}={'null' if value is None else value} must be a whole number, at least 1.")


def finished(folder: Path) -> dict[str, Any]:
    """The ``results.json`` of a run, to be added to."""
    path = folder / "results.json"
    if not path.is_file():
        raise SkimError(f"{folder} has no results.json to write measurements into: the run did not finish.")
    results: dict[str, Any] = json.loads(path.read_text())
    return results


def for_report(loaded: Loaded, results: dict[str, Any]) -> None:
    """Write a run's ``results.json`` and, from the same numbers, its ``report.html`` with the model's texts."""
    task, tokenizer = loaded.parts.task, loaded.parts.tokenizer
    skimmed = read(loaded.parts.model, tokenizer, task.example_texts(EXAMPLES), task.label_names, task.single_texts)
    write_json(loaded.folder / "results.json", results)
    write_page(loaded.folder / "report.html", results, skimmed)


def depth(cfg: DictConfig, console: Console) -> None:
    """How many layers tokens of each kind go through; writes into ``results.json``, ``depth.png`` and ``depth.svg``."""
    options = cfg.depth
    whole("depth.samples", options.samples)
    sentences = None
    if options.tagged.dataset is not None:  # before anything heavy: it may not be there
        source = options.tagged
        sentences = tagged(source.dataset, source.config, source.split, source.words, source.tags)[: options.samples]
    loaded = load(cfg)
    results = finished(loaded.folder)
    model, task, tokenizer = loaded.parts.model, loaded.parts.task, loaded.parts.tokenizer
    batches = loaded.parts.sampled(cfg.batch_size, options.samples)
    depths = Depths(len(walk_of(model).costs))
    with console.status("depth of tokens"), trainer_of(loaded, console).precision_plugin.forward_context():
        by_token(model, tokenizer, batches, depths)
        by_corruption(model, tokenizer, batches, depths, seed=int(loaded.cfg.seed))
        if sentences is not None:
            by_tag(model, tokenizer, sentences, depths, cfg.batch_size, task.max_length)
    results["depth"] = depths.to_dict()
    for_report(loaded, results)
    console.print(depth_table(results["depth"]))
    files = [loaded.folder / name for name in ("results.json", "report.html")]
    for file in (*files, *write_depth(results["depth"], loaded.folder)):
        console.print(Text(str(file)), soft_wrap=True)


LOOKS: dict[str, Callable[[DictConfig, Console], None]] = {
    "metrics": metrics,
    "tokens": tokens,
    "predict": predict,
    "latency": time_it,
    "throughput": throughput,
    "curve": curve,
    "depth": depth,
}


def evaluate(cfg: DictConfig) -> None:
    """One look at a run, of the kind that ``cfg.what`` names.

    Raises:
        SkimError: for anything the user can mend; options of the run are called ``overrides.<option>`` in it.
    """
    if cfg.what not in LOOKS:
        raise unknown("what", cfg.what, LOOKS)
    if OmegaConf.is_missing(cfg, "ckpt") or cfg.ckpt is None:
        raise SkimError(
            "Which run? Name its folder: ckpt=runs/<task>/<method>/<backbone>/<stamp>, or a file in its checkpoints/.\n"
            "python evaluate.py --help says what there is to see of it."
        )
    check(cfg)
    if cfg.hardware.threads is not None:
        torch.set_num_threads(cfg.hardware.threads)
    try:
        LOOKS[cfg.what](cfg, Console())
    except (SkimError, HydraException) as error:
        said = message(error)
        raise SkimError(OF_THE_RUN.sub(r"overrides.\g<0>", said) if OF_THE_RUN.search(said) else said) from error
