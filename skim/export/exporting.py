"""Write a compressed model as an ONNX file that ships: checked, then moved into its place with what belongs to it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from skim.engine.adapters import whole_of
from skim.engine.inputs import inputs_of
from skim.engine.walk import Walk, walk_of
from skim.errors import SkimError, first_line, unknown
from skim.export.loaded import FORMAT, MARK, Exported, load, needed
from skim.files import filling

Operators: TypeAlias = Literal["fused", "standard"]
Precision: TypeAlias = Literal["fp32", "int8"]
Batch: TypeAlias = Literal["any", "one"]
CHOICES = {"operators": ("fused", "standard"), "precision": ("fp32", "int8"), "batch": ("any", "one")}

LARGEST = 2**31  # bytes that one file of ONNX can hold
TOLERANCE = 1e-4  # of the outputs in fp32
FLIPPED = 0.02  # share of texts whose decisions may fall to the other side of a border by rounding, in fp32
QUANTISED = 0.25  # mean difference of the outputs in int8, in units of their standard deviation, that is still a model
CANNOT = {  # what methods do that no graph can
    "halts": "halted tokens are looked at without being computed, which the graph has no form for",
    "exits": "a graph runs to its end, so no sequence can leave before the last layer",
}
CANNOT_TOGETHER = {"merges": "merged rows of a batch have no form in a graph"}


@dataclass(frozen=True)
class Check:
    """An exported file, and how it compares with the model in torch.

    Attributes:
        file: what was written.
        bytes: its size.
        texts: sequences that were compared.
        difference: largest absolute difference of an output, over the texts whose decisions are the same.
        mean_difference: mean absolute difference of the outputs, over all texts.
        flipped: texts of which other tokens survived, by rounding near a border.
        kept: mean layers that a token survived / layers, in torch.
    """

    file: Path
    bytes: int
    texts: int
    difference: float
    mean_difference: float
    flipped: int
    kept: float


def export(
    model: nn.Module,
    file: str | Path,
    *,
    operators: Operators = "fused",
    precision: Precision = "fp32",
    batch: Batch = "any",
    tokenizer: Any = None,
    inputs: Iterable[Mapping[str, Any]] | None = None,
    strict: bool = True,
) -> Check:
    """Write a compressed model as ONNX, in which tokens leave as they do in torch.

    Beside the file, the tokenizer and ``config.json``, with the names of the labels, are saved. The file is compared
    with the model in torch before it is moved into its place; of one that fails, nothing is left.

    Args:
        model: compressed, on the CPU, in float32.
        file: to write, ending in ``.onnx``; its folder is made if it is not there.
        operators: ``fused`` is for ONNX Runtime, with operators of its own for attention; ``standard`` is what OpenVINO
            and others read.
        precision: ``fp32``, or ``int8``: weights quantised, activations on the fly; with ``fused`` only.
        batch: ``any``: batches with a mask, narrowed to the longest survivor; ``one``: a sequence at a time, without a
            mask, which is faster for it.
        tokenizer: to be saved beside the file; ``None``: none is.
        inputs: batches as a tokenizer gives them, to compare on; ``None``: random tokens.
        strict: refuse int8 whose outputs differ too much from the model's; False: only tell how much.

    Returns:
        What was written and compared.

    Raises:
        SkimError: a model, a method or a family that cannot be exported; a package that is not installed; outputs that
            are not the model's; a file that cannot be written.
    """
    for name, value in (("operators", operators), ("precision", precision), ("batch", batch)):
        if value not in CHOICES[name]:
            raise unknown(name, value, CHOICES[name])
    walk, file = walk_of(model), Path(file)
    if file.suffix != ".onnx":
        raise SkimError(f"{file} must end in .onnx.")
    if file.is_dir() or (file.parent.exists() and not file.parent.is_dir()):
        raise SkimError(f"{file} cannot be written: a folder, or a file in the place of its folder, is there.")
    check_exportable(walk, operators, precision, batch)
    onnx = needed("onnx", "Exporting")
    needed("onnxruntime", "Comparing what is exported with the model")
    from skim.export.graph import fuse, without_output
    from skim.export.tracing import SURVIVED, traced

    training, together = whole_of(model).training, batch == "any"
    whole_of(model).eval()
    try:
        graph = traced(walk, together, operators == "fused")
        if operators == "fused":
            fuse(graph)
        batches = [inputs_of(one) for one in (at_random(walk) if inputs is None else inputs)]
        describe(graph, walk, {"operators": operators, "precision": precision, "batch": batch})
        with written(file) as folder:
            made = folder / file.name
            quantise = quantised if precision == "int8" else onnx.save
            quantise(graph, made)
            check = compared(model, load(made), batches, file, precision, strict)
            onnx.save(without_output(onnx.load(made), SURVIVED), made)
            load(made)
            ship(walk, tokenizer, folder)
            return Check(file, made.stat().st_size, *check)
    finally:
        whole_of(model).train(training)


def check_exportable(walk: Walk, operators: str, precision: str, batch: str) -> None:
    """Refuse what no file can hold.

    Raises:
        SkimError: what it is, and why.
    """
    method, kind = walk.method, type(walk.base).__name__
    for does, why in CANNOT.items():
        if does in method.does:
            raise SkimError(f"method={method.name} cannot be exported: {why}.\nUse it in torch, or another method.")
    for does, why in CANNOT_TOGETHER.items():
        if does in method.does and batch == "any":
            raise SkimError(f"method={method.name} cannot be exported for batches: {why}.\nUse batch=one.")
    if not method.inside_softmax or method.needs_pads or method.retired_run_on:
        raise SkimError(
            f"method={method.name} with preset=paper removes nothing, as published, so there is nothing to export.\n"
            "Use preset=default."
        )
    if not walk.backbone.exports:
        from skim.backbones import families

        known = sorted(name for name, family in families().items() if family.exports)
        raise SkimError(f"{kind} cannot be exported yet; these families can: {', '.join(known)}.")
    parameters = list(walk.model.parameters())
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in parameters):
        raise SkimError("Exporting takes a model in float32 on the CPU: model.float().cpu().")
    if precision == "int8" and operators == "standard":
        raise SkimError(
            "precision=int8 is for ONNX Runtime, operators=fused: other runtimes are slow with its integer operators.\n"
            "OpenVINO computes in bfloat16 instead: skim.export.load(file, 'openvino', half=True)."
        )
    if sum(p.numel() * p.element_size() for p in parameters) >= LARGEST:
        raise SkimError(f"{type(walk.model).__name__} has 2 GB of weights or more, which no single ONNX file can hold.")


def at_random(walk: Walk) -> Iterator[dict[str, Tensor]]:
    """Make sequences of random tokens, of 3 to 48, in batches of one length."""
    longest = walk.backbone.longest_input(walk.base.config) or 48
    made = torch.Generator().manual_seed(0)
    for length in (3, 8, 15, 24, 48):
        size = (4, min(length, longest))
        ids = torch.randint(5, max(int(walk.base.config.vocab_size), 6), size, generator=made)  # type: ignore
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def quantised(graph: Any, file: Path) -> None:
    """Write a graph with weights in 8 bits; activations are quantised as they come."""
    import logging

    quantisation = needed("onnxruntime.quantization", "precision=int8")
    logging.disable(logging.WARNING)  # it advises, on the root logger, to run what has run here
    try:
        # rows leave, so types of some tensors cannot be inferred: those it is about are floats
        quantisation.quantize_dynamic(
            graph, str(file), weight_type=quantisation.QuantType.QInt8, extra_options={"DefaultTensorType": 1}
        )
    finally:
        logging.disable(logging.NOTSET)


def compared(
    model: nn.Module, exported: Exported, batches: list[dict[str, Any]], file: Path, precision: str, strict: bool
) -> tuple[int, float, float, int, float]:
    """Run the model in torch and the file, and refuse a file that says something else; see :class:`Check`."""
    from skim.export.tracing import SURVIVED, tensors

    apart: list[np.ndarray] = []  # of each text the largest difference
    means, flips, spread, kept = [], [], [], []
    for batch in batches:
        with torch.no_grad():
            said = tensors(model(**batch, return_dict=True))
        trace: Any = model.trace
        given = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
        found = exported(**given)
        real = trace.sequences.real.numpy()
        survived = trace.layers_survived().numpy() * real
        flips.append((survived != found.pop(SURVIVED) * real).any(1))
        kept.append(survived.sum() / max(real.sum(), 1) / len(trace.layers))
        for name, value in found.items():
            truth = said[name].numpy()
            if name in exported.about["per_token"].split():  # what a head says of padding is nobody's business
                here = real.reshape(*real.shape, *[1] * (truth.ndim - 2))
                truth, value = truth * here, value * here
            gap = np.abs(truth - value).reshape(len(truth), -1)
            means.append(gap.mean(1))
            spread.append(truth.reshape(-1))
            apart.append(np.where(flips[-1], 0.0, gap.max(1)))
    if not batches:
        raise SkimError("Exporting compares the file with the model, and inputs holds no batch.")
    flipped, texts = int(np.concatenate(flips).sum()), int(sum(map(len, flips)))
    difference, mean = float(np.concatenate(apart).max()), float(np.concatenate(means).mean())
    limit = QUANTISED * float(np.concatenate(spread).std())
    if not np.isfinite(mean):
        problem = "says what is not a number"
    elif precision == "fp32" and difference > TOLERANCE:
        problem = f"differs by {difference:.1e} from the model in torch; {TOLERANCE:.0e} is allowed"
    elif precision == "fp32" and flipped > max(1, FLIPPED * texts):
        problem = f"retires other tokens than the model in torch in {flipped} of {texts} texts"
    elif precision == "int8" and strict and mean > limit:
        problem = f"differs by {mean:.2g} in the mean from the model in torch, more than a quarter of how outputs vary"
    else:
        return texts, difference, mean, flipped, float(np.mean(kept))
    raise SkimError(
        f"The export to {file} {problem}, so nothing was written.\n"
        + ("Quantising is too coarse for this model: precision=fp32." if precision == "int8" else "Please report it.")
    )


def describe(graph: Any, walk: Walk, chosen: Mapping[str, str]) -> None:
    """Write into a graph what :func:`skim.export.load` has to know."""
    from onnx import helper

    config: Any = walk.model.config
    per_token = [
        output.name
        for output in graph.graph.output
        if any(dim.dim_param == "length" for dim in output.type.tensor_type.shape.dim)
    ]
    names = getattr(config, "id2label", None) or {}
    about = {
        "format": FORMAT,
        "method": walk.method.name,
        "longest": str(walk.backbone.longest_input(walk.base.config) or ""),
        "vocabulary": str(config.vocab_size),
        "segments": str(getattr(config, "type_vocab_size", 0) or 0),
        "labels": "\n".join(str(names[i]) for i in sorted(names)),
        "per_token": " ".join(per_token),
        **chosen,
    }
    helper.set_model_props(graph, {f"{MARK}{name}": value for name, value in about.items()})


def ship(walk: Walk, tokenizer: Any, folder: Path) -> None:
    """Save beside the file what its users need: the config with its labels, and the tokenizer."""
    config = copy.deepcopy(walk.model.config)
    config.architectures = [type(walk.model).__name__]  # type: ignore[union-attr]
    config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


@contextmanager
def written(file: Path) -> Iterator[Path]:
    """Give a folder to write into; what is in it takes its place beside ``file`` when all went well, and else goes."""
    above = [folder for folder in (file.parent, *file.parent.parents) if not folder.exists()]
    try:
        with filling(file.parent, last=file.name) as folder:
            yield folder
        above = []
    except OSError as error:
        raise SkimError(f"{file} cannot be written: {first_line(error)}. Nothing of it is left.") from error
    finally:
        for made in above:
            if made.exists():
                made.rmdir()
