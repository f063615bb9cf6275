"""Fair timing: candidates take turns on the same batches, and a claim of speed is a ratio of their medians.

Two measurements made one after the other differ by what else the machine did, by clock speeds and by warm caches. Here
every round runs every candidate once, each round starts with another one, and only what ran side by side is compared.

    python -m skim.benchmark --backbone bert-base --batch 32 --length 128 512 --device cuda --dtype bf16

times shapes with random weights: padded Hugging Face (SDPA where it has it), the packed dense model, and what a method
costs whose decisions are scripted: retiring (``--keep``) or halting (``--halt``) a fixed share of the tokens, or
pooling (``--funnel``). :func:`compare` does the same for a trained model on real batches, and :func:`compare_training`
for its training steps.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.optim import AdamW

from skim.compression import accepted, compress, decompress, walk_of
from skim.engine.inputs import INPUTS, inputs_of
from skim.engine.tokens import TokenBatch
from skim.errors import SkimError
from skim.methods import Method, Spec
from skim.methods.funnel import Funnel


def layered(family: str, width: int, layers: int, heads: int) -> dict[str, Any]:
    """A shape of BERT's kind, as ``AutoConfig.for_model`` takes it."""
    return {
        "model_type": family,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


def pooling(width: int, heads: int, blocks: list[int]) -> dict[str, Any]:
    """A Funnel-Transformer's shape."""
    sizes = {"d_model": width, "n_head": heads, "d_head": width // heads, "d_inner": 4 * width}
    return {"model_type": "funnel", "block_sizes": blocks, **sizes}


SHAPES = {
    "minilm": layered("bert", 384, 6, 12),
    "bert-base": layered("bert", 768, 12, 12),
    "bert-large": layered("bert", 1024, 24, 16),
    "albert-base": layered("albert", 768, 12, 12),
    "funnel-mini": pooling(384, 6, [2, 2, 2]),
    "funnel-small": pooling(768, 12, [4, 4, 4]),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Timing:
    """Wall time of one run, in milliseconds, over ``runs`` counted runs."""

    median_ms: float
    min_ms: float
    max_ms: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """From the measured times in seconds."""
        ms = [1000 * value for value in seconds]
        return cls(statistics.median(ms), min(ms), max(ms), len(ms))


def time_side_by_side(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int = 7,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    title: str = "timing",
    gradients: bool = False,
) -> dict[str, Timing]:
    """Time candidates in turns: A B C, B C A, C A B, ...

    Args:
        candidates: what to run, by name; each must do the same work for ratios to mean anything.
        repeats: counted rounds.
        warmup: rounds before them, for allocators, kernel choices and clock speeds.
        clock: seconds, rising.
        title: of the progress bar, which shows on terminals only.
        gradients: whether the candidates train; else they run in inference mode.

    Raises:
        SkimError: no candidate, or no counted round.
    """
    if repeats < 1 or not candidates:
        raise SkimError(f"Timing needs a candidate and at least one counted run; repeats={repeats}.")
    names = list(candidates)
    spent: dict[str, list[float]] = {name: [] for name in names}
    console = Console(stderr=True)
    # the bar is drawn between runs and never by a thread of its own, which would take time from whoever is running
    with (
        torch.inference_mode(not gradients),
        Progress(console=console, transient=True, auto_refresh=False, disable=not console.is_terminal) as progress,
    ):
        bar = progress.add_task(title, total=(warmup + repeats) * len(names))
        for turn in range(warmup + repeats):
            first = turn % len(names)  # being first after the others' caches is a place like any other: all take it
            for name in names[first:] + names[:first]:
                synchronize()
                started = clock()
                candidates[name]()
                synchronize()
                seconds = clock() - started
                if turn >= warmup:
                    spent[name].append(seconds)
                progress.update(bar, advance=1, refresh=True)
    return {name: Timing.of(seconds) for name, seconds in spent.items()}


def synchronize() -> None:
    """Wait for the accelerator, if one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def compare(
    model: nn.Module, batches: Sequence[Mapping[str, Any]], repeats: int = 5, warmup: int = 1
) -> dict[str, dict[str, float]]:
    """Time a compressed model beside the same weights without compression. One run is all batches once.

    Args:
        model: a compressed model; it is not touched, not even its training mode.
        batches: padded batches as the model takes them; labels and other columns are left out.
        repeats: counted runs of each candidate.
        warmup: runs before them.

    Returns:
        A :class:`Timing` as a dict for each of ``padded_hf`` (plain transformers with SDPA where the family has it),
        ``packed_dense`` (skim with no compression; narrowed for a family that cannot run packed) and the model as it
        runs, named by its execution: ``packed``, ``narrowed`` or ``masked``.
    """
    device = next(model.parameters()).device
    inputs = [{k: v.to(device) for k, v in inputs_of(batch).items()} for batch in batches]
    if not inputs:
        raise SkimError("There is nothing to time: no batches were given.")
    own = twin(model).eval()
    models = {
        "padded_hf": plain_twin(model),
        "packed_dense": compress(plain_twin(model), "dense"),
        walk_of(own).form(): own,
    }
    timings = time_side_by_side({name: running(one, inputs) for name, one in models.items()}, repeats, warmup)
    return {name: asdict(timing) for name, timing in timings.items()}


def compare_training(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    repeats: int = 5,
    warmup: int = 1,
    lr: float = 1e-6,
    forward: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, dict[str, float]]:
    """Time training steps of a compressed model beside dense training of the same weights.

    One run is a step per batch: forward in training mode with dropout as configured, backward, AdamW. The compressed
    model trains as at the end of a training: in its method's last stage, its penalties added to the loss.

    Args:
        model: a compressed model; it is not touched: every candidate trains a copy with weights of its own.
        batches: padded batches as the model takes them, with labels under the names that its forward gives them.
        repeats: counted runs of each candidate.
        warmup: runs before them.
        lr: learning rate; tiny, so that the models timed in the last run still decide as the one that was given.
        forward: makes the context of each forward, such as autocast.

    Returns:
        A :class:`Timing` as a dict, with ``samples_per_second`` of the median, for each of ``padded_hf`` (plain
        transformers with SDPA where the family has it), ``packed_dense`` (skim with no compression; narrowed for a
        family that cannot run packed) and the model as it trains, named by its execution: ``packed``, ``narrowed`` or
        ``masked``.

    Raises:
        SkimError: no batches, or a batch without labels.
    """
    device = next(model.parameters()).device
    inputs = [{k: v.to(device) for k, v in accepted(model, batch).items()} for batch in batches]
    if not inputs:
        raise SkimError("There is nothing to time: no batches were given.")
    if any(not set(batch) - set(INPUTS) for batch in inputs):
        raise SkimError("Training needs labels, and a batch that was to be timed has none.")
    compressed = copy.deepcopy(model).train()
    method = walk_of(compressed).method
    if method.stages:
        method.enter(method.stages[-1])
    dense = compress(plain_twin(copy.deepcopy(model)), "dense")
    candidates = {
        "padded_hf": training(plain_twin(copy.deepcopy(model)), None, inputs, lr, forward),
        "packed_dense": training(dense, walk_of(dense).method, inputs, lr, forward),
        walk_of(compressed).form(): training(compressed, method, inputs, lr, forward),
    }
    timings = time_side_by_side(candidates, repeats, warmup, title="training", gradients=True)
    samples = sum(len(batch["input_ids"]) for batch in inputs)
    return {
        name: {**asdict(timing), "samples_per_second": 1000 * samples / timing.median_ms}
        for name, timing in timings.items()
    }


def training(
    model: nn.Module,
    method: Method | None,
    inputs: Sequence[Mapping[str, Tensor]],
    lr: float,
    forward: Callable[[], AbstractContextManager[Any]],
) -> Callable[[], None]:
    """A candidate: ``model`` trained a step on each of ``inputs``; ``method`` is its own, ``None`` if it is plain."""
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # fused as in skim's own training, for all candidates: the default would take its time from the ratios
    optimizer = AdamW(parameters, lr=lr, fused=parameters[0].device.type in ("cpu", "cuda"))

    def run() -> None:
        for batch in inputs:
            with forward():  # entered for each step: autocast keeps its copies of weights until it is left
                loss = model(**batch).loss
                if method is not None:
                    trace = walk_of(model).trace
                    method.step(1.0, trace)
                    loss = loss + method.loss(trace)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def running(model: nn.Module, inputs: Sequence[Mapping[str, Tensor]]) -> Callable[[], None]:
    """A candidate: ``model`` over all of ``inputs``, in evaluation mode."""
    model.eval()

    def run() -> None:
        for batch in inputs:
            model(**batch)

    return run


def twin(model: nn.Module) -> nn.Module:
    """A copy with modules and a config of its own that shares every weight: nothing is loaded or held twice."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


def plain_twin(model: nn.Module) -> nn.Module:
    """The Hugging Face model under a compressed one, on the same weights, with its fastest exact attention."""
    plain = decompress(twin(model))
    if getattr(plain, "_supports_sdpa", False):
        plain.set_attn_implementation("sdpa")
    return plain


class KeepShare(Method):
    """Retires a fixed share of the tokens, deciding by position: the cost of a method without what it knows.

    The share falls from layer to layer as in learned methods, :math:`s_i = (1 - (i + 1/2) / L)^{1/keep - 1}`, with
    ``keep`` as its mean; so rows are removed in every layer and not once. A token stays while the fractional part of
    position times golden ratio is below the share: spread evenly over the text, alike at any length and in any layout.

    Args:
        keep: mean keep ratio over the layers, in (0, 1].
        protect: special tokens that never retire.
    """

    name = "keep_share"

    def __init__(self, keep: float = 0.5, protect: tuple[str, ...] = ("cls",)) -> None:
        super().__init__(protect)
        if not 0 < keep <= 1:
            raise SkimError(f"keep={keep} must be above 0 and at most 1.")
        self.keep = keep

    def build(self, spec: Spec) -> None:
        super().build(spec)
        power = 1 / self.keep - 1
        self.shares = [(1 - (i + 0.5) / spec.layers) ** power for i in range(spec.layers)]

    def stays(self, i: int, tokens: TokenBatch) -> Tensor:
        """Who is there in layer ``i``, bool, one per row."""
        return (tokens.occupancy.position * ((math.sqrt(5) - 1) / 2)).frac() < self.shares[i]

    def before_layer(self, i: int, tokens: TokenBatch) -> TokenBatch:
        return tokens.retire(self.stays(i, tokens).float())


class HaltShare(Method):
    """Halts tokens by position as :class:`KeepShare` retires them: they are computed no further, but looked at.

    Args:
        keep: mean share of tokens that run, over the layers, in (0, 1]; mean updates over layers.
        masked: compute halted tokens all the same, as published: what halting costs without removing anything.
    """

    name = "halt_share"

    def __init__(self, keep: float = 0.5, masked: bool = False) -> None:
        super().__init__(())
        if not 0 < keep <= 1:
            raise SkimError(f"halt={keep} must be above 0 and at most 1: the share of tokens that has not halted.")
        self.keep, self.needs_pads = keep, masked

    def build(self, spec: Spec) -> None:
        super().build(spec)
        self.rule = KeepShare(self.keep)
        self.rule.build(spec)

    def after_layer(self, i: int, before: TokenBatch, tokens: TokenBatch) -> TokenBatch:
        if i + 1 == self.spec.layers:
            return tokens
        return tokens.halt(self.rule.stays(i + 1, tokens) & (tokens.occupancy.weights > 0.5))


@dataclass(frozen=True)
class Row:
    """One line of the command's table."""

    batch: int
    length: int
    candidate: str
    keep_ratio: float
    relative_flops: float
    timing: Timing


def shape_rows(options: argparse.Namespace, batch: int, length: int) -> list[Row]:
    """Time one shape: padded Hugging Face, packed dense, and every scripted method, all side by side."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    shape = dict(SHAPES[options.backbone])
    if shape["model_type"] != "funnel":  # which has no table of positions
        shape["max_position_embeddings"] = max(512, length)
    config = AutoConfig.for_model(**shape)
    torch.manual_seed(options.seed)
    model = AutoModelForSequenceClassification.from_config(config).to(options.device, DTYPES[options.dtype])
    lengths = torch.full((batch,), length)
    if options.ragged:  # the first stays whole, so that the padded shape is as named
        lengths[1:] = torch.randint(max(length // 4, 1), length + 1, (batch - 1,))
    mask = torch.arange(length)[None] < lengths[:, None]
    ids = torch.randint(1000, config.vocab_size, (batch, length)) * mask
    inputs = {"input_ids": ids.to(options.device), "attention_mask": mask.long().to(options.device)}

    dense = compress(model, "dense").eval()
    methods: dict[str, Method] = {f"packed, keep {keep:g}": KeepShare(keep) for keep in options.keep}
    for keep in options.halt:
        methods[f"masked, halt {keep:g}"] = HaltShare(keep, masked=True)
        methods[f"packed, halt {keep:g}"] = HaltShare(keep)
    for blocks in options.funnel:
        sizes = sizes_of(blocks)
        methods[f"funnel {blocks} (q)"] = Funnel(blocks=sizes)
        methods[f"funnel {blocks} (all)"] = Funnel(blocks=sizes, pool_q_only=False)
    models = {name: compress(plain_twin(dense), method).eval() for name, method in methods.items()}
    own = f"{walk_of(dense).form()} dense"
    models = {"padded HF": plain_twin(dense), own: dense, **models}
    candidates = {name: running(one, [inputs]) for name, one in models.items()}
    timings = time_side_by_side(candidates, options.repeats, options.warmup, title=f"{batch} x {length}")
    rows = []
    for name, timing in timings.items():
        trace = getattr(models[name], "trace", None)
        kept = 1.0 if trace is None else float(trace.keep_ratio().mean())
        flops = 1.0 if trace is None else float(trace.relative_flops())
        rows.append(Row(batch, length, name, kept, flops, timing))
    return rows


def sizes_of(blocks: str) -> tuple[int, ...]:
    """Layers per block as the command takes them: ``2,2,2``."""
    try:
        return tuple(int(size) for size in blocks.split(","))
    except ValueError:
        raise SkimError(f"--funnel {blocks} must be layers per block, such as 2,2,2.") from None


def shape_table(rows: list[Row], title: str) -> Table:
    """Relative FLOPs beside relative time, one line per candidate; fits 80 columns."""
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.caption = "times are compared by their medians, measured in turns"
    table.add_column("candidate", no_wrap=True)
    for column in ("keep\nratio", "relative\nFLOPs", "time /\ndense", "time /\npadded", "median\nms", "min - max\nms"):
        table.add_column(column, justify="right", no_wrap=True)
    padded, dense = rows[0].timing.median_ms, rows[1].timing.median_ms
    for row in rows:
        ms = row.timing
        ratios = (row.keep_ratio, row.relative_flops, ms.median_ms / dense, ms.median_ms / padded)
        spread = f"{ms.min_ms:.1f} - {ms.max_ms:.1f}"
        table.add_row(row.candidate, *(f"{ratio:.3f}" for ratio in ratios), f"{ms.median_ms:.1f}", spread)
    return table


def parser() -> argparse.ArgumentParser:
    """The options of ``python -m skim.benchmark``."""
    options = argparse.ArgumentParser(prog="python -m skim.benchmark", description="Time shapes with random weights.")
    options.add_argument("--backbone", choices=sorted(SHAPES), default="minilm")
    options.add_argument("--batch", type=int, nargs="+", default=[32], help="sequences per batch")
    options.add_argument("--length", type=int, nargs="+", default=[128], help="tokens per sequence (the longest)")
    options.add_argument("--ragged", action="store_true", help="lengths between a quarter and all of --length")
    options.add_argument("--keep", type=float, nargs="*", default=[1.0, 0.5, 0.3], help="mean keep ratios over layers")
    options.add_argument("--halt", type=float, nargs="*", default=[], help="mean shares of tokens that have not halted")
    options.add_argument("--funnel", nargs="*", default=[], help="layers per block of Funnel pooling, such as 2,2,2")
    options.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    options.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    options.add_argument("--repeats", type=int, default=10, help="counted runs of each candidate")
    options.add_argument("--warmup", type=int, default=3, help="runs before them")
    options.add_argument("--threads", type=int, help="CPU threads")
    options.add_argument("--seed", type=int, default=0, help="of weights, ids and lengths")
    options.add_argument("--json", type=Path, help="file to write the numbers to")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = parser().parse_args(arguments)
    threads = [] if options.threads is None else [options.threads]
    try:
        for name, numbers in (
            ("batch", options.batch),
            ("length", options.length),
            ("threads", threads),
        ):
            if any(number < 1 for number in numbers):
                raise SkimError(f"--{name} {min(numbers)} must be at least 1.")
        for number in threads:
            torch.set_num_threads(number)
        options.device = usable(options.device)
        rows = [row for b in options.batch for n in options.length for row in timed(options, b, n)]
    except SkimError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False)
        return 2
    if options.json is not None:
        about = {"backbone": options.backbone, "dtype": options.dtype, "machine": machine(options.device)}
        options.json.write_text(json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    return 0


def usable(name: str) -> torch.device:
    """The device of that name, ``auto`` being CUDA if there is one; a SkimError with torch's words if it is no use."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise SkimError(f"device {name} cannot be used here: {str(error).splitlines()[0]}") from None


def timed(options: argparse.Namespace, batch: int, length: int) -> list[Row]:
    """Time one shape and print its table at once: a long list of shapes shows what it has."""
    rows = shape_rows(options, batch, length)
    ragged = f"{length // 4}-{length}" if options.ragged else str(length)
    title = f"{options.backbone}, batch {batch}, {ragged} tokens, {options.dtype}, {machine(options.device)}"
    Console().print(shape_table(rows, title))
    return rows


def machine(device: torch.device) -> str:
    """What the numbers were measured on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{platform.machine()} {device.type}, threads: {torch.get_num_threads()}, torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main())
