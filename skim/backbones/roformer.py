"""RoFormer: BERT with rotary positions from a table."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from skim.backbones.base import Module, Narrowed
from skim.engine.inputs import Inputs
from skim.engine.tokens import TokenBatch


class RoFormer(Narrowed):
    """It takes no position ids: a token is turned by where it came in."""

    model_types = ("roformer",)
    embedding_parts = ("embeddings", "embeddings_project")
    output = BaseModelOutputWithPastAndCrossAttentions

    def embed(self, base: Module, inputs: Inputs) -> Tensor:
        hidden = base.embeddings(
            input_ids=inputs.input_ids, token_type_ids=inputs.token_type_ids, inputs_embeds=inputs.inputs_embeds
        )
        return base.embeddings_project(hidden) if hasattr(base, "embeddings_project") else hidden

    def geometry(self, base: Module, tokens: TokenBatch, inputs: Inputs) -> Any:
        table = base.encoder.embed_positions
        position = tokens.occupancy.position.clamp(max=table.num_embeddings - 1)  # filler rows sit at N
        return {"sinusoidal_pos": table(position.shape, position_ids=position)[:, None]}
