"""Published elastic net, step by step as its code goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from skim.analysis.redundancy.losses import losses
from skim.analysis.redundancy.rows import Rows
from skim.errors import SkimError

if TYPE_CHECKING:
    from skim.analysis.redundancy.probes import Bank


@dataclass(frozen=True)
class ElasticNet:
    """Published probe (Dalvi et al., 2020), as its code computes it.

    Rows in their order, in batches; mean cross entropy or squared error + l1 * sum|W| + l2 * ||W||_F by Adam. The norm
    is not squared; where W is 0 its subgradient is taken to be 0. The bias is free, columns are read as they are.

    Attributes:
        l1: weight of the sum of absolute weights.
        l2: weight of the norm.
        epochs: passes over the rows.
        batch_size: rows of a step; the last ones of an epoch are a smaller batch.
        learning_rate: of Adam.
        seed: of the initial weights, which are drawn as torch.nn.Linear draws them, probe after probe.
        initial: weights, (C, columns), and bias, (C,), by the name of the probe, in place of drawn ones.
    """

    l1: float = 1e-5
    l2: float = 1e-5
    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 1e-3
    seed: int = 0
    initial: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def fit(self, bank: Bank, rows: Rows) -> None:
        """Set the weights of a bank, in place."""
        self._start(bank)
        right = bank.target.encode(rows.labels)
        bank.flat.grad = torch.zeros_like(bank.flat)
        adam = torch.optim.Adam([bank.flat], lr=self.learning_rate, fused=True)
        for _ in range(self.epochs):
            for places, x in bank.read(rows, self.batch_size):
                self._penalize(bank)
                _, errors = losses(bank.outputs(x), right[places])
                bank.add_gradient(x, errors.div_(len(x)), bank.flat.grad)
                adam.step()
        bank.flat.grad = None

    def _start(self, bank: Bank) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        for probe in bank.probes:
            columns = probe.stop - probe.start
            bound = 1 / math.sqrt(columns)
            weight = torch.empty(bank.target.outputs, columns).uniform_(-bound, bound, generator=generator)
            bias = torch.empty(bank.target.outputs).uniform_(-bound, bound, generator=generator)
            if probe.name in self.initial:
                given = [torch.from_numpy(np.asarray(part, dtype=np.float32)) for part in self.initial[probe.name]]
                if [part.shape for part in given] != [weight.shape, bias.shape]:
                    raise SkimError(
                        f"Initial weights and bias of probe '{probe.name}' must be of shape {tuple(weight.shape)} and "
                        f"{tuple(bias.shape)}, not {tuple(given[0].shape)} and {tuple(given[1].shape)}."
                    )
                weight, bias = given
            bank.set(probe, weight, bias)

    def _penalize(self, bank: Bank) -> None:
        """Set the gradient to that of the penalties."""
        gradient = bank.flat.grad
        assert gradient is not None
        torch.sign(bank.flat, out=gradient).mul_(self.l1)
        weights, _ = bank.parts(bank.flat)
        squares = torch.zeros(len(bank.probes))
        for (_, readers), weight in zip(bank.blocks, weights, strict=True):
            squares.index_add_(0, readers, weight.square().sum((0, 2)))
        rates = torch.where(squares > 0, self.l2 / squares.sqrt(), 0)
        parts, free = bank.parts(gradient)
        for (_, readers), weight, part in zip(bank.blocks, weights, parts, strict=True):
            part.addcmul_(weight, rates[readers][:, None])
        free.zero_()
