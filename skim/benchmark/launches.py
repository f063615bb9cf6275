"""Work of a GPU: kernels, the time in which it is busy, and synchronizations, as CUDA tells them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from skim.errors import first_line


class Launches(NamedTuple):
    """Work of one run on a GPU.

    Attributes:
        kernels: launched, copies and fills among them.
        busy_ms: in which at least one ran.
        syncs: at which the host waited.
    """

    kernels: int
    busy_ms: float
    syncs: int


def launches(run: Callable[[], object]) -> Launches | None:
    """Run once under CUDA's profiler and once under its warnings of synchronizations.

    Returns:
        What the GPU did; ``None`` without one in use, or, with a line on the console, if the profiler failed.
    """
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return None
    try:
        with torch.inference_mode():
            return Launches(*worked(profiled(run)), synchronizations(run))
    except Exception as error:  # of the profiler, which drivers may forbid: times stand without it
        print(f"kernels and busy time are not counted: {first_line(error)}", file=sys.stderr)
        return None


def profiled(run: Callable[[], object]) -> list[Any]:
    """The events on the GPU of one run."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    return [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]


def worked(events: Iterable[Any]) -> tuple[int, float]:
    """Number of events, and the milliseconds that at least one of them covers; streams may overlap."""
    spans = sorted((event.time_range.start, event.time_range.end) for event in events)
    busy, until = 0.0, 0.0
    for start, end in spans:
        busy += max(end - max(start, until), 0.0)
        until = max(until, end)
    return len(spans), busy / 1000


def synchronizations(run: Callable[[], object]) -> int:
    """How often the host waits in one run."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message) for warning in caught)
