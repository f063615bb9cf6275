"""Parts that families share beside the contract, :class:`~skim.engine.backbone.Backbone`: rotations, distances."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skim.engine.backbone import Backbone, Module, heads, look
from skim.engine.inputs import Inputs
from skim.engine.mask import AttentionMask, MaskedSoftmax
from skim.engine.tokens import TokenBatch

__all__ = ["Backbone", "Module", "Narrowed", "distances", "heads", "look", "positions", "rotated"]


class Narrowed(Backbone):
    """A family that computes its attention itself: it needs a rectangle, and is let in on the mask at its softmax."""

    packs = False
    looks_apart = False

    def attend(self, layer: Module, hidden: Tensor, mask: AttentionMask, geometry: Any) -> Tensor:
        with MaskedSoftmax(mask):
            return layer.attention(hidden, **(geometry or {}))[0]


def rotated(rows: Tensor, geometry: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys ``(B, H, N, d)`` turned by their positions, halves against halves (Su et al., 2021, RoFormer).

    Args:
        rows: what to turn.
        geometry: cosines and sines, ``(B, N, d)``.
    """
    cos, sin = (part.unsqueeze(1) for part in geometry)
    one, other = rows.chunk(2, -1)
    return (rows * cos + torch.cat([-other, one], -1) * sin).to(rows.dtype)


def positions(tokens: TokenBatch, inputs: Inputs) -> Tensor:
    """The position by which each row is rotated: the caller's ``position_ids``, or where it came in; as ``(B, N)``."""
    if inputs.position_ids is None:
        return tokens.occupancy.position
    return tokens.occupancy.rows(inputs.position_ids.expand_as(tokens.sequences.real))


def distances(tokens: TokenBatch) -> Tensor:
    """Input positions from each row to each other, key minus query: ``(B, K, K)``, or ``(1, N, N)`` for all alike."""
    position = tokens.occupancy.position
    if position is tokens.sequences.position:
        position = position[:1]
    return position[:, None, :] - position[:, :, None]
