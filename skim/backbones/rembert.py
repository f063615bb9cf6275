"""RemBERT: BERT behind narrow input embeddings."""

from __future__ import annotations

from torch import Tensor

from skim.backbones.base import Module, Narrowed
from skim.engine.inputs import Inputs


class RemBert(Narrowed):
    """Only the way into the first layer differs."""

    model_types = ("rembert",)
    embedding_parts = ("embeddings", "encoder.embedding_hidden_mapping_in")
    always_pooled = True

    def embed(self, base: Module, inputs: Inputs) -> Tensor:
        return base.encoder.embedding_hidden_mapping_in(super().embed(base, inputs))
