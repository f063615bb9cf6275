"""Random tokens: a share of every text, drawn once. What a method has to beat to have learned anything.

The draw hangs on the text alone, on its ids and their order, so a text loses the same tokens in every epoch, in every
batch and whatever the padding.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from skim.engine.tokens import Occupancy
from skim.flops import precise
from skim.methods.entering import Entering, ranked
from skim.methods.options import Special, Target

PRIME = 2**31 - 1  # so that squares fit into 64 bits
FACTORS = (48271, 69621, 16807)


class RandomTokens(Entering):
    """Keeps a random share of the tokens of each input; the rest is gone before the first layer.

    Args:
        share: share of an input's tokens that stays.
        target: relative FLOPs that the share is moved to meet, before training and after, or a range of them for
            a model that takes any; ``None`` leaves it.
        protect: special tokens that never retire, counted among those that stay: ``cls`` (what the head reads),
            ``sep``.
    """

    name = "random_tokens"

    def __init__(
        self,
        share: Annotated[float, Field(gt=0, le=1)] = 0.5,
        target: Target | None = None,
        protect: tuple[Special, ...] = ("cls",),
    ) -> None:
        super().__init__(protect)
        self.share = share
        self.shift = torch.zeros((), dtype=torch.float32)
        self.aim(target)

    def enters(self, ids: Tensor, rows: Occupancy) -> Tensor:
        real = rows.sequences.real
        lot = torch.where(rows.sequences.protected, -1, torch.where(real, lots(ids, real), PRIME))
        rate = (precise(self.shift) + self.share).clamp(0, 1)  # type: ignore[arg-type]  # a buffer
        return ranked(lot) < rows.share(rate)[:, None]


def lots(ids: Tensor, real: Tensor) -> Tensor:
    """Draw a whole number below 2^31 - 1 for each token, ``(B, N)``, by its text, its place in it, and nothing else.

    Args:
        ids: ``(B, N)``.
        real: ``(B, N)`` bool.
    """
    place = real.long().cumsum(1)
    each = scrambled(ids * FACTORS[0] + place * FACTORS[1])
    text = (each * real).sum(1, keepdim=True)
    return scrambled(each + text)


def scrambled(numbers: Tensor) -> Tensor:
    """Map whole numbers to others below 2^31 - 1 such that near ones go far apart."""
    for factor in FACTORS:
        numbers = (numbers % PRIME * factor + 1) % PRIME
        numbers = (numbers * numbers + factor) % PRIME
    return numbers
