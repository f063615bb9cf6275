"""Adapters that sit in a model's layers: what of them runs now, and what it costs.

PEFT puts its own modules in the place of linear maps, before compression or after it, and merges, disables and swaps
them at any time. None of that tells anybody, so a compressed model looks whether the modules are still those that it
knows: identities are compared, and nothing is computed unless one has changed. PEFT is recognised by what its modules
say of themselves; it need not be installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")


def unwrapped(model: Any) -> Any:
    """The model inside DDP and ``torch.compile``."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            return model


def whole_of(model: Any) -> Any:
    """The Hugging Face model inside whatever wraps it: DDP, ``torch.compile``, PEFT, a SentenceTransformer."""
    model = unwrapped(model)
    if callable(getattr(model, "get_base_model", None)):
        return whole_of(model.get_base_model())
    # it and a CrossEncoder are a row of modules, the transformer first; neither has to be installed to be known
    if isinstance(model, nn.Sequential) and len(model) and isinstance(getattr(model[0], "auto_model", None), nn.Module):
        return whole_of(model[0].auto_model)
    return model


def is_adapter(module: nn.Module) -> bool:
    """Tell whether a module is a PEFT layer that stands in the place of another one and calls it."""
    return isinstance(getattr(module, "base_layer", None), nn.Module) and hasattr(module, "merged_adapters")


def is_copied(module: Any) -> bool:
    """Tell whether a module is PEFT's ``modules_to_save`` wrapper: an original, and a copy of it for each adapter."""
    parts = module._modules
    return isinstance(parts.get("original_module"), nn.Module) and isinstance(parts.get("modules_to_save"), nn.Module)


def serving(module: Any) -> Any:
    """The module itself, or the copy of it that PEFT's ``modules_to_save`` has active."""
    if not is_copied(module):
        return module
    active = () if module.disable_adapters else module.active_adapters
    copies = [module.modules_to_save[name] for name in active if name in module.modules_to_save]
    return copies[0] if copies else module.original_module


def adapters(module: nn.Module) -> list[str]:
    """Names of the places under a module where an adapter stands."""
    return [name for name, part in module.named_modules() if is_adapter(part)]


def state_of(module: Any) -> tuple[Any, ...] | None:
    """Return which adapters are disabled, active and merged in a PEFT module; ``None`` for any other module."""
    if is_adapter(module):
        return bool(module.disable_adapters), tuple(module.active_adapters), tuple(module.merged_adapters)
    return (bool(module.disable_adapters), tuple(module.active_adapters)) if is_copied(module) else None


class Modules:
    """The modules of a model as they are now, to see later whether they still are.

    Args:
        model: what to look at.
    """

    def __init__(self, model: nn.Module) -> None:
        owners = list(model.modules())
        self.children = [(owner._modules, name, part) for owner in owners for name, part in owner._modules.items()]
        self.states = [(owner, state) for owner in owners if (state := state_of(owner)) is not None]

    def changed(self) -> bool:
        """Tell whether a module was replaced, removed, merged, switched on or off since."""
        if any(siblings.get(name) is not part for siblings, name, part in self.children):
            return True
        return any(state_of(owner) != state for owner, state in self.states)


def linear_maps(module: Any) -> Iterator[nn.Module]:
    """Yield every ``nn.Linear`` under a module; one with adapters around it as the PEFT layer that holds it."""
    if is_copied(module):
        yield from linear_maps(serving(module))
    elif isinstance(module, nn.Linear):
        yield module
    elif is_adapter(module) and isinstance(module.get_base_layer(), nn.Linear):
        yield module
    else:
        for part in module.children():
            yield from linear_maps(part)


def counted(maps: list[Any]) -> list[tuple[float, float]]:
    """FLOPs of linear maps under adapters, of each: per row, and per call.

    Counted on zeros, because every kind of adapter computes something else.
    """

    def count(linear: Any, rows: int) -> float:
        weight = linear.get_base_layer().weight
        width = linear.get_base_layer().in_features
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            linear(torch.zeros(1, rows, width, dtype=dtype, device=weight.device))
        return float(counter.get_total_flops())

    def price(linear: Any) -> tuple[float, float]:
        few, more = count(linear, 1), count(linear, 2)
        return more - few, 2 * few - more

    devices = sorted({index for part in maps if (index := part.get_base_layer().weight.get_device()) >= 0})
    with torch.random.fork_rng(devices):  # of adapters with dropout
        return apart(lambda: [price(linear) for linear in maps])


def apart(work: Callable[[], T]) -> T:
    """Do something in a thread of its own: counting FLOPs and autocast are set by thread, and hold for others' work."""
    with ThreadPoolExecutor(1) as alone:
        return alone.submit(work).result()


def linear_flops(module: nn.Module) -> float:
    """FLOPs per row of every linear map under ``module``, adapters that run included."""
    return _sum(module, lambda linear: 2.0 * linear.in_features * linear.out_features, 0)


def call_flops(module: nn.Module) -> float:
    """FLOPs per call, whatever the rows, of adapters that make their matrix anew in each."""
    return _sum(module, lambda linear: 0.0, 1)


def _sum(module: nn.Module, plain: Callable[[Any], float], kind: int) -> float:
    maps = list(linear_maps(module))
    adapted = [linear for linear in maps if is_adapter(linear)]
    total = sum(plain(linear) for linear in maps if not is_adapter(linear))
    return float(total + (sum(price[kind] for price in counted(adapted)) if adapted else 0.0))
