"""Forwards on static rows by graphs: the walk's parts as steps, and all that the host does between them.

    opening (embed) -> the host reads how many tokens there are -> layer 0 ... L - 1 -> closing (restore, finish)

Each part is a step of :class:`~skim.engine.graphs.Graphs`, so a forward is one launch for each, and between two of them
the host reads a count that has arrived by then. A layer's step ends with who enters the next one, so that this is what
is counted. What comes out, and the trace, are copies: the graphs' own tensors belong to whoever comes next.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor

from skim.engine.baked import Baked, obstacle
from skim.engine.buckets import bucket, padded, trimmed, within
from skim.engine.graphs import MEMORY, Graphs, alike
from skim.engine.inputs import Inputs
from skim.engine.keys import KeyValues
from skim.engine.recorders import Recorder, recorder_for
from skim.engine.static import Pending, StaticTokens, capacity
from skim.engine.step import Steps
from skim.engine.tokens import Nobody, Sequences
from skim.engine.trace import LayerTrace, Trace
from skim.engine.trees import take_apart

Walk: TypeAlias = Any  # of skim.engine.walk, which imports this file

FEW = 256  # rows for which a GPU takes as long as for fewer: it waits for weights and launches

log = logging.getLogger("skim")


class Graphed:
    """Graphs of one walk, and what they rely on. A copied or pickled model begins without.

    Attributes:
        graphs: the captured steps; ``None`` before the first forward that can use them.
        recorder: to record by; ``None``: the device's.
    """

    def __init__(self) -> None:
        self.graphs: Graphs | None = None
        self.recorder: Recorder | None = None
        self._baked: Baked | None = None
        self._device: torch.device | None = None
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Graphed, ()

    def forward(self, walk: Walk, inputs: Inputs) -> tuple[Any, Callable[[], Trace]] | None:
        """Run a forward by graphs.

        Returns:
            The base model's output and what makes the trace; ``None``: it has to run without graphs.

        Raises:
            SkimError: as the walk.
        """
        device = inputs.device
        if (reason := obstacle(walk.model, device)) is not None:
            log.debug("no graphs: %s", reason)  # training and its like: nothing to mend
            return None
        with self._lock:
            if self.graphs is None or device != self._device:
                self.graphs, self._device, self._baked = (
                    Graphs(self.recorder or recorder_for(device), memory=room(device), same=same),
                    device,
                    None,
                )
        if self.graphs.off is not None:
            return None
        with on_device(device), self.graphs.forward(lambda: self._changed(walk)) as on:
            if not on or self._hooked():
                return None
            wider = roomy(walk, inputs)
            done = run(walk, self.graphs, wider)
            if wider is inputs or done is None:
                return done
            (output, trace), size = done, inputs.shape
            return narrow(output, wider.shape, size), lambda: trimmed(trace(), *size)

    def _changed(self, walk: Walk) -> bool:
        """Look at the model anew if it is no longer as graphs have recorded it."""
        method = walk.deciding
        if self._baked is not None and not self._baked.changed(method):
            return False
        self._baked = Baked(walk.model, method, called=(walk.model, walk.base))
        return True

    def _hooked(self) -> bool:
        assert self._baked is not None
        if not self._baked.hooked():
            return False
        reason = "a hook looks at what goes through a module, and a graph would skip it"
        if reason not in self._said:
            self._said.add(reason)
            log.warning("graphs are not used: %s", reason)
        return True


def room(device: torch.device) -> int:
    """Bytes that graphs may take: no more than an eighth of a GPU's memory."""
    if device.type != "cuda":
        return MEMORY
    return min(MEMORY, torch.cuda.get_device_properties(device).total_memory // 8)


def roomy(walk: Walk, inputs: Inputs) -> Inputs:
    """The inputs in the size of their bucket, as far as nobody can tell."""
    batch, length = inputs.shape
    rows, places = bucket(batch), bucket(length, 8)
    config = walk.base.config
    longest = walk.backbone.longest_input(config)
    read = walk.deciding.reads_padding or walk.head.reads in ("last", "every")
    alike = places in (config.hidden_size, config.num_labels)  # nobody could tell positions from those when cutting
    if read or alike or (longest is not None and places > longest):
        places = length
    if (rows, places) == (batch, length):
        return inputs
    return padded(inputs, rows, places, getattr(config, "pad_token_id", None) or 0)


def narrow(output: Any, shape: tuple[int, int], size: tuple[int, int]) -> Any:
    """The output without what :func:`roomy` has added."""
    leaves, skeleton = take_apart(output)
    return skeleton.build([within(leaf, shape, size).contiguous() for leaf in leaves])


def run(walk: Walk, graphs: Graphs, inputs: Inputs) -> tuple[Any, Callable[[], Trace]] | None:
    """Run one forward, see the module's docstring; ``None`` for a batch without any token."""
    method, backbone = walk.deciding, walk.backbone
    layers = backbone.layers(walk.base)
    keeps = len({id(layer) for layer in layers}) < len(layers)  # keys, where layers share their weights
    costs = [backbone.charged(cost, inputs) for cost in walk.costs]

    def step(sequences: Sequences, inputs: Inputs) -> Steps:
        return Steps(walk.base, backbone, method, walk.head, walk.heads, costs, inputs, sequences, False)

    def opening(inputs: Inputs) -> tuple[Tensor, Sequences, Inputs, Tensor | None]:
        hidden = backbone.embed(walk.base, inputs)
        real = inputs.real(hidden)
        protected = method.protected(real, inputs.input_ids, walk.head.place)
        place = walk.head.place
        sequences = Sequences(real, protected, method.covers, False, place, input_ids=inputs.input_ids)
        _ = sequences.lengths, sequences.read, sequences.stay  # once, and not in every layer
        return hidden, sequences, inputs, walk.told(real, inputs.attention_mask is None)

    def some(span: range, total: int, first: Any, sequences: Sequences, inputs: Inputs, keys: Any) -> tuple[Any, ...]:
        tokens: Any = first if isinstance(first, StaticTokens) else StaticTokens.start(first, sequences, total)
        taking = step(sequences, inputs)
        if keys is not None:
            vars(taking.key_values).update(keys)
        ran = []
        if tokens is not first:
            tokens = taking.enter(0, tokens)
        for i in span:
            tokens, one = taking(i, layers[i], tokens)
            ran.append(one)
            if i + 1 < len(layers):
                tokens = taking.enter(i + 1, tokens)
        return tokens, tuple(ran), held(taking.key_values) if keeps else None

    def closing(tokens: StaticTokens, inputs: Inputs) -> tuple[Any, Any]:
        return backbone.finish(walk.base, method.restore(tokens)), tokens.carry

    hidden, sequences, given, told = graphs("opening", opening, inputs)
    total = walk.hear(told, sequences.real, inputs.attention_mask is None)
    places = sequences.real.numel()
    if total < places:  # which ones are real decides the device; how many rows at most, the ladder
        total = min(capacity(total), places - 1)
    if not total:
        return None
    tokens: Any = hidden
    ran: list[Any] = []
    keys: Any = None
    pending: tuple[Pending, ...] = ()
    i = 0
    while i < len(layers):
        begins = tokens is hidden
        rows = total if begins else tokens.hidden.shape[1]
        if not rows:  # all have halted, or left
            nobody = Nobody(sequences)
            ran.append(tuple(LayerTrace(nobody, nobody, cost, shortened=backbone.shortens) for cost in costs[i:]))
            break
        # the rest is one launch where cutting gains nothing; else what enters the first layer is counted by itself
        span = range(i, len(layers) if rows <= FEW else i + (not begins))
        asked = tuple(method.runs(j) and method.wants_received(j) for j in span)
        tokens, these, keys = graphs(
            ("layer", span, total if begins else None, asked),
            lambda *trees, span=span: some(span, total, *trees),
            tokens,
            sequences,
            given,
            keys,
        )
        ran.append(these)
        i = span.stop
        if i < len(layers):
            pending, known = tokens.heard(pending, len(layers) - 1 - i)
            if known is not None:
                rungs = tuple(map(capacity, known))
                tokens = graphs.view(("cut", rungs), lambda tokens, rungs=rungs: tokens.known(*rungs), tokens)
    output, carry = graphs("closing", closing, tokens, given)
    build = graphs.keep(sequences, carry, *ran)

    def trace() -> Trace:
        sequences, carry, *layers = build()
        return Trace(sequences, "packed", [one for some in layers for one in some], carry)

    return graphs.keep(output)()[0], trace


def same(one: Any, other: Any) -> bool:
    """Compare two results of a step by what somebody reads: filler is as the device finds its memory."""
    return alike(read(one), read(other))


def read(tree: Any) -> list[Any]:
    """All of a step's result that is read later."""
    if isinstance(tree, StaticTokens):
        looked_at = [] if tree.memory is None else read(tree.memory)
        return [tree.restore(), tree.occupancy.bounds, tree.occupancy.alive(), *looked_at]
    if isinstance(tree, LayerTrace):
        return [tree.attending.counts(), tree.feeding.counts(), tree.flops()]
    if not isinstance(tree, tuple):
        return [tree]
    return [part for some in tree if not isinstance(some, dict) or "key" not in some for part in read(some)]


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Make a device the one whose streams and events are meant."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def held(keys: KeyValues) -> dict[str, Any]:
    """Everything that one layer tells the next of keys and values."""
    return {name: value for name, value in vars(keys).items() if name not in ("backbone", "base", "inputs")}
