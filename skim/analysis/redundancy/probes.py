"""A bank of linear probes, all trained in one pass over the data per step.

Each probe reads neighbouring columns of the same matrix: all layers (the oracle), one layer, layers 0 to k, or the
first neurons of a ranking. The columns are cut wherever a probe begins or ends; a block of columns is read once, and
one product serves all probes that it belongs to. Every step is element-wise in the weights or sums within a probe, so
a probe learns what it would alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from skim.analysis.redundancy.metrics import metric
from skim.analysis.redundancy.rows import READ, Rows, Target
from skim.errors import SkimError


@dataclass(frozen=True)
class Probe:
    """A linear layer on some neighbouring columns of a bank.

    Attributes:
        name: in the bank.
        start: its first column.
        stop: the column behind its last.
    """

    name: str
    start: int
    stop: int


class Recipe(Protocol):
    """Way to train a bank: :mod:`skim.analysis.redundancy.recipes` has the two that there are."""

    def fit(self, bank: Bank, rows: Rows) -> None:
        """Set the weights of a bank, in place."""


@dataclass
class Bank:
    """Linear probes that share a pass over the data.

    Attributes:
        probes: P of them.
        target: C classes or one number.
        neurons: global ids of the columns, in their order; ``None``: all neurons of the network.
        flat: all parameters, float32: a ``(width, probes of the block, C)`` per block, then the biases, ``(P, C)``.
        owner: the probe of each of them, int64.
        shift: of the columns, (columns,), subtracted from them; ``None``: they are read as they are.
        scale: of the columns, (columns,), multiplied with them.
    """

    probes: Sequence[Probe]
    target: Target
    neurons: np.ndarray | None
    flat: Tensor = field(init=False, repr=False)
    owner: Tensor = field(init=False, repr=False)
    shift: Tensor | None = field(default=None, init=False, repr=False)
    scale: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        cuts = sorted({cut for probe in self.probes for cut in (probe.start, probe.stop)})
        self.blocks: list[tuple[slice, Tensor]] = []
        owners = []
        for start, stop in pairwise(cuts):
            readers = [i for i, probe in enumerate(self.probes) if probe.start <= start and stop <= probe.stop]
            if readers:
                self.blocks.append((slice(start, stop), torch.tensor(readers)))
                owners.append(self.blocks[-1][1][:, None].expand(stop - start, -1, self.target.outputs))
        owners.append(torch.arange(len(self.probes))[:, None].expand(-1, self.target.outputs))
        self.owner = torch.cat([owner.flatten() for owner in owners])
        self.flat = torch.zeros(len(self.owner))

    def parts(self, flat: Tensor) -> tuple[list[Tensor], Tensor]:
        """View parameters, or as many numbers of another meaning, as the weights of each block and the biases."""
        outputs = self.target.outputs
        shapes: list[tuple[int, ...]] = [
            (columns.stop - columns.start, len(readers), outputs) for columns, readers in self.blocks
        ]
        shapes.append((len(self.probes), outputs))
        *weights, biases = (
            part.view(shape) for part, shape in zip(flat.split([int(np.prod(s)) for s in shapes]), shapes, strict=True)
        )
        return weights, biases

    def outputs(self, x: Tensor, flat: Tensor | None = None) -> Tensor:
        """Compute the logits or numbers of all probes, (B, P, C), from rows of all columns, (B, columns)."""
        weights, biases = self.parts(self.flat if flat is None else flat)
        found = biases.expand(len(x), -1, -1).clone()
        for (columns, readers), weight in zip(self.blocks, weights, strict=True):
            part = x[:, columns] @ weight.flatten(1)
            found.index_add_(1, readers, part.view(len(x), *weight.shape[1:]))
        return found

    def add_gradient(self, x: Tensor, errors: Tensor, gradient: Tensor) -> None:
        """Add to the gradient, as ``flat``, that of the outputs, ``errors`` (B, P, C), for rows x (B, columns)."""
        weights, biases = self.parts(gradient)
        for (columns, readers), weight in zip(self.blocks, weights, strict=True):
            weight.flatten(1).addmm_(x[:, columns].T, errors[:, readers].flatten(1))
        biases += errors.sum(0)

    def sums(self, flat: Tensor) -> Tensor:
        """Sum numbers, as many as parameters, within each probe, (P,) float64."""
        return torch.zeros(len(self.probes), dtype=torch.float64).index_add_(0, self.owner, flat.double())

    def largest(self, flat: Tensor) -> Tensor:
        """Find the largest absolute number within each probe, (P,)."""
        return torch.zeros(len(self.probes)).scatter_reduce_(0, self.owner, flat.abs(), "amax")

    def read(self, rows: Rows, size: int = READ) -> Iterator[tuple[slice, Tensor]]:
        """Yield places and columns, (B, columns), of blocks of rows, standardised if the recipe does so."""
        for places, x in rows.blocks(self.neurons, size):
            if self.shift is not None and self.scale is not None:
                x.sub_(self.shift).mul_(self.scale)
            yield places, x

    def weights(self, name: str) -> np.ndarray:
        """Weights of a probe, (C, its columns); of the standardised columns if the recipe standardises."""
        index = self._index(name)
        weights, _ = self.parts(self.flat)
        own = [
            weight[:, int((readers == index).nonzero())]
            for (_, readers), weight in zip(self.blocks, weights, strict=True)
            if index in readers
        ]
        return torch.cat(own).T.numpy()

    def bias(self, name: str) -> np.ndarray:
        """Bias of a probe, (C,)."""
        return self.parts(self.flat)[1][self._index(name)].numpy()

    def set(self, probe: Probe, weight: Tensor, bias: Tensor) -> None:
        """Set the weights, (C, its columns), and the bias, (C,), of a probe."""
        weights, biases = self.parts(self.flat)
        index = self._index(probe.name)
        for (columns, readers), part in zip(self.blocks, weights, strict=True):
            if index in readers:
                own = weight[:, columns.start - probe.start : columns.stop - probe.start]
                part[:, int((readers == index).nonzero())] = own.T
        biases[index] = bias

    def predict(self, rows: Rows) -> dict[str, np.ndarray]:
        """Predict the place among the classes, or the number, of each row: (rows,) by the name of the probe."""
        found = []
        for _, x in self.read(rows):
            outputs = self.outputs(x)
            if not outputs.isfinite().all():
                raise SkimError("Some activations are not finite (NaN or infinite): probes cannot read those rows.")
            found.append(outputs.squeeze(-1) if self.target.classes is None else outputs.argmax(-1))
        return {probe.name: column.numpy() for probe, column in zip(self.probes, torch.cat(found).T, strict=True)}

    def scores(self, rows: Rows, name: str) -> dict[str, float]:
        """Score all probes on a split by a metric: by the name of the probe."""
        score, right = metric(name, self.target.outputs), self.target.encode(rows.labels).numpy()
        return {probe: score(predicted, right) for probe, predicted in self.predict(rows).items()}

    def _index(self, name: str) -> int:
        return next(i for i, probe in enumerate(self.probes) if probe.name == name)


def train_probes(
    rows: Rows,
    probes: Sequence[Probe],
    target: Target,
    recipe: Recipe,
    neurons: Sequence[int] | np.ndarray | None = None,
) -> Bank:
    """Train a bank of probes.

    Args:
        rows: the training rows.
        probes: each with a name of its own and at least one column.
        target: classes or a number, from the labels of all splits.
        recipe: one of ``RECIPES``, or one with other hyperparameters.
        neurons: global ids of the columns, in their order; ``None``: all neurons.

    Raises:
        SkimError: a probe without columns or with columns that do not exist, or activations that are not finite.
    """
    chosen = None if neurons is None else np.asarray(neurons, dtype=np.int64)
    if chosen is not None and len(chosen) and not 0 <= chosen.min() <= chosen.max() < rows.neurons:
        raise SkimError(f"Neurons are numbered from 0 to {rows.neurons - 1}, not {chosen.min()} to {chosen.max()}.")
    columns = rows.neurons if chosen is None else len(chosen)
    for probe in probes:
        if not 0 <= probe.start < probe.stop <= columns:
            raise SkimError(
                f"Probe '{probe.name}' reads columns {probe.start} to {probe.stop} of {columns}: it needs at least one "
                "that exists."
            )
    if len({probe.name for probe in probes}) < len(probes):
        raise SkimError(f"Two probes of a bank have the same name: {', '.join(probe.name for probe in probes)}.")
    bank = Bank(probes, target, chosen)
    with torch.no_grad():
        recipe.fit(bank, rows)
    if not bank.flat.isfinite().all():
        raise SkimError(
            "Weights of a probe are no longer finite: an activation is not (NaN or infinite), or it learns too fast."
        )
    return bank
