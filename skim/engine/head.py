"""The model's own head: which positions it reads, and what it would say if the encoder ended earlier.

A head is whatever the model's class does behind its encoder; no class is known here by name. To ask one, the model's
own Hugging Face forward runs on a shallow copy whose encoder gives back what it is handed: embeddings and layers are
skipped, pooler and head are the model's, and nothing that another forward could see is written.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from skim.engine.backbone import Backbone
from skim.engine.inputs import Inputs
from skim.errors import SkimError

NEEDED = ("input_ids", "attention_mask", "inputs_embeds")  # what heads look at beside the encoder's output
PROBED = 3  # sequences and tokens on which a head shows what it reads: first, last, and one that is neither
UNREADABLE = (RuntimeError, AttributeError, TypeError, ValueError, IndexError)  # of heads that want other arguments


class Head:
    """Asks a model's head about any states.

    Args:
        model: a Hugging Face model, with a head or without.
        base: its encoder; the model itself if it has no head.
        backbone: the family's adapter.

    Attributes:
        reads: the positions that some output is read from though they may be padding: ``first``, ``last``, or ``every``
            for a head that leaves no padding out; ``None`` if the mask says where it reads.
        place: ``first`` or ``last``: on which side batches must not be padded, and which token stands for its sequence;
            what the head reads, or else the family's heads.
        per_token: whether ``logits`` has a row for each token.
        outputs: logits per sequence, C; known once :meth:`price` has asked.
        fixed: FLOPs of a reading per sequence; likewise.
        token_flops: and per token of it, for heads that map every token before they pool; likewise.
    """

    outputs: int
    fixed: float
    token_flops: float

    def __init__(self, model: nn.Module, base: nn.Module, backbone: Backbone) -> None:
        self.model, self.base, self.backbone = model, base, backbone
        self.reads, self.per_token = self._look()
        self.place: str = self.reads if self.reads in ("first", "last") else backbone.head_reads

    def output(self, hidden: Tensor, given: Mapping[str, Tensor]) -> Any:
        """Run the model's pooler and head on states, as if its encoder had ended with them.

        Args:
            hidden: ``(B, N, D)``.
            given: what the model was called with, of :data:`NEEDED`.
        """
        ended = self.backbone.finish(self.base, hidden)
        if self.model is self.base:
            return ended
        encoder, reader = copy.copy(self.base), copy.copy(self.model)
        vars(encoder)["forward"] = lambda *_, **__: ended
        parts = reader._modules.items()
        vars(reader)["_modules"] = {name: encoder if part is self.base else part for name, part in parts}
        return type(self.model).forward(reader, **given, return_dict=True)

    def _look(self) -> tuple[str | None, bool]:
        """:attr:`reads` and :attr:`per_token`, seen on as many sequences as tokens.

        In each, another token's state is not a number, and neither is what depends on it. A head that finds its
        position by the mask reads another one once this one is masked.
        """
        try:
            with torch.no_grad(), self._random_apart():
                depend, output = self._dependence()
                for place, name in ((0, "first"), (-1, "last")):
                    alone = tuple(i == place % PROBED for i in range(PROBED))
                    if alone in depend and alone in self._dependence(masked=place)[0]:
                        return name, has_rows(output)
                leaks = self._leaks()
            return {(): None, (0,): "first", (PROBED - 1,): "last"}.get(tuple(leaks), "every"), has_rows(output)
        except UNREADABLE:
            return self.backbone.head_reads, False

    def _dependence(self, masked: int | None = None) -> tuple[list[tuple[bool, ...]], Any]:
        """Find on which tokens each output depends; returns the outputs too. One token may be ``masked``."""
        hidden, given = self._blank(PROBED, PROBED)
        hidden.diagonal().fill_(torch.nan)
        if masked is not None:
            given["attention_mask"][:, masked] = 0
        output = self.output(hidden, given)
        found = [value for value in output.values() if isinstance(value, Tensor)]
        return [tuple(value.reshape(PROBED, -1).isnan().any(1).tolist()) for value in found], output

    def _leaks(self) -> list[int]:
        """Positions whose state changes what the head says elsewhere, although they are masked.

        Numbers tell, because what is not one stays so when a mask multiplies it.
        """
        hidden, given = self._blank(PROBED, PROBED)
        given["attention_mask"].fill_diagonal_(0)
        hidden += torch.arange(hidden.numel(), device=hidden.device).sin().view_as(hidden).to(hidden)
        said = []
        for sign in (1, -1):
            hidden.diagonal().mul_(sign)
            with self._random_apart():  # the same dropout both times
                said.append(self.output(hidden, given))
        found = set()
        for name, one in said[0].items():
            if not isinstance(one, Tensor):
                continue
            differs = ~torch.isclose(one, said[1][name], rtol=1e-3, atol=1e-5)
            if differs.shape[:2] == (PROBED, PROBED):  # a token's own row may follow its state
                differs.diagonal().fill_(False)
            found.update(differs.reshape(PROBED, -1).any(1).nonzero().flatten().tolist())
        return sorted(found)

    def _blank(self, batch: int, length: int) -> tuple[Tensor, dict[str, Tensor]]:
        """States of zero, ``(B, N, D)``, and inputs to go with them."""
        parameter = next(self.base.parameters())
        hidden = parameter.new_zeros(batch, length, self.base.config.hidden_size)  # type: ignore[arg-type, union-attr]
        ids = torch.zeros(batch, length, dtype=torch.long, device=hidden.device)
        return hidden, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _random_apart(self) -> AbstractContextManager[None]:
        """Leave the caller's random numbers alone: a head that is asked while it trains draws dropout."""
        device = next(self.base.parameters()).device
        return torch.random.fork_rng([device] if device.type == "cuda" else [])

    def price(self) -> None:
        """Count what a reading costs, for a method that asks the head behind inner layers.

        Raises:
            SkimError: a head that does not say one thing of each sequence.
        """
        if getattr(self.model.config, "problem_type", None) == "multi_label_classification":
            raise self.refusal("it has several labels for each")
        few, more = self._count(2), self._count(3)
        self.token_flops = more - few
        self.fixed = few - 2 * self.token_flops

    def refusal(self, why: str) -> SkimError:
        """The error for a head that cannot be read this way."""
        return SkimError(
            f"{type(self.model).__name__} gives no single prediction for a sequence: {why}. A method that ends a "
            "sequence early needs one.\nUse AutoModelForSequenceClassification, with classes or one number."
        )

    def _count(self, length: int) -> float:
        """FLOPs of reading one sequence of this length."""
        hidden, given = self._blank(2, length)
        with torch.no_grad(), self._random_apart(), FlopCounterMode(display=False) as counter:
            try:
                logits = self.output(hidden, given).logits
            except UNREADABLE as error:  # a model without a head
                raise self.refusal("its head cannot be read for one") from error
        if logits.dim() != 2 or len(logits) != 2:
            raise self.refusal(f"its logits for one are {tuple(logits.shape[1:])}")
        self.outputs = int(logits.shape[1])
        return counter.get_total_flops() / 2

    def of(self, running: Tensor | None, hidden: Tensor, inputs: Inputs) -> Tensor:
        """Run the head on some sequences: logits ``(B, C)``, 0 for the others.

        Args:
            running: ``(B,)`` bool; the others are not computed. ``None``: all.
            hidden: ``(B, N, D)``.
            inputs: the encoder's.
        """
        if running is None and not self.token_flops:
            given = {name: value for name in NEEDED if (value := getattr(inputs, name)) is not None}
            return self.output(hidden, given).logits
        running = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device) if running is None else running
        rows = running.nonzero().squeeze(1)
        named = {name: getattr(inputs, name) for name in NEEDED}
        given = {name: value[rows] for name, value in named.items() if value is not None}
        logits = hidden.new_zeros(len(running), self.outputs)
        if not self.token_flops:
            found = self.output(hidden[rows], given).logits
            return logits.to(found.dtype).index_copy(0, rows, found)
        # a head that maps every token would map pads as well: sequences of one length at a time, without them
        real = inputs.real(hidden)[rows]
        lengths = real.sum(1)
        for length in lengths.unique().tolist():
            some = lengths == length
            shape = int(some.sum()), length
            cut = {name: value[some][real[some]].unflatten(0, shape) for name, value in given.items()}
            found = self.output(hidden[rows[some]][real[some]].unflatten(0, shape), cut).logits
            logits = logits.to(found.dtype).index_copy(0, rows[some], found)
        return logits

    def flops(self, lengths: Tensor) -> Tensor:
        """FLOPs of reading sequences of these lengths, ``(B,)``."""
        return self.fixed + self.token_flops * lengths


def has_rows(output: Any) -> bool:
    """Tell whether an output's ``logits`` have a row for each token."""
    logits = getattr(output, "logits", None)
    return isinstance(logits, Tensor) and logits.dim() == 3
