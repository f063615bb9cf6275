"""Candidates that take turns on one machine, and the device that they take them on."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from skim.errors import SkimError, first_line


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


def usable(name: str) -> torch.device:
    """The device of that name, ``auto`` being CUDA if there is one; a SkimError with torch's words if it is no use."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise SkimError(f"device {name} cannot be used here: {first_line(error)}") from None


FEATURES = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx512f", "avx2")  # that decide speed


def machine(device: torch.device) -> str:
    """The device, what its arithmetic has, threads and torch's version: the machine that numbers are of, on a line."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    about = (processor(), f"threads: {torch.get_num_threads()}", f"torch {torch.__version__}")
    return ", ".join((f"{platform.machine()} {device.type}", *filter(None, about)))


def processor(told: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the CPU, and which of :data:`FEATURES` it has; empty where the system does not tell."""
    try:
        lines = told.read_text().splitlines()
    except OSError:
        return ""
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    flags = set(said.get("flags", "").split())
    has = [name.replace("_", "-").upper() for name in FEATURES if name in flags]
    return ", ".join(filter(None, (said.get("model name", ""), " ".join(has))))
