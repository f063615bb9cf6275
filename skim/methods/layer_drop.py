r"""Layer drop: some layers do not run at all. The plainest way to a cheaper encoder, and the one to beat.

An encoder whose upper layers are left out and that is then fine-tuned keeps much of what it could (Sajjad et al., 2023,
"On the effect of dropping layers of pre-trained transformer models": the top layers go first, or every second one).
Embeddings and head stay as they are, and so do the weights of the layers that do not run: they get no gradient. skim's
own training tells DDP so; in a loop of your own, ``DistributedDataParallel(..., find_unused_parameters=True)``.

In a chain for a range of budgets the number of layers may follow the budget (``depths``), as in DynaBERT (Hou et al.,
NeurIPS 2020), whose other dimension is the width of layers and here the number of tokens. At budget :math:`b` the first

.. math:: k(b) = \lceil L \sqrt{b}\, \rceil

of L layers run. Layers multiply with the share of tokens in each, so this is half of the saving from either: at a
quarter of the FLOPs half of the layers run on half of the tokens. The other member's share then is at most
:math:`\sqrt{b}`, which it can reach at every budget.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field

from skim.methods.base import ROUNDED, Method, Spec
from skim.methods.options import Count, Layer, Place
from skim.methods.suggestion import Suggestion, suggested

Kept = Annotated[tuple[Layer, ...], Field(min_length=1, examples=[[0, 1, 5]])]
Depths = Annotated[tuple[Count, Count], Field(examples=[[3, 6]])]
Points = Annotated[float, Field(ge=0, le=100)]


class LayerDrop(Method):
    """Runs some of the backbone's layers; nothing is learned, so it trains packed.

    Args:
        layers: the layers that run: a number k for the first k, or a list of layers counted from 0; ``None``: the
            first half, rounded up, unless ``every`` or ``report`` is given.
        every: each of so many layers runs, beginning with the first: 2 for every second one; in place of ``layers``.
        report: where a redundancy report of this backbone lies, which says how many layers suffice: a run's folder, or
            a JSON file; in place of ``layers``. It is read once: a model is saved with the layers that it named.
        delta: percent of the score that may be lost by the report.
        depths: in a chain whose target is a range: the smallest and the largest number of first layers that run, which
            one is chosen by the budget; in place of ``layers``.

    Attributes:
        suggestion: what was read from ``report``.
        depth: layers from which on none runs, at the budget that is set.
    """

    name = "layer_drop"
    does = frozenset({"skips"})
    defining = ("layers", "every", "depths")

    def __init__(
        self,
        layers: Count | Kept | None = None,
        every: Count | None = None,
        report: Place | None = None,
        delta: Points = 1.0,
        depths: Depths | None = None,
    ) -> None:
        super().__init__()
        given = {"layers": layers, "every": every, "report": report, "depths": depths}
        named = {name: value for name, value in given.items() if value is not None}
        if len(named) > 1:
            raise self.refusal("name the same thing in several ways; use one of them.", **named)
        if isinstance(layers, tuple) and list(layers) != sorted(set(layers)):
            raise self.refusal("names layers in another order than they run in, or twice.", layers=layers)
        if depths is not None and depths[0] >= depths[1]:
            raise self.refusal("is not a range from fewer layers to more, such as [3, 6].", depths=list(depths))
        self.suggestion: Suggestion | None = None if report is None else suggested(report, delta)
        self.layers = layers if self.suggestion is None else self.suggestion.kept
        self.every = every
        self.report = None
        self.delta = delta
        self.depths = depths

    @property
    def measured_on(self) -> str | None:  # type: ignore[override]
        return None if self.suggestion is None else self.suggestion.backbone

    def settled(self) -> dict[str, Any]:
        return {} if self.suggestion is None else {"layers": list(self.suggestion.kept), "report": None}

    def build(self, spec: Spec) -> None:
        super().build(spec)
        found = self.suggestion
        if found is not None and (found.layers, found.width) != (spec.layers, spec.width):
            raise self.refusal(
                f"are from a report of {found.backbone}, with {found.layers} layers of width {found.width}; this "
                f"backbone has {spec.layers} of width {spec.width}.\nMake a report of this one: what=redundancy.",
                layers=self.layers,
            )
        first = (spec.layers + 1) // 2 if self.layers is None else self.layers
        kept = first if isinstance(first, tuple) else tuple(range(first))
        if self.every is not None:
            kept = tuple(range(0, spec.layers, self.every))
        if self.depths is not None:
            kept = tuple(range(self.depths[1]))
        if not set(kept) <= set(range(spec.layers)):
            asked = {"layers": self.layers} if self.depths is None else {"depths": list(self.depths)}
            raise self.refusal(f"asks for more than the {spec.layers} layers of this backbone.", **asked)
        self.kept = frozenset(kept)
        self.depth = spec.layers

    def check_fit(self) -> None:
        if self.depths is not None and not self.chained:
            raise self.refusal(
                "lets a budget choose, which needs another method beside it that has a range.\n"
                "Such as 'method=[layer_drop,ltp]' method.layer_drop.depths=[3,6] 'method.ltp.target=[0.25,1.0]'.",
                depths=list(self.depths),
            )

    def descend(self, budget: float) -> None:
        """Run as many layers as a budget is for, from now on."""
        if self.depths is not None:
            self.depth = min(max(depth_of(budget, self.spec.layers), self.depths[0]), self.depths[1])

    @property
    def steps(self) -> list[float]:
        """Budgets above which one layer more runs."""
        if self.depths is None:
            return []
        return [(k / self.spec.layers) ** 2 for k in range(*self.depths)]

    def runs(self, i: int) -> bool:
        return i in self.kept and i < self.depth

    def without_layers(self) -> None:
        if self.depths is not None:
            raise self.refusal(
                "chooses layers by the budget, so none of them is idle for good.\nSave the model as it is.",
                depths=list(self.depths),
            )


def depth_of(budget: float, layers: int) -> int:
    """Number of layers that half of a budget's saving leaves, the other half being left to tokens."""
    return math.ceil(layers * math.sqrt(budget) - ROUNDED)
