"""Layer drop: some layers do not run at all. The plainest way to a cheaper encoder, and the one to beat.

An encoder whose upper layers are left out and that is then fine-tuned keeps much of what it could (Sajjad et al., 2023,
"On the effect of dropping layers of pre-trained transformer models": the top layers go first, or every second one).
Embeddings and head stay as they are, and so do the weights of the layers that do not run: they get no gradient. skim's
own training tells DDP so; in a loop of your own, ``DistributedDataParallel(..., find_unused_parameters=True)``.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from skim.methods.base import Method, Spec
from skim.methods.options import Count, Layer, Place
from skim.methods.suggestion import Suggestion, suggested

Kept = Annotated[tuple[Layer, ...], Field(min_length=1, examples=[[0, 1, 5]])]
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

    Attributes:
        suggestion: what was read from ``report``.
    """

    name = "layer_drop"
    does = frozenset({"skips"})
    defining = ("layers", "every")

    def __init__(
        self,
        layers: Count | Kept | None = None,
        every: Count | None = None,
        report: Place | None = None,
        delta: Points = 1.0,
    ) -> None:
        super().__init__()
        given = {"layers": layers, "every": every, "report": report}
        named = {name: value for name, value in given.items() if value is not None}
        if len(named) > 1:
            raise self.refusal("name the same thing in several ways; use one of them.", **named)
        if isinstance(layers, tuple) and list(layers) != sorted(set(layers)):
            raise self.refusal("names layers in another order than they run in, or twice.", layers=layers)
        self.suggestion: Suggestion | None = None if report is None else suggested(report, delta)
        self.layers = layers if self.suggestion is None else self.suggestion.kept
        self.every = every
        self.report = None
        self.delta = delta

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
        if not set(kept) <= set(range(spec.layers)):
            raise self.refusal(f"asks for more than the {spec.layers} layers of this backbone.", layers=self.layers)
        self.kept = frozenset(kept)

    def runs(self, i: int) -> bool:
        return i in self.kept

    def without_layers(self) -> None:
        return None
