"""One layer of a forward: attention, feed-forward, and the method's hooks round both halves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from skim.engine.backbone import Backbone
from skim.engine.head import Head
from skim.engine.hooks import Hooks
from skim.engine.inputs import Inputs
from skim.engine.keys import KeyValues
from skim.engine.mask import AttentionMask
from skim.engine.masked import MaskedTokens
from skim.engine.static import StaticTokens
from skim.engine.tokens import Charge, Nobody, Sequences, TokenBatch
from skim.engine.trace import LayerTrace
from skim.errors import SkimError
from skim.flops import LayerCost


class Steps:
    """The layers of one forward, in their order: :meth:`enter` decides before one, :meth:`__call__` runs it.

    They are two because of static rows: what was decided last can then be counted while the layer before still runs.

    Args:
        base: the base model.
        backbone: its family's adapter.
        method: who decides.
        head: the model's own, for a method that reads it.
        heads: attention heads, H.
        costs: FLOPs of each layer, for these inputs.
        inputs: of this forward.
        sequences: likewise.
        learns: whether this is a step of training, in which every weight gets a gradient.
    """

    def __init__(
        self,
        base: nn.Module,
        backbone: Backbone,
        method: Hooks,
        head: Head,
        heads: int,
        costs: Sequence[LayerCost],
        inputs: Inputs,
        sequences: Sequences,
        learns: bool,
    ) -> None:
        self.base, self.backbone, self.method, self.head, self.heads = base, backbone, method, head, heads
        self.costs, self.inputs, self.sequences, self.learns = costs, inputs, sequences, learns
        self.key_values = KeyValues(backbone, base, inputs)
        self.places: Tensor | None = None  # of the rows that geometry was computed for
        self.seen: Any = None  # and the rows that they looked at
        self.geometry: Any = None

    def enter(self, i: int, tokens: TokenBatch) -> TokenBatch:
        """The rows that layer ``i``'s attention is to run over: what the family and the method change before it."""
        if self._idle(i, tokens):
            return tokens.uncharged()
        tokens = self.backbone.before_layer(self.base, i, tokens.uncharged())
        return self.method.before_layer(i, tokens).renewed()

    def _idle(self, i: int, tokens: TokenBatch) -> bool:
        """Tell whether layer ``i`` does not run."""
        over = not tokens.hidden.numel() and not self.learns  # all have halted or left; who learns needs every weight
        return over or not self.method.runs(i)

    def __call__(self, i: int, layer: nn.Module, tokens: TokenBatch) -> tuple[TokenBatch, LayerTrace]:
        """Take a batch that has entered layer ``i`` through it.

        Returns:
            The batch behind it, and what ran.

        Raises:
            SkimError: the layer calls attention in a way that skim does not know.
        """
        backbone, method, sequences, cost = self.backbone, self.method, self.sequences, self.costs[i]
        if self._idle(i, tokens):
            nobody = Nobody(sequences)
            # the method may have computed for the last rows before it let them leave
            return tokens, LayerTrace(nobody, nobody, cost, charges=tokens.charges, shortened=backbone.shortens)
        before, attending = tokens, tokens.occupancy
        looked_at = None if tokens.others is None else tokens.others.occupancy
        if attending.places is not self.places or looked_at is not self.seen:
            # rows moved, or look at others: so do the biases and rotations that look at positions
            self.places, self.seen = attending.places, looked_at
            self.geometry = backbone.geometry(self.base, tokens, self.inputs)
        asked = method.wants_received(i) and looked_at is None  # else nobody looks at these rows
        bias = method.key_bias(i, tokens if tokens.others is None else tokens.others)
        mask = AttentionMask(
            attending, backbone.window(layer), method.inside_softmax, asked, asked and sequences.run_on, looked_at, bias
        )
        projected = self.key_values.projected(layer, tokens)
        if tokens.source is None and (looked_at is None or isinstance(tokens, MaskedTokens)):
            # halted rows of a masked batch are in their places
            mask.occupancy, mask.memory = attending if looked_at is None else looked_at, None
            hidden = self._half(layer, backbone.attend, tokens.hidden, mask, self.geometry)
        else:
            key, value = self.key_values.of(layer, tokens)
            hidden = self._half(layer, backbone.attend_to, tokens.hidden, key, value, mask, self.geometry)
        tokens = tokens.with_hidden(hidden)
        self._check(layer, mask, asked)
        tokens = method.after_attention(i, tokens, mask.received)
        feeding = tokens.occupancy
        tokens = tokens.with_hidden(self._half(layer, backbone.feed_forward, tokens.hidden))
        tokens = method.after_layer(i, before, tokens)
        reading: tuple[Charge, ...] = ()
        if method.wants_reading(i):
            # of static rows only the device knows who is left; to read all costs less than to wait for it
            running = None if isinstance(tokens, StaticTokens) else feeding.counts() > 0
            logits = self.head.of(running, method.restore(tokens), self.inputs)
            tokens = method.after_reading(i, tokens, logits)
            reading = (Charge(feeding, per_sequence=self.head.flops(sequences.lengths)),)
        charges = (*tokens.charges, *reading)
        sums = 2.0 * self.heads if asked else 0.0
        ran = LayerTrace(attending, feeding, cost, sums, looked_at, projected, charges, backbone.shortens)
        return tokens, ran

    def _half(self, layer: nn.Module, half: Any, *args: Any) -> Tensor:
        """One half of a layer, recomputed in the backward pass if the user enabled gradient checkpointing."""
        if not (self.learns and getattr(layer, "gradient_checkpointing", False)):
            return half(layer, *args)
        checkpointed = layer._gradient_checkpointing_func
        if self.method.trains_masked and getattr(checkpointed, "keywords", {}).get("use_reentrant"):
            raise SkimError(
                f"Reentrant gradient checkpointing hands on gradients of a layer's states only, and method "
                f"{self.method.name} learns through its masks.\nUse model.gradient_checkpointing_enable("
                "gradient_checkpointing_kwargs={'use_reentrant': False})."
            )
        return checkpointed(half, layer, *args)

    def _check(self, layer: nn.Module, mask: AttentionMask, asked: bool) -> None:
        """Refuse attention that did not read the mask that it was given."""
        if not mask.used:
            raise SkimError(
                f"{type(layer).__name__} ignored its attention mask, so padding would be attended to.\n"
                "This transformers version calls attention in a way skim does not know; please report it."
            )
        if asked and mask.received is None:
            raise SkimError(
                f"{type(layer).__name__} does not tell which token received how much attention, and method "
                f"{self.method.name} decides by that.\nUse another backbone, or a method such as transkimmer."
            )
