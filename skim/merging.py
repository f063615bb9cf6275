"""Merge into a model what does not depend on its inputs: layers that never run go, adapters join the weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from skim.compression import compress, decompress, twin
from skim.engine.adapters import unwrapped
from skim.engine.walk import Walk, walk_of
from skim.errors import SkimError

TOKENS = 128  # of the input by which a target is restated


def merged(model: nn.Module) -> nn.Module:
    """Make the smallest model that computes what a compressed one does; the one that is given stays as it is.

    Layers that the method never runs are gone, from the config as well, and adapters of PEFT are part of the weights.
    What is left to be decided by the inputs, as by the other members of a chain, stays with the model; a ``target``
    then is one of the FLOPs of the layers that are left.

    Returns:
        A model of the same class, which shares weights with the one given: plain, or compressed by what is left.

    Raises:
        SkimError: there is nothing to merge, or the family has no such model.
    """
    outer: Any = unwrapped(model)
    method = walk_of(model).method
    if hasattr(outer, "peft_config"):
        outer = copy.deepcopy(outer).merge_and_unload()
    elif method.does and "skips" not in method.does:
        raise SkimError(
            f"merged=True has nothing to merge: method={method.name} decides by each input, in every layer.\n"
            "Save without it; transformers reads the same folder, and runs it dense."
        )
    else:
        outer = twin(outer)
    walk = walk_of(outer)
    kept = [i for i in range(len(walk.costs)) if walk.method.runs(i)]
    share = share_of(walk, kept)
    decompress(outer)
    if len(kept) < len(walk.costs):
        walk.backbone.keep_layers(walk.base, kept)
    rest = walk.method.without_layers()
    if rest is None:
        return outer
    rest.adapting.restate(share)
    return compress(outer, rest, walk.execution)


def parameters_of(model: nn.Module) -> int:
    """Count the parameters of a compressed model, its method's too, without those of layers that never run."""
    walk = walk_of(model)
    layers = walk.backbone.layers(walk.base)
    running = {layer for i, layer in enumerate(layers) if walk.method.runs(i)}  # a family may share its layers
    idle = {parameter for layer in {*layers} - running for parameter in layer.parameters()}
    return sum(parameter.numel() for parameter in model.parameters() if parameter not in idle)


def share_of(walk: Walk, kept: list[int]) -> float:
    """Share of the backbone's FLOPs that some of its layers have."""
    tokens = torch.tensor([TOKENS])
    flops = [float(cost(tokens, tokens, tokens)) for cost in walk.costs]
    return sum(flops[i] for i in kept) / sum(flops)
