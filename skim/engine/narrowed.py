"""Narrowed execution: a padded batch cut to its longest survivor, for attention that needs a rectangle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from skim.engine.rectangle import Merged, Rectangle, joined, windows
from skim.engine.tokens import Charge, Sequences, TokenBatch, last_tokens
from skim.errors import SkimError


@dataclass(frozen=True)
class NarrowedOccupancy(Rectangle):
    """A rectangle cut to the longest survivor.

    Attributes:
        position: ``(B, K)`` input position of each row; ``N`` on filler rows.
        there: ``(B, K)`` bool, False on filler rows and pads.
        sequences: what entered.
        merged: ``(B, N)`` the input position at which each token's row sits; ``None``: at its own.
    """

    position: Tensor
    there: Tensor
    sequences: Sequences
    merged: Tensor | None = None

    @property
    def weights(self) -> Tensor:  # type: ignore[override]
        """``(B, K)`` bool: every row that is there counts alike."""
        return self.there


@dataclass(frozen=True)
class NarrowedTokens(TokenBatch):
    """Alive states moved to the front of a rectangle ``(B, K, D)``."""

    hidden: Tensor
    occupancy: NarrowedOccupancy
    sequences: Sequences
    left: Tensor | None = None  # (B, N + 1, D): last states of rows that left; column N takes the filler
    memory: None = None  # nobody halts here
    source: NarrowedTokens | None = None
    carry: Any = None
    charges: tuple[Charge, ...] = ()

    @classmethod
    def start(cls, hidden: Tensor, sequences: Sequences) -> NarrowedTokens:
        return cls(hidden, NarrowedOccupancy(sequences.position, sequences.real, sequences), sequences)

    def retire(self, keep: Tensor) -> NarrowedTokens:
        alive = self.occupancy.there
        keep = keep > 0.5
        stay = self.occupancy.rows(self.sequences.protected)
        if not self.sequences.covered:
            stay = stay | last_tokens(alive, keep | stay)
        return self._only((keep | stay) & alive, narrowest=1)

    def leave(self, gone: Tensor) -> NarrowedTokens:
        return self._only(self.occupancy.there & ~gone[:, None], narrowest=0)

    def _only(self, keep: Tensor, narrowest: int) -> NarrowedTokens:
        """The rows that ``keep`` ``(B, K)`` names; the others' states are put where ``restore`` finds them."""
        position, positions = self.occupancy.position, self.sequences.real.shape[1]
        width = self._width(keep, narrowest)
        rows = self.occupancy.falling(keep.to(torch.int8))[:, :width]
        keep = keep.gather(1, rows)
        position = torch.where(keep, position.gather(1, rows), positions)
        occupancy = replace(self.occupancy, position=position, there=keep)
        hidden = self.hidden.gather(1, rows[..., None].expand(-1, -1, self.hidden.shape[-1]))
        left = self.occupancy.restored(self.hidden, self.left)
        return replace(self, hidden=hidden, occupancy=occupancy, left=left)

    def _width(self, keep: Tensor, narrowest: int) -> int:
        """Rows of the longest survivor, K."""
        return max(int(keep.sum(1).max()), narrowest)  # the one host sync of a narrowed layer: K must be known

    def halt(self, running: Tensor) -> NarrowedTokens:
        raise SkimError("Halted tokens are still looked at, so no rectangle gets narrower; use execution=packed.")

    def pool(self, stride: int, alone: Tensor, kind: str = "mean", pads: bool = False) -> NarrowedTokens:
        return self._merged(windows(self.hidden, self.occupancy, None, stride, alone, kind, pads))

    def join(self, joins: Tensor, into: Tensor) -> NarrowedTokens:
        return self._merged(joined(self.hidden, self.occupancy, None, joins, into))

    def _merged(self, made: Merged) -> NarrowedTokens:
        """The batch of merged rows."""
        occupancy = NarrowedOccupancy(made.position, made.there, self.sequences, made.merged)
        return replace(self, hidden=made.hidden, occupancy=occupancy)

    def restore(self) -> Tensor:
        if self.left is None and self.occupancy.merged is None:
            return self.hidden
        return self.occupancy.shared(self.occupancy.restored(self.hidden, self.left)[:, : self.sequences.real.shape[1]])
