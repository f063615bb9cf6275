"""The backbone as it is: the baseline that every other method is measured against, packed and padded."""

from __future__ import annotations

from skim.methods.base import Method


class Dense(Method):
    """Retires nothing. Packed, it is still faster than plain transformers on ragged batches: it computes no pads."""

    name = "dense"
    does = frozenset()

    def __init__(self) -> None:
        super().__init__()

    def without_layers(self) -> None:
        return None
