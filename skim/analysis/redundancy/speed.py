"""Cost of each part of the analysis, beside the published code's on the same shapes.

    python -m skim.analysis.redundancy.speed --small

measures CPU seconds and peak memory on one thread, each step in a process of its own, on made-up activations of latent
factors: 20,000 rows of 13 layers of 768 neurons, or with ``--small`` 5,000 rows of 13 x 192. CPU seconds, because they
hardly depend on what else a machine does; of the memory 0.5 GiB are Python and torch. The published numbers were
measured from the authors' code with its imports mended (Python 3.11, torch 2.13, NumPy 2.4, SciPy 1.17), on one thread,
too. Extraction is measured in turns with a plain forward pass over the same batches.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console

from skim.analysis.redundancy.clustering import THRESHOLDS, cluster
from skim.analysis.redundancy.extraction import Extraction
from skim.analysis.redundancy.probing import Probing
from skim.analysis.redundancy.ranking import rank
from skim.analysis.redundancy.recipes import RECIPES
from skim.analysis.redundancy.rows import Rows
from skim.analysis.redundancy.selection import layer_scores
from skim.analysis.redundancy.similarity import minibatch_cka
from skim.analysis.redundancy.splits import splits_of
from skim.benchmark.shapes import SHAPES as MODELS
from skim.benchmark.timing import machine, time_side_by_side
from skim.compression import compress
from skim.engine.inputs import inputs_of
from skim.files import write_json
from skim.methods import method_class
from skim.report.fitted import plain
from tasks.builtin import Builtin

FACTORS = 40  # behind the made-up activations of a layer
GIB = 2**30


class Shape(NamedTuple):
    """Activations: rows, layers, width of a layer."""

    rows: int
    layers: int
    width: int


MODEL = {"full": "bert-base", "small": "minilm"}
EXTRACTION = "extraction"
SHAPES = {"full": Shape(20_000, 13, 768), "small": Shape(5_000, 13, 192)}


class Published(NamedTuple):
    """Cost of the published code; ``None``: not measured."""

    cpu_seconds: float
    peak_gib: float | None


PUBLISHED = {  # of nine thresholds nine times that of one: it builds the tree anew for each
    "full": {
        "26 probes, published recipe": Published(232.9, 2.34),
        "26 probes, default recipe": Published(232.9, 2.34),
        "clusters at 9 thresholds": Published(545.0, 3.06),
        "order of neurons, 45 classes": Published(30.0, None),
        "CKA of 2,048 rows, batches of 128": Published(2.2, None),  # torch_cka
    },
    "small": {
        "26 probes, published recipe": Published(15.8, 0.53),
        "26 probes, default recipe": Published(15.8, 0.53),
        "clusters at 9 thresholds": Published(10.8, 0.28),
        "order of neurons, 45 classes": Published(7.7, None),
    },
}


TOLD = (
    "extraction of all layers of {model}: {seconds:.2f} CPU s, {ratio:.3f} times a plain forward pass ({plain:.2f}); "
    "{ms:.2f} ms a row more, published 16.3 (JSON text)"
)


@dataclass(frozen=True)
class Cost:
    """Cost of a step."""

    cpu_seconds: float
    peak_gib: float


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = argparse.ArgumentParser(prog="python -m skim.analysis.redundancy.speed", description="Cost of each part.")
    options.add_argument("--small", action="store_true", help="5,000 x 2,496 activations in place of 20,000 x 9,984")
    steps = [*STEPS, EXTRACTION]
    options.add_argument("--steps", nargs="+", choices=steps, default=steps, metavar="STEP", help="some of them")
    options.add_argument("--json", type=Path, help="file to write the numbers to")
    chosen = options.parse_args(arguments)
    size = "small" if chosen.small else "full"
    console = Console()
    about = [f"one thread; {machine(torch.device('cpu')).split(',')[0]}, torch {torch.__version__}"]
    table = plain()
    for head in ("step", "CPU s", "GiB", "published: CPU s", "GiB", "times less"):
        table.add_column(head, justify="left" if head == "step" else "right")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, console.status("") as status:
        # not here: a process begins with the peak of its parent
        file = in_process(write_activations, Path(folder) / "activations.npy", SHAPES[size])
        for step in filter(STEPS.get, chosen.steps):
            status.update(step)
            cost = in_process(measured, step, file, SHAPES[size])
            found[step] = asdict(cost)
            table.add_row(*cells(step, cost, PUBLISHED[size].get(step)))
        if EXTRACTION in chosen.steps:
            status.update(EXTRACTION)
            found[EXTRACTION] = in_process(extraction, MODEL[size])
            about.append(TOLD.format(model=MODEL[size], **found[EXTRACTION]))
    if table.row_count:
        console.print(table)
    console.print("\n".join(about), style="dim", highlight=False)
    if chosen.json is not None:
        write_json(chosen.json, found)
    return 0


def cells(step: str, cost: Cost, published: Published | None) -> Iterator[str]:
    """Write a row of the table."""
    yield from (step, f"{cost.cpu_seconds:.2f}", f"{cost.peak_gib:.2f}")
    if published is not None:
        yield from (f"{published.cpu_seconds:.1f}", "" if published.peak_gib is None else f"{published.peak_gib:.2f}")
        yield f"{published.cpu_seconds / cost.cpu_seconds:.0f}"


def write_activations(file: Path, shape: Shape, seed: int = 0) -> Path:
    """Write made-up activations (rows, neurons), float32: neighbouring layers share most of their factors."""
    draw = np.random.default_rng(seed)
    neurons = shape.layers * shape.width
    loads = np.zeros((FACTORS * (shape.layers + 1) // 2, neurons), dtype=np.float32)
    for layer in range(shape.layers):
        rows = slice(FACTORS // 2 * layer, FACTORS // 2 * layer + FACTORS)
        columns = slice(layer * shape.width, (layer + 1) * shape.width)
        loads[rows, columns] = draw.standard_normal(loads[rows, columns].shape)
    values = np.lib.format.open_memmap(file, "w+", np.float32, (shape.rows, neurons))
    for start in range(0, shape.rows, 1000):
        factors = draw.standard_normal((min(1000, shape.rows - start), len(loads)), dtype=np.float32)
        values[start : start + 1000] = factors @ loads
        values[start : start + 1000] += 2 * draw.standard_normal((len(factors), neurons), dtype=np.float32)
    values.flush()
    return file


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own, with one thread."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def measured(step: str, file: Path, shape: Shape) -> Cost:
    """Measure a step in this process."""
    torch.set_num_threads(1)
    run = STEPS[step](np.load(file, mmap_mode="r"), shape)
    started = time.process_time()
    run()
    spent = time.process_time() - started
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB)


def probes(recipe: str) -> Callable[[np.ndarray, Shape], Callable[[], Any]]:
    """Every layer alone, layers 0 to k and all: 80 percent of the rows train, 10 and 10 score; two classes."""

    def step(values: np.ndarray, shape: Shape) -> Callable[[], Any]:
        labels = (values[:, ::7].sum(1) > 0).astype(np.int64)
        cuts = [0, int(0.8 * shape.rows), int(0.9 * shape.rows), shape.rows]
        train, dev, test = (Rows(values[a:b], labels[a:b]) for a, b in pairwise(cuts))
        probing = Probing(train, dev, test, recipe=RECIPES[recipe])
        return lambda: layer_scores(probing, shape.width)

    return step


def clusters(values: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """One tree, its cut and its medoids at every threshold."""

    def run() -> None:
        found = cluster(values)
        for threshold in THRESHOLDS:
            found.representatives(threshold)

    return run


def ordering(values: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """Order of all neurons by the weights of 45 classes."""
    weights = np.random.default_rng(0).standard_normal((45, shape.layers * shape.width)).astype(np.float32)
    return lambda: rank(weights)


def similarity(values: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """CKA between all layers."""
    return lambda: minibatch_cka(values[:2048], shape.layers, batch_size=128)


def extraction(model: str, texts: int = 200, repeats: int = 3) -> dict[str, float]:
    """Extract all layers of a model with random weights from built-in texts, in turns with plain forward passes.

    Returns:
        CPU seconds of both, of the medians their ratio, and what the one takes more for a row, in milliseconds.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.set_num_threads(1)
    task = Builtin(train_rows=texts, eval_rows=50)
    task.setup_tokenizer(task.own_tokenizer())
    split = splits_of(task)[0]
    config = AutoConfig.for_model(**MODELS[model], vocab_size=len(task.tokenizer))
    network = AutoModelForSequenceClassification.from_config(config).eval()
    twin = copy.deepcopy(network)
    extract = Extraction(compress(network, method_class("dense")()), task, batch_size=32)
    rows, lengths = task.tokenised(split.part)
    order = split.examples[np.argsort(-lengths[split.examples], kind="stable")]  # the batches that extraction makes
    batches = [inputs_of(rows[order[start : start + 32].tolist()]) for start in range(0, len(order), 32)]
    with tempfile.TemporaryDirectory() as folder:
        times = time_side_by_side(
            {
                "plain": lambda: [twin(**batch) for batch in batches],
                "extraction": lambda: extract.run(split, Path(tempfile.mkdtemp(dir=folder)) / "states"),
            },
            repeats,
            clock=time.process_time,
        )
    spent, least = times["extraction"].median_ms, times["plain"].median_ms
    return {"seconds": spent / 1e3, "plain": least / 1e3, "ratio": spent / least, "ms": (spent - least) / split.rows}


STEPS: dict[str, Callable[[np.ndarray, Shape], Callable[[], Any]]] = {
    "26 probes, published recipe": probes("paper"),
    "26 probes, default recipe": probes("default"),
    "clusters at 9 thresholds": clusters,
    "order of neurons, 45 classes": ordering,
    "CKA of 2,048 rows, batches of 128": similarity,
}

if __name__ == "__main__":
    sys.exit(main())
