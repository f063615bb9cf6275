"""MobileBERT: layers that squeeze their input, work on it, and widen it again."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from skim.backbones.base import Backbone, Module
from skim.engine.mask import AttentionMask


class MobileBert(Backbone):
    """A layer cannot be split: its last step looks back at the state before its first.

    So the whole layer is the attention half, and what a method drops inside it is gone from the next layer on.
    """

    model_types = ("mobilebert",)
    feed_forward_parts = ()
    looks_apart = False
    output = BaseModelOutputWithPooling

    def attend(self, layer: Module, hidden: Tensor, mask: AttentionMask, geometry: Any) -> Tensor:
        # Not layer(...): a checkpointed layer's __call__ would be recomputed inside the walk's own recomputation.
        return layer.forward(hidden, mask)

    def feed_forward(self, layer: Module, hidden: Tensor) -> Tensor:
        return hidden
