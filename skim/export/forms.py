"""Forms of a :class:`~skim.engine.tokens.TokenBatch` that a tracer can write down as a graph.

In a graph, no Python looks at a value: every shape that depends on data is a tensor. :class:`Alone` is one sequence
that gets shorter, without a mask, for there are no pads; :class:`Together` is narrowed, and its width is a tensor.
Both run in torch as well, with the same outputs as the forms that they stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from skim.engine.kernels.padded import added
from skim.engine.mask import AttentionMask, column_sums
from skim.engine.narrowed import NarrowedOccupancy, NarrowedTokens
from skim.engine.pooling import pooled
from skim.engine.tokens import Charge, Occupancy, Sequences, TokenBatch, merge

FUSED: ContextVar[bool] = ContextVar("FUSED", default=False)  # attention is one operator of ONNX Runtime's own

LONGEST: ContextVar[int] = ContextVar("LONGEST", default=512)  # real tokens that a sequence may have


class FusedAttention(torch.autograd.Function):
    """Attention of heads ``(B, H, N, d)`` that a graph holds as ONNX Runtime's ``MultiHeadAttention``."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, there: Tensor | None, shape: tuple[int, int], scale: float
    ) -> Tensor:
        """Compute it in torch; ``shape`` is ``(H, d)``, and the context ``(B, N, H d)``."""
        seen = None if there is None else there.bool()[:, None, None]
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale)
        return context.transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(g: Any, query: Any, key: Any, value: Any, there: Any, shape: tuple[int, int], scale: float) -> Any:
        """Write the operator; heads lie side by side in its inputs."""
        heads, size = shape
        flat = g.op("Constant", value_t=torch.tensor([0, -1, heads * size]))
        rows = [g.op("Reshape", g.op("Transpose", x, perm_i=[0, 2, 1, 3]), flat) for x in (query, key, value)]
        nothing = g.op("prim::Constant")
        nothing.setType(torch._C.OptionalType.ofTensor())
        masks = [] if there is None or there.node().mustBeNone() else [nothing, there]
        context = g.op("com.microsoft::MultiHeadAttention", *rows, *masks, num_heads_i=heads, scale_f=scale)
        return context.setType(query.type().with_sizes([None, None, heads * size]))


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, scaling: float | None, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """Attention in a rectangle, written in few operators; shapes as in :func:`skim.engine.attention.skim_attention`."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    alone = isinstance(mask.keys, AloneOccupancy)
    if mask.wants_received:
        scores = query * float(scale) @ key.transpose(2, 3)
        if mask.bias is not None:
            scores = scores + mask.bias[:, None, None, :]
        if not alone or mask.window is not None:
            scores = scores.masked_fill(~mask.visible(), torch.finfo(scores.dtype).min)
        probabilities = scores.softmax(-1)
        if alone:
            received = probabilities.mean(1).sum(1)
        else:
            received = column_sums(probabilities, mask.occupancy.weights)
        return probabilities @ value, received
    if FUSED.get() and mask.window is None and mask.bias is None:
        there = None if alone else mask.keys.weights.int()
        shape = int(query.shape[1]), int(query.shape[3])
        context = FusedAttention.apply(query, key, value, there, shape, float(scale))  # type: ignore[no-untyped-call]
        return context.unflatten(-1, shape).transpose(1, 2), None
    seen = added(None if alone and mask.window is None else mask.visible(), mask.bias, query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale), None


def falling(values: Tensor) -> Tensor:
    """Numbers of rows by falling value, ``(B, K)``; of decisions, which are 0 or 1, ties go by position."""
    if not values.is_floating_point():  # not every runtime takes ties in their order
        row = torch.arange(values.shape[1], device=values.device)
        values = values.float() * values.shape[1] - row.float()
    return values.topk(values.shape[1], dim=1).indices


def share(rows: Occupancy, rate: Tensor) -> Tensor:
    """:meth:`Occupancy.share`, looked up: runtimes multiply in float32, where other products end in one half."""
    number = float(rate)
    table = torch.tensor([round(length * number) for length in range(LONGEST.get() + 1)])
    return table.index_select(0, rows.sequences.lengths)


@dataclass(frozen=True)
class AloneOccupancy(Occupancy):
    """Rows of one sequence without pads.

    Attributes:
        index: ``(T,)`` input position of each row; rising.
        sequences: what entered.
        whole: nobody has left.
    """

    index: Tensor
    sequences: Sequences
    merged: Tensor | None = None
    whole: bool = False
    attention = staticmethod(attention)
    falling = staticmethod(falling)
    share = share

    @property
    def position(self) -> Tensor:  # type: ignore[override]
        """``(1, T)``."""
        return self.sequences.position if self.whole else self.index[None]

    @property
    def weights(self) -> Tensor:  # type: ignore[override]
        """``(1, T)``, all alike."""
        return torch.ones_like(self.index, dtype=torch.bool)[None]

    def counts(self) -> Tensor:
        return self.weights.sum(1)

    def alive(self) -> Tensor:
        alive = torch.zeros_like(self.sequences.real, dtype=torch.float32)
        return self.shared(self.put(self.weights.float(), alive)).bool()

    def rows(self, values: Tensor) -> Tensor:
        return values if self.whole else values.index_select(1, self.index)

    def put(self, values: Tensor, into: Tensor) -> Tensor:
        return into.scatter(1, self.index[None], values.to(into.dtype))

    def by_sequence(self, function: Callable[..., tuple[Tensor, ...]], *values: Tensor) -> tuple[Tensor, ...]:
        return function(*values)

    def follow(self, values: Tensor, later: AloneOccupancy) -> Tensor:  # type: ignore[override]
        if later.index is self.index:
            return values
        row = torch.arange(self.index.shape[0], device=self.index.device)
        place = self.put(row[None], torch.zeros_like(self.sequences.position))
        return values.index_select(1, place[0].index_select(0, later.index))


@dataclass(frozen=True)
class Alone(TokenBatch):
    """Alive states of one sequence, ``(1, T, D)``: packed execution of a batch of one.

    Attributes:
        left: ``(N, D)`` last states of rows that left; ``None`` while nobody has.
        remembers: whether :meth:`restore` needs them: not where the head reads a first token that never leaves.
    """

    hidden: Tensor
    occupancy: AloneOccupancy
    sequences: Sequences
    left: Tensor | None = None
    memory: None = None
    source: Alone | None = None
    carry: Any = None
    charges: tuple[Charge, ...] = ()
    remembers: ClassVar[bool] = True

    @classmethod
    def start(cls, hidden: Tensor, sequences: Sequences) -> Alone:
        return cls(hidden, AloneOccupancy(sequences.position[0], sequences, whole=True), sequences)

    def retire(self, keep: Tensor) -> Alone:
        keep = keep if keep.dtype == torch.bool else keep > 0.5
        keep = (keep | self.occupancy.rows(self.sequences.protected)).reshape(-1)
        if not self.sequences.covered:
            keep = keep | (~keep.any() & (torch.arange(keep.shape[0], device=keep.device) == 0))
        rows = keep.nonzero().squeeze(1)
        occupancy = replace(self.occupancy, index=self.occupancy.index.index_select(0, rows), whole=False)
        left = self._put_back() if self.remembers else None
        return replace(self, hidden=self.hidden.index_select(1, rows), occupancy=occupancy, left=left)

    def pool(self, stride: int, alone: Tensor, kind: str = "mean", pads: bool = False) -> Alone:
        index, alone = self.occupancy.index, alone.reshape(-1)
        row = torch.arange(alone.shape[0], device=index.device)
        begins = (row == 0) | alone | F.pad(alone[:-1], (1, 0))  # of stretches between those that stay alone
        stretch = begins.nonzero().squeeze(1).index_select(0, begins.long().cumsum(0) - 1)
        opening = alone | ((row - stretch) % stride == 0)
        opens = opening.nonzero().squeeze(1)
        size = torch.cat([opens[1:], row[-1:] + 1]) - opens
        hidden = pooled(self.hidden[0], opens, size, kind, stride)[None]
        firsts = index.index_select(0, opens)
        merged = merge(self.occupancy, index, firsts.index_select(0, opening.long().cumsum(0) - 1))
        return replace(self, hidden=hidden, occupancy=AloneOccupancy(firsts, self.sequences, merged))

    def join(self, joins: Tensor, into: Tensor) -> Alone:
        rows, joins = self.occupancy, joins.reshape(-1)
        line = torch.arange(joins.shape[0], device=joins.device)
        row = torch.where(joins, into.reshape(-1), line)
        sizes = rows.sizes[0]
        share = sizes / torch.zeros_like(sizes).scatter_add(0, row, sizes).index_select(0, row)
        where = row[:, None].expand(-1, self.hidden.shape[2])
        hidden = torch.zeros_like(self.hidden[0]).scatter_add(0, where, self.hidden[0] * share[:, None])
        stays = (~joins).nonzero().squeeze(1)
        merged = merge(rows, rows.index, rows.index.index_select(0, row))
        occupancy = AloneOccupancy(rows.index.index_select(0, stays), self.sequences, merged)
        return replace(self, hidden=hidden.index_select(0, stays)[None], occupancy=occupancy)

    def _put_back(self) -> Tensor:
        """The buffer of last states with the current states written into it."""
        if self.occupancy.whole:
            return self.hidden[0]
        where = self.occupancy.index[:, None].expand(-1, self.hidden.shape[2])
        left = self.hidden.new_zeros(self.sequences.real.shape[1], self.hidden.shape[2])
        return (left if self.left is None else self.left).scatter(0, where, self.hidden[0])

    def restore(self) -> Tensor:
        if not self.remembers:
            return self.hidden
        return self.occupancy.shared(self._put_back()[None])


class AloneRead(Alone):
    """One sequence of which only the first row will be read, and it never leaves."""

    remembers = False


@dataclass(frozen=True)
class TogetherOccupancy(NarrowedOccupancy):
    """The rows of :class:`Together`."""

    attention = staticmethod(attention)
    falling = staticmethod(falling)
    share = share


@dataclass(frozen=True)
class Together(NarrowedTokens):
    """Narrowed execution with a width that is a tensor."""

    remembers: ClassVar[bool] = True

    @classmethod
    def start(cls, hidden: Tensor, sequences: Sequences) -> Together:
        return cls(hidden, TogetherOccupancy(sequences.position, sequences.real, sequences), sequences)

    def _width(self, keep: Tensor, narrowest: int) -> Any:
        return keep.sum(1).amax().clamp(min=narrowest)

    def restore(self) -> Tensor:
        return super().restore() if self.remembers else self.hidden


class TogetherRead(Together):
    """Sequences of which only the first row will be read, and it never leaves."""

    remembers = False
