r"""Funnel pooling: between blocks of layers, neighbouring tokens are merged (Dai et al., NeurIPS 2020).

With blocks of, say, ``[4, 4, 4]`` layers and stride 2, a sequence of :math:`n` tokens has :math:`n`, about :math:`n/2`
and about :math:`n/4` rows in them. In the first layer of a block only the queries are pooled,

.. math:: h' = \mathrm{Layer}(Q = \mathrm{pool}(h),\; K = V = h),

so that the pooled rows still look at all they came from. [CLS] is a row of its own. For heads that read every token the
last states are repeated over their windows, the first block's output is added if ``residual``, and the backbone's last
``decoder_layers`` layers run at full length on that. What is different from the published code, unless
``preset="paper"`` asks for it back: a window's mean is over its real tokens, so no output depends on the padding.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Annotated

from pydantic import Field
from torch import Tensor

from skim.engine.pooling import Pooling
from skim.engine.tokens import TokenBatch
from skim.methods.base import Method, Spec
from skim.methods.options import Count, Preset

Blocks = Annotated[tuple[Count, ...], Field(min_length=1, examples=[[4, 4, 4]])]


class Funnel(Method):
    """Merges windows of neighbours between blocks of layers; nothing is learned, so it trains packed.

    Args:
        preset: ``default``, or ``paper``: windows are laid over pads as well and average them in (masked execution
            only; nothing gets cheaper by packing).
        blocks: layers per block; ``None`` is three blocks as equal as can be, longer ones first.
        stride: tokens per window.
        pooling: ``mean`` or ``max`` over a window.
        pool_q_only: in a block's first layer only queries are pooled, keys and values are not; ``None``: where the
            backbone can (DeBERTa and other narrowed families pool all three).
        separate_cls: leave what the head reads unmerged.
        truncate_seq: leave out a sequence's last window if it is not full: its tokens keep their last state.
        residual: add the first block's output where tokens are pulled apart again, for heads that read every token.
        decoder_layers: layers at the end that run at full length again; not counted in ``blocks``.
    """

    name = "funnel"

    def __init__(
        self,
        preset: Preset = "default",
        blocks: Blocks | None = None,
        stride: Annotated[int, Field(ge=2)] = 2,
        pooling: Pooling = "mean",
        pool_q_only: bool | None = None,
        separate_cls: bool = True,
        truncate_seq: bool = False,
        residual: bool = False,
        decoder_layers: Annotated[int, Field(ge=0, le=2)] = 0,
    ) -> None:
        super().__init__(("cls",) if separate_cls else ())
        if preset == "paper" and truncate_seq:
            raise self.refusal("needs windows of real tokens; use preset=default.", truncate_seq=True)
        self.preset = preset
        self.needs_pads = preset == "paper"
        self.blocks = blocks
        self.stride = stride
        self.pooling = pooling
        self.pool_q_only = pool_q_only
        self.separate_cls = separate_cls
        self.truncate_seq = truncate_seq
        self.residual = residual
        self.decoder_layers = decoder_layers

    def build(self, spec: Spec) -> None:
        super().build(spec)
        self.decoder = spec.layers - self.decoder_layers  # the first layer at full length again
        blocks = thirds(self.decoder) if self.blocks is None else self.blocks
        if sum(blocks) != self.decoder:
            apart = f" less {self.decoder_layers} of the decoder" if self.decoder_layers else ""
            raise self.refusal(
                f"has {sum(blocks)} layers, and this backbone {spec.layers}{apart}.\n"
                f"Use blocks that add up to {self.decoder}, such as {list(thirds(self.decoder))}.",
                blocks=blocks,
            )
        if self.pool_q_only and not spec.looks_apart:
            raise self.refusal(
                "needs rows that look at other rows, and this backbone's attention cannot.\n"
                "Leave it out (queries, keys and values are pooled then), or use another backbone.",
                pool_q_only=True,
            )
        self.queries_only = spec.looks_apart if self.pool_q_only is None else self.pool_q_only
        self.merged_before = tuple(accumulate(blocks))[:-1]  # layers; none if there is one block

    def check_fit(self) -> None:
        if not self.merged_before:
            raise self.refusal("with one block of layers merges nothing; use more blocks, or method=dense.")

    @property
    def does(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"merges", "reopens"} if self.decoder_layers else {"merges"})

    def before_layer(self, i: int, tokens: TokenBatch) -> TokenBatch:
        if i == self.decoder and self.merged_before:
            return tokens.unpool(self.restore(tokens)).carrying(None)
        if i not in self.merged_before:
            return tokens
        if self.residual and tokens.carry is None:
            tokens = tokens.carrying(tokens.restore())
        whole = full_windows(tokens, self.stride) if self.truncate_seq else tokens
        alone = whole.occupancy.rows(whole.sequences.protected)
        merged = whole.pool(self.stride, alone, self.pooling, self.needs_pads)
        return merged.looking_at(tokens if self.queries_only else None)

    def after_attention(self, i: int, tokens: TokenBatch, received: Tensor | None) -> TokenBatch:
        return tokens.looking_at(None)

    def restore(self, tokens: TokenBatch) -> Tensor:
        states = tokens.restore()
        return states if tokens.carry is None else states + tokens.carry


def full_windows(tokens: TokenBatch, stride: int) -> TokenBatch:
    """Retire the last tokens of every sequence that do not fill a window."""
    occupancy, protected = tokens.occupancy, tokens.sequences.protected
    first = occupancy.rows(protected).float() * 2 * protected.shape[1]
    place = occupancy.rank(first - occupancy.position)  # protected tokens, then the others in their order
    counts = occupancy.counts().long()
    return tokens.retire(place < occupancy.spread(counts - (counts - protected.sum(1)) % stride))


def thirds(layers: int) -> tuple[int, ...]:
    """Three blocks, or fewer if there are not so many layers; longer ones first."""
    blocks = min(3, layers)
    return tuple(layers // blocks + (i < layers % blocks) for i in range(blocks))
