"""The half of a method's contract that the walk calls: hooks round the halves of a layer."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from skim.engine.tokens import TokenBatch
from skim.engine.trace import Trace


class Hooks(nn.Module):
    """Decisions of a method, in the order in which a forward asks for them; every default decides nothing.

    Attributes:
        name: by which it is known; the class's, in small letters, unless it says another.
        trains_masked: gradients pass through the decisions, so training runs in masked execution.
        inside_softmax: False: the mask multiplies after the softmax (published Transkimmer); masked execution only.
        retired_run_on: retired rows run on without attention and the head reads them (published LTP), unless packed or
            narrowed execution is asked for by name.
        needs_pads: computes with the padding, as published; masked execution only.
        reads_padding: decides by how many positions a batch is padded to.
        reads_head: asks for the head's answers behind inner layers, and takes part in the task's loss.
        target: what training shall end at, or ``None``.
        idle: it decides nothing at present: the model runs as its dense self, and no hook is called.
        stepped: its schedules have been moved on by a training at least once.
        kept_frozen: it was frozen as a whole, by ``requires_grad_``, and so on purpose.
    """

    name: ClassVar[str]
    trains_masked = False
    inside_softmax = True
    retired_run_on = False
    needs_pads = False
    reads_padding = False
    reads_head = False
    target: Any
    idle = False
    stepped: bool
    kept_frozen: bool

    def asks(self) -> Tensor | None:
        """Give numbers that it wants on the host before the first layer, ``(n,)``; by default none.

        They are read once per forward, together with the engine's own: each reading by itself would wait for a GPU.
        """
        return None

    def answered(self, numbers: list[float]) -> None:
        """Take the numbers that it asked for; called before every forward's first layer."""

    def runs(self, i: int) -> bool:
        """Tell whether layer ``i`` runs at all; of one that does not, no other hook is called."""
        return True

    def before_layer(self, i: int, tokens: TokenBatch) -> TokenBatch:
        """Decide before layer ``i``'s attention.

        Whatever a hook runs over the rows it charges on them: ``tokens.charge(per_row)``, FLOPs.
        """
        return tokens

    def wants_received(self, i: int) -> bool:
        """Ask layer ``i`` to tell :meth:`after_attention` how much attention each row received; that costs a bit."""
        return False

    def key_bias(self, i: int, looked_at: TokenBatch) -> Tensor | None:
        """Give numbers that layer ``i``'s attention adds to the scores of the rows that it looks at; by default none.

        Args:
            i: the layer.
            looked_at: those rows: as a rule the ones that enter, or those that these look at.

        Returns:
            One number per row, ``looked_at.hidden.shape[:-1]``, or ``None``.
        """
        return None

    def after_attention(self, i: int, tokens: TokenBatch, received: Tensor | None) -> TokenBatch:
        """Decide between layer ``i``'s attention and its feed-forward.

        Args:
            i: the layer.
            tokens: after attention.
            received: what each row received of it, summed over the alive queries and averaged over heads, so that the
                sum over a sequence is the number of its alive tokens; float32, ``hidden.shape[:-1]``. ``None`` unless
                :meth:`wants_received` asks for it, and in a layer that looks at other rows than these.
        """
        return tokens

    def after_layer(self, i: int, before: TokenBatch, tokens: TokenBatch) -> TokenBatch:
        """Decide after layer ``i``.

        Args:
            i: the layer.
            before: what entered its attention. Rows may have left since:
                ``before.occupancy.follow(before.hidden, tokens.occupancy)`` are the states that the present ones had.
            tokens: after the layer.
        """
        return tokens

    def wants_reading(self, i: int) -> bool:
        """Ask for :meth:`after_reading` to be told what the head answers behind layer ``i``; needs ``reads_head``."""
        return False

    def after_reading(self, i: int, tokens: TokenBatch, logits: Tensor) -> TokenBatch:
        """Decide after layer ``i`` and :meth:`after_layer` by what the head would answer now.

        Args:
            i: the layer.
            tokens: after it.
            logits: ``(B, C)`` of the model's head for the present states; 0 for sequences that have left.
        """
        return tokens

    def task_loss(self, logits: Tensor, labels: Tensor, trace: Trace) -> Tensor:
        """The task's loss in training, a scalar, for a method that ``reads_head``; it takes the place of the head's.

        Args:
            logits: ``(B, C)`` of the head behind the last layer.
            labels: ``(B,)`` classes, or numbers of a regression.
            trace: of this forward.
        """
        raise NotImplementedError

    def restore(self, tokens: TokenBatch) -> Tensor:
        """States for the head, ``(B, N, D)``: by default every token's last state at its input position."""
        return tokens.restore()

    @property
    def covers(self) -> bool:
        """True if every sequence is sure to have a protected token."""
        return False

    def protected(self, real: Tensor, input_ids: Tensor | None, place: str) -> Tensor:
        """Tokens that may not retire, ``(B, N)`` bool; none by default.

        Args:
            real: ``(B, N)`` bool.
            input_ids: ``(B, N)``, or ``None`` when the caller passed embeddings.
            place: ``first`` or ``last``: the real token that the head reads as [CLS].
        """
        return torch.zeros_like(real)

    def weights(self) -> dict[str, float]:
        """The present weight of each penalty."""
        return {}


class Idle(Hooks):
    """Decides nothing, in the place of a method that is idle."""

    name = "idle"
    target = None
    stepped = kept_frozen = True
