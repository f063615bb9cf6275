r"""Token Merging: in each layer the most similar tokens become one, wherever they stand (Bolya et al., ICLR 2023).

Between attention and feed-forward, the rows of a sequence are dealt out in turns to two sets :math:`A` and :math:`B`
(bipartite soft matching, section 3). Each of :math:`A` draws an edge to the most similar of :math:`B`; along the
:math:`r` best edges, rows are merged:

.. math:: \mathrm{sim}(a, b) = \frac{h_a \cdot h_b}{|h_a|\,|h_b|}, \qquad
          h_b \leftarrow \frac{s_b h_b + \sum_{a \to b} s_a h_a}{s_b + \sum_{a \to b} s_a}

with :math:`s` the number of tokens that a row stands for. Attention is proportional to it (Eq. 1), so that a row counts
as much as its tokens would:

.. math:: A = \mathrm{softmax}\left(\frac{Q K^\top}{\sqrt{d}} + \log s\right)

Heads that read every token read its row's state. What is different from the paper, which is about images of one size:
:math:`r` is a share of a sequence's tokens; and what is compared are the states that will be averaged, which every
architecture has, where the paper compares keys (its ablation finds those a little better).
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from skim.engine.tokens import TokenBatch
from skim.flops import precise
from skim.methods.base import Method
from skim.methods.options import Special, Target

LEAST = 0.01  # no layer leaves a smaller share of a sequence's tokens


def matched(states: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Best edge of each row to one of the other set, by cosine similarity.

    Args:
        states: ``(G, n, D)``; the rows of a sequence, of which the first, third, ... are in set A, the others in B.
        free: ``(G, n)`` bool, False for rows that take no part.

    Returns:
        The similarity ``(G, n)``, minus infinity for a row that has no edge, as all of B; and the place of the row at
        the other end, ``(G, n)`` int64.
    """
    places = states.shape[1]
    with torch.autocast(states.device.type, enabled=False):  # in half precision many similarities would be the same
        unit = F.normalize(states.to(torch.promote_types(states.dtype, torch.float32)), dim=-1)
        scores = torch.bmm(unit[:, ::2], unit[:, 1::2].transpose(1, 2))
    scores = scores.masked_fill(~(free[:, ::2, None] & free[:, None, 1::2]), -torch.inf)
    best, of = F.pad(scores, (0, 1), value=-torch.inf).max(2)  # the last is nobody, where B is empty
    edges = torch.stack([best, torch.full_like(best, -torch.inf)], 2).flatten(1)[:, :places]
    others = torch.stack([2 * of + 1, torch.zeros_like(of)], 2).flatten(1)[:, :places]
    return edges, others


class ToMe(Method):
    """Merges the most similar tokens of each sequence, layer by layer; nothing is learned, so it trains packed.

    Args:
        r: share of a sequence's tokens that is merged away in each layer, on average; at most half of the rows left.
        inflection: how that share goes from layer to layer: 0 the same, -1 falling from twice as much to nothing, 1
            rising so.
        proportional: let attention count a row as often as it has tokens (the paper's Eq. 1).
        target: relative FLOPs that r is moved to meet, before training and after, or a range of them for a model that
            takes any; ``None`` leaves it.
        protect: special tokens that are never merged: ``cls`` (what the head reads), ``sep``.
    """

    name = "tome"
    does = frozenset({"merges"})
    defining = ("proportional", "protect")

    def __init__(
        self,
        r: Annotated[float, Field(ge=0, le=0.5)] = 0.08,
        inflection: Annotated[float, Field(ge=-1, le=1)] = 0.0,
        proportional: bool = True,
        target: Target | None = None,
        protect: tuple[Special, ...] = ("cls",),
    ) -> None:
        super().__init__(protect)
        self.r = r
        self.inflection = inflection
        self.proportional = proportional
        self.shift = torch.zeros((), dtype=torch.float32)
        self.aim(target)

    def check_fit(self) -> None:
        if self.r == 0 and self.target is None:
            raise self.refusal("merges nothing; use a share above 0, or a target.", r=self.r)

    def left(self, i: int) -> Tensor:
        """Share of a sequence's tokens that are rows of their own behind layer ``i``, a float64 scalar."""
        layers = self.spec.layers
        steps = range(i + 1)
        done = sum(1 + self.inflection * (2 * j / (layers - 1) - 1) for j in steps) if layers > 1 else 1.0
        return (1 - (self.r - precise(self.shift)).clamp(0, 0.5) * done).clamp(LEAST, 1)  # type: ignore[arg-type]

    def key_bias(self, i: int, looked_at: TokenBatch) -> Tensor | None:
        if not self.proportional or looked_at.occupancy.merged is None:
            return None
        return looked_at.occupancy.sizes.log()

    def after_attention(self, i: int, tokens: TokenBatch, received: Tensor | None) -> TokenBatch:
        rows = tokens.occupancy
        counts = rows.counts()
        with torch.no_grad():
            free = ~rows.rows(tokens.sequences.protected)
            similarity, other = rows.by_sequence(matched, tokens.hidden, free)
            merges = counts.round() - rows.share(self.left(i))
            joins = (rows.rank(similarity) < rows.spread(merges)) & (similarity > -torch.inf)
        pairs = (precise(counts) ** 2 - precise(counts.detach()).round() % 2) / 4  # of a row of A and one of B
        return tokens.charge(per_sequence=2.0 * self.spec.width * pairs).join(joins, other)
