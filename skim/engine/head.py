"""The model's own head, read before the last layer: what would it say if the encoder ended here?

A method that leaves early has to know that, and a head of its own for every layer would know one architecture. So the
model's own Hugging Face forward runs, with the encoder replaced for that call by its end: embeddings and layers are
skipped, pooler and head are whatever the model has. All layers share it.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from skim.errors import SkimError

if TYPE_CHECKING:
    from skim.backbones.base import Backbone
    from skim.engine.trace import Trace
    from skim.engine.walk import Walk

NEEDED = ("input_ids", "attention_mask", "inputs_embeds")  # what heads look at beside the encoder's output


class Head:
    """Reads a model's head on any states; it is built once, and prices a reading by counting one.

    Args:
        model: a Hugging Face model that says one thing of each sequence: classes, or a number.
        base: its encoder.
        backbone: the family's adapter.

    Attributes:
        outputs: logits per sequence, C.
        fixed: FLOPs of a reading per sequence.
        per_token: and per token of it, for heads that map every token before they pool.

    Raises:
        SkimError: a head that does not say one thing of each sequence.
    """

    def __init__(self, model: nn.Module, base: nn.Module, backbone: Backbone) -> None:
        self.model, self.base, self.backbone = model, base, backbone
        if getattr(model.config, "problem_type", None) == "multi_label_classification":
            raise self.refusal("it has several labels for each")
        few, more = self._count(2), self._count(3)
        self.per_token = more - few
        self.fixed = few - 2 * self.per_token

    def refusal(self, why: str) -> SkimError:
        """The error for a head that cannot be read this way."""
        return SkimError(
            f"{type(self.model).__name__} gives no single prediction for a sequence: {why}. A method that ends a "
            "sequence early needs one.\nUse AutoModelForSequenceClassification, with classes or one number."
        )

    def _count(self, length: int) -> float:
        """FLOPs of reading one sequence of this length."""
        parameter = next(self.base.parameters())
        hidden = parameter.new_zeros(2, length, self.base.config.hidden_size)  # type: ignore[arg-type, union-attr]
        ids = torch.zeros(2, length, dtype=torch.long, device=hidden.device)
        devices = [hidden.device] if hidden.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices), FlopCounterMode(display=False) as counter:
            try:
                logits = self(hidden, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            except (RuntimeError, AttributeError) as error:  # multiple choice; a model without a head
                raise self.refusal("its head cannot be read for one") from error
        if logits.dim() != 2 or len(logits) != 2:
            raise self.refusal(f"its logits for one are {tuple(logits.shape[1:])}")
        self.outputs = int(logits.shape[1])
        return counter.get_total_flops() / 2

    def __call__(self, hidden: Tensor, given: dict[str, Tensor]) -> Tensor:
        """What the head says of states as if the encoder had ended with them.

        Args:
            hidden: ``(B, N, D)``.
            given: what the model was called with, of :data:`NEEDED`.

        Returns:
            Logits, ``(B, C)``.
        """
        ended = self.backbone.finish(self.base, hidden)
        walk = vars(self.base).get("forward")
        self.base.forward = lambda *_, **__: ended  # type: ignore[method-assign]
        try:
            return type(self.model).forward(self.model, **given, return_dict=True).logits
        finally:
            if walk is None:
                del self.base.forward
            else:
                self.base.forward = walk  # type: ignore[method-assign]

    def of(self, running: Tensor, hidden: Tensor, inputs: Any) -> Tensor:
        """What the head says of some sequences: logits ``(B, C)``, 0 for the others.

        Args:
            running: ``(B,)`` bool; the others are not computed.
            hidden: ``(B, N, D)``.
            inputs: the encoder's.
        """
        rows = running.nonzero().squeeze(1)
        named = {name: getattr(inputs, name) for name in NEEDED}
        logits = self(hidden[rows], {name: value[rows] for name, value in named.items() if value is not None})
        return logits.new_zeros(len(running), self.outputs).index_copy(0, rows, logits)

    def flops(self, lengths: Tensor) -> Tensor:
        """FLOPs of reading sequences of these lengths, ``(B,)``."""
        return self.fixed + self.per_token * lengths


class ForwardWithLoss:
    """The forward of a whole model whose method has a say in the task's loss; deleting it from the instance undoes it.

    Args:
        walk: of the model's encoder.
    """

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self.__signature__ = inspect.signature(walk.model.forward)  # by it transformers' Trainer chooses columns

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        walk = self.walk
        model, method = walk.model, walk.method
        labels = self.__signature__.bind(*args, **kwargs).arguments.get("labels")
        output = type(model).forward(model, *args, **kwargs)
        if labels is None or not model.training or not method.reads_head:
            return output
        trace = cast("Trace", model.trace)
        if isinstance(output, tuple):
            return (method.task_loss(output[1], labels, trace), *output[1:])
        output.loss = method.task_loss(output.logits, labels, trace)
        return output
