"""A predictor with two answers, of which a hard decision needs only the difference."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skim.engine.kernels.fused import fused
from skim.engine.kernels.linear import bare


def difference(predictor: nn.Sequential, states: Tensor) -> Tensor:
    """Second logit less the first; on a GPU, without gradients, what follows the first product is one kernel.

    Parameters are read where they lie, so whoever writes to them is heard.

    Args:
        predictor: LayerNorm, Linear, LayerNorm, GELU, Linear to 2.
        states: ``(..., D)``.

    Returns:
        ``(...)``.
    """
    norm, gelu, last = predictor[2], predictor[3], predictor[4]
    plain = type(last) is nn.Linear and type(norm) is nn.LayerNorm and gelu.approximate == "none"
    plain = plain and bare(norm, gelu, last)
    if states.is_cuda and plain and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        hidden = predictor[1](predictor[0](states))
        found = fused("difference", hidden, norm.weight, norm.bias, norm.eps, last.weight, last.bias)
        if found is not None:
            return found
    logits = predictor(states)
    return logits[..., 1] - logits[..., 0]
