"""Shapes timed in turns: padded Hugging Face, compiled or not, packed dense, and what the methods make of it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from skim.benchmark.comparison import plain_twin, running
from skim.benchmark.gpu.rows import Row
from skim.benchmark.scripted import KeepShare
from skim.benchmark.shapes import SHAPES
from skim.benchmark.timing import Timing, time_side_by_side
from skim.compression import compress, standing_in, walk_of
from skim.methods import method_class

WARM = 4  # forwards of each candidate before its time counts: eager, captured, replayed


@dataclass(frozen=True)
class Shape:
    """Candidates that are timed together.

    Attributes:
        backbone: of :data:`~skim.benchmark.shapes.SHAPES`.
        batch: B.
        length: N.
        keeps: mean keep ratios of scripted retiring, with the bound on time / padded.
        methods: whether top-k, LTP and ACT are timed too, each beside scripted retiring at its FLOPs.
        compiled: whether ``torch.compile(mode="reduce-overhead")`` of padded is, with the bound on time / its time.
    """

    backbone: str
    batch: int
    length: int
    keeps: dict[float, float | None] = field(default_factory=lambda: {0.5: None})
    methods: bool = False
    compiled: float | None = None

    @property
    def name(self) -> str:
        """As the table has it."""
        return f"{self.backbone} {self.batch}x{self.length}{' compiled' if self.compiled else ''}"


SHAPES_TIMED = (  # most important first: what time is left decides how many there are
    Shape("bert-base", 32, 128, {0.5: 0.45}, methods=True),
    Shape("bert-base", 32, 512, {0.5: 0.65}, methods=True),
    Shape("bert-base", 1, 128, {0.5: 0.35}, methods=True),
    Shape("bert-large", 32, 512, {0.5: 0.60, 0.3: 0.42}),
    Shape("bert-base", 32, 128, {0.5: None}, compiled=0.9),
    Shape("minilm", 32, 128),
)


def model_of(shape: Shape, device: torch.device, dtype: torch.dtype, quick: bool) -> nn.Module:
    """Random weights; made where they are used, which for large ones takes a tenth of the time."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = dict(SHAPES[shape.backbone], max_position_embeddings=max(512, shape.length))
    if quick:
        sizes |= {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**sizes))
    return model.to(device, dtype).eval()


def times(shape: Shape, device: torch.device, quick: bool, until: float) -> Iterator[Row]:
    """Time one shape.

    Args:
        shape: what.
        device: where.
        quick: tiny sizes and few runs.
        until: ``time.monotonic()`` by which to be done, more or less.
    """
    if quick:
        shape = replace(shape, batch=min(shape.batch, 2), length=16)
    dtype = torch.float32 if quick else torch.bfloat16
    model = model_of(shape, device, dtype, quick)
    ids = torch.randint(1000, 30000, (shape.batch, shape.length), device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    dense = compress(model, "dense").eval()
    bench = Bench(shape.name, inputs, device)
    plain = plain_twin(dense)
    bench.add("padded HF", plain)
    bench.add("packed dense", dense)
    for keep, bound in shape.keeps.items():
        own = bench.method(f"kept {keep:g}", dense, KeepShare(keep), ("padded HF", bound))
        if not shape.compiled and keep == next(iter(shape.keeps)):
            bench.add(f"kept {keep:g}, static rows, no graphs", again(own, static=True, graphs=False))
            bench.add(f"kept {keep:g}, exact rows", again(own, static=False, graphs=False))
    if shape.methods:
        for name, method in learned(model).items():
            bench.matched(name, dense, method)
    if shape.compiled:
        first = next(iter(shape.keeps))
        compiled = torch.compile(plain_twin(dense), mode="reduce-overhead", dynamic=False)
        bench.add("padded HF, compiled", compiled)
        bench.bounds[f"kept {first:g}"] = [("padded HF, compiled", shape.compiled)]
    yield from bench.rows(2 if quick else 15, until)


def learned(model: nn.Module) -> dict[str, Any]:
    """Top-k, LTP and ACT, with options by which random weights let about half of the work go."""
    layers = model.config.num_hidden_layers  # type: ignore[union-attr]
    act: Any = method_class("act")(mix="act", bias_init=-1.2 if layers > 6 else -0.5)
    first = {"start": 1} if layers < 6 else {}
    return {
        "topk": method_class("topk")(token_keep_rate=0.1, **first),  # type: ignore[call-arg]
        "ltp": method_class("ltp")(final_token_threshold=0.012),  # type: ignore[call-arg]
        "act": act,
    }


def again(model: nn.Module, static: bool | None, graphs: bool | None) -> nn.Module:
    """The same model and method, run otherwise."""
    from skim.compression import twin

    other = twin(model).eval()
    walk_of(other).static, walk_of(other).graphs = static, graphs
    return other


class Bench:
    """Candidates of one shape, and what is asked of them."""

    def __init__(self, part: str, inputs: dict[str, torch.Tensor], device: torch.device) -> None:
        self.part, self.inputs, self.device = part, inputs, device
        self.models: dict[str, Any] = {}
        self.runs: dict[str, Callable[[], None]] = {}
        self.bounds: dict[str, list[tuple[str, float]]] = {}
        self.failed: list[Row] = []

    def add(self, name: str, model: Any) -> None:
        """Take a candidate that runs; of another one, keep the reason."""
        run = running(model, [self.inputs])
        try:
            with torch.inference_mode():
                for _ in range(WARM):
                    run()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
        except Exception as error:
            self.failed.append(Row(self.part, name, f"{type(error).__name__}: {str(error).strip()}"[:150]))
            return
        self.models[name], self.runs[name] = model, run

    def method(self, name: str, dense: nn.Module, method: Any, *bounds: tuple[str, float | None]) -> nn.Module:
        """Take a compressed candidate, which must not be slower than packed dense."""
        model = compress(plain_twin(dense), method).eval()
        self.add(name, model)
        asked = [(other, bound) for other, bound in bounds if bound is not None]
        self.bounds[name] = [*asked, ("packed dense", 1.0)]
        return model

    def matched(self, name: str, dense: nn.Module, method: Any) -> None:
        """Take a learned method, and scripted retiring at its FLOPs to hold it against."""
        try:
            self.method(name, dense, method)
            keep = share_for(flops_of(self.models[name]), dense, self.inputs)
            scripted = f"kept {keep:.3f} (FLOPs of {name})"
            self.method(scripted, dense, KeepShare(keep))
            self.bounds[name].append((scripted, 1.25))
        except Exception as error:
            self.failed.append(Row(self.part, name, f"{type(error).__name__}: {str(error).strip()}"[:150]))

    def rows(self, repeats: int, until: float) -> Iterator[Row]:
        """Time all in turns, as often as time allows, and look at each once more by itself."""
        yield from self.failed
        once = time.monotonic()
        with torch.inference_mode():
            for run in self.runs.values():
                run()
        once = max(time.monotonic() - once, 1e-4)
        repeats = max(min(repeats, int((until - time.monotonic()) * 0.7 / once)), 2)
        timings = time_side_by_side(self.runs, repeats, warmup=1 if repeats < 5 else 3, title=self.part)
        for name in self.runs:
            yield self.row(name, timings)

    def row(self, name: str, timings: dict[str, Timing]) -> Row:
        """All numbers of one candidate."""
        ms = timings[name].median_ms
        asked = [(other, bound) for other, bound in self.bounds.get(name, []) if other in timings]
        missed = [
            f"{ms / timings[other].median_ms:.2f} x {other}"
            for other, bound in asked
            if ms > bound * timings[other].median_ms
        ]
        verdict = ("not met: " + ", ".join(missed) if missed else "met") if asked else ""
        walk = getattr(self.models[name], "skim_walk", None)
        graphs = -1 if walk is None or walk.graphed.graphs is None else walk.graphed.graphs.captures
        if graphs >= 0 and (said := sorted(walk.graphed.graphs.said)):
            verdict = f"{verdict} ({said[0]})"[:200]
        reads = self.reads(self.runs[name])
        busy, kernels = self.busy(self.runs[name])
        return Row(
            self.part,
            name,
            verdict,
            ms,
            ms / timings["padded HF"].median_ms if "padded HF" in timings else float("nan"),
            flops_of(self.models[name]) if walk is not None else 1.0,
            busy,
            kernels,
            reads,
            graphs,
            ", ".join(f"<= {bound:g} x {other}" for other, bound in asked),
        )

    def busy(self, run: Callable[[], None]) -> tuple[float, int]:
        """Milliseconds in which the GPU works at a run, and how many kernels and copies that is."""
        if self.device.type != "cuda":
            return float("nan"), -1
        from torch.profiler import ProfilerActivity, profile

        try:
            with torch.inference_mode(), profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
                run()
                torch.cuda.synchronize()
            events = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
            return sum(e.device_time for e in events) / 1000, len(events)
        except Exception:
            return float("nan"), -1

    def reads(self, run: Callable[[], None]) -> int:
        """Calls at a run at which the host waits, as torch tells them; waiting for a count of rows is none of them."""
        if self.device.type != "cuda":
            return -1
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as told, torch.inference_mode():
                warnings.simplefilter("always")
                run()
            return len(told)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@torch.inference_mode()
def flops_of(model: Any) -> float:
    """Relative FLOPs of the last forward."""
    return float(model.trace.relative_flops())


@torch.inference_mode()
def share_for(flops: float, dense: nn.Module, inputs: dict[str, torch.Tensor]) -> float:
    """Mean keep ratio at which scripted retiring has these relative FLOPs."""
    walk = walk_of(dense)
    before, walk.graphs = walk.graphs, False
    low, high = 0.05, 1.0
    try:
        for _ in range(7):
            middle = (low + high) / 2
            scripted = KeepShare(middle)
            scripted.build_for(walk.method.spec)
            with standing_in(dense, scripted):
                dense(**inputs)
            low, high = (middle, high) if flops_of(dense) < flops else (low, middle)
    finally:
        walk.graphs = before
    return (low + high) / 2
