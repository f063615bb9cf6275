"""``what=search``: an evolutionary search over lengths of a trained model's layers, for the front of its budgets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text
from torch import Tensor

from skim.analysis.evolution import Lengths, Rated, evolve, front, rounded, spread
from skim.calibration import calibrate
from skim.compression import walk_of
from skim.engine.inputs import inputs_of
from skim.errors import SkimError, first_line
from skim.files import replacing, write_json
from skim.lightning.callbacks.progress import counted
from skim.lightning.landing import evaluated
from skim.lightning.looks.curve import SAMPLES
from skim.lightning.looks.loaded import Loaded, load, trainer_of
from skim.lightning.module import SkimModule
from skim.lightning.recipe import export
from skim.report.search import search_table, write_search
from tasks.data.batches import LengthBatches

START = 16  # configurations of the first generation, evenly over the path that the model has


def look(cfg: DictConfig, console: Console) -> None:
    """Search, evaluate the front, and write it and a model that follows it into the run's folder ``search/``.

    That is a run's folder itself: ``ckpt=<run>/search`` looks at the model that was found.

    Raises:
        SkimError: the method has no lengths that could be searched, or there are no rows to rate them on.
    """
    loaded = load(cfg)
    whole = walk_of(loaded.parts.model).method
    method, options = whole.adapting, cfg.search
    if method.path is None:
        raise SkimError(
            f"what=search looks for lengths of layers, and method={whole.name} has none that it could set.\n"
            "Train a model for any lengths first: python train.py method=length_drop."
        )
    folder = loaded.folder / "search"
    trainer = trainer_of(loaded, console, bar=False)
    with trainer.precision_plugin.forward_context(), as_it_was(method):
        start = first_generation(method)
        batches, rows = rated_on(loaded, cfg)
        folder.mkdir(exist_ok=True)
        scorer = Scorer(loaded, batches, options.by)
        book = Book(folder / "search.json", scorer.about(rows), console)
        with counted(console, f"search on {rows}", options.evaluations) as count:
            found = evolve(start, book.asking(scorer, count), options.evaluations, options.seed)
    best = spread(front(found), options.points)
    if not best:
        raise SkimError(
            f"None of the {len(found)} that were rated has a score that is a number: the training diverged, or "
            f"{loaded.parts.task.monitor} has no value on {rows}.\nRate on more: search.samples={2 * options.samples}"
        )
    points = measured(loaded, best, cfg, console)
    method.take([point["lengths"] for point in points])
    inputs = loaded.parts.sampled(cfg.batch_size, SAMPLES)
    if method.target is not None:
        with console.status("calibration"), trainer.precision_plugin.forward_context():
            calibrate(loaded.parts.model, inputs)
    export(loaded.parts, folder / "model")
    with replacing(folder / "config.yaml") as part:
        shutil.copyfile(loaded.folder / "config.yaml", part)
    section = {
        "command": f"python evaluate.py ckpt={cfg.ckpt} what=search",
        "options": OmegaConf.to_container(options),
        "rows": rows,
        "metric": loaded.parts.task.monitor,
        "rated": len(found),
        "first_generation": len({rounded(one) for one in start}),
        "points": points,
    }
    book.write(**section)
    console.print(search_table(section))
    for file in (
        book.file,
        *write_search(section, [(one.spent, one.score) for one in found], folder),
        folder / "model",
    ):
        console.print(Text(str(file)), soft_wrap=True)


def first_generation(method: Any) -> list[Lengths]:
    """Configurations of the method's path, evenly from its smallest in training to all tokens in all layers."""
    smallest = method.shift if method.table is None else method.table.shifts[0]
    low = float(method.lengths(smallest).mean())
    means = np.linspace(low, 1.0, START)
    return [tuple(method.lengths(torch.as_tensor(mean - method.middle).to(smallest)).tolist()) for mean in means]


def rated_on(loaded: Loaded, cfg: DictConfig) -> tuple[list[dict[str, Tensor]], str]:
    """Batches to rate configurations on, on the device, and what rows those are."""
    task, samples = loaded.parts.task, cfg.search.samples
    if cfg.search.by == "metric":
        batches = task.sample_batches(cfg.batch_size, samples)
        return list(loaded.seen(batches)), f"{sum(map(rows_of, batches))} labelled rows of the evaluation split"
    if task.endless:
        raise SkimError(
            f"task={loaded.cfg.task.name} streams its training rows.\nRate by the metric: search.by=metric."
        )
    task.setup("fit")
    rows, lengths = task.tokenised("train")
    chosen = np.random.default_rng(cfg.search.seed).permutation(len(lengths))[:samples]
    batches = [
        rows[[int(chosen[k]) for k in some]]
        for some in LengthBatches(lengths[chosen], cfg.batch_size, False, rank=0, world_size=1)
    ]
    return list(loaded.seen(batches)), f"{len(chosen)} training rows, without their labels"


def rows_of(batch: dict[str, Tensor]) -> int:
    """Count the sequences of a batch."""
    return len(batch["input_ids"])


@contextmanager
def as_it_was(method: Any) -> Iterator[None]:
    """Give a method its path, shift and budget back after a ``with`` in which its lengths are set by hand."""
    state = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    if method.table is not None:
        method.meet(method.table.low)  # at a budget of 1 nothing would be decided
    try:
        yield
    finally:
        method.load_state_dict(state)


class Scorer:
    """Rates configurations by running the model with them over batches that stay on the device.

    Args:
        loaded: the run.
        batches: as the model sees them.
        by: ``metric``: the task's; ``agreement``: minus the distance to its own answers with all tokens.
    """

    def __init__(self, loaded: Loaded, batches: list[dict[str, Tensor]], by: str) -> None:
        self.model, self.task, self.batches, self.by = loaded.parts.model, loaded.parts.task, batches, by
        self.walk = walk_of(self.model)
        self.taught = [] if by == "metric" else list(self.outputs((1.0,) * self.walk.method.adapting.path.shape[1]))

    @torch.inference_mode()
    def outputs(self, lengths: Lengths) -> Iterator[Any]:
        """Run a configuration; the output for each batch, whose trace is the last one."""
        self.walk.method.adapting.set_to(lengths)
        for batch in self.batches:
            yield self.model(**inputs_of(batch))

    def __call__(self, lengths: Lengths) -> Rated:
        """Rate a configuration; relative FLOPs are of these rows."""
        metrics, away = self.task.metrics().to(next(self.model.parameters()).device), 0.0
        spent = dense = 0.0
        for k, output in enumerate(self.outputs(lengths)):
            batch, trace = self.batches[k], self.walk.trace
            spent, dense = spent + float(trace.flops().sum()), dense + float(trace.dense_flops.sum())
            if self.by == "metric":
                self.task.update(metrics, output, batch)
            else:
                away += rows_of(batch) * float(self.task.distance(output, self.taught[k], batch, 1.0))
        score = float(metrics.compute()[self.task.monitor]) if self.by == "metric" else -away / self.rows
        return Rated(lengths, score, spent / dense)

    @property
    def rows(self) -> int:
        """Sequences of all batches."""
        return sum(map(rows_of, self.batches))

    def about(self, rows: str) -> dict[str, Any]:
        """Describe what ratings depend on, so that those of an earlier search are known to be of the same."""
        ids = sum(int((batch["input_ids"] * batch["attention_mask"]).sum()) for batch in self.batches)
        weights = sum(float(parameter.detach().double().abs().sum()) for parameter in self.model.parameters())
        return {"by": self.by, "rows": rows, "sum of ids": ids, "sum of weights": f"{weights:.9g}"}


class Book:
    """Ratings in a file, written after each, so that a search that was interrupted goes on where it was.

    Args:
        file: JSON.
        about: what ratings depend on; those of something else are not used.
        console: to say what was found there.
    """

    def __init__(self, file: Path, about: dict[str, Any], console: Console) -> None:
        self.file, self.about = file, about
        try:
            before = json.loads(file.read_bytes()) if file.is_file() else {}
            known = {rounded(one["lengths"]): rated_of(one) for one in before.get("ratings", [])}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SkimError(
                f"{file} cannot be read as an earlier search: {first_line(error)}.\nDelete it to search anew."
            ) from None
        self.known: dict[Lengths, Rated] = known if before.get("about") == about else {}
        if known:
            anew = "" if self.known else " of other weights or rows; searched anew"
            console.print(f"{len(known)} ratings of an earlier search{anew}", highlight=False, soft_wrap=True)

    def write(self, **section: Any) -> None:
        """Write all ratings, and what came of them."""
        ratings = [
            {"lengths": one.lengths, "score": one.score, "relative_flops": one.spent} for one in self.known.values()
        ]
        write_json(self.file, {**section, "about": self.about, "ratings": ratings})

    def asking(self, scorer: Callable[[Lengths], Rated], count: Callable[..., None]) -> Callable[[Lengths], Rated]:
        """A scorer that looks into the book first, writes into it, and calls ``count``."""

        def rate(lengths: Lengths) -> Rated:
            if lengths not in self.known:
                self.known[lengths] = scorer(lengths)
                self.write()
            count()
            return self.known[lengths]

        return rate


def rated_of(entry: dict[str, Any]) -> Rated:
    """A rating as the book holds it."""
    return Rated(rounded(entry["lengths"]), float(entry["score"]), float(entry["relative_flops"]))


def measured(loaded: Loaded, best: list[Rated], cfg: DictConfig, console: Console) -> list[dict[str, Any]]:
    """Evaluate each of the front on the evaluation split, which was not searched on unless that was asked for."""
    model, task = loaded.parts.model, loaded.parts.task
    method, device = walk_of(model).method.adapting, next(model.parameters()).device
    trainer = trainer_of(loaded, console, bar=False)
    module = SkimModule(model, task, companion=loaded.parts.companion)
    points = []
    with as_it_was(method), counted(console, "the front, evaluated", len(best)) as count:
        for one in best:
            method.set_to(one.lengths)
            values = evaluated(trainer, module, datamodule=task)
            model.to(device)  # Lightning takes it off the device after each of its loops
            points.append(
                {
                    "lengths": list(one.lengths),
                    "score": one.score,
                    "relative_flops_where_searched": one.spent,
                    "metric": values[f"val/{task.monitor}"],
                    "relative_flops": values["val/relative_flops"],
                }
            )
            count()
    return points
