"""Baselines that choose tokens by the input alone, before any layer has run: what costs no model.

A token that does not enter keeps its embedding, and a head that reads every token reads that. Positions stay those of
the whole input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skim.engine.tokens import Occupancy, TokenBatch
from skim.methods.base import Method
from skim.methods.precision import Precise


class Entering(Precise, Method):
    """Retires tokens before the first layer by a rule on their ids; nothing is learned, so it trains packed."""

    def before_layer(self, i: int, tokens: TokenBatch) -> TokenBatch:
        if i > 0:
            return tokens
        ids = tokens.sequences.input_ids
        if ids is None:
            raise self.refusal("needs input_ids: with inputs_embeds nothing says which token is which.")
        return tokens.retire(tokens.occupancy.rows(self.enters(ids, tokens.occupancy)))

    def enters(self, ids: Tensor, rows: Occupancy) -> Tensor:
        """The rule: who enters, ``(B, N)`` bool; anything on pads.

        Args:
            ids: ``(B, N)``.
            rows: before anybody has left.
        """
        raise NotImplementedError


def ranked(keys: Tensor) -> Tensor:
    """Each position's place in its sequence by rising key, ``(B, N)`` from 0; of equal ones the first comes first.

    Args:
        keys: ``(B, N)`` int64; N times each fits into 64 bits.
    """
    width = keys.shape[1]
    places = torch.arange(width, device=keys.device).expand_as(keys)
    # no two keys are alike then: a graph has no stable sort
    order = (keys * width + places).topk(width, dim=1, largest=False).indices
    return torch.empty_like(order).scatter_(1, order, places)
