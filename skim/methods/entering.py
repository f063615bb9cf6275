"""Baselines that choose tokens by the input alone, before any layer has run: what costs no model.

A token that does not enter keeps its embedding, and a head that reads every token reads that. Positions stay those of
the whole input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skim.engine.tokens import Sequences, TokenBatch
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
        return tokens.retire(tokens.occupancy.rows(self.enters(ids, tokens.sequences)))

    def enters(self, ids: Tensor, sequences: Sequences) -> Tensor:
        """The rule: who enters, ``(B, N)`` bool; anything on pads.

        Args:
            ids: ``(B, N)``.
            sequences: as they came.
        """
        raise NotImplementedError


def ranked(keys: Tensor) -> Tensor:
    """Each position's place in its sequence by rising key, ``(B, N)`` from 0; of equal ones the first comes first."""
    order = keys.argsort(dim=1, stable=True)
    places = torch.arange(keys.shape[1], device=keys.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)
