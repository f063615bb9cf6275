"""Keys and values of rows that are looked at without running: halted ones, and rows before they were pooled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skim.engine.backbone import Backbone
from skim.engine.inputs import Inputs
from skim.engine.packed import PackedTokens
from skim.engine.tokens import Occupancy, TokenBatch


class KeyValues:
    """Keys and values of rows that are looked at, kept while one layer runs again and again.

    A halted token's state does not change, so where layers share their weights neither do its key and value.
    """

    def __init__(self, backbone: Backbone, base: nn.Module, inputs: Inputs) -> None:
        self.backbone, self.base, self.inputs = backbone, base, inputs
        self.layer: nn.Module | None = None  # the one that ran last over a memory
        self.before: Occupancy | None = None  # who ran in it
        self.again = False  # whether the present layer is that one
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def projected(self, layer: nn.Module, tokens: TokenBatch) -> Occupancy | None:
        """Rows whose keys and values this layer has to compute; ``None``: all rows that are looked at."""
        again = layer is self.layer and tokens.memory is not None
        projected = self.before if again else None
        self.again, self.before = again, tokens.occupancy
        self.layer = layer if tokens.memory is not None else None
        return projected

    def of(self, layer: nn.Module, tokens: TokenBatch) -> tuple[Tensor, Tensor]:
        """Keys and values of all rows that are looked at, as the family's attention takes them; zeros elsewhere."""
        memory: TokenBatch = tokens.memory
        some, rows, again = memory, None, False
        if isinstance(tokens, PackedTokens):
            again = self.again and self.key is not None and tokens.changed is not None
            some, rows = tokens.wanting(again)
        geometry = self.backbone.geometry(self.base, some, self.inputs)
        key, value = self.backbone.keys_and_values(layer, some.hidden, geometry)
        if rows is not None:
            key, value = (
                put_in(old if again else None, new, rows, memory.hidden.shape[1])
                for old, new in ((self.key, key), (self.value, value))
            )
        self.key, self.value = key, value
        return key, value


def put_in(old: Tensor | None, new: Tensor, rows: Tensor, total: int) -> Tensor:
    """Keys or values of ``rows``, ``(1, H, n, d)``, among all others, ``(1, H, total, d)``: the old ones, or zeros."""
    if old is None:
        old = new.new_zeros(*new.shape[:2], total, new.shape[3])
    return old.index_copy(2, rows, new) if torch.is_grad_enabled() else old.index_copy_(2, rows, new)
