"""Linear maps in bfloat16 on a CPU, in inference: bias, activation and residual inside oneDNN's product.

Apart they are passes over memory of their own, which take as long as the products do (in float32 they do not, and it is
left alone). Weights are read where they are, so that nothing has to be kept in step with them. Where a layer is more
than it seems (hooks, adapters, quantised weights, autocast, a trace), it is called as it is.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.flop_counter import register_flop_formula
from transformers.activations import GELUActivation

from skim.engine.dtype import half_precision

product: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # x86 builds of torch have it
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def bare(*modules: nn.Module) -> bool:
    """Tell whether modules may be passed over: they have no hook, and no ``forward`` of their own."""
    if _has_any_global_hook():
        return False
    return not any("forward" in vars(one) or any(vars(one)[name] for name in HOOKS) for one in modules)


def fuses(linear: Any, rows: Tensor) -> bool:
    """Tell whether oneDNN may compute a linear map of these rows."""
    if rows.dtype != torch.bfloat16 or rows.device.type != "cpu" or torch.is_grad_enabled() or product is None:
        return False
    return (
        type(linear) is nn.Linear
        and type(linear.weight) is nn.Parameter  # and not a tensor that stands for a quantised one
        and linear.weight.dtype == rows.dtype
        and bool(rows.numel())
        and bare(linear)
        and half_precision()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    )


def linear(part: Any, rows: Tensor) -> Tensor:
    """``part(rows)`` of a linear map."""
    return product(rows, part.weight, part.bias, "none", [], "") if fuses(part, rows) else part(rows)


def expanded(part: Any, rows: Tensor) -> Tensor:
    """``part(rows)`` of a linear map and an activation, as BERT's ``intermediate``."""
    activation = part.intermediate_act_fn
    if type(activation) is GELUActivation and activation.act is nn.functional.gelu and bare(part, activation):
        if fuses(part.dense, rows):
            return product(rows, part.dense.weight, part.dense.bias, "gelu", [], "none")
    return part(rows)


def closed(part: Any, rows: Tensor, residual: Tensor) -> Tensor:
    """``part(rows, residual)`` of a linear map, dropout, the residual and a norm, as BERT's ``output``."""
    if part.training or residual.dtype != rows.dtype or not fuses(part.dense, rows) or not bare(part, part.dropout):
        return part(rows, residual)
    return part.LayerNorm(product.binary(rows, residual, part.dense.weight, part.dense.bias, "add"))


if product is not None:

    @register_flop_formula(product)
    def _flops(rows: Any, *rest: Any, **_: Any) -> int:
        """FLOPs of one call, for torch's counter: the weight comes second, or third behind a residual."""
        weight = rest[0] if isinstance(rest[2], str) else rest[1]
        return 2 * prod(rows) * weight[0]
