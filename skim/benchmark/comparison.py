"""A compressed model beside the same weights without compression: at inference, and in training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW

from skim.benchmark.timing import time_side_by_side
from skim.compression import accepted, compress, decompress, twin, walk_of
from skim.engine.inputs import INPUTS, inputs_of
from skim.errors import SkimError
from skim.methods import Method


def compare(
    model: nn.Module, batches: Sequence[Mapping[str, Any]], repeats: int = 5, warmup: int = 1
) -> dict[str, dict[str, float]]:
    """Time a compressed model beside the same weights without compression. One run is all batches once.

    Args:
        model: a compressed model; it is not touched, not even its training mode.
        batches: padded batches as the model takes them; labels and other columns are left out.
        repeats: counted runs of each candidate.
        warmup: runs before them.

    Returns:
        A :class:`Timing` as a dict for each of ``padded_hf`` (plain transformers with SDPA where the family has it),
        ``packed_dense`` (skim with no compression; narrowed for a family that cannot run packed) and the model as it
        runs, named by its execution: ``packed``, ``narrowed`` or ``masked``.
    """
    device = next(model.parameters()).device
    inputs = [{k: v.to(device) for k, v in inputs_of(batch).items()} for batch in batches]
    if not inputs:
        raise SkimError("There is nothing to time: no batches were given.")
    own = twin(model).eval()
    models = {
        "padded_hf": plain_twin(model),
        "packed_dense": compress(plain_twin(model), "dense"),
        walk_of(own).form(): own,
    }
    timings = time_side_by_side({name: running(one, inputs) for name, one in models.items()}, repeats, warmup)
    return {name: asdict(timing) for name, timing in timings.items()}


def compare_training(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    repeats: int = 5,
    warmup: int = 1,
    lr: float = 1e-6,
    forward: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, dict[str, float]]:
    """Time training steps of a compressed model beside dense training of the same weights.

    One run is a step per batch: forward in training mode with dropout as configured, backward, AdamW. The compressed
    model trains as at the end of a training: in its method's last stage, its penalties added to the loss.

    Args:
        model: a compressed model; it is not touched: every candidate trains a copy with weights of its own.
        batches: padded batches as the model takes them, with labels under the names that its forward gives them.
        repeats: counted runs of each candidate.
        warmup: runs before them.
        lr: learning rate; tiny, so that the models timed in the last run still decide as the one that was given.
        forward: makes the context of each forward, such as autocast.

    Returns:
        A :class:`Timing` as a dict, with ``samples_per_second`` of the median, for each of ``padded_hf`` (plain
        transformers with SDPA where the family has it), ``packed_dense`` (skim with no compression; narrowed for a
        family that cannot run packed) and the model as it trains, named by its execution: ``packed``, ``narrowed`` or
        ``masked``.

    Raises:
        SkimError: no batches, or a batch without labels.
    """
    device = next(model.parameters()).device
    inputs = [{k: v.to(device) for k, v in accepted(model, batch).items()} for batch in batches]
    if not inputs:
        raise SkimError("There is nothing to time: no batches were given.")
    if any(not set(batch) - set(INPUTS) for batch in inputs):
        raise SkimError("Training needs labels, and a batch that was to be timed has none.")
    compressed = copy.deepcopy(model).train()
    method = walk_of(compressed).method
    if method.stages:
        method.enter(method.stages[-1])
    dense = compress(plain_twin(copy.deepcopy(model)), "dense")
    candidates = {
        "padded_hf": training(plain_twin(copy.deepcopy(model)), None, inputs, lr, forward),
        "packed_dense": training(dense, walk_of(dense).method, inputs, lr, forward),
        walk_of(compressed).form(): training(compressed, method, inputs, lr, forward),
    }
    timings = time_side_by_side(candidates, repeats, warmup, title="training", gradients=True)
    samples = sum(len(batch["input_ids"]) for batch in inputs)
    return {
        name: {**asdict(timing), "samples_per_second": 1000 * samples / timing.median_ms}
        for name, timing in timings.items()
    }


def training(
    model: nn.Module,
    method: Method | None,
    inputs: Sequence[Mapping[str, Tensor]],
    lr: float,
    forward: Callable[[], AbstractContextManager[Any]],
) -> Callable[[], None]:
    """A candidate: ``model`` trained a step on each of ``inputs``; ``method`` is its own, ``None`` if it is plain."""
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # fused as in skim's own training, for all candidates: the default would take its time from the ratios
    optimizer = AdamW(parameters, lr=lr, fused=parameters[0].device.type in ("cpu", "cuda"))

    def run() -> None:
        for batch in inputs:
            with forward():  # entered for each step: autocast keeps its copies of weights until it is left
                loss = model(**batch).loss
                if method is not None:
                    trace = walk_of(model).trace
                    method.step(1.0, trace)
                    loss = loss + method.loss(trace)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def running(model: Callable[..., Any], inputs: Sequence[Mapping[str, Tensor]]) -> Callable[[], None]:
    """A candidate: ``model``, or what is called as one, over all of ``inputs``; a model in evaluation mode."""
    if isinstance(model, nn.Module):
        model.eval()

    def run() -> None:
        for batch in inputs:
            model(**batch)

    return run


def plain_twin(model: nn.Module) -> nn.Module:
    """The Hugging Face model under a compressed one, on the same weights, with its fastest exact attention."""
    plain = decompress(twin(model))
    if getattr(plain, "_supports_sdpa", False):
        plain.set_attn_implementation("sdpa")
    return plain
