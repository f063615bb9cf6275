"""Checkpoints of Transkimmer's published code."""

from __future__ import annotations

from torch import Tensor


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The predictors of a published checkpoint under our names.

    ``<prefix>.encoder.skim_predictors.<layer>.predictor.<part>`` becomes ``predictors.<layer>.<part>``; everything else
    in the state dict is the plain backbone and loads into transformers as it is.
    """
    mark = "encoder.skim_predictors."
    found = {name.split(mark)[1]: tensor for name, tensor in state.items() if mark in name}
    return {f"predictors.{name.replace('.predictor.', '.')}": tensor for name, tensor in found.items()}
