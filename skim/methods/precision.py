"""Thresholds and steering stay in float32 when a model is cast to half precision.

A threshold is around 0.01 and learns in steps of 1e-5; bfloat16 has three digits, so such a step would be rounded away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Precise(nn.Module):
    """A module whose own parameters and buffers move between devices and keep their dtype; submodules are cast."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        if recurse:
            for module in self.children():
                module._apply(fn)

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse=False)
