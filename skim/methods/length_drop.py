r"""Length drop: any share of the tokens may go in any layer, and one model serves every length (Kim and Cho, ACL 2021).

The Length-Adaptive Transformer trains PoWER-BERT's elimination of word vectors with lengths that are drawn anew in each
step. A layer ranks tokens by the attention that they receive, summed over heads and queries, and keeps the first. With
:math:`r_i` the share of a sequence's own tokens that leaves layer i, and :math:`r_{-1} = 1`, a step of training draws

.. math:: r_i \sim U\left[(1 - p)\, r_{i-1},\; r_{i-1}\right], \qquad k_i = \mathrm{round}(r_i\, n)

Tokens that leave keep their last state, which the head gets with the others' ("drop and restore"), so that it reads a
state of every token. In evaluation lengths are fixed. They are found along a *path* of configurations from "nobody
stays" to "all stay", by the mean share that stays over the layers: one number, which ``shift`` moves. The path is that
of constant ratios, :math:`r_i = (1 - q)^{i + 1}`, until an evolutionary search has found a better one
(``evaluate.py what=search``, :mod:`skim.analysis.evolution`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from skim.engine.noise import uniform
from skim.engine.threads import PerThread
from skim.engine.tokens import TokenBatch
from skim.errors import SkimError
from skim.methods.base import Spec
from skim.methods.options import Between, Special, Target
from skim.methods.pruning import Pruner, most_attended

KNOTS = 42  # configurations of a path, as many in every model, so that one that was found fits where another was
LEAST = 1e-5  # a share that falls by less from one layer to the next lets nobody leave


def constant(kept: Tensor, layers: int) -> Tensor:
    """Configurations of constant ratios ``kept`` ``(C,)``: by that factor the share falls in each layer; (C, L)."""
    return kept[:, None] ** torch.arange(1, layers + 1)


def along(path: Tensor, knots: Tensor, mean: Tensor) -> Tensor:
    """The configuration of a mean share on a path, between two of its knots in proportion; ``(L,)``.

    Args:
        path: ``(C, L)`` shares by rising mean, from none to all.
        knots: ``(C,)`` those means.
        mean: scalar; below 0 it counts as 0, and above 1 as 1.
    """
    passed = ((mean - knots[:-1]) / knots.diff().clamp_min(1e-9)).clamp(0, 1)  # of each stretch, from no share on
    return (passed[:, None] * path.diff(dim=0)).sum(0)


def drawn(smallest: Tensor, noise: Tensor) -> Tensor:
    r"""Draw a configuration: :math:`r_i \sim U[\rho_i r_{i-1}, r_{i-1}]`, with the smallest one's ratios; ``(L,)``.

    Args:
        smallest: ``(L,)`` shares :math:`s_i`, of which :math:`\rho_i = s_i / s_{i-1}`.
        noise: ``(L,)`` uniform, between 0 and 1.
    """
    before = torch.cat([smallest.new_ones(1), smallest[:-1]])
    ratio = (smallest / before.clamp_min(LEAST)).clamp(max=1)
    return (ratio + (1 - ratio) * noise).cumprod(0)


class LengthDrop(Pruner):
    """Keeps the most attended tokens, a drawn share in each layer in training; nothing is learned, so it trains packed.

    Args:
        drop: the smallest configuration that training draws, and the one that is run without a target, lets this share
            of a layer's tokens leave in each layer; above 0 and below 1, published 0.2.
        target: relative FLOPs of the smallest configuration, in place of ``drop``, before training and after, or a
            range of them for a model that takes any; ``None``: as ``drop`` says.
        protect: special tokens that never retire, counted among those that stay: ``cls`` (what the head reads),
            ``sep``.

    Attributes:
        draws: whether training draws lengths, between the smallest and all; else it has those of evaluation.
    """

    name = "length_drop"
    defining: ClassVar[tuple[str, ...]] = ("protect",)
    reads_padding = False  # a common divisor changes no order
    shift: Tensor
    path: Tensor
    knots: Tensor

    def __init__(
        self, drop: Between = 0.2, target: Target | None = None, protect: tuple[Special, ...] = ("cls",)
    ) -> None:
        super().__init__("default", "padded", target, protect)  # a common divisor changes no order
        self.drop = drop
        self.draws = True
        self._deciding = PerThread()  # by layer: whether anybody leaves there, in this forward

    def build(self, spec: Spec) -> None:
        super().build(spec)
        kept = torch.cat([torch.linspace(0, 1, KNOTS - 1), torch.tensor([1 - self.drop])]).sort().values
        self.register_buffer("path", constant(kept, spec.layers))
        self.register_buffer("knots", self.path.mean(1))
        self.middle = float(constant(torch.tensor([1 - self.drop]), spec.layers).double().mean())  # where shift is 0

    def take(self, found: Sequence[Sequence[float]]) -> None:
        """Go along these configurations from now on, in place of constant ratios, and between them in proportion.

        Args:
            found: shares of a sequence's tokens that leave each layer, L of each, from 0 to 1 and never rising.

        Raises:
            SkimError: one of them is none, or there are more than a path has room for.
        """
        layers = self.spec.layers
        fits = 0 < len(found) <= KNOTS - 2 and all(
            len(one) == layers and 0 <= one[-1] and one[0] <= 1 and list(one) == sorted(one, reverse=True)
            for one in found
        )
        if not fits:
            raise SkimError(
                f"Lengths are {layers} shares, one for each layer, from 0 to 1 and never rising, and of such "
                f"configurations there are 1 to {KNOTS - 2}."
            )
        rows = torch.tensor([list(one) for one in found], dtype=torch.float32)
        rows = rows[rows.double().mean(1).argsort()]
        self.path.copy_(torch.cat([torch.zeros(1, layers), rows, torch.ones(KNOTS - 1 - len(rows), layers)]))
        self.knots.copy_(self.path.mean(1))

    def set_to(self, lengths: Sequence[float]) -> None:
        """Run this configuration from now on, and no other one is found on the path; see :meth:`take`."""
        self.take([lengths])
        self.shift.fill_(sum(lengths) / len(lengths) - self.middle)

    def lengths(self, shift: Tensor | None = None) -> Tensor:
        """Shares of a sequence's tokens that leave each layer in evaluation, ``(L,)`` float32, at the present shift."""
        shift = self.shift if shift is None else shift
        return along(self.path, self.knots, shift + self.middle)

    @property
    def drawing(self) -> bool:
        """True if the next forward draws its lengths; of a range, at budgets between the smallest and the largest."""
        between = self.table is None or self.table.low < self.table.now < self.table.high
        return self.training and self.draws and between

    def asks(self) -> Tensor | None:
        return None if self.drawing else self.lengths()

    def answered(self, numbers: list[float]) -> None:
        self._deciding.value = [after < before - LEAST for before, after in zip([1.0, *numbers], numbers, strict=False)]

    def wants_received(self, i: int) -> bool:
        if self.drawing:
            return True
        if self._deciding.value is None:  # asked outside of a forward
            self.answered(self.lengths().tolist())
        return self._deciding.value[i]

    def before_layer(self, i: int, tokens: TokenBatch) -> TokenBatch:
        if i > 0:
            return tokens
        lengths = self.lengths(None if self.table is None or not self.drawing else self.table.shifts[0])
        if self.drawing:
            lot = 0 if self.table is None else int(self.table.now * 2**30)  # others of the step have other budgets
            lengths = drawn(lengths, uniform(len(lengths), lot, lengths.device).to(lengths))
        return tokens.carrying(lengths.view(1, 1, -1))  # of no batch's shape, by which graphs know what to cut

    def after_attention(self, i: int, tokens: TokenBatch, received: Tensor | None) -> TokenBatch:
        if received is None:
            return tokens
        count = tokens.occupancy.share(tokens.carry[0, 0, i])
        return tokens.retire(most_attended(received, tokens.occupancy, count))

    def readings(self) -> dict[str, Tensor | float]:
        return {**super().readings(), **{f"length/layer_{i}": one for i, one in enumerate(self.lengths())}}
