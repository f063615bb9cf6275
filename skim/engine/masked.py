"""Masked execution: a padded batch, decisions as differentiable masks. How a method trains *through* its decisions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from skim.engine.rectangle import Merged, Rectangle, joined, windows
from skim.engine.tokens import Charge, Sequences, TokenBatch, last_tokens
from skim.errors import SkimError


@dataclass(frozen=True)
class MaskedOccupancy(Rectangle):
    """A mask over a rectangle: the padded batch, or its windows once rows have been merged.

    Attributes:
        position: ``(B, K)`` input position of each row; ``N`` on filler rows.
        there: ``(B, K)`` bool, False on pads and filler.
        sequences: what entered.
        kept: ``(B, K)`` running product of all decisions, decisions on pads included (only the published Transkimmer
            loss looks at those); ``None`` until the first decision.
        faded: ``(B, K)`` factors on this layer's output that leave attention alone (LTP's published soft stage).
        merged: ``(B, N)`` the input position at which each token's row sits; ``None``: at its own.
    """

    position: Tensor
    there: Tensor
    sequences: Sequences
    kept: Tensor | None = None
    faded: Tensor | None = None
    merged: Tensor | None = None

    @property
    def weights(self) -> Tensor:  # type: ignore[override]
        """How much each row counts as a key, ``(B, K)``: 0 for pads and retired tokens; bool if nothing was decided."""
        return self.there if self.kept is None else self.kept * self.there

    def times(self, keep: Tensor) -> MaskedOccupancy:
        """The rows after one more decision, ``(B, K)``."""
        return replace(self, kept=keep if self.kept is None else self.kept * keep, faded=None)

    def among(self, others: MaskedOccupancy) -> MaskedOccupancy:  # type: ignore[override]
        return self if others.kept is None else self.times(others.kept)


@dataclass(frozen=True)
class MaskedTokens(TokenBatch):
    """Padded states ``(B, K, D)`` under a mask; K is N until rows are merged.

    Retired rows go on being computed: nobody reads them, but the gradient of the mask does - it compares a token's last
    state with the one it would have had.
    """

    hidden: Tensor
    occupancy: MaskedOccupancy
    sequences: Sequences
    settled: Tensor | None = None  # (B, K, D): the states of rows retired so far, valid where kept == 0
    left: Tensor | None = None  # (B, N + 1, D): last states of tokens that had left before rows were merged
    memory: MaskedTokens | None = None
    source: MaskedTokens | None = None
    carry: Any = None
    charges: tuple[Charge, ...] = ()

    @classmethod
    def start(cls, hidden: Tensor, sequences: Sequences) -> MaskedTokens:
        return cls(hidden, MaskedOccupancy(sequences.position, sequences.real, sequences), sequences)

    def retire(self, keep: Tensor) -> MaskedTokens:
        stay = self.occupancy.rows(self.sequences.protected)
        if not (self.sequences.covered or self.sequences.run_on):
            stay = stay | last_tokens(self.occupancy.weights > 0.5, (keep > 0.5) | stay)
        return self._decided(torch.where(stay, 1.0, keep.float()))

    def leave(self, gone: Tensor) -> MaskedTokens:
        return self._decided((~gone).float()[:, None].expand_as(self.occupancy.there))

    def _decided(self, keep: Tensor) -> MaskedTokens:
        """The batch after a decision that lets rows leave, ``(B, K)``."""
        occupancy, memory = self.occupancy.times(keep), self.memory
        if memory is not None:  # whoever ran until now and has left is looked at no longer
            ran, now = self.occupancy.kept, occupancy.kept
            assert ran is not None  # some have halted, which was a decision
            assert now is not None
            kept = (1.0 if memory.occupancy.kept is None else memory.occupancy.kept) - (ran - now)
            memory = replace(memory, occupancy=replace(memory.occupancy, kept=kept))
        return replace(self, occupancy=occupancy, settled=self._last(), memory=memory)

    def halt(self, running: Tensor) -> MaskedTokens:
        memory = self if self.memory is None else self.memory
        return replace(self, occupancy=self.occupancy.times(running.float()), settled=self._last(), memory=memory)

    def pool(self, stride: int, alone: Tensor, kind: str = "mean", pads: bool = False) -> MaskedTokens:
        if self.memory is not None:
            raise SkimError("Halted tokens cannot be merged; pool first.")
        return self._merged(windows(self.hidden, self.occupancy, self.occupancy.kept, stride, alone, kind, pads))

    def join(self, joins: Tensor, into: Tensor) -> MaskedTokens:
        if self.memory is not None:
            raise SkimError("Halted tokens cannot be merged; join first.")
        return self._merged(joined(self.hidden, self.occupancy, self.occupancy.kept, joins, into))

    def _merged(self, made: Merged) -> MaskedTokens:
        """The batch of merged rows; those that had left before are among them no longer."""
        rows = self.occupancy
        left = None if rows.kept is None and rows.whole else rows.restored(self._last(), self.left)
        occupancy = MaskedOccupancy(made.position, made.there, self.sequences, made.kept, merged=made.merged)
        return replace(self, hidden=made.hidden, occupancy=occupancy, settled=None, left=left)

    def fade(self, factors: Tensor | None) -> MaskedTokens:
        """Note factors ``(B, K)`` for this layer's output, without anybody leaving; the method applies them there."""
        return replace(self, occupancy=replace(self.occupancy, faded=factors))

    def _last(self) -> Tensor:
        """The last state of each row, ``(B, K, D)``."""
        kept = self.occupancy.kept
        if kept is None or self.settled is None or self.sequences.run_on:
            return self.hidden
        kept = kept[..., None].to(self.hidden.dtype)
        return self.settled * (1 - kept) + self.hidden * kept

    def restore(self) -> Tensor:
        if self.occupancy.whole:
            return self._last()
        states = self.occupancy.restored(self._last(), self.left)
        return self.occupancy.shared(states[:, : self.sequences.real.shape[1]])
