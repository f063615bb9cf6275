"""The contract of a compression method: hooks round the halves of a layer, and nothing about any architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from skim.engine.hooks import Hooks
from skim.engine.tokens import at_place
from skim.engine.trace import Trace
from skim.errors import SkimError, unknown
from skim.methods.budget import Budget
from skim.methods.options import OptionError, Special, Target, arguments, checked
from skim.methods.table import Table

ROUNDED = 1e-6  # by which a budget may miss the end of a range

MEANS = {  # by which methods compute less, and what else a chain has to know of its members
    "skips": "some layers do not run",
    "retires": "tokens leave",
    "merges": "several tokens go on as one row",
    "reopens": "all tokens run again in the last layers",
    "halts": "tokens stop being computed, and are still looked at",
    "exits": "sequences end before the last layer",
    "scores": "decisions are taken by the attention that tokens receive",
}


@dataclass(frozen=True)
class Spec:
    """All that a method may know about the backbone it is built for.

    Attributes:
        layers: layers that run, L.
        width: size of a hidden state, D.
        sep_token_id: id of the separator in the input, ``None`` if the model's config does not say.
        looks_apart: whether its rows can look at other rows than themselves.
        outputs: logits that its head gives per sequence, 1 for a regression; known to a method that reads it.
    """

    layers: int
    width: int
    sep_token_id: int | None = None
    looks_apart: bool = True
    outputs: int | None = None


class Method(Hooks):
    """A compression method: the hooks of :class:`~skim.engine.hooks.Hooks`, and how it is built, trained and saved.

    Override what the paper needs; every default leaves the dense model as it is.

    Two conventions spare boilerplate: a constructor argument is an attribute of the same name (so :meth:`options` can
    write it to a checkpoint), and it is a key of ``conf/method/<name>.yaml`` with the same default. What it may be, its
    annotation says (:mod:`skim.methods.options`); every constructor checks its arguments by them.

    Args:
        protect: special tokens that never retire: ``cls`` (what the head reads), ``sep``.

    Attributes:
        stages: names of the ways to train, in their order; empty for a method that has one.
        stage: the present one.
        target: relative FLOPs at which training shall end, or a range ``(low, high)`` of them; ``None``: no goal.
        table: its shifts by budget, of a method whose target is a range; ``None``: it has one budget, or none.
        starts_at_target: a target is met before training through decisions as well, by moving ``shift``.
        trains_dense: training runs every layer on every token; decisions are for evaluation only.
        reads_saliency: its penalties want ``trace.saliency`` in training.
        does: by which means it computes less, of :data:`MEANS`; a chain refuses pairs that cannot be.
        by_budget: names of its parameters that only a method for a range of budgets has.
        defining: options without which what was learned means something else: a run that goes on from another has the
            same.
        learning_rates: peak ones of its own parameters, by stage, where a trainer is not told another.
        budget: what steers training there; ``None``: the penalties have the weights that the options give them.
        shift: a scalar buffer that moves all hard decisions, up to keep more; ``None``: no such knob.
        straight: its relaxed decisions are the hard ones in the forward, without noise: a table of shifts that is right
            for evaluation is right in training as well.
        conditioned: decisions have the budget as an input, beside the shift.
        path: ``(C, L)`` a setting of each layer in each of the configurations that ``shift`` moves along, which a
            search may replace (:meth:`skim.LengthDrop.take`); ``None``: there is no such path.
        built_for: the backbone that :meth:`build` was called for, by ``compress``.
        serves: whether a model has it.
        chained: its label in the chain that it is a member of; empty for one that is none.
        measured_on: name of the backbone in ``conf/backbone`` that options were measured on which it has read from a
            file; ``None``: it has read none.
        progress: share of training done, of the present stage if there are several.
        stage_shares: of its training that its stages take, by name: as a trainer says, before that what the method
            asks for; empty: all the same.
    """

    shift: Tensor | None
    path: Tensor | None
    stages: ClassVar[tuple[str, ...]] = ()
    learning_rates: ClassVar[Mapping[str, float]] = {"": 1e-3}
    starts_at_target = False
    straight = False
    conditioned = False
    by_budget: ClassVar[tuple[str, ...]] = ()
    defining: ClassVar[tuple[str, ...]] = ("preset", "protect")
    does: ClassVar[frozenset[str]] = frozenset({"retires"})
    trains_dense = False
    reads_saliency = False
    measured_on: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = checked(cls.__init__)  # type: ignore[method-assign]
        if not hasattr(cls, "name"):
            cls.name = cls.__name__.lower()

    @checked
    def __init__(self, protect: tuple[Special, ...] = ("cls",)) -> None:
        super().__init__()
        self.protect = protect
        self.stage = self.stages[0] if self.stages else ""
        self.progress = 0.0
        self.stage_shares: Mapping[str, float] = {}
        self.stepped = False
        self.kept_frozen = False
        self.built_for: Spec | None = None
        self.serves = False
        self.chained = ""
        self.target: Target | None = None
        self.table: Table | None = None
        self.budget: Budget | None = None
        self.register_buffer("shift", None)
        self.register_buffer("path", None)

    def aim(self, target: Target | None) -> None:
        """Take the target of a constructor: of a range, with a table of its budgets.

        Raises:
            SkimError: the range goes nowhere.
        """
        self.target = target
        if not isinstance(target, tuple):
            return
        low, high = target
        if low >= high:
            raise self.refusal(
                "is not a range that goes from a smallest budget to a largest.\nUse two numbers, such as [0.25, 1.0].",
                target=list(target),
            )
        self.table = Table(low, high)

    @property
    def aims_at(self) -> float | None:
        """Relative FLOPs asked of it at present: its target, or of a range the budget that is set."""
        if self.table is not None:
            return self.table.now
        return None if isinstance(self.target, tuple) else self.target

    def meet(self, budget: float) -> None:
        """Spend a budget of the range that it was trained for, from now on.

        Raises:
            SkimError: it was trained for one budget, or for another range.
        """
        if self.table is None or self.shift is None:
            trained = "no budget" if self.target is None else f"one budget, {self.target:g},"
            raise SkimError(
                f"budget={budget!r} is asked of method={self.name}, which was trained for {trained} and takes no other."
                "\nTrain it for a range, method.target=[0.25,1.0], or move its decisions untrained: "
                "skim.calibrate(model, batches, budget)."
            )
        low, high = self.table.low, self.table.high
        number = isinstance(budget, (int, float)) and not isinstance(budget, bool)
        if not number or not low - ROUNDED <= budget <= high + ROUNDED:
            raise SkimError(
                f"budget={budget!r} is not among those that method={self.name} was trained for: {low:g} to {high:g} "
                f"of the FLOPs.\nUse a number in that range, or train for a wider one (method.target)."
            )
        self.table.choose(budget)
        self.shift.copy_(self.table.shift())
        if self.budget is not None:
            self.budget.choose(self.table.now)

    def restate(self, share: float) -> None:
        """Count its target in FLOPs of a part of the layers from now on, where the others are gone.

        Args:
            share: of all layers' FLOPs that the part has.
        """
        if isinstance(self.target, tuple):
            self.target = self.target[0] / share, min(self.target[1] / share, 1.0)
        elif self.target is not None:
            self.target = min(self.target / share, 1.0)
        if self.table is not None:
            self.table.restate(share)

    def descend(self, budget: float) -> None:
        """Take part in a budget of a chain, where another member's decisions are shifted to meet it."""

    @property
    def steps(self) -> list[float]:
        """Budgets above which it changes in a step, as a member of a chain; by default none."""
        return []

    @property
    def idle(self) -> bool:
        return self.table is not None and self.table.now >= 1

    def build(self, spec: Spec) -> None:
        """Create the parameters for a backbone. Called once, by ``compress``."""
        self.spec = spec
        if "sep" in self.protect and spec.sep_token_id is None:
            raise self.refusal(
                "needs to know the separator, and the model's config does not say.\n"
                "Set model.config.sep_token_id = tokenizer.sep_token_id before compressing.",
                protect=self.protect,
            )

    def read(self, tokenizer: Any) -> None:
        """Learn from the model's tokenizer what it has to know of the input's ids; by default nothing.

        A run calls it before training and saves what was learned with the method; in Python it is yours to call.

        Args:
            tokenizer: of transformers.
        """

    def build_for(self, spec: Spec) -> None:
        """Call :meth:`build`, unless it was called for a backbone like this: then what was learned stays."""
        before = self.built_for
        if before is None:
            self.build(spec)
            self.built_for = spec
        elif before != spec:
            was, now = asdict(before), asdict(spec)
            differs = "; ".join(f"{name} was {was[name]} and is {now[name]}" for name in was if was[name] != now[name])
            raise SkimError(
                f"This method object was built for another backbone ({differs}).\n"
                f"Make a new one: {type(self).__name__}(...)."
            )

    def check_fit(self) -> None:
        """Refuse a training in which the method, as built, would do nothing; by default none is refused.

        Raises:
            SkimError: what to change.
        """

    def penalties(self, trace: Trace) -> dict[str, Tensor]:
        """Scalars that training adds to the task's loss, unweighted, each logged by its name."""
        return {}

    def loss(self, trace: Trace) -> Tensor:
        """The weighted sum of the penalties of one forward, a scalar; zero for a method without any."""
        return self.weighed(trace)[0]

    def weighed(self, trace: Trace) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The sum of :meth:`loss`, and what a log shows of it: each penalty by its name, and its ``<name>_weight``."""
        total = trace.lengths.new_zeros((), dtype=torch.float32)
        log: dict[str, Tensor | float] = {}
        for name, (value, weight) in self.terms(trace).items():
            total = total + weight * value
            log |= {name: value.detach(), f"{name}_weight": weight}
        return total, log

    def terms(self, trace: Trace) -> dict[str, tuple[Tensor, Tensor | float]]:
        """Each penalty of one forward by its name, with its weight; where a budget steers, its price alone."""
        if self.budget is not None and self.steers:
            return {name: (value, self.budget.coefficient) for name, value in self.price(trace).items()}
        weights, penalties = self.weights(), self.penalties(trace)
        if missing := [name for name in penalties if name not in weights]:
            raise SkimError(
                f"{type(self).__name__}.penalties has '{missing[0]}', and its weights() says no weight for it.\n"
                f"Let weights() return {{'{missing[0]}': 1.0, ...}}."
            )
        return {name: (value, weights[name]) for name, value in penalties.items()}

    @property
    def steers(self) -> bool:
        """True if training is steered to the target at present, by the weight of :meth:`price` in the loss."""
        return self.budget is not None

    def price(self, trace: Trace) -> dict[str, Tensor]:
        """The differentiable scalar, by its name, that a budget's coefficient weighs in place of the penalties."""
        return {"relative_flops": trace.relative_flops().float()}

    def warmed(self, warmup: float) -> float:
        """The part of a weight that has set in by now, if it sets in over the share ``warmup`` of training."""
        return min(self.progress / warmup, 1.0) if warmup > 0 else 1.0

    def peak_rate(self, stage: str) -> float:
        """Peak learning rate of its own parameters in a stage of a training; 0 in one that is not among its own."""
        if self.stages and stage not in self.stages:
            return 0.0
        return self.learning_rates.get(stage, self.learning_rates.get("", 0.0))

    @property
    def by_label(self) -> Mapping[str, Method]:
        """The methods whose parameters learn apart, each at its own rate: this one, ``""``; of a chain its members."""
        return {"": self}

    @property
    def adapting(self) -> Method:
        """The method whose decisions move with ``target`` and ``shift``: this one, or of a chain a member."""
        return self

    def enter(self, stage: str) -> None:
        """Train in another way from now on.

        Raises:
            SkimError: the method has no such stage.
        """
        if stage not in self.stages:
            raise unknown("stage", stage, self.stages)
        self.stage = stage

    def step(self, progress: float, trace: Trace | None = None) -> None:
        """Move schedules on. Called once per training step, before :meth:`loss`; an override calls its parent's.

        Args:
            progress: share of training (of the stage, if there are several) done, 0 to 1.
            trace: of this step's forward, for schedules that steer by what was computed.
        """
        self.progress = progress
        self.stepped = True
        if self.budget is not None and trace is not None and self.steers:
            self.budget.step(progress, trace.relative_flops())

    def requires_grad_(self, requires_grad: bool = True) -> Method:
        """Let its parameters learn, or freeze them; who calls this with False means to train without them."""
        self.kept_frozen = not requires_grad
        return super().requires_grad_(requires_grad)

    def readings(self) -> dict[str, Tensor | float]:
        """Numbers of the method's state that a log shows, by name: its shift, and the goal of a budget that steers."""
        found: dict[str, Tensor | float] = {} if self.shift is None else {"shift": self.shift}
        if self.budget is not None and self.steers:
            found["goal"] = self.budget.goal(self.progress)
        return found

    @property
    def covers(self) -> bool:
        """True if every sequence is sure to have a protected token."""
        return "cls" in self.protect

    def protected(self, real: Tensor, input_ids: Tensor | None, place: str) -> Tensor:
        """Tokens that may not retire, ``(B, N)`` bool.

        Args:
            real: ``(B, N)`` bool.
            input_ids: ``(B, N)``, or ``None`` when the caller passed embeddings.
            place: ``first`` or ``last``: the real token that the head reads as [CLS].
        """
        protected = at_place(real, place) if "cls" in self.protect else torch.zeros_like(real)
        if "sep" in self.protect:
            if input_ids is None:
                raise self.refusal("needs input_ids; with inputs_embeds nothing says sep.", protect=self.protect)
            protected = protected | (input_ids == self.spec.sep_token_id)
        return protected & real

    def without_layers(self) -> Method | None:
        """The method that still decides once layers that do not run are gone from the model; ``None``: none does.

        Built for the layers that are left, with what this one has learned.
        """
        return self

    def options(self) -> dict[str, Any]:
        """The constructor's arguments, for a checkpoint."""
        names = list(arguments(type(self)))
        lost = [name for name in names if not hasattr(self, name)]
        if lost:
            raise SkimError(
                f"{type(self).__name__} does not keep {', '.join(lost)}: a constructor's argument has to be an "
                "attribute of the same name, to be saved."
            )
        return {name: getattr(self, name) for name in names}

    def settled(self) -> dict[str, Any]:
        """Options to be written down in place of those that name a file: what was read, for the file may go."""
        return {}

    def definition(self) -> dict[str, Any]:
        """The options in :attr:`defining` that it has, by name; those of a chain's members have paths."""
        return {name: getattr(self, name) for name in self.defining if hasattr(self, name)}

    def refusal(self, reason: str, **given: Any) -> SkimError:
        """The error for options that cannot be: ``given``, and the reason as in :class:`OptionError`."""
        return OptionError(type(self), reason, given, within=self.chained)


def check_free(method: Method) -> None:
    """Refuse a method that no model can be given.

    Raises:
        SkimError: it is not made as methods are, or serves a model already.
    """
    if type(method) is Method:
        raise SkimError("Method is what methods derive from, and no method itself; take one of its classes.")
    if not hasattr(method, "serves"):
        raise SkimError(f"{type(method).__name__}.__init__ does not call super().__init__(...) of methods.")
    if method.serves:
        raise SkimError(
            "This method object serves another model already; make a new one for each model, or skim.decompress "
            "that one first."
        )
