"""Counts of what a forward asks of the machine: operations that it dispatches, and reads that the host waits for.

Each is a cost that FLOPs do not show. On an accelerator an operation is at least one launch, and at a read the host
stands still until all that was launched before is done. Both are counted on any device, a CPU too, where a test can.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from skim.engine.reads import read_of

PACKAGE = Path(__file__).parent.parent
SILENT = (  # beside views: what allocates or relabels, and computes nothing
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("_unsafe_view", "detach_", "lift_fresh", "lift", "set_", "resize_"),
)
HOST = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.cpu)  # a CPU's tensors are read with nothing dispatched


@dataclass
class Work:
    """Counts of one :func:`counting`.

    Attributes:
        operations: dispatched operations by name, without those that compute nothing: views and allocations.
        views: views and allocations by name; they cost the host a few microseconds each, and launch nothing.
        reads: reads that the host waits for, by kind and place: ``("nonzero", "engine/packed.py:137")``.
        late: copies to the host that nobody waits for, by place.
    """

    operations: Counter[str] = field(default_factory=Counter)
    views: Counter[str] = field(default_factory=Counter)
    reads: Counter[tuple[str, str]] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)


@contextmanager
def counting() -> Iterator[Work]:
    """Count what the calling thread dispatches and reads in a ``with`` block.

    Counted as a read: a number or a truth taken from a tensor, ``nonzero``, boolean indexing, ``masked_select``,
    ``unique``, ``repeat_interleave`` without ``output_size``, and a blocking copy to the host or from it. On a CPU
    there are no copies, so ``.cpu()``, ``.to("cpu")``, ``.tolist()`` and ``torch.tensor(..., device=...)`` are told by
    their calls. What runs inside one fused operation, or in a compiled graph, is one operation.
    """
    work = Work()
    with Dispatched(work), Called(work):
        yield work


class Dispatched(TorchDispatchMode):
    """Counts operations, and the reads among them."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode composed operations come whole; elsewhere they come in parts, so take them apart
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        name = func._schema.name.partition("::")[2]
        if func.is_view or name in SILENT:
            self.work.views[name] += 1
        else:
            self.work.operations[name] += 1
        kind, waits = read_of(name, args, kwargs)
        if kind is not None:
            seen(self.work, kind, waits)
        return func(*args, **kwargs)


class Called(TorchFunctionMode):
    """Counts the reads that dispatch nothing on a CPU, or something else than they are."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].device.type == "cpu":
            if func in HOST:
                seen(self.work, "copy to the host", True)
            elif func is Tensor.to and "cpu" in args[1:2]:
                seen(self.work, "copy to the host", not kwargs.get("non_blocking", False))
        elif func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            if torch.device(kwargs["device"]).type == "cpu":  # elsewhere the copy itself is dispatched
                seen(self.work, "copy from the host", True)
        return func(*args, **kwargs)


def seen(work: Work, kind: str, waits: bool) -> None:
    """Count a read with the line of skim, or else of whoever called, that did it."""
    if waits:
        work.reads[kind, place()] += 1
    else:
        work.late[place()] += 1


def place() -> str:
    """The innermost line of skim that is being run, counting apart; outside skim the innermost that is not torch's."""
    frame: Any = sys._getframe(2)
    outside = None
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE) and path != Path(__file__):
            return f"{path.relative_to(PACKAGE)}:{frame.f_lineno}"
        if outside is None and "torch" not in path.parts and path != Path(__file__):
            outside = f"{path.name}:{frame.f_lineno}"
        frame = frame.f_back
    return outside or "?"
