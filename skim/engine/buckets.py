"""Batches of a few sizes only, so that few graphs serve many: inputs are padded on entry, and a trace is cut back.

What is added is padding like any other, and packed execution computes none: only embedding and restoring see it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from skim.engine.inputs import INPUTS, Inputs
from skim.engine.static import StaticOccupancy
from skim.engine.tokens import Charge, Nobody, Occupancy, Sequences
from skim.engine.trace import LayerTrace, Trace
from skim.engine.trees import take_apart


def bucket(size: int, least: int = 1) -> int:
    """The next size that has graphs of its own: four between a power of two and the next, at least ``least`` apart."""
    step = max(least, 1 << max((size - 1).bit_length() - 3, 0))
    return -(-size // step) * step


def padded(inputs: Inputs, batch: int, length: int, pad: int) -> Inputs:
    """The same inputs with more sequences, all empty, and more positions, all padding.

    Args:
        inputs: of B sequences and N positions.
        batch: at least B.
        length: at least N.
        pad: the id of padding.
    """
    rows, places = batch - inputs.shape[0], length - inputs.shape[1]
    given: dict[str, Any] = {name: getattr(inputs, name) for name in INPUTS}
    if given["attention_mask"] is None:
        known = given["input_ids"] if given["inputs_embeds"] is None else given["inputs_embeds"][..., 0]
        given["attention_mask"] = known.new_ones(inputs.shape, dtype=known.long().dtype)
    wider = {
        name: value if value is None else F.pad(value, (*(0, 0) * (value.dim() - 2), 0, places, 0, rows), value=fill)
        for name, value in given.items()
        for fill in (pad if name == "input_ids" else 0,)
    }
    return Inputs(**wider)


def trimmed(trace: Trace, batch: int, length: int) -> Trace:
    """The trace as it is without what :func:`padded` has added to ``(batch, length)``."""
    return _Trimming(trace.sequences, batch, length).trace(trace)


def within(values: Tensor, shape: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """``(B, N, ...)`` or ``(B, ...)`` of a padded batch of ``shape`` cut to ``size``; any other tensor as it is."""
    if tuple(values.shape[:2]) == shape:
        return values[: size[0], : size[1]]
    return values[: size[0]] if values.dim() and len(values) == shape[0] else values


class _Trimming:
    """One trace; parts that it shares are one object afterwards as well."""

    def __init__(self, sequences: Sequences, batch: int, length: int) -> None:
        self.batch, self.length = batch, length
        self.before = (sequences.real.shape[0], sequences.real.shape[1])
        ids = sequences.input_ids
        self.sequences = replace(
            sequences,
            real=self.cut(sequences.real),
            protected=self.cut(sequences.protected),
            input_ids=None if ids is None else self.cut(ids),
        )
        self.made: dict[int, Any] = {}

    def cut(self, values: Tensor) -> Tensor:
        return within(values, self.before, (self.batch, self.length))

    def occupancy(self, rows: Any) -> Any:
        if rows is None or id(rows) in self.made:
            return rows if rows is None else self.made[id(rows)]
        made: Occupancy
        if isinstance(rows, StaticOccupancy):
            sequence, position = rows.index // self.before[1], rows.index % self.before[1]
            merged = None if rows.merged is None else self.cut(rows.merged)
            index = (sequence * self.length + position).clamp_max(self.batch * self.length)
            made = replace(
                rows, index=index, bounds=rows.bounds[: self.batch + 1], sequences=self.sequences, merged=merged
            )
        else:
            assert isinstance(rows, Nobody)
            made = replace(rows, sequences=self.sequences)
        self.made[id(rows)] = made
        return made

    def charge(self, charge: Charge) -> Charge:
        given = charge.per_sequence
        per_sequence = given[: self.batch] if isinstance(given, Tensor) and given.dim() else given
        return replace(charge, occupancy=self.occupancy(charge.occupancy), per_sequence=per_sequence)

    def layer(self, ran: LayerTrace) -> LayerTrace:
        rows = {name: self.occupancy(getattr(ran, name)) for name in ("attending", "feeding", "looked_at", "projected")}
        return replace(ran, **rows, charges=tuple(map(self.charge, ran.charges)))

    def trace(self, trace: Trace) -> Trace:
        leaves, skeleton = take_apart(trace.carry)
        carry = skeleton.build([self.cut(leaf) for leaf in leaves])
        return replace(trace, sequences=self.sequences, layers=[self.layer(ran) for ran in trace.layers], carry=carry)
