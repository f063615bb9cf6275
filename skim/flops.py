"""FLOPs from first principles: what one token, and one pair of tokens, costs in each layer.

A multiplication and an addition are two FLOPs. Counted are the encoder's layers and the method's own modules, over real
tokens; embeddings and the head, which no method touches, are in neither side of *relative FLOPs*. The counts equal
``torch.utils.flop_counter`` on packed runs (law 5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class LayerCost:
    """FLOPs of one layer of the backbone.

    Attributes:
        attention: per token entering the attention half (its linear maps).
        pair: per pair of a query and a key (scores and context, all heads).
        feed_forward: per token entering the feed-forward half.
        fixed: per sequence, whatever its length: tables of relative positions that are projected anew in every layer.
            A batch may share that work; it is counted as at batch size 1, so that FLOPs do not depend on batch mates.
        table: per input position: such tables that grow with the input, and do not shrink when tokens leave (XLNet).
        lookup: per pair of a query and an input position (XLNet).
        keys: the part of ``attention`` that makes keys and values: what a row costs that is only looked at.
    """

    attention: float
    pair: float
    feed_forward: float
    fixed: float = 0.0
    table: float = 0.0
    lookup: float = 0.0
    keys: float = 0.0

    def __call__(
        self,
        attending: Tensor,
        feeding: Tensor,
        entered: Tensor,
        looked_at: Tensor | None = None,
        projected: Tensor | None = None,
    ) -> Tensor:
        """FLOPs per sequence, ``(B,)`` float64.

        Args:
            attending: tokens entering the attention half, ``(B,)``.
            feeding: tokens entering the feed-forward half, ``(B,)``.
            entered: real tokens of the input, ``(B,)``.
            looked_at: tokens that attention looks at, ``(B,)``; ``None``: those that attend.
            projected: tokens whose keys and values were computed in this layer, ``(B,)``; ``None``: all looked at.
        """
        attending, feeding, entered = precise(attending), precise(feeding), precise(entered)
        looked_at = attending if looked_at is None else precise(looked_at)
        projected = looked_at if projected is None else precise(projected)
        here = precise(attending > 0)  # a layer that none of a sequence's tokens enters does not run for it
        rows = self.attention * attending + self.feed_forward * feeding + self.keys * (projected - attending)
        pairs = self.pair * attending * looked_at + self.lookup * attending * entered
        return rows + pairs + (self.table * entered + self.fixed) * here


def precise(counts: Tensor) -> Tensor:
    """Convert counts to float64, or to float32 on Apple's GPUs, which have no float64."""
    return counts.float() if counts.device.type == "mps" else counts.double()


def ltp_cost(config: Any) -> LayerCost:
    """The formula of the published LTP code, per layer: 2 D n^2 + 4 D^2 n + 8 D^2 n' multiplications and additions.

    With n tokens in the layer's attention and n' in its feed-forward, whatever that one's real width is; the output
    projection is charged before the decision, scores are free. Two FLOPs for each.
    """
    width = float(config.hidden_size)
    return LayerCost(attention=8 * width**2, pair=4 * width, feed_forward=16 * width**2)


FORMULAS: dict[str, Callable[[Any], LayerCost]] = {"ltp": ltp_cost}
