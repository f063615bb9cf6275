"""The contract of a compression method: hooks round the halves of a layer, and nothing about any architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from skim.engine.tokens import TokenBatch
from skim.engine.trace import Trace
from skim.errors import SkimError, unknown
from skim.methods.options import OptionError, Special, arguments, checked


@dataclass(frozen=True)
class Spec:
    """Facts that a method may know about the backbone it is built for.

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


class Method(nn.Module):
    """A compression method. Override what the paper needs; every default leaves the dense model as it is.

    Two conventions spare boilerplate: a constructor argument is an attribute of the same name (so :meth:`options` can
    write it to a checkpoint), and it is a key of ``conf/method/<name>.yaml`` with the same default. What it may be, its
    annotation says (:mod:`skim.methods.options`); every constructor checks its arguments by them.

    Args:
        protect: special tokens that never retire: ``cls`` (what the head reads), ``sep``.

    Attributes:
        name: by which it is known; the class's, in small letters, unless it says another.
        stages: names of the ways to train, in their order; empty for a method that has one.
        stage: the present one.
        trains_masked: gradients pass through the decisions, so training runs in masked execution.
        inside_softmax: False: the mask multiplies after the softmax (published Transkimmer); masked execution only.
        starts_at_target: a target is met before training through decisions as well, by moving ``shift``.
        retired_run_on: retired rows run on without attention and the head reads them (published LTP), unless packed or
            narrowed execution is asked for by name.
        needs_pads: computes with the padding, as published; masked execution only.
        reads_head: asks what the model's head says behind inner layers, and takes part in the task's loss.
        trains_dense: training runs every layer on every token; decisions are for evaluation only.
        means: options that give what was learned its meaning: a run that goes on from another has the same.
        retires: tokens are gone when it is done with them, so that it could leave too few.
        learning_rates: peak ones of its own parameters, by stage, where a trainer is not told another.
        target: relative FLOPs at which training shall end, or ``None``.
        shift: a scalar buffer that moves all hard decisions, up to keep more; ``None``: no such knob.
        built_for: the backbone that :meth:`build` was called for, by ``compress``.
        serves: whether a model has it.
        progress: share of training done, of the present stage if there are several.
        stepped: whether anybody has ever called :meth:`step`.
        kept_frozen: it was frozen as a whole, by :meth:`requires_grad_`, and so on purpose.
    """

    shift: Tensor | None
    name: ClassVar[str]
    stages: ClassVar[tuple[str, ...]] = ()
    learning_rates: ClassVar[Mapping[str, float]] = {"": 1e-3}
    trains_masked = False
    inside_softmax = True
    starts_at_target = False
    retired_run_on = False
    needs_pads = False
    means: ClassVar[tuple[str, ...]] = ("preset", "protect")
    retires: ClassVar[bool] = True
    reads_head = False
    trains_dense = False

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
        self.stepped = False
        self.kept_frozen = False
        self.built_for: Spec | None = None
        self.serves = False
        self.target: float | None = None
        self.register_buffer("shift", None)

    def build(self, spec: Spec) -> None:
        """Create the parameters for a backbone. Called once, by ``compress``."""
        self.spec = spec
        if "sep" in self.protect and spec.sep_token_id is None:
            raise self.refusal(
                "needs to know the separator, and the model's config does not say.\n"
                "Set model.config.sep_token_id = tokenizer.sep_token_id before compressing.",
                protect=self.protect,
            )

    def check_fit(self) -> None:
        """Refuse a training in which the method, as built, would do nothing; by default none is refused.

        Raises:
            SkimError: what to change.
        """

    def before_layer(self, i: int, tokens: TokenBatch) -> TokenBatch:
        """Before layer ``i``'s attention."""
        return tokens

    def wants_received(self, i: int) -> bool:
        """Ask layer ``i`` to give :meth:`after_attention` the attention that each row received; that costs a bit."""
        return False

    def after_attention(self, i: int, tokens: TokenBatch, received: Tensor | None) -> TokenBatch:
        """Between layer ``i``'s attention and its feed-forward.

        Args:
            i: the layer.
            tokens: after attention.
            received: what each row received of it, summed over the alive queries and averaged over heads, so that the
                sum over a sequence is the number of its alive tokens; float32, ``hidden.shape[:-1]``. ``None`` unless
                :meth:`wants_received` says so.
        """
        return tokens

    def after_layer(self, i: int, before: TokenBatch, tokens: TokenBatch) -> TokenBatch:
        """After layer ``i``; ``before`` is what entered its attention."""
        return tokens

    def wants_reading(self, i: int) -> bool:
        """Ask for the head's answer behind layer ``i``, in :meth:`after_reading`; needs ``reads_head``."""
        return False

    def after_reading(self, i: int, tokens: TokenBatch, logits: Tensor) -> TokenBatch:
        """After layer ``i`` and :meth:`after_layer`.

        Args:
            i: the layer.
            tokens: after it.
            logits: ``(B, C)`` what the model's head says of the present states; 0 for sequences that have left.
        """
        return tokens

    def task_loss(self, logits: Tensor, labels: Tensor, trace: Trace) -> Tensor:
        """The task's loss in training, a scalar, for a method that ``reads_head``; it takes the place of the head's.

        Args:
            logits: ``(B, C)`` what the head says behind the last layer.
            labels: ``(B,)`` classes, or numbers of a regression.
            trace: of this forward.
        """
        raise NotImplementedError

    def restore(self, tokens: TokenBatch) -> Tensor:
        """Give the head its input, ``(B, N, D)``: by default every token's last state at its input position."""
        return tokens.restore()

    def penalties(self, trace: Trace) -> dict[str, Tensor]:
        """Scalars that training adds to the task's loss, unweighted, each logged by its name."""
        return {}

    def weights(self) -> dict[str, float]:
        """The present weight of each penalty."""
        return {}

    def loss(self, trace: Trace) -> Tensor:
        """The weighted sum of the penalties of one forward, a scalar; zero for a method without any."""
        return self.weighed(trace)[0]

    def weighed(self, trace: Trace) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The sum of :meth:`loss`, and what a log shows of it: each penalty by its name, and its ``<name>_weight``."""
        weights, total = self.weights(), trace.lengths.new_zeros((), dtype=torch.float32)
        log: dict[str, Tensor | float] = {}
        for name, value in self.penalties(trace).items():
            if name not in weights:
                raise SkimError(
                    f"{type(self).__name__}.penalties has '{name}', and its weights() says no weight for it.\n"
                    f"Let weights() return {{'{name}': 1.0, ...}}."
                )
            total = total + weights[name] * value
            log |= {name: value.detach(), f"{name}_weight": weights[name]}
        return total, log

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

    def requires_grad_(self, requires_grad: bool = True) -> Method:
        """Let its parameters learn, or freeze them; who calls this with False means to train without them."""
        self.kept_frozen = not requires_grad
        return super().requires_grad_(requires_grad)

    def readings(self) -> dict[str, Tensor | float]:
        """Return values of the method's state to be logged, by name."""
        return {}

    def flops_per_token(self, i: int) -> float:
        """The method's own FLOPs in layer ``i`` per token arriving there."""
        return 0.0

    def flops_per_sequence(self, i: int) -> float:
        """The method's own FLOPs behind layer ``i`` per sequence that is there, readings of the head not included."""
        return 0.0

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
        protected = torch.zeros_like(real)
        if "cls" in self.protect:
            order = real.int() if place == "first" else real.int().cumsum(1)
            protected.scatter_(1, order.argmax(1, keepdim=True), True)
        if "sep" in self.protect:
            if input_ids is None:
                raise self.refusal("needs input_ids; with inputs_embeds nothing says sep.", protect=self.protect)
            protected |= input_ids == self.spec.sep_token_id
        return protected & real

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

    def refusal(self, reason: str, **given: Any) -> OptionError:
        """The error for options that cannot be: ``given``, and the reason as in :class:`OptionError`."""
        return OptionError(type(self), reason, given)
