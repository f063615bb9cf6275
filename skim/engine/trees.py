"""Trees of tensors: a TokenBatch, a trace, a tuple of both, taken apart into tensors and the rest, and put together.

What flows through the layers is nested, frozen, and shares parts: the occupancy of a batch is that of the trace too. A
captured graph knows addresses only, so it needs the tensors in a row, and to tell one situation from another it needs
everything else as something that can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
Node: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True)
class Skeleton:
    """All of a tree but its tensors; equal skeletons are trees that differ in nothing that the host can see.

    Attributes:
        root: nested tuples: a leaf's number, a host value, a part seen before, or a class with its parts.
        kinds: shape, strides, dtype and device of each tensor.
    """

    root: Node
    kinds: tuple[Any, ...]

    def build(self, leaves: Sequence[Any]) -> Any:
        """The tree with other tensors; parts that were one object are one object again, and caches are left behind."""
        return _build(self.root, leaves, {})


def take_apart(tree: Any) -> tuple[list[Tensor], Skeleton]:
    """The tensors of a tree, each once, and its skeleton.

    Raises:
        TypeError: it holds what cannot be compared.
    """
    walk = _Apart()
    root = walk.node(tree)
    skeleton = Skeleton(root, tuple((x.shape, x.stride(), x.dtype, x.device) for x in walk.leaves))
    hash(skeleton)
    return walk.leaves, skeleton


class _Apart:
    """One walk through a tree."""

    def __init__(self) -> None:
        self.leaves: list[Tensor] = []
        self.seen: dict[int, Node] = {}
        self.parts = 0

    def node(self, tree: Any) -> Node:
        if isinstance(tree, PLAIN):
            return "value", type(tree), tree
        known = self.seen.get(id(tree))
        if known is not None:
            return known
        if isinstance(tree, Tensor):
            self.leaves.append(tree)
            self.seen[id(tree)] = leaf = ("leaf", len(self.leaves) - 1)
            return leaf
        if is_dataclass(tree) and not isinstance(tree, type):
            self.parts += 1
            self.seen[id(tree)] = ("again", self.parts)
            number = self.parts
            names = tuple(field.name for field in fields(tree))
            names += tuple(name for name in getattr(tree, "derived", ()) if name in vars(tree))
            return "record", number, type(tree), names, tuple(self.node(getattr(tree, name)) for name in names)
        if isinstance(tree, Mapping):
            return "mapping", type(tree), tuple(tree), tuple(self.node(value) for value in tree.values())
        if isinstance(tree, (tuple, list)):
            return "row", type(tree), tuple(self.node(value) for value in tree)
        return "value", type(tree), tree  # an object of the model's: the same one, or another situation


def _build(node: Node, leaves: Sequence[Any], made: dict[int, Any]) -> Any:
    kind = node[0]
    if kind == "leaf":
        return leaves[node[1]]
    if kind == "value":
        return node[2]
    if kind == "again":
        return made[node[1]]
    if kind == "record":
        _, number, cls, names, parts = node
        if issubclass(cls, Mapping):  # an output of transformers is both, and sets itself up
            made[number] = cls(**{name: _build(part, leaves, made) for name, part in zip(names, parts, strict=True)})
            return made[number]
        record = object.__new__(cls)  # no __init__: it would check again what has been checked
        made[number] = record
        for name, part in zip(names, parts, strict=True):
            object.__setattr__(record, name, _build(part, leaves, made))
        return record
    if kind == "mapping":
        _, cls, names, parts = node
        return cls(zip(names, (_build(part, leaves, made) for part in parts), strict=True))
    _, cls, parts = node
    built: Any = [_build(part, leaves, made) for part in parts]
    return cls(*built) if hasattr(cls, "_fields") else cls(built)
