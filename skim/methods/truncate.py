r"""Truncation: the first tokens of a text, and nothing else. What practitioners do with long texts, and hard to beat.

Kept are the tokens that a tokenizer's ``truncation="longest_first"`` keeps: special ones, and of each segment the
first, such that the longest are cut to one length. So ``tokens=128`` gives what a plain model gives with
``task.max_length=128``, but for one thing: a token keeps the position that it had, the last [SEP] as well.

Where segments end, ``config.sep_token_id`` says, which a run sets by its tokenizer. Without it an input is one text,
and its last [SEP] is a token like others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skim.engine.tokens import Occupancy
from skim.methods.base import Spec
from skim.methods.entering import Entering, ranked
from skim.methods.options import Count, Target

SHIFTS = 30.0  # beyond them nothing more leaves or stays


class Truncate(Entering):
    """Keeps the first tokens of each input; the rest is gone before the first layer.

    Args:
        tokens: the most that an input keeps, special ones among them; of a pair as many of each text, if both are long.
        target: relative FLOPs that the number is scaled to meet, before training and after, or a range of them for
            a model that takes any; ``None`` leaves it.
    """

    name = "truncate"
    defining = ()

    def __init__(self, tokens: Count = 128, target: Target | None = None) -> None:
        super().__init__()
        self.tokens = tokens
        self.shift = torch.zeros((), dtype=torch.float32)
        self.aim(target)

    def build(self, spec: Spec) -> None:
        super().build(spec)
        self.separator = spec.sep_token_id

    def enters(self, ids: Tensor, rows: Occupancy) -> Tensor:
        sequences = rows.sequences
        special = sequences.protected
        if self.separator is not None:
            special = special | (ids == self.separator) & sequences.real
        most = self.tokens * self.shift.clamp(-SHIFTS, SHIFTS).exp()  # type: ignore[union-attr, operator]  # a buffer
        return special | (truncation_order(sequences.real, special) + 1 <= most)


def truncation_order(real: Tensor, special: Tensor) -> Tensor:
    """Number the tokens in the order in which longest-first truncation would keep them, ``(B, N)`` from 0.

    Special ones come first; then the first token of each segment, then the second of each. Where there is room for one
    more token of some of the segments, the longest one has it, and of those alike the last.

    Args:
        real: ``(B, N)`` bool.
        special: ``(B, N)`` bool; these end a segment.
    """
    text = real & ~special
    segment, one = special.long().cumsum(1), text.long()
    lengths = torch.zeros(real.shape[0], real.shape[1] + 1, dtype=torch.int64, device=real.device)
    lengths = lengths.scatter_add(1, segment, one)
    place = one.cumsum(1) - 1 - (lengths.cumsum(1) - lengths).gather(1, segment)
    longest = real.shape[1] + 1
    key = (place * longest + longest - lengths.gather(1, segment)) * longest + (longest - segment)
    return ranked(torch.where(text, key, torch.where(special, -1, longest**3)))
