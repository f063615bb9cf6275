"""Kernels that one launch does what many operations do: taken where they run, and nowhere asked for.

Triton may be missing, a GPU too old, a kernel refused by the compiler of a version that nobody has tried. The plain
operations give the same, so a refusal is told to the log once and the call goes on with those.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from skim.errors import first_line

logger = logging.getLogger(__name__)

KERNELS = {  # where each is, imported by its first call
    "attention": "skim.engine.kernels.triton.attention",
    "difference": "skim.engine.kernels.triton.difference",
    "rank": "skim.engine.kernels.triton.rank",
    "retire": "skim.engine.kernels.triton.rows",
    "varlen_attn": "torch.nn.attention.varlen",  # FlashAttention; torch >= 2.11, before it takes no scale
}
REFUSED: set[tuple[str, torch.dtype, int]] = set()


def fused(name: str, first: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Call a kernel of :data:`KERNELS`; ``None`` where it does not run, and the caller takes the plain operations.

    Args:
        name: of the kernel, and of the function in its module.
        first: its first argument, whose dtype and width say what it is compiled for: rows of states ``(..., T, D)``, or
            one number per row, ``(1, T)``.
        args: its other arguments.
        kwargs: likewise.

    Raises:
        torch.OutOfMemoryError: as any operation may; it is no refusal.
    """
    case = (name, first.dtype, first.shape[-1] if first.dim() > 2 else 1)
    if case in REFUSED:
        return None
    try:
        with torch.cuda.device_of(first):  # Triton launches on the current device
            return getattr(import_module(KERNELS[name]), name)(first, *args, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers, drivers and signatures have no common kind of error
        REFUSED.add(case)
        logger.warning(
            "Kernel %s does not run here for %s and width %d, so plain operations do the same, more slowly: %s: %s",
            *case, type(error).__name__, first_line(error),
        )  # fmt: skip
        return None
