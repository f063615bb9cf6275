"""The dtype in which a device infers fastest: ``dtype="auto"``.

Half precision pays on a CPU only where it has instructions for it (AMX, AVX512-BF16), and by how much depends on the
machine; elsewhere it is emulated, and slower. So it is measured, once in a process.
"""

from __future__ import annotations

import logging
import time
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

log = logging.getLogger("skim")

SIZE = (128, 384, 1536)  # rows, width and inner width of what is measured: a feed-forward half of a small encoder
TURNS = 10  # of each dtype; the quickest counts
WORTH = 1.1  # times as fast: what half precision loses has to be for something


class Choice(NamedTuple):
    """A dtype, and why it is the one."""

    dtype: torch.dtype
    why: str

    def __str__(self) -> str:
        return f"dtype=auto: {str(self.dtype).removeprefix('torch.')}, {self.why}"


def fastest(device: torch.device | str) -> Choice:
    """Choose between bfloat16 and float32 for inference on a device; says so in the log ``skim``, once for each kind.

    bfloat16 on a CUDA device that has it, and on a CPU that has AMX or AVX512-BF16 if it measures at least 1.1 times as
    fast there; float32 elsewhere.
    """
    return _fastest(torch.device(device).type)


@cache
def _fastest(kind: str) -> Choice:
    choice = _choose(kind)
    log.info("%s", choice)
    return choice


def _choose(kind: str) -> Choice:
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice(torch.bfloat16, "which this GPU computes in")
        return Choice(torch.float32, "since this GPU has no bfloat16")
    if kind != "cpu":
        return Choice(torch.float32, f"as always on {kind}")
    if not half_precision():
        return Choice(torch.float32, "since this CPU has neither AMX nor AVX512-BF16")
    ratio = measured()
    dtype = torch.bfloat16 if ratio >= WORTH else torch.float32
    return Choice(dtype, f"bfloat16 measured {ratio:.2f} times as fast as float32 on this CPU")


@cache
def half_precision() -> bool:
    """Tell whether the CPU has instructions for bfloat16: AMX or AVX512-BF16."""
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # of torch from 2.11 on
    known = (getattr(torch.cpu, name, bool) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return bool(has.get("amx_bf16") or has.get("avx512_bf16") or (not has and any(ask() for ask in known)))


def measured() -> float:
    """Time of two matrix products in float32 / their time in bfloat16; takes some 30 ms on one thread."""
    rows, width, inner = SIZE
    tensors = (torch.full(shape, 0.01) for shape in ((rows, width), (inner, width), (width, inner)))
    floats = tuple(tensors)
    best: dict[torch.dtype, float] = {}
    with torch.inference_mode():
        operands = {dtype: [tensor.to(dtype) for tensor in floats] for dtype in (torch.float32, torch.bfloat16)}
        for _ in range(TURNS + 1):  # the quickest of them is not the first, which sets things up
            for dtype, (hidden, up, down) in operands.items():
                start = time.thread_time()  # and not of the clock: others may be computing here
                F.linear(F.linear(hidden, up), down)
                best[dtype] = min(best.get(dtype, float("inf")), time.thread_time() - start)
    return best[torch.float32] / best[torch.bfloat16]
