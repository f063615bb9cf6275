"""ELECTRA: BERT behind embeddings of another width."""

from __future__ import annotations

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from skim.backbones.base import Backbone, Module
from skim.engine.inputs import Inputs


class Electra(Backbone):
    """Only the way into the first layer differs."""

    model_types = ("electra",)
    embedding_parts = ("embeddings", "embeddings_project")
    exports = True
    output = BaseModelOutputWithPastAndCrossAttentions

    def embed(self, base: Module, inputs: Inputs) -> Tensor:
        hidden = super().embed(base, inputs)
        return base.embeddings_project(hidden) if hasattr(base, "embeddings_project") else hidden
