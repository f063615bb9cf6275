"""Passes over an ONNX graph: attention and its three projections become one operator, and what nobody reads goes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

CONTRIBUTED = "com.microsoft"  # the domain of ONNX Runtime's own operators
ATTENTION = "MultiHeadAttention"


class Linear(NamedTuple):
    """Names of a linear map in a graph, ``input @ weight + bias``."""

    input: str
    weight: str
    bias: str


class Graph:
    """A graph with what its passes look up.

    Args:
        model: changed in place.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.producer = {name: node for node in self.graph.node for name in node.output}
        self.joined: dict[tuple[str, ...], str] = {}

    def linear(self, name: str) -> Linear | None:
        """The linear map whose output ``name`` is."""
        total = self.producer.get(name)
        if total is None or total.op_type != "Add":
            return None
        for product, bias in (total.input, reversed(total.input)):
            made = self.producer.get(product)
            if bias in self.constants and made is not None and made.op_type == "MatMul":
                weight = self.constants.get(made.input[1])
                if weight is not None and len(weight.dims) == 2 and list(self.constants[bias].dims) == [weight.dims[1]]:
                    return Linear(made.input[0], made.input[1], bias)
        return None

    def origin(self, name: str) -> str:
        """Find the tensor that was split into heads and, for one operator of attention, put side by side again."""
        turned, at = 0, name
        while (node := self.producer.get(at)) is not None and node.op_type in ("Reshape", "Transpose"):
            turned += node.op_type == "Transpose"
            at = node.input[0]
        return at if turned % 2 == 0 else name

    def join(self, names: Iterable[str]) -> str:
        """Name a constant that holds others, ``(K, n)`` or ``(n,)``, side by side; made once."""
        names = tuple(names)
        if names not in self.joined:
            values = np.concatenate([numpy_helper.to_array(self.constants[name]) for name in names], -1)
            self.joined[names] = f"joined_{len(self.joined)}"
            tensor = numpy_helper.from_array(values, self.joined[names])
            self.graph.initializer.append(tensor)
            self.constants[tensor.name] = tensor
        return self.joined[names]


def fuse(model: onnx.ModelProto) -> None:
    """Let attention project its own queries, keys and values, in place, which can be quantised as one.

    ONNX Runtime's own fusion looks for the shapes of a dense encoder; rows that leave in between hide them from it.
    """
    graph = Graph(model)
    for node in graph.graph.node:
        if node.op_type != ATTENTION:
            continue
        parts = [graph.linear(graph.origin(name)) for name in node.input[:3]]
        if all(parts) and len({part.input for part in parts if part}) == 1:
            weight = graph.join(part.weight for part in parts if part)
            bias = graph.join(part.bias for part in parts if part)
            inputs = [parts[0].input, weight, bias, *node.input[4:5]]  # type: ignore[union-attr]
            made = helper.make_node("Attention", inputs, node.output, name=node.name, domain=CONTRIBUTED)
            made.attribute.extend(node.attribute)
            node.CopyFrom(made)
    prune(model)


def without_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy of a graph that does not say ``name`` any more, nor computes what only that needed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.remove(next(output for output in copy.graph.output if output.name == name))
    prune(copy)
    return copy


def prune(model: onnx.ModelProto) -> None:
    """Take out, in place, nodes and constants that no output needs."""
    graph = model.graph
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    for field, items in ((graph.node, kept[::-1]), (graph.initializer, constants)):
        saved = [type(item).FromString(item.SerializeToString()) for item in items]
        del field[:]
        field.extend(saved)
    del graph.value_info[:]
