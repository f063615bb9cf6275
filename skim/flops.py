"""FLOPs from first principles: what one token, and one pair of tokens, costs in each layer.

A multiplication and an addition are two FLOPs. Counted are the encoder's layers and the method's own modules, over real
tokens; embeddings and the head, which no method touches, are in neither side of *relative FLOPs*. The counts are checked
against ``torch.utils.flop_counter`` on packed runs (law 5).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class LayerCost:
    """FLOPs of one layer of the backbone.

    Attributes:
        attention: per token entering the attention half (its linear maps).
        pair: per pair of a query and a key (scores and context, all heads).
        feed_forward: per token entering the feed-forward half.
        fixed: per sequence, whatever its length (tables that are projected anew in every layer).
    """

    attention: float
    pair: float
    feed_forward: float
    fixed: float = 0.0

    def __call__(self, attending: Tensor, feeding: Tensor) -> Tensor:
        """FLOPs per sequence, ``(B,)``, given the tokens per sequence that enter either half, ``(B,)`` each."""
        attending, feeding = attending.double(), feeding.double()
        per_token = self.attention * attending + self.feed_forward * feeding
        return per_token + self.pair * attending**2 + self.fixed


def linear_flops(module: nn.Module) -> float:
    """FLOPs per token of every ``nn.Linear`` under ``module``, adapters (LoRA) included."""
    linears = (m for m in module.modules() if isinstance(m, nn.Linear))
    return float(sum(2 * m.in_features * m.out_features for m in linears))
