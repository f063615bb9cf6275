"""An exported model, run in ONNX Runtime or OpenVINO. Imports neither torch nor transformers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from skim.errors import SkimError, first_line, unknown

Runtime: TypeAlias = Literal["onnxruntime", "openvino"]
Run: TypeAlias = Callable[[Mapping[str, Any]], list[Any]]

EXTRAS = {"onnx": "onnx", "onnxruntime": "onnx", "openvino": "openvino"}  # which extra of skim brings a package
FORMAT = "1"
MARK = "skim_"  # of the keys of skim's own in a file's metadata


def needed(package: str, why: str) -> Any:
    """Import a package of an extra; a SkimError that names the extra if it is not installed."""
    try:
        return import_module(package)
    except ImportError as error:
        raise SkimError(
            f"{why} needs {package}, which is not installed: pip install 'skim[{EXTRAS[package.partition('.')[0]]}]'."
        ) from error


class Exported:
    """A model that :func:`skim.export` wrote, ready to run; called with what a tokenizer gives.

    Args:
        file: the ``.onnx`` file.
        runtime: ``onnxruntime`` or ``openvino``.
        threads: CPU threads; ``None`` is the runtime's choice.
        half: compute in bfloat16 where the processor can (OpenVINO).

    Attributes:
        about: what the file says of itself: method, precision, operators, whether it takes batches, longest input.
        inputs: names of what it takes.
        outputs: names of what it says.
        labels: names of the classes; empty if the model has none.

    Raises:
        SkimError: no such file, or not one of skim's; a runtime that is not installed, or cannot read it.
    """

    def __init__(
        self,
        file: str | Path,
        runtime: Runtime = "onnxruntime",
        *,
        threads: int | None = None,
        half: bool = False,
    ) -> None:
        if runtime not in OPENERS:
            raise unknown("runtime", runtime, OPENERS)
        self.file, self.runtime = Path(file), runtime
        if not self.file.is_file():
            raise SkimError(f"There is no {self.file}; skim.export(model, {str(self.file)!r}) writes one.")
        metadata, self.inputs, self.outputs, self.run = OPENERS[runtime](self.file, threads, half)
        self.about = {name.removeprefix(MARK): value for name, value in metadata.items() if name.startswith(MARK)}
        if self.about.get("format") != FORMAT:
            raise SkimError(f"{self.file} was not written by this version of skim.export.")
        longest = self.about["longest"]
        self.longest = int(longest) if longest else None
        self.together = self.about["batch"] == "any"
        self.labels = self.about["labels"].split("\n") if self.about["labels"] else []
        self.below = {"input_ids": int(self.about["vocabulary"]), "attention_mask": 2}
        if "token_type_ids" in self.inputs:
            self.below["token_type_ids"] = int(self.about["segments"])

    def __call__(self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None) -> dict[str, Any]:
        """Run it; a file for one sequence at a time runs each without its padding.

        Args:
            input_ids: ``(B, N)`` whole numbers: arrays, tensors or lists.
            attention_mask: ``(B, N)``, 1 on real tokens, which come first; ``None``: all are.
            token_type_ids: ``(B, N)`` segments; ``None``: all 0.

        Returns:
            Arrays by name, such as ``logits`` ``(B, C)``; of an output per token, 0 on padding.

        Raises:
            SkimError: shapes that do not fit, numbers that the model has no embedding for, padding before tokens, or
                more positions than the model has.
        """
        ids = whole_numbers("input_ids", input_ids)
        mask = np.ones_like(ids) if attention_mask is None else whole_numbers("attention_mask", attention_mask)
        segments = np.zeros_like(ids) if token_type_ids is None else whole_numbers("token_type_ids", token_type_ids)
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
        for name, value in given.items():
            if value.shape != ids.shape:
                raise SkimError(f"{name} has shape {value.shape}, and input_ids {ids.shape}.")
            below = self.below.get(name)
            # a graph looks rows up from the end by negative numbers, and runtimes differ in what they do beyond it
            if below is not None and not 0 <= value.min() <= value.max() < below:
                raise SkimError(
                    f"{name} has numbers from {value.min()} to {value.max()}; {self.file} takes 0 to {below - 1}."
                )
        lengths = mask.sum(1)
        if not (lengths > 0).all() or (mask[:, 1:] > mask[:, :-1]).any():
            raise SkimError("Each sequence needs a token, and padding stands behind: tokenizer.padding_side='right'.")
        if self.longest is not None and lengths.max() > self.longest:
            raise SkimError(
                f"A sequence has {lengths.max()} tokens, and {self.file} takes {self.longest} at most.\n"
                f"Cut it: tokenizer(..., truncation=True, max_length={self.longest})."
            )
        if self.together:
            cut = int(lengths.max())
            return self._once({name: given[name][:, :cut] for name in self.inputs}, ids.shape[1])
        alone = [
            self._once({name: given[name][i : i + 1, :length] for name in self.inputs}, ids.shape[1])
            for i, length in enumerate(lengths)
        ]
        return {name: np.concatenate([one[name] for one in alone]) for name in self.outputs}

    def _once(self, given: dict[str, Any], positions: int) -> dict[str, Any]:
        """One call of the runtime; outputs per token are padded to the input's positions."""
        length = given["input_ids"].shape[1]
        said = dict(zip(self.outputs, self.run(given), strict=True))
        per_token = [name for name in self.about["per_token"].split() if name in said]
        for name in per_token if length < positions else ():
            rest = [(0, 0)] * said[name].ndim
            rest[1] = (0, positions - length)
            said[name] = np.pad(said[name], rest)
        return said


def whole_numbers(name: str, given: Any) -> Any:
    """An input as an int64 array ``(B, N)``; a SkimError for anything else."""
    try:
        value = np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as error:  # lists of unlike lengths, tensors on a GPU
        raise SkimError(
            f"{name} cannot be read as an array: {first_line(error)}\n"
            "Pad texts to one length, and take tensors to the CPU."
        ) from error
    if value.ndim != 2 or not value.size or value.dtype.kind not in "iub":
        raise SkimError(
            f"{name} is {value.dtype} {value.shape}; it takes whole numbers, (batch, positions), not empty."
        )
    return np.ascontiguousarray(value, dtype=np.int64)


def in_onnxruntime(file: Path, threads: int | None, half: bool) -> tuple[dict[str, str], list[str], list[str], Run]:
    """Open a file in ONNX Runtime: its metadata, inputs, outputs, and what runs it."""
    runtime = needed("onnxruntime", "Running an exported model")
    if half:
        raise SkimError("half=True is OpenVINO's; with ONNX Runtime export with precision=int8.")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = options.inter_op_num_threads = threads
    try:
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes, which are none of Python's
        raise SkimError(f"ONNX Runtime cannot read {file}: {first_line(error)}") from error
    names = [[one.name for one in ends] for ends in (session.get_inputs(), session.get_outputs())]
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    return metadata, *names, lambda given: session.run(None, dict(given))  # type: ignore[return-value]


@functools.cache
def core_of(openvino: Any) -> Any:
    """Return the one ``Core`` of the process, which lives as long as the process does.

    On a CPU with AMX a Core brings the main thread's stack for signals, and takes it away when it goes. Where the older
    of two goes first, the thread is left with a stack that is no more, and the next signal that Python handles, such as
    that a data loader's worker has ended, kills the process without a word.

    Args:
        openvino: the package.
    """
    return openvino.Core()


def in_openvino(file: Path, threads: int | None, half: bool) -> tuple[dict[str, str], list[str], list[str], Run]:
    """Open a file in OpenVINO, as :func:`in_onnxruntime`; it computes in float32 unless told otherwise."""
    core = core_of(needed("openvino", "Running an exported model in OpenVINO"))
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if half else "f32", "NUM_STREAMS": 1}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        model = core.read_model(str(file))
        compiled = core.compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise SkimError(
            f"OpenVINO cannot read {file}: {first_line(error)}.\n"
            "A file for it is exported with operators=standard, precision=fp32."
        ) from error
    told = model.get_rt_info("framework").value if model.has_rt_info("framework") else ()
    metadata = {name: str(model.get_rt_info(["framework", name]).value) for name in told}
    names = [[one.get_any_name() for one in ends] for ends in (compiled.inputs, compiled.outputs)]

    def run(given: Mapping[str, Any]) -> list[Any]:
        said = compiled.create_infer_request().infer(dict(given))
        return [said[i].copy() for i in range(len(names[1]))]

    return metadata, *names, run  # type: ignore[return-value]


OPENERS: dict[str, Any] = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}


def load(
    file: str | Path, runtime: Runtime = "onnxruntime", *, threads: int | None = None, half: bool = False
) -> Exported:
    """Load a model that :func:`skim.export` wrote; see :class:`Exported`."""
    return Exported(file, runtime, threads=threads, half=half)
