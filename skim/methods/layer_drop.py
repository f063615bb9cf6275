"""Layer drop: some layers do not run at all. The plainest way to a cheaper encoder, and the one to beat.

An encoder whose upper layers are left out and that is then fine-tuned keeps much of what it could (Sajjad et al., 2023,
"On the effect of dropping layers of pre-trained transformer models": the top layers go first, or every second one).
Embeddings and head stay as they are, and so do the weights of the layers that do not run: they get no gradient. skim's
own training tells DDP so; in a loop of your own, ``DistributedDataParallel(..., find_unused_parameters=True)``.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from skim.methods.base import Method, Spec
from skim.methods.options import Count, Layer

Kept = Annotated[tuple[Layer, ...], Field(min_length=1, examples=[[0, 1, 5]])]


class LayerDrop(Method):
    """Runs some of the backbone's layers; nothing is learned, so it trains packed.

    Args:
        layers: the layers that run: a number k for the first k, or a list of layers counted from 0; ``None``: the
            first half, rounded up, unless ``every`` is given.
        every: each of so many layers runs, beginning with the first: 2 for every second one; in place of ``layers``.
    """

    name = "layer_drop"
    does = frozenset({"skips"})
    defining = ("layers", "every")

    def __init__(self, layers: Count | Kept | None = None, every: Count | None = None) -> None:
        super().__init__()
        if layers is not None and every is not None:
            raise self.refusal("name the same thing twice; use one of them.", layers=layers, every=every)
        if isinstance(layers, tuple) and list(layers) != sorted(set(layers)):
            raise self.refusal("names layers in another order than they run in, or twice.", layers=layers)
        self.layers = layers
        self.every = every

    def build(self, spec: Spec) -> None:
        super().build(spec)
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
