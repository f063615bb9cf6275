"""Operations at which the host waits for the device, told by what is dispatched, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# whose result, or the shape of it, is known on the device alone
READS = {
    "_local_scalar_dense": "item",
    "is_nonzero": "item",
    "equal": "item",
    "allclose": "item",
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


def read_of(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[str | None, bool]:
    """Kind of read that an operation is, ``None`` if it is none, and whether the host waits for it.

    It is told of an operation that has no parts: in inference mode composed ones, such as ``item``, come whole.
    """
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
