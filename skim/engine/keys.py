"""Keys and values of rows that are looked at without running: halted ones, and rows before they were pooled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skim.engine.backbone import Backbone
from skim.engine.inputs import Inputs
from skim.engine.packed import PackedTokens
from skim.engine.static import StaticTokens
from skim.engine.tokens import Occupancy, TokenBatch


class KeyValues:
    """Keys and values of rows that are looked at, kept while one layer runs again and again.

    A halted token's state does not change, so where layers share their weights neither do its key and value.
    """

    def __init__(self, backbone: Backbone, base: nn.Module, inputs: Inputs) -> None:
        self.backbone, self.base, self.inputs = backbone, base, inputs
        self.layer: nn.Module | None = None  # the one that ran last over a memory
        self.before: Occupancy | None = None  # the rows that ran in it
        self.memory: Occupancy | None = None  # the rows that were looked at in it
        self.index: Tensor | None = None  # (T,) flat input positions of the rows of key and value
        self.again = False  # whether the present layer is that one
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def projected(self, layer: nn.Module, tokens: TokenBatch) -> Occupancy | None:
        """Rows whose keys and values this layer has to compute; ``None``: all rows that are looked at."""
        halted = tokens.memory is not None and tokens.source is None
        again = halted and layer is self.layer
        projected = self.before if again else None
        if projected is not None and tokens.memory.occupancy is not self.memory:  # some of them have retired since
            projected = projected.among(tokens.memory.occupancy)
        self.again, self.before = again, tokens.occupancy
        self.layer, self.memory = (layer, tokens.memory.occupancy) if halted else (None, None)
        return projected

    def of(self, layer: nn.Module, tokens: TokenBatch) -> tuple[Tensor, Tensor]:
        """Keys and values of all rows that are looked at, as the family's attention takes them; zeros elsewhere."""
        others: TokenBatch = tokens.others
        some, rows, again = others, None, False
        if isinstance(tokens, (PackedTokens, StaticTokens)):
            again = self.again and self.key is not None and tokens.changed is not None
            some, rows = tokens.wanting(again)
            if again:
                self._forget(tokens.memory.occupancy.index)
            self.index = others.occupancy.index
        geometry = self.backbone.geometry(self.base, some, self.inputs)
        key, value = self.backbone.keys_and_values(layer, some.hidden, geometry)
        if rows is not None:
            total, spare = others.hidden.shape[1], int(isinstance(tokens, StaticTokens))
            key, value = (
                put_in(old if again else None, new, rows, total, spare)
                for old, new in ((self.key, key), (self.value, value))
            )
        self.key, self.value = key, value
        return key, value

    def _forget(self, index: Tensor) -> None:
        """Drop keys and values of rows that have retired since; ``index`` ``(T,)`` names those that are left."""
        assert self.index is not None
        assert self.key is not None
        assert self.value is not None
        if index is not self.index:
            rows = torch.searchsorted(self.index, index).clamp_max(len(self.index) - 1)  # filler finds filler, or any
            self.key, self.value = self.key.index_select(2, rows), self.value.index_select(2, rows)


def put_in(old: Tensor | None, new: Tensor, rows: Tensor, total: int, spare: int = 0) -> Tensor:
    """Keys or values of ``rows``, ``(1, H, n, d)``, among all others, ``(1, H, total, d)``: the old ones, or zeros.

    Filler of ``rows`` may be put ``spare`` places behind them.
    """
    if old is None:
        old = new.new_zeros(*new.shape[:2], total + spare, new.shape[3])
    elif spare:
        old = F.pad(old, (0, 0, 0, spare))
    old = old.index_copy(2, rows, new) if torch.is_grad_enabled() else old.index_copy_(2, rows, new)
    return old[:, :, :total]
