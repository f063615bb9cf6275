"""Saliency of tokens: how much each says for what the dense model learns to answer, by its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skim.compression import accepted, execution, uncompressed
from skim.engine.walk import walk_of
from skim.errors import SkimError

STRETCH = 1024.0  # of the loss, which cancels: in float16 many gradients of a mean would vanish


@torch.enable_grad()
def saliency(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    r"""Measure each token's gradient times input on the dense model, in evaluation mode; nothing learns from it.

    .. math:: g_t = \lVert \nabla_{h_t} \ell \odot h_t \rVert_2, \qquad \hat S_t = g_t / \sum_u g_u

    with :math:`h` what enters the first layer and :math:`\ell` the loss that the model computes from its labels, which
    every head has. For a classifier its gradient is that of the true label's logit against the others'.

    Args:
        model: a compressed model; it runs uncompressed, with the weights that it has.
        batch: with labels, as the model takes them.

    Returns:
        ``(B, N)`` float32, 0 on pads; the sum over a sequence is 1, or 0 where nothing has a gradient.

    Raises:
        SkimError: there is no loss, for want of labels.
    """
    walk, training = walk_of(model), model.training
    model.eval()
    try:
        with uncompressed(model), execution(model, "masked"):  # in which states are not moved to be reported
            output = model(**accepted(model, batch), output_hidden_states=True, return_dict=True)
            real = walk.trace.sequences.real
    finally:
        model.train(training)
        torch.clear_autocast_cache()  # torch < 2.11 would hand the next forward weights without a gradient
    loss = getattr(output, "loss", None)
    if loss is None:
        raise SkimError("Saliency is of a loss, and the model computes none from this batch: it needs labels.")
    states = output.hidden_states[0]
    (gradient,) = torch.autograd.grad(loss * STRETCH, states)
    size = (gradient * states).detach().float().norm(dim=-1).masked_fill(~real, 0.0)
    return size / size.sum(1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)
