"""Losses of a bank of probes and their gradients by the outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def losses(outputs: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the loss of each probe over rows, (P,) float64, and compute its gradient by the outputs, (B, P, C).

    Cross entropy for classes, the squared error for numbers.

    Args:
        outputs: (B, P, C).
        right: (B,), places among the classes as int64, or numbers.
    """
    if right.is_floating_point():
        errors = outputs - right[:, None, None]
        return errors.square().sum((0, 2), dtype=torch.float64), 2 * errors
    logs = F.log_softmax(outputs, -1)
    at = right[:, None, None].expand(-1, outputs.shape[1], 1)
    lost = -logs.gather(-1, at).sum((0, 2), dtype=torch.float64)
    return lost, logs.exp_().scatter_add_(-1, at, outputs.new_tensor(-1.0).expand(at.shape))
