"""Chains: several methods on one backbone, such as fewer layers, then fewer tokens in them, then an earlier end.

Each hook of the members is called in their order. How their answers become one:

* Layers: one runs if every member lets it. The others count those that run, from 0, and no more.
* Decisions, penalties, logs and FLOPs add up. Each member hands its own things from layer to layer, and is charged for
  the rows that it ran over, which an earlier member may have made fewer.
* Training is masked as soon as one member trains through its decisions. Stages are those of all members, in their
  order. A member that has stages trains in those alone: until the first comes it waits at its beginning, and behind the
  last it stays as it has become. One that has none trains all along, and its schedules run over the whole training.
* Each member's own parameters learn at its own rate, by stage; 0 in a stage that its list does not have.
* One budget: at most one member has a target, which is that of the whole chain, and only that member adapts. Without
  a target, :func:`skim.calibrate` moves the last member that has a shift.
* What any member protects, none retires.

Pairs that cannot be are refused by name, from what each method says that it ``does``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import combinations, islice
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from skim.engine.threads import PerThread
from skim.engine.tokens import TokenBatch
from skim.engine.trace import Trace
from skim.errors import SkimError, shortened
from skim.methods import has_its_name, method_class, path_of
from skim.methods.base import Method, Spec, check_free
from skim.methods.options import OptionError, Target
from skim.methods.table import Table
from skim.options.members import numbered

CLASHES = {  # what one member does, what another does, and why both cannot be
    ("merges", "merges"): "each makes several tokens one row, and one layout is undone at the end",
    ("halts", "halts"): "a halted token keeps one state, and each would settle another",
    ("exits", "exits"): "each ends sequences with an answer, and a model gives one",
    ("halts", "merges"): "a halted token stays in its place to be looked at, so it cannot be merged",
    ("halts", "scores"): "attention to halted tokens is not counted, and one of them decides by attention received",
    ("reopens", "retires"): "the last layers run on all tokens again, those among them that the other retired",
    ("reopens", "exits"): "the last layers run on all tokens again, those of sequences that have ended as well",
}


Members = Annotated[tuple[Any, ...], Field(min_length=2, examples=[["layer_drop", "transkimmer"]])]


class Chain(Method):
    """Methods one after the other in each layer.

    Args:
        methods: the members in order, two or more; each a method, the name of one, or a mapping of ``method`` to its
            name, and its options.

    Attributes:
        members: the methods.
        labels: a name for each, for logs: the method's, with a number behind the second of a kind.
    """

    name = "chain"

    def __init__(self, methods: Members = ("layer_drop", "transkimmer")) -> None:
        super().__init__(())
        members = [member_of(one) for one in methods]
        if len({id(member) for member in members}) < len(members):
            raise SkimError("One method object stands in this chain twice; make one for each place.")
        self._asked = PerThread()  # members that want to be told of the present layer's attention
        self.labels = numbered(member.name for member in members)
        self.members = nn.ModuleList(members)
        for label, member in self.by_label.items():
            member.chained = label
        self.stage = self.stages[0] if self.stages else ""
        self.stage_shares = {stage: share for one in members for stage, share in one.stage_shares.items()}
        self.register_load_state_dict_post_hook(as_saved)
        targets = [label for label, one in self.by_label.items() if one.target is not None]
        if len(targets) > 1:
            raise SkimError(
                f"{' and '.join(targets)} of this chain both have a target, and a chain has one budget.\n"
                "Give it to the method that shall adapt; it is met by the chain as a whole."
            )

    @property
    def methods(self) -> list[dict[str, Any]]:
        """The members as the constructor takes them from a file."""
        return [{"method": member.name, **member.options()} for member in self._each()]

    def options(self) -> dict[str, Any]:
        for member in self._each():
            if not has_its_name(type(member)):
                raise SkimError(
                    f"A chain is saved by the names of its methods, and '{member.name}' does not stand for "
                    f"{path_of(type(member))}.\nGive the class a name of its own, and say so where it is saved and "
                    f"where it is loaded: skim.register({type(member).__name__})."
                )
        return super().options()

    def settled(self) -> dict[str, Any]:
        return {"methods": self.methods} if any(member.settled() for member in self._each()) else {}

    def _each(self) -> list[Any]:
        return list(self.members) if "members" in self._modules else []  # a chain that is being made has none yet

    @property
    def by_label(self) -> dict[str, Any]:
        """The members by their labels."""
        return dict(zip(self.labels, self._each(), strict=True)) if "members" in self._modules else {}

    def read(self, tokenizer: Any) -> None:
        for member in self._each():
            member.read(tokenizer)

    def build(self, spec: Spec) -> None:
        super().build(spec)
        check(self._each())
        skips = [member for member in self._each() if "skips" in member.does]
        for member in skips:
            member.build_for(seen_by(member, spec))
        running = [i for i in range(spec.layers) if all(member.runs(i) for member in skips)]
        if not running:
            raise SkimError(f"{' and '.join(member.name for member in skips)} of this chain leave no layer that runs.")
        if self.table is not None:
            self.table.lay(self.steps)
            self.meet(self.table.now)
        elif self.steps:
            raise SkimError(
                "layer_drop.depths lets a budget choose how many layers run, and no method of this chain has a range.\n"
                "Give one of them a target such as [0.25, 1.0]."
            )
        self.among = {i: place for place, i in enumerate(running)}  # the layers that run, and how members count them
        for member in self._each():
            if member not in skips:
                member.build_for(seen_by(member, replace(spec, layers=len(running))))

    def check_fit(self) -> None:
        for member in self._each():
            member.check_fit()

    def runs(self, i: int) -> bool:
        # a budget may let fewer run than those among which the others count
        return i in self.among and all(member.runs(i) for member in self._each() if "skips" in member.does)

    def without_layers(self) -> Method | None:
        left = [one for member in self._each() if (one := member.without_layers()) is not None]
        if len(left) < 2:
            return left[0] if left else None
        rest = Chain(tuple(left))
        rest.build(replace(self.spec, layers=len(self.among)))
        if self.stage:
            rest.enter(self.stage)
        return rest

    def asks(self) -> Tensor | None:
        asked = [numbers for member in self._each() if (numbers := member.asks()) is not None]
        return torch.cat(asked) if asked else None

    def answered(self, numbers: list[float]) -> None:
        rest = iter(numbers)
        for member in self._each():
            if (asked := member.asks()) is not None:
                member.answered(list(islice(rest, len(asked))))

    def before_layer(self, i: int, tokens: TokenBatch) -> TokenBatch:
        return self._in_turn(tokens, lambda member, rows: member.before_layer(self.among[i], rows))

    def wants_received(self, i: int) -> bool:
        # each is asked, and once: it may note it, and it may have to wait for a device to answer
        self._asked.value = [member.wants_received(self.among[i]) for member in self._each()]
        return any(self._asked.value)

    def key_bias(self, i: int, looked_at: TokenBatch) -> Tensor | None:
        found = [bias for one in self._each() if (bias := one.key_bias(self.among[i], looked_at)) is not None]
        return sum(found[1:], found[0]) if found else None

    def after_attention(self, i: int, tokens: TokenBatch, received: Tensor | None) -> TokenBatch:
        begin, place = tokens.occupancy, self.among[i]
        asked = dict(zip(self._each(), self._asked.value, strict=True))

        def decide(member: Method, rows: TokenBatch) -> TokenBatch:
            if received is None or not asked[member]:
                return member.after_attention(place, rows, None)
            return member.after_attention(place, rows, begin.follow(received, rows.occupancy))

        return self._in_turn(tokens, decide)

    def after_layer(self, i: int, before: TokenBatch, tokens: TokenBatch) -> TokenBatch:
        return self._in_turn(tokens, lambda member, rows: member.after_layer(self.among[i], before, rows))

    def wants_reading(self, i: int) -> bool:
        return any(member.wants_reading(self.among[i]) for member in self._each())

    def after_reading(self, i: int, tokens: TokenBatch, logits: Tensor) -> TokenBatch:
        place = self.among[i]

        def decide(member: Method, rows: TokenBatch) -> TokenBatch:
            return member.after_reading(place, rows, logits) if member.wants_reading(place) else rows

        return self._in_turn(tokens, decide)

    def restore(self, tokens: TokenBatch) -> Tensor:
        for member, carry in zip(self._each(), self._carried(tokens.carry), strict=True):
            if "merges" in member.does:  # there is one at most; to the others, rows are where they are
                return member.restore(tokens.carrying(carry))
        return tokens.restore()

    def _carried(self, carry: Any) -> list[Any]:
        """The things that each member handed on."""
        return [None] * len(self.members) if carry is None else list(carry)

    def _in_turn(self, tokens: TokenBatch, hook: Callable[[Any, TokenBatch], TokenBatch]) -> TokenBatch:
        """Call a hook of each member, with its own carry."""
        carried = self._carried(tokens.carry)
        for k, member in enumerate(self._each()):
            tokens = hook(member, tokens.carrying(carried[k]))
            carried[k] = tokens.carry
        return tokens.carrying(tuple(carried))

    def _seen_by(self, trace: Trace) -> list[tuple[str, Any, Trace]]:
        """Each member with its label and the trace as it knows it."""
        carried = zip(self.by_label.items(), self._carried(trace.carry), strict=True)
        return [(label, member, replace(trace, carry=carry)) for (label, member), carry in carried]

    def task_loss(self, logits: Tensor, labels: Tensor, trace: Trace) -> Tensor:
        _, reader, seen = next(one for one in self._seen_by(trace) if one[1].reads_head)
        return reader.task_loss(logits, labels, seen)

    def terms(self, trace: Trace) -> dict[str, tuple[Tensor, Tensor | float]]:
        return {
            f"{label}/{name}": term
            for label, member, seen in self._seen_by(trace)
            for name, term in member.terms(seen).items()
        }

    def penalties(self, trace: Trace) -> dict[str, Tensor]:
        return {name: value for name, (value, _) in self.terms(trace).items()}

    def weights(self) -> dict[str, float]:
        return {
            f"{label}/{name}": value for label, one in self.by_label.items() for name, value in one.weights().items()
        }

    def step(self, progress: float, trace: Trace | None = None) -> None:
        super().step(progress, trace)
        if trace is None:
            for member in self._each():
                member.step(self.done(member))
        else:
            for _, member, seen in self._seen_by(trace):
                member.step(self.done(member), seen)

    def enter(self, stage: str) -> None:
        super().enter(stage)
        for member in self._each():
            if own := [one for one in self._begun if one in member.stages]:
                member.enter(own[-1])  # also where earlier stages were never entered, as in a model that is loaded
        self.progress = self._progress  # of another stage now

    @property
    def _begun(self) -> tuple[str, ...]:
        """The present stage and those before it."""
        return self.stages[: self.stages.index(self.stage) + 1] if self.stage else ()

    def done(self, member: Method) -> float:
        """The share of a member's own training that is done: of its present stage, or if it has none of the whole."""
        if not member.stages:
            before = sum(self._share(stage) for stage in self._begun[:-1])
            return before + self._share(self.stage) * self._progress
        if self.stage in member.stages:
            return self._progress
        return float(any(stage in member.stages for stage in self._begun))

    def _share(self, stage: str) -> float:
        """Share of the training that a stage takes."""
        return self.stage_shares.get(stage, 0.0) if self.stage_shares else 1 / max(len(self.stages), 1)

    def definition(self) -> dict[str, Any]:
        options = {
            f"methods.{k}.{name}": value
            for k, member in enumerate(self._each())
            for name, value in member.definition().items()
        }
        return {"methods": [member.name for member in self._each()], **options}

    def readings(self) -> dict[str, Tensor | float]:
        return {
            f"{label}/{name}": value for label, one in self.by_label.items() for name, value in one.readings().items()
        }

    # what a method answers by an attribute, a chain answers by those of its members

    @property
    def does(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset().union(*(member.does for member in self._each()))

    @property
    def stages(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(dict.fromkeys(stage for member in self._each() for stage in member.stages))

    @property
    def measured_on(self) -> str | None:  # type: ignore[override]
        return next((member.measured_on for member in self._each() if member.measured_on is not None), None)

    @property
    def trains_masked(self) -> bool:  # type: ignore[override]
        return any(member.trains_masked for member in self._each())

    @property
    def trains_dense(self) -> bool:  # type: ignore[override]
        return all(member.trains_dense for member in self._each())

    @property
    def reads_saliency(self) -> bool:  # type: ignore[override]
        return any(member.reads_saliency for member in self._each())

    @property
    def reads_padding(self) -> bool:  # type: ignore[override]
        return any(member.reads_padding for member in self._each())

    @property
    def reads_head(self) -> bool:  # type: ignore[override]
        return any(member.reads_head for member in self._each())

    @property
    def progress(self) -> float:  # type: ignore[override]
        return self._progress

    @progress.setter
    def progress(self, value: float) -> None:
        self._progress = value
        for member in self._each():
            member.progress = self.done(member)

    @property
    def stage_shares(self) -> Mapping[str, float]:  # type: ignore[override]
        return self._stage_shares

    @stage_shares.setter
    def stage_shares(self, value: Mapping[str, float]) -> None:
        self._stage_shares = value
        self.progress = self._progress  # of stages of these lengths

    @property
    def target(self) -> Target | None:  # type: ignore[override]
        return self.adapting.target if self._each() else None

    @target.setter
    def target(self, value: Target | None) -> None:
        if self._each():
            self.adapting.target = value

    @property
    def table(self) -> Table | None:  # type: ignore[override]
        return self.adapting.table if self._each() else None

    @table.setter
    def table(self, value: None) -> None:
        """Nothing: each member has its own."""

    @property
    def conditioned(self) -> bool:  # type: ignore[override]
        return self.adapting.conditioned or bool(self.steps)

    @property
    def steps(self) -> list[float]:
        return [step for member in self._each() for step in member.steps]

    def meet(self, budget: float) -> None:
        self.adapting.meet(budget)
        for member in self._each():
            member.descend(self.table.now)  # type: ignore[union-attr]  # it has met a budget of it

    @property
    def shift(self) -> Tensor | None:  # type: ignore[override]
        if not self._each():
            raise AttributeError("shift")
        return self.adapting.shift

    @property
    def serves(self) -> bool:  # type: ignore[override]
        return any(member.serves for member in self._each())

    @serves.setter
    def serves(self, value: bool) -> None:
        for member in self._each():
            member.serves = value

    @property
    def covers(self) -> bool:
        return any(member.covers for member in self._each())

    def protected(self, real: Tensor, input_ids: Tensor | None, place: str) -> Tensor:
        return torch.stack([member.protected(real, input_ids, place) for member in self._each()]).any(0)

    @property
    def adapting(self) -> Method:
        targeted = [member for member in self._each() if member.target is not None]
        shifting = [member for member in self._each() if member.shift is not None]
        return (targeted or shifting or self._each())[-1]


def as_saved(chain: Chain, report: object) -> None:
    """Let all members meet the budget that a loaded state says; a function of the module, to be pickled."""
    if chain.table is not None:
        chain.meet(chain.table.now)


def member_of(given: Any) -> Method:
    """The method that a member of a chain is given as: itself, its name, or its name and options."""
    if isinstance(given, Chain):
        raise SkimError("A chain cannot be in a chain; name its methods in this one.")
    if isinstance(given, Method):
        check_free(given)
        return given
    if isinstance(given, str):
        return method_class(given)()
    if isinstance(given, Mapping) and isinstance(given.get("method"), str) and all(isinstance(k, str) for k in given):
        options = {name: value for name, value in given.items() if name != "method"}
        try:
            return member_of(method_class(given["method"])(**options))
        except OptionError as error:
            raise SkimError(str(error)) from None  # by name of the member: on a command line it is no option of its own
    raise SkimError(
        f"A chain takes methods, and got {shortened(repr(given))}.\n"
        "Each is a method, the name of one, or a mapping such as {method: transkimmer, target: 0.5}."
    )


def seen_by(member: Method, spec: Spec) -> Spec:
    """The backbone as a member knows it: its head only if it reads that, as where it is alone."""
    return spec if member.reads_head else replace(spec, outputs=None)


def check(members: Iterable[Method]) -> None:
    """Refuse members that cannot be together.

    Raises:
        SkimError: it names the pair, or the member that only works alone.
    """
    members = list(members)
    for member in members:
        if not member.inside_softmax or member.needs_pads or member.retired_run_on:
            raise SkimError(
                f"{member.name} with preset=paper does what its published code did, pads and retired tokens included, "
                "so it cannot be in a chain.\nUse preset=default."
            )
    for pair in combinations(members, 2):
        for one, other in (pair, pair[::-1]):
            for (does, others), why in CLASHES.items():
                if does in one.does and others in other.does:
                    raise SkimError(f"{pair[0].name} and {pair[1].name} cannot be in one chain: {why}.")
