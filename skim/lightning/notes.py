"""Notes for readers of results: a target that was missed, a method that has left nothing to read."""

from __future__ import annotations

from skim.calibration import TOLERANCE, Batches, left_over
from skim.compression import walk_of
from skim.lightning.build import Parts
from skim.results import Results

COLLAPSED = 0.05  # share of the tokens that may retire; where less is left, a head reads protected ones and no more
WAYS = {"coefficient": "lower method.coefficient", "warmup": "raise method.warmup"}  # by option: to keep more


def notes_of(results: Results, parts: Parts, inputs: Batches) -> list[str]:
    """Write the notes on a trained model.

    Args:
        results: with its evaluation.
        parts: the model and its task.
        inputs: of the kind that it is evaluated on.
    """
    found = (missed(results, parts), collapsed(results, parts, inputs))
    return [note for note in found if note is not None]


def missed(results: Results, parts: Parts) -> str | None:
    """A target that was not reached."""
    target = walk_of(parts.model).method.aims_at
    if target is None or abs(results.relative_flops - target) <= TOLERANCE:
        return None
    return (
        f"target missed: asked for relative FLOPs {target:.2f}, ended at {results.relative_flops:.3f}. "
        "Train longer, raise train.method_lr, or start from a dense run (init_from)."
    )


def collapsed(results: Results, parts: Parts, inputs: Batches) -> str | None:
    """A method that nothing has held back: next to nothing is left, and no more is known than without reading."""
    method, task = walk_of(parts.model).method, parts.task
    if method.target is not None or "retires" not in method.does:
        return None
    left = left_over(parts.model, inputs)
    if left >= COLLAPSED:
        return None
    said = f"{left:.1%} of the tokens that may retire are left halfway through the layers"
    score, chance = results.metrics[task.monitor], task.chance()
    if chance is not None:
        error = results.samples["validation"] ** -0.5  # two standard errors of a share, at most
        if score > chance + error:
            return None
        said += f", and {task.monitor} {score:.4f} is what one answer to all inputs gives, {chance:.4f}"
    else:
        said += f", where {task.monitor} is {score:.4f}"
    options = method.options()
    ways = [say for option, say in WAYS.items() if option in options]
    target = "set method.target" if "target" in options else "give one of its methods a target"
    return f"collapsed: {said}. {', '.join([*ways, target]).capitalize()}, or start from a dense run."
