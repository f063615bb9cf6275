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

# whose result, or the shape of it, is known on the device alone
READS = {
    "_local_scalar_dense": "item",
    "is_nonzero": "item",
    "equal": "item",
    "nonzero": "nonzero",
    "nonzero_numpy": "nonzero",
    "masked_select": "boolean index",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
    "unique_dim_consecutive": "unique",
    "_unique": "unique",
    "_unique2": "unique",
    "bincount": "bincount",
}
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
SILENT = (  # beside views: what allocates or relabels, and computes nothing
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("_unsafe_view", "detach_", "lift_fresh", "lift", "set_", "resize_"),
)
HOST = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.cpu)  # a CPU's tensors are read with nothing dispatched
PACKAGE = Path(__file__).parent.parent


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


def read_of(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str | None, bool]:
    """Kind of read that an operation is, ``None`` if it is none, and whether the host waits for it."""
    if name in READS:
        return READS[name], True
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        return "repeat_interleave", True
    if name in INDEXING:
        masks = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        value = args[2] if len(args) > 2 else None  # a host's number is filled in where the mask is: no count of them
        filled = isinstance(value, Tensor) and value.numel() == 1 and value.device.type == "cpu"
        return ("boolean index" if masks and not filled else None), True
    if name in ("_to_copy", "copy_"):
        first = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or args[0].device)
        source = args[1].device if name == "copy_" else args[0].device
        if (first.type == "cpu") != (source.type == "cpu"):
            late = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            return ("copy to the host" if first.type == "cpu" else "copy from the host"), not late
    return None, True


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
