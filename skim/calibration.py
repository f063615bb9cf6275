"""The budget of a compressed model: what it spends, the least it can spend, and the turn that lands it on its target.

Steering in training (:class:`skim.methods.budget.Budget`) brings a model near its target; :func:`calibrate` lands it
there. None of this needs Lightning: ``skim.calibrate(model, batches, 0.4)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from skim.budgets import spending
from skim.compression import walk_of
from skim.engine.inputs import inputs_of
from skim.engine.trace import Trace
from skim.errors import SkimError
from skim.methods.base import Method
from skim.methods.table import NEARLY
from skim.options.words import budgets
from skim.tabulation import REACH, tabulate

Batches = Sequence[dict[str, Tensor]]
EXTREME = 1e4  # beyond any margin a predictor gives
TOLERANCE = 0.03  # how far from its target, in relative FLOPs, a model still is at it
HALVINGS = 16  # of the interval in which a calibration looks for a shift
HOLDS = 10  # times per stage with hard decisions that the budget is looked after, and steps at least in between
LANDED = 2e-4  # a difference that no halving more is worth: a fifth of what results are told to
CLOSE = 0.005  # a difference in relative FLOPs that is not worth a calibration
HELD = 5  # of the anchors of a table, each so many-th is held; the others move with those


@torch.no_grad()
def traces(model: nn.Module, batches: Batches) -> Iterator[Trace]:
    """Run a compressed model over batches and give the trace of each, deterministic; labels are not read."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    try:
        for batch in batches:
            model(**{name: tensor.to(device) for name, tensor in inputs_of(batch).items()})
            yield walk_of(model).trace
    finally:  # also where the caller has seen enough
        model.train(training)


def spend(model: nn.Module, batches: Batches) -> float:
    """Relative FLOPs of a compressed model over batches; a SkimError if they hold nothing but padding."""
    flops = dense = 0.0
    for trace in traces(model, batches):
        flops += float(trace.flops().sum())
        dense += float(trace.dense_flops.sum())
    if not dense:
        raise SkimError("Nothing is spent on these inputs: there is no token in them that is not padding.")
    return flops / dense


def check_target(model: nn.Module, batches: Batches) -> None:
    """Refuse a target out of reach, before any training: below what the method spends when it retires all it may.

    Or above what it spends when it retires nothing, where other methods of its chain have made the model cheaper.
    """
    whole = walk_of(model).method
    method = whole.adapting
    target = method.target
    if target is None or method.shift is None:
        return
    lowest, highest = target if isinstance(target, tuple) else (target, target)
    before = method.shift.clone()

    def bound(budget: float, shift: float) -> float:
        if method.table is not None:  # the number of layers may follow the budget as well
            whole.meet(budget)
        method.shift.fill_(shift)
        return spend(model, batches)

    with nullcontext() if method.table is None else spending(whole):
        floor = bound(lowest, -EXTREME)
        most = bound(min(highest, NEARLY), EXTREME)  # at 1 it would not be asked
    method.shift.copy_(before)
    if highest > most + TOLERANCE:
        raise method.refusal(
            f"cannot be reached: the rest of the chain leaves no more than {most:.3f} to be spent on these inputs.\n"
            "Use a target below that, or let more layers run.",
            target=target,
        )
    if lowest < floor:
        raise method.refusal(
            f"cannot be reached: with every token gone that it may retire, this method on these inputs still spends "
            f"{floor:.3f}.\nUse a target above that, or let it retire more: cheaper predictors (bottleneck=32 of "
            "transkimmer), fewer whole layers (start=1 of topk), thresholds above zero (final_token_threshold=0.01 of "
            "ltp).",
            target=target,
        )


def survivors(trace: Trace) -> Tensor:
    """Unprotected tokens of each sequence that enter the last feed-forward of the first half of the layers, (B,)."""
    ran = [layer for layer in trace.layers if layer.ran] or trace.layers
    left = ran[(len(ran) - 1) // 2].feeding.counts()
    return left - trace.sequences.protected.sum(1).clamp_min(1)


def left_over(model: nn.Module, batches: Batches) -> float:
    """Share of the unprotected tokens that are left behind the first half of the layers."""
    left = before = 0.0
    for trace in traces(model, batches):
        left += float(survivors(trace).clamp_min(0).sum())
        before += float((trace.lengths - trace.sequences.protected.sum(1).clamp_min(1)).clamp_min(0).sum())
    return left / before if before else 1.0


def check_survivors(model: nn.Module, batches: Batches, calibrates: bool = True) -> None:
    """Refuse a method that as configured leaves nothing behind the first half of the layers: too little to learn from.

    Half of them, because nothing may well be left in the last layers: that is what thresholds that rise with the layer
    are for. Counted are the tokens that enter the last feed-forward of that half, behind all that it decides.

    Args:
        model: compressed, not trained yet.
        batches: inputs of the kind that it will see; one survivor in any of them is enough.
        calibrates: whether hard decisions are set to the target before they are trained with.
    """
    method = walk_of(model).method
    adapting = method.adapting
    calibrated = calibrates and adapting.target is not None and not adapting.trains_masked
    if adapting.shift is None or calibrated or method.trains_dense or "retires" not in method.does:
        return
    for trace in traces(model, batches):
        if (survivors(trace) > 0).any():
            return
    target = "set method.target" if adapting is method else "give one of its methods a target"
    raise SkimError(
        f"method={method.name} as configured retires every token: halfway through the layers nothing but protected "
        f"ones is left, in any sequence.\nLower its thresholds (or raise its keep rate), or {target}."
    )


def calibrate(
    model: nn.Module,
    batches: Iterable[dict[str, Tensor]],
    target: float | None = None,
    steps: int = HALVINGS,
    reach: float = REACH,
    around: float = 0.0,
    each: Callable[[], object] = bool,
) -> float:
    """Shift the method's decisions so that the model spends its target on these inputs, and return what it then spends.

    Steering holds the budget on training batches; evaluation data has other lengths and no noise, so a trained model
    lands near its target and not on it. This moves one number, ``method.shift``, by bisection, and keeps the value that
    came nearest: where many decisions flip at once, that may be on either side. It reads no labels.

    Args:
        model: compressed, with a method that has a ``shift``.
        batches: inputs of the kind that the model will see.
        target: relative FLOPs to land on, in (0, 1]; ``None``: ``method.target``, and of a range its whole table. For
            a range, a number is the budget that is set from then on.
        steps: halvings of the interval, at most; the last is the one that lands within 0.0002.
        reach: largest shift to either side of ``around``; the unit is the method's.
        around: the middle of the interval.
        each: called after each of them, to show how far it is.

    Raises:
        SkimError: the method has nothing to shift, no target is given, or no input, or what is none.
    """
    whole = walk_of(model).method
    method = whole.adapting
    ranges = target is None and method.table is not None
    target = method.aims_at if target is None else target
    if method.shift is None:
        raise SkimError(f"method={whole.name} has no one number that moves its decisions, so it is not calibrated.")
    if target is None:
        raise SkimError("Calibrate to what? skim.calibrate(model, batches, target=0.5): a share of the dense FLOPs.")
    if isinstance(target, bool) or not isinstance(target, (int, float)) or not 0 < target <= 1:
        raise SkimError(f"target={target!r} is not a share of the dense FLOPs; use a number in (0, 1].")
    batches = list(batches) if isinstance(batches, Iterable) else [batches]
    if not batches:
        raise SkimError("There are no inputs to calibrate on: the batches are empty, or have been used up.")
    if strange := [batch for batch in batches if not isinstance(batch, Mapping)]:
        raise SkimError(
            f"skim.calibrate takes several batches, each a mapping of names to tensors, and got a "
            f"{type(strange[0]).__name__} among them. A single one: skim.calibrate(model, [batch])."
        )
    if ranges:
        tabulate(whole, lambda: spend(model, batches), each=each)
        return spend(model, batches)
    if method.table is not None:
        whole.meet(target)  # the shift of another budget is no place to look, and at 1 none is asked
        if whole.idle:
            return spend(model, batches)
    low, high = around - reach, around + reach
    tried: list[tuple[float, float, float]] = []  # how far from the target, with which shift, and what it spends
    for _ in range(steps):
        middle = (low + high) / 2
        method.shift.fill_(middle)
        spent = spend(model, batches)
        tried.append((abs(spent - target), middle, spent))
        low, high = (low, middle) if spent > target else (middle, high)
        each()
        if tried[-1][0] <= LANDED:
            break
    _, shift, spent = min(reversed(tried), key=lambda one: one[0])  # of those alike, the last
    method.shift.fill_(shift)
    return spent


def passes(method: Method) -> int:
    """How often a calibration calls ``each``, at most: for each halving, or each anchor of a table."""
    return HALVINGS if method.table is None else len(method.table.anchors)


def look_after(
    model: nn.Module,
    batches: Batches,
    step: int,
    steps: int,
    starts: bool,
    tell: Callable[[str], object] = bool,
) -> None:
    """Train hard decisions at the budget: it is set when they begin, and held while attention changes under them.

    Args:
        model: compressed; nothing happens without a target.
        batches: inputs of the kind that it sees.
        step: of the method's in this stage, from 0.
        steps: that it has in this stage.
        starts: whether training itself starts with this stage.
        tell: told of what takes a while.
    """
    method = walk_of(model).method.adapting
    if method.target is None or method.shift is None or method.trains_dense:
        return
    relaxed = method.trains_masked and not (method.straight and method.table is not None)
    if step == 0 and (not relaxed or (method.starts_at_target and starts)):
        tell(f"calibration to {budgets(method.target)}")
        calibrate(model, batches)
    elif step > 0 and not relaxed and step % max(steps // HOLDS, HOLDS) == 0:
        hold(model, batches)


def hold(model: nn.Module, batches: Batches) -> None:
    """Bring a calibrated model back to its target if training has moved it away: on a quarter of the inputs, nearby."""
    method = walk_of(model).method.adapting
    few = batches[: max(len(batches) // 4, 1)]
    if method.table is not None:
        places = range(0, len(method.table.anchors), HELD)
        tabulate(walk_of(model).method, lambda: spend(model, few), places, CLOSE)
    elif abs(spend(model, few) - method.target) > CLOSE:
        calibrate(model, few, steps=7, reach=0.4, around=method.shift.item())
