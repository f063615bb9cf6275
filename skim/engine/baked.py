"""State that recorded work has baked in: addresses of weights, modules, host values of a method, torch's switches.

A graph reads weights where they were when it was captured, and runs no Python. So weights may change in place, and
nothing else may change unnoticed: each forward looks first, at identities and addresses, and computes nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from skim.engine.adapters import Modules

HOOKS = ("_forward_hooks", "_forward_pre_hooks")  # of a module; a graph would skip them
GLOBAL = ("_global_forward_hooks", "_global_forward_pre_hooks")  # of all modules


class Baked:
    """A model and its method as they are now.

    Args:
        model: with its head.
        method: who decides; it may be none of the model's modules.
        called: modules that are called in any case, graphs or not, hooks included.
    """

    def __init__(self, model: nn.Module, method: nn.Module, called: tuple[nn.Module, ...] = ()) -> None:
        self.model, self.method = model, method
        self.modules = Modules(model)
        owners = list(dict.fromkeys((*model.modules(), *method.modules())))
        self.tensors = [
            (held, name, tensor, tensor.data_ptr())
            for owner in owners
            for held in (owner._parameters, owner._buffers)
            for name, tensor in held.items()
            if tensor is not None
        ]
        inside = [owner for owner in owners if all(owner is not one for one in called)]
        self.hooks = [held for owner in inside for name in HOOKS if (held := getattr(owner, name)) is not None]
        self.values = [
            (vars(owner), name, value, frozen(value))
            for owner in method.modules()
            for name, value in vars(owner).items()
            if name not in INTERNAL
        ]
        self.values += [  # factors of PEFT's adapters
            (vars(owner), "scaling", value, frozen(value))
            for owner in owners
            if isinstance(value := vars(owner).get("scaling"), dict)
        ]
        self.names = [(vars(owner), len(vars(owner))) for owner in method.modules()]
        self.switches = switches()

    def changed(self, method: nn.Module) -> bool:
        """Tell whether something that graphs rely on is no longer what it was."""
        return (
            method is not self.method
            or any(held.get(name) is not x or x.data_ptr() != where for held, name, x, where in self.tensors)
            or any(held.get(name) is not x or frozen(x) != then for held, name, x, then in self.values)
            or any(len(held) != number for held, number in self.names)
            or self.modules.changed()
            or self.switches != switches()
        )

    def hooked(self) -> bool:
        """Tell whether somebody looks at what goes through a module."""
        return any(self.hooks) or any(getattr(module_hooks, name, None) for name in GLOBAL)


INTERNAL = frozenset(("_parameters", "_buffers", "_modules", *HOOKS))


def frozen(value: Any) -> Any:
    """A list, or a mapping, as it is now; what cannot change in place is known by being the same object."""
    if isinstance(value, list):
        return tuple(value)
    return dict(value) if isinstance(value, dict) else None


def switches() -> tuple[Any, ...]:
    """Settings of torch by which kernels are chosen."""
    matmul = torch.backends.cuda.matmul
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by the newer switch, after which torch does not answer the older one
        precision = matmul.fp32_precision
    return (
        precision,
        matmul.allow_bf16_reduced_precision_reduction,
        torch.are_deterministic_algorithms_enabled(),
    )


def obstacle(model: nn.Module, device: torch.device) -> str | None:
    """Name what keeps a forward of this model from using graphs now; ``None``: nothing."""
    if torch.is_grad_enabled():
        return "gradients are enabled"
    if model.training:
        return "the model is in training mode"
    if torch.is_autocast_enabled(device.type):
        return "autocast is on"
    if torch.compiler.is_compiling() or _get_current_dispatch_mode_stack():
        return "somebody watches every operation"
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "the caller captures a graph"
    return None
