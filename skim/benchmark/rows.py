"""One model beside everything that it is compared with, on the same batches and in turns: rows of one table."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skim.benchmark.comparison import plain_twin, running
from skim.benchmark.counting import counting
from skim.benchmark.launches import launches
from skim.benchmark.peers import PEERS, Offer, Peer, built, exported
from skim.benchmark.runtimes import Call
from skim.benchmark.timing import Timing, time_side_by_side
from skim.compression import compress, twin, walk_of
from skim.engine.inputs import inputs_of
from skim.errors import SkimError
from skim.methods import Method

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SAVES = 0.995  # relative FLOPs below which a model is compressed


@dataclass(frozen=True)
class Settings:
    """How candidates are timed, and which.

    Attributes:
        dtypes: of :data:`DTYPES`; padded Hugging Face, packed dense and all compressed models run in each, peers that
            are PyTorch in the first.
        peers: time what a user would run instead, too.
        repeats: counted rounds.
        warmup: rounds before them.
        clock: of :data:`CLOCKS`; ``cpu`` is CPU seconds of the process, on a machine that others use as well.
    """

    dtypes: Sequence[str] = ("fp32",)
    peers: bool = False
    repeats: int = 7
    warmup: int = 1
    clock: str = "wall"


@dataclass(frozen=True)
class Row:
    """One candidate.

    Attributes:
        candidate: its name.
        keep_ratio: mean over the layers; ``None`` of what is not skim's.
        relative_flops: FLOPs / FLOPs of the dense backbone on the same real tokens; ``None`` likewise.
        timing: of one pass over all batches.
        over_flops: time / (relative FLOPs x time of packed dense in the same dtype): 1 if every FLOP saved is time
            saved; ``None`` of what is not skim's.
        operations: dispatched per forward, of PyTorch models; views and allocations are not counted.
        host_reads: per forward, at which the host waits for the device; likewise.
        kernels: launched on the GPU per forward; ``None`` without one.
        busy_ms: time per pass in which the GPU computes; likewise.
        score: of its own answers, where its arithmetic is coarser than float32's and somebody asked; ``None`` else.
    """

    candidate: str
    keep_ratio: float | None
    relative_flops: float | None
    timing: Timing
    over_flops: float | None = None
    operations: int | None = None
    host_reads: int | None = None
    kernels: int | None = None
    busy_ms: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class Candidate:
    """Function or model that is timed: called with each of its batches.

    Attributes:
        reference: name of the packed dense model in the same dtype, of skim's own candidates.
        rounds: True if its arithmetic is coarser than float32.
    """

    call: Callable[..., Any]
    batches: Sequence[dict[str, Tensor]]
    reference: str = ""
    rounds: bool = False


def measure(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    scripted: Mapping[str, Method],
    settings: Settings,
    title: str = "timing",
    score: Callable[[Call], float] | None = None,
) -> tuple[list[Row], list[str]]:
    """Time a compressed model beside padded Hugging Face, packed dense, scripted methods and peers.

    Args:
        model: a compressed model; it is not touched. One that is dense is no candidate of its own.
        batches: padded batches as the model takes them; labels and other columns are left out.
        scripted: methods by name that the same weights are compressed by as well; new ones, each serves one model.
        settings: which candidates, and how they are timed.
        title: of the progress bar.
        score: scores the answers of a candidate, where its arithmetic is coarser than float32's; ``None``: nobody does.

    Returns:
        A row each, the first in the first dtype being padded Hugging Face and packed dense; and a line for each peer
        that could not be had.

    Raises:
        SkimError: there are no batches.
    """
    device = next(model.parameters()).device
    inputs = [{name: value.to(device) for name, value in inputs_of(batch).items()} for batch in batches]
    if not inputs:
        raise SkimError("There is nothing to time: no batches were given.")
    own: dict[str, Candidate] = {}
    for dtype in settings.dtypes:
        suffix = f", {dtype}" if len(settings.dtypes) > 1 else ""
        some = candidates(cast(model, DTYPES[dtype]), inputs, scripted, suffix)
        own |= {name: replace(one, rounds=dtype != "fp32") for name, one in some.items()}
    found = {name: examined(one) for name, one in own.items()}
    left_out: list[str] = []
    with tempfile.TemporaryDirectory(prefix="skim-peers-") as folder:
        everyone = dict(own)
        if settings.peers:
            offer, exports = offered(own, found, settings.dtypes[0], Path(folder))
            ready, left_out = built(offer, (*PEERS, *exports))
            everyone |= {one.name: Candidate(one.call, one.batches, rounds=one.rounds) for one in ready}
            found |= {
                one.name: examined(everyone[one.name])._replace(keep_ratio=None, relative_flops=None) for one in ready
            }
        timings = time_side_by_side(
            {name: running(one.call, one.batches) for name, one in everyone.items()},
            settings.repeats,
            settings.warmup,
            clock=CLOCKS[settings.clock],
            title=title,
        )
        rows = [row_of(name, one, timings, found[name]) for name, one in everyone.items()]
        if score is not None:
            with torch.inference_mode():
                rows = [
                    replace(row, score=score(one.call)) if one.rounds else row
                    for row, one in zip(rows, everyone.values(), strict=True)
                ]
    return rows, left_out


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model in a dtype, on weights of its own if it is in another; always a twin."""
    if next(model.parameters()).dtype == dtype:
        return twin(model).eval()
    return deepcopy(model).to(dtype).eval()


def candidates(
    model: nn.Module, batches: Sequence[dict[str, Tensor]], scripted: Mapping[str, Method], suffix: str
) -> dict[str, Candidate]:
    """All models on the weights of one: padded, dense, as it is compressed, and by scripted methods."""
    dense = compress(plain_twin(model), "dense").eval()
    own = f"{walk_of(dense).form()} dense"
    models = {own: dense}
    if walk_of(model).method.does:
        models[f"this model, {walk_of(model).form()}"] = model
    for name, method in scripted.items():
        models[name] = compress(plain_twin(model), deepcopy(method)).eval()
    found = {f"padded HF{suffix}": Candidate(plain_twin(model).eval(), batches)}
    reference = own + suffix
    return found | {name + suffix: Candidate(one, batches, reference) for name, one in models.items()}


def offered(
    own: Mapping[str, Candidate], found: Mapping[str, Examined], dtype: str, folder: Path
) -> tuple[Offer, list[Peer]]:
    """Make the offer to peers, and a peer for each model that is compressed in the first dtype: the same, exported."""
    padded, dense, *_ = own.values()
    shares = {name: found[name].relative_flops or 1.0 for name, one in own.items() if one.reference == dense.reference}
    saving = {name: share for name, share in shares.items() if share < SAVES}
    layers = len(walk_of(dense.call).costs)  # type: ignore[arg-type]
    kept = min(max(round(next(iter(saving.values())) * layers), 1), layers) if saving else None
    exports = [exported(name.removesuffix(f", {dtype}"), own[name].call) for name in saving]  # type: ignore[arg-type]
    return Offer(padded.call, padded.batches, kept, folder), exports  # type: ignore[arg-type]


class Examined(NamedTuple):
    """Findings of one pass that is not timed; see :class:`Row`."""

    keep_ratio: float | None = None
    relative_flops: float | None = None
    operations: int | None = None
    host_reads: int | None = None


def examined(candidate: Candidate) -> Examined:
    """Run a candidate over its batches once, counting; one that is no PyTorch model is not run."""
    if not isinstance(candidate.call, nn.Module):
        return Examined()
    kept, flops, dense, operations, reads = [], 0.0, 0.0, 0, 0
    with torch.inference_mode():
        if next(candidate.call.parameters()).device.type != "cpu":
            running(candidate.call, candidate.batches)()  # kernels are compiled and graphs captured in a first pass
        for batch in candidate.batches:
            with counting() as work:
                candidate.call(**batch)
            operations += work.operations.total()
            reads += work.reads.total()
            if candidate.reference:
                trace: Any = candidate.call.trace
                kept.append(float(trace.keep_ratio().mean()))
                flops += float(trace.flops().sum())
                dense += float(trace.dense_flops.sum())
    forwards = len(candidate.batches)
    share = flops / dense if dense else 1.0
    return Examined(statistics.fmean(kept or [1.0]), share, round(operations / forwards), round(reads / forwards))


def row_of(name: str, candidate: Candidate, timings: Mapping[str, Timing], found: Examined) -> Row:
    """A candidate's row, with what a GPU tells of it."""
    timing, share = timings[name], found.relative_flops
    over = None
    if candidate.reference and share:
        over = timing.median_ms / (share * timings[candidate.reference].median_ms)
    row = Row(name, found.keep_ratio, share, timing, over, found.operations, found.host_reads)
    gpu = launches(running(candidate.call, candidate.batches))
    if gpu is None:
        return row
    forwards = len(candidate.batches)
    return replace(row, host_reads=gpu.syncs // forwards, kernels=gpu.kernels // forwards, busy_ms=gpu.busy_ms)
