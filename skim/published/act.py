"""Checkpoints of ALBERT-ACT's published code."""

from __future__ import annotations

from torch import Tensor

PRESETS = ("tiny", "small", "base")  # the published models, of 6, 12 and 24 updates


def from_published(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A published ALBERT-ACT checkpoint under transformers' names, and the halting unit under ours.

    Args:
        state: of ``AlbertActModel``, or of one with a head (``albert.`` before each name).
    """
    layer = "albert_layer_groups.0.albert_layers.0"
    backbone, method = {}, {}
    for name, tensor in state.items():
        bare = name.removeprefix("albert.")
        if ".albert_layer.act.dense." in f".{bare}":
            method[f"units.0.{bare.rpartition('.')[2]}"] = tensor
        elif not bare.endswith("position_ids"):
            bare = bare.replace("albert_layer.LayerNorm.", f"{layer}.attention.LayerNorm.")
            backbone[
                name[: len(name) - len(name.removeprefix("albert."))] + bare.replace("albert_layer.", f"{layer}.")
            ] = tensor
    return backbone, method
