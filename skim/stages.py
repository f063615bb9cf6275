"""A training in several stages, such as LTP's soft and hard one: one run, one progress, a learning rate for each.

The stage of a step follows from its number alone, so a resumed run knows its stage - as long as stages change
at the same steps as before. A run that would move them is refused (:func:`check_bounds`). The last stage may be made
longer or shorter on the way, and so may a training that has only one: its learning rate then falls to its new end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from skim.errors import SkimError
from skim.options.kinds import Count, Positive
from skim.options.run import Schedule

KINDS = ("decay", "plain", "method")  # of parameters: matrices, biases and norms, the method's own


def kind_of(label: str) -> str:
    """The kind of a method's own parameters; of a chain's member, it has the member's label: ``method.ltp``."""
    return f"method.{label}" if label else "method"


def of_method(kind: str) -> bool:
    """Tell whether parameters of a kind are the method's own, or those of a chain's member."""
    return kind.partition(".")[0] == "method"


@dataclass(frozen=True)
class Stage(Schedule):
    """A while of training, by the options of a :class:`~skim.options.run.Schedule`.

    Attributes:
        name: of the method's stage; empty for a method that has one way to train.
        epochs: passes over the training data, or where steps are counted any share of them.
        members: of a chain, the options of its members whose own parameters learn at another rate than ``method_lr``,
            by label; of each, ``method_lr`` and ``method_weight_decay`` count.
    """

    name: str = ""
    epochs: Count | Positive = field(default=1, kw_only=True)  # type: ignore[assignment]
    members: Mapping[str, Schedule] = field(default_factory=dict, kw_only=True)

    def own(self, kind: str) -> Schedule:
        """Options by which the method's own parameters of a kind are trained."""
        return self.members.get(kind.partition(".")[2], self)

    def decay(self, kind: str) -> float:
        """Weight decay of one of :data:`KINDS`, or of a member's own."""
        if of_method(kind):
            return self.own(kind).method_weight_decay
        return self.weight_decay if kind == "decay" else 0.0

    def peak(self, kind: str) -> float:
        """Highest learning rate of one of :data:`KINDS`, or of a member's own."""
        return self.own(kind).method_lr if of_method(kind) else self.lr

    def rate(self, kind: str, step: int, steps: int, fall: Callable[[float], float] = float) -> float:
        """Learning rate of one of :data:`KINDS` at a step of the stage's ``steps``.

        Args:
            kind: of parameters.
            step: from 0.
            steps: of the stage.
            fall: share of the peak, by the share of the steps behind the warmup that is left; by default linear.
        """
        rise = math.ceil(self.warmup * steps)
        scale = (step + 1) / rise if step < rise else fall(max(steps - step, 0) / max(steps - rise, 1))
        return self.peak(kind) * scale


@dataclass(frozen=True)
class Plan:
    """The stages of a run over its optimizer steps.

    Attributes:
        stages: in their order, at least one.
        steps: of the whole run.
        method_after: share of the steps that train the plain dense backbone, before the method begins.
    """

    stages: Sequence[Stage]
    steps: int
    method_after: float = 0.0

    @property
    def bounds(self) -> list[int]:
        """The first step of every stage, and the number of steps."""
        whole = sum(stage.epochs for stage in self.stages)
        return [0, *(round(self.steps * done / whole) for done in accumulate(s.epochs for s in self.stages))]

    def at(self, step: int) -> tuple[Stage, int, int]:
        """The stage of a step, its first step, and how many it has; the last stage for any step beyond."""
        bounds = self.bounds
        index = max(i for i in range(len(self.stages)) if bounds[i] <= step or i == 0)
        return self.stages[index], bounds[index], max(bounds[index + 1] - bounds[index], 1)

    @property
    def begin(self) -> int:
        """The first step that the method takes part in."""
        return round(self.steps * self.method_after)

    @property
    def shares(self) -> dict[str, float]:
        """Share of the method's steps that each stage has, by its name."""
        bounds = [max(bound, self.begin) for bound in self.bounds]
        whole = max(bounds[-1] - bounds[0], 1)
        steps = zip(self.stages, bounds, bounds[1:], strict=False)
        return {stage.name: (end - begin) / whole for stage, begin, end in steps}

    def of_method(self, step: int) -> tuple[int, int]:
        """The first step of the method in the stage of a step, and how many it has there."""
        _, first, steps = self.at(step)
        begin = max(first, self.begin)
        return begin, max(first + steps - begin, 1)

    def rate(self, kind: str, step: int, fall: Callable[[float], float] = float) -> float:
        """Learning rate of one of :data:`KINDS` at a step of the run, see :meth:`Stage.rate`.

        The method's is 0 until it begins.
        """
        stage, first, steps = self.at(step)
        if of_method(kind):
            first, steps = self.of_method(step)
        return stage.rate(kind, step - first, steps, fall) if step >= first else 0.0

    def check(self) -> None:
        """Refuse a plan in which a stage, or the method in the first one, has no step.

        Raises:
            SkimError: which it is, and what to change.
        """
        bounds = self.bounds
        empty = [stage.name for stage, begin, end in zip(self.stages, bounds, bounds[1:], strict=False) if begin == end]
        if empty:
            raise SkimError(
                f"Stage {empty[0]} gets none of the {bounds[-1]} steps of this run.\n"
                "Raise train.max_steps or method.stages.<stage>.epochs, or leave the stage out (null)."
            )
        if self.begin >= bounds[1]:
            first = f"stage {self.stages[0].name}, which ends at step {bounds[1]}," if len(self.stages) > 1 else "it"
            raise SkimError(
                f"train.method_after={self.method_after} lets the method begin at step {self.begin} of {self.steps} "
                f"and so leaves {first} no step to train with it.\nUse a share below {bounds[1] / self.steps:.3g}."
            )


def check_bounds(before: Sequence[int], now: Sequence[int]) -> None:
    """Refuse to go on with a run whose stages change at other steps than those by which it has been trained so far.

    Args:
        before: :attr:`Plan.bounds` that the checkpoint was saved with.
        now: those of the present run. The last one, the number of steps, may differ.

    Raises:
        SkimError: the steps at which stages change differ.
    """
    if list(before[:-1]) != list(now[:-1]):
        raise SkimError(
            f"resume: the checkpoint's stages begin at steps {list(before[:-1])} of {before[-1]}, this run's at "
            f"{list(now[:-1])} of {now[-1]}.\nUse the numbers of that run (train.max_steps, train.epochs, "
            "task.batch_size or tokens_per_batch, hardware.devices), or start anew: init_from=<that run>."
        )
