"""Masked execution: a padded batch, decisions as differentiable masks. How a method trains *through* its decisions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from skim.engine.narrowed import NarrowedTokens
from skim.engine.tokens import Occupancy, Sequences, TokenBatch, last_tokens
from skim.errors import SkimError


@dataclass(frozen=True)
class MaskedOccupancy(Occupancy):
    """A mask over the padded batch.

    Attributes:
        sequences: what entered.
        kept: ``(B, N)`` running product of all decisions, decisions on pads included (only the published Transkimmer
            loss looks at those); ``None`` until the first decision.
        faded: ``(B, N)`` factors on this layer's output that leave attention alone (LTP's published soft stage).
    """

    sequences: Sequences
    kept: Tensor | None = None
    faded: Tensor | None = None
    merged: Tensor | None = None

    @property
    def position(self) -> Tensor:  # type: ignore[override]
        """``(B, N)``: every row is where it came in."""
        return self.sequences.position

    @property
    def weights(self) -> Tensor:  # type: ignore[override]
        """How much each row counts as a key, ``(B, N)``: 0 for pads and retired tokens; bool if nothing was decided."""
        return self.sequences.real if self.kept is None else self.kept * self.sequences.real

    def counts(self) -> Tensor:
        return self.weights.sum(1)

    def alive(self) -> Tensor:
        return self.weights > 0.5

    def rows(self, values: Tensor) -> Tensor:
        return values

    def put(self, values: Tensor, into: Tensor) -> Tensor:
        return values.to(into.dtype)


@dataclass(frozen=True)
class MaskedTokens(TokenBatch):
    """Padded states ``(B, N, D)`` under a mask.

    Retired rows go on being computed: nobody reads them, but the gradient of the mask does - it compares a token's last
    state with the one it would have had.
    """

    hidden: Tensor
    occupancy: MaskedOccupancy
    sequences: Sequences
    settled: Tensor | None = None  # (B, N, D): the states of rows retired so far, valid where kept == 0
    memory: MaskedTokens | None = None
    carry: Any = None

    @classmethod
    def start(cls, hidden: Tensor, sequences: Sequences) -> MaskedTokens:
        return cls(hidden, MaskedOccupancy(sequences), sequences)

    def retire(self, keep: Tensor) -> MaskedTokens:
        kept = self.occupancy.kept
        stay = self.sequences.protected
        if not (self.sequences.covered or self.sequences.run_on):
            stay = stay | last_tokens(self.occupancy.alive(), (keep > 0.5) | stay)
        keep = torch.where(stay, 1.0, keep.float())
        occupancy = MaskedOccupancy(self.sequences, keep if kept is None else kept * keep)
        return replace(self, occupancy=occupancy, settled=self.restore(), memory=None)

    def halt(self, running: Tensor) -> MaskedTokens:
        memory = self if self.memory is None else self.memory
        kept = self.occupancy.kept
        running = running.float() if kept is None else kept * running
        occupancy = MaskedOccupancy(self.sequences, running)
        return replace(self, occupancy=occupancy, settled=self.restore(), memory=memory)

    def leave(self, gone: Tensor) -> MaskedTokens:
        kept, stay = self.occupancy.kept, (~gone).float()[:, None].expand_as(self.sequences.real)
        occupancy = MaskedOccupancy(self.sequences, stay if kept is None else kept * stay)
        return replace(self, occupancy=occupancy, settled=self.restore(), memory=None)

    def pool(self, stride: int, alone: Tensor, kind: str = "mean", pads: bool = False) -> NarrowedTokens:
        kept = self.occupancy.kept
        if self.memory is not None or (kept is not None and kept.requires_grad):
            raise SkimError("Tokens that have halted, or whose decisions are relaxed, cannot be merged; pool first.")
        start = replace(NarrowedTokens.start(self.hidden, self.sequences), carry=self.carry)
        if kept is not None:
            start = replace(start, left=F.pad(self.restore(), (0, 0, 0, 1)))
            start = replace(start, occupancy=replace(start.occupancy, weights=self.occupancy.weights > 0.5))
        return start.pool(stride, alone, kind, pads)

    def fade(self, factors: Tensor) -> MaskedTokens:
        """Note factors ``(B, N)`` for this layer's output, without anybody leaving; the method applies them there."""
        return replace(self, occupancy=replace(self.occupancy, faded=factors))

    def restore(self) -> Tensor:
        kept = self.occupancy.kept
        if kept is None or self.settled is None or self.sequences.run_on:
            return self.hidden
        kept = kept[..., None].to(self.hidden.dtype)
        return self.settled * (1 - kept) + self.hidden * kept
