"""Megatron-BERT: BERT with the norms before the halves."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from skim.backbones.base import Module, Narrowed


class MegatronBert(Narrowed):
    """One more norm follows the last layer."""

    model_types = ("megatron-bert",)
    always_pooled = True

    def feed_forward(self, layer: Module, hidden: Tensor) -> Tensor:
        return layer.feed_forward_chunk(hidden)

    def finish(self, base: Module, hidden: Tensor) -> Any:
        return super().finish(base, base.encoder.ln(hidden))
