"""The graph of a compressed model: its own walk, traced over a form whose operations a graph can hold."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from skim.compression import execution
from skim.engine.walk import Walk
from skim.errors import SkimError, first_line
from skim.export.forms import FUSED, LONGEST, Alone, AloneRead, Together, TogetherRead

OPSET = 17
SURVIVED = "layers_survived"  # (B, N): an output of the graph that is checked, and not of the one that is written
LENGTH = 7  # of the text that is traced


class Outputs(nn.Module):
    """A model that takes its inputs by place and gives a tuple of tensors: what a tracer wants.

    Args:
        model: compressed.
        takes: names of the inputs.
    """

    def __init__(self, model: Any, takes: list[str]) -> None:
        super().__init__()
        self.model, self.takes = model, takes

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the model; the last tensor is the layers that each token survived."""
        output = self.model(**dict(zip(self.takes, inputs, strict=True)), return_dict=True)
        return (*tensors(output).values(), self.model.trace.alive().long().sum(0))


def tensors(output: Any) -> dict[str, Tensor]:
    """Pick the tensors of a model's output, by their names."""
    return {name: value for name, value in output.items() if isinstance(value, Tensor)}


def takes(walk: Walk, together: bool) -> list[str]:
    """Names of a graph's inputs: the mask only where there are pads, segments only of a model that tells them apart."""
    names = ["input_ids", *(["attention_mask"] if together else [])]
    segments = getattr(walk.base.config, "type_vocab_size", 0) or 0
    return [*names, *(["token_type_ids"] if "token_type_ids" in walk.names and segments > 1 else [])]


@torch.no_grad()
def reads_first(walk: Walk) -> bool:
    """Tell whether the head reads the first token alone, and that never leaves: then no other last state matters."""
    if not walk.method.covers or walk.head.place != "first" or walk.model is walk.base:
        return False
    hidden = torch.full((1, 3, walk.base.config.hidden_size), torch.nan)  # type: ignore[union-attr, arg-type]
    hidden[:, 0] = 0.0
    given = {"input_ids": torch.ones(1, 3, dtype=torch.int64), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    try:
        return all(bool(value.isfinite().all()) for value in tensors(walk.head.output(hidden, given)).values())
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        return False


@contextlib.contextmanager
def as_form(walk: Walk, together: bool, fused: bool) -> Iterator[None]:
    """Run a walk over the form of a graph for the length of a ``with``."""
    forms = ((Alone, AloneRead), (Together, TogetherRead))[together]
    before, token = (walk.forms, walk.static), FUSED.set(fused)
    longest = LONGEST.set(walk.backbone.longest_input(walk.base.config) or LONGEST.get())
    name = "narrowed" if together else "packed"
    walk.forms, walk.static = {**walk.forms, name: forms[reads_first(walk)]}, False
    try:
        with execution(walk.model, name):
            yield
    finally:
        walk.forms, walk.static = before
        FUSED.reset(token)
        LONGEST.reset(longest)


def traced(walk: Walk, together: bool, fused: bool) -> onnx.ModelProto:
    """Trace the graph of a model in evaluation.

    Args:
        walk: of the model.
        together: of batches, with a mask; else of one sequence at a time.
        fused: with operators of ONNX Runtime's own.

    Raises:
        SkimError: some operation cannot be written into a graph.
    """
    names = takes(walk, together)
    ids = torch.arange(5, 5 + LENGTH).expand(1 + together, -1) % int(walk.base.config.vocab_size)  # type: ignore
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    if together:
        example["attention_mask"][1, -2:] = 0
    with torch.no_grad(), as_form(walk, together, fused):
        said = tensors(walk.model(**{name: example[name] for name in names}, return_dict=True))
        outputs = [*said, SURVIVED]
        axes = {name: {1: "length"} | ({0: "batch"} if together else {}) for name in (*names, SURVIVED)}
        for name, value in said.items():
            long = {1: "length"} if value.dim() > 1 and value.shape[1] == LENGTH else {}
            axes[name] = long | ({0: "batch"} if together else {})
        file: Any = io.BytesIO()  # which torch takes, whatever its annotation says
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a tracer that does not know which numbers are the same every time
                torch.onnx.export(
                    Outputs(walk.model, names).eval(),  # the mode that it leaves the model in
                    tuple(example[name] for name in names),
                    file,
                    input_names=names,
                    output_names=outputs,
                    dynamic_axes=axes,
                    opset_version=OPSET,
                    dynamo=False,  # torch.export follows no shape through the rows that leave
                )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError, TypeError, ValueError) as error:
            raise SkimError(
                f"method={walk.method.name} on {type(walk.base).__name__} cannot be written as a graph: "
                f"{first_line(error)}"
            ) from error
    return onnx.load_from_string(file.getvalue())
