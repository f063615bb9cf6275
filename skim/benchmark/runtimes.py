"""Dense models in other runtimes: ONNX files of a plain model, and sessions that take its batches."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skim.errors import SkimError
from skim.export.loaded import core_of

Call = Callable[..., Any]  # takes a batch as a model does: call(**batch)
FUSED = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "data2vec-text")


class Exports:
    """ONNX files of one plain model; what has these weights is written once into a folder.

    Args:
        folder: for the files; whoever made it takes it away.
        model: a plain model of transformers, on the CPU, in float32.
        batch: a padded batch as it takes them; lengths and sizes are free in the files.
    """

    def __init__(self, folder: Path, model: nn.Module, batch: Mapping[str, Tensor]) -> None:
        self.folder, self.model, self.batch = folder, model, batch

    @cached_property
    def stem(self) -> str:
        """Name of the files, which stands for the weights, the shape and the names of the inputs."""
        told = hashlib.sha256(f"{self.model.config.to_json_string()} {sorted(self.batch)}".encode())  # type: ignore
        for tensor in self.model.state_dict().values():
            told.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
        return told.hexdigest()[:16]

    def plain(self) -> Path:
        """The graph as PyTorch traces it."""
        return self._written("plain", self._trace)

    def fused(self) -> Path:
        """The graph with attention, norms and activations as one node each, by ONNX Runtime's own optimizer.

        Raises:
            SkimError: it fuses no such model.
        """
        return self._written("fused", self._fuse)

    def int8(self) -> Path:
        """The fused graph, or else the plain one, with weights in int8 and activations quantized as they come."""
        return self._written("int8", self._quantize)

    def _written(self, kind: str, write: Callable[[Path], None]) -> Path:
        path = self.folder / f"{self.stem}-{kind}.onnx"
        if not path.is_file():
            with quiet():
                write(path)
        return path

    def _trace(self, path: Path) -> None:
        model: Any = copy.deepcopy(self.model, {id(tensor): tensor for tensor in self.model.parameters()})
        model.set_attn_implementation("eager")
        names = list(self.batch)
        example = tuple(torch.cat([value, value])[:2] for value in self.batch.values())  # of a batch, not of one text
        axes = {name: {i: f"size_{i}" for i in range(value.dim())} for name, value in self.batch.items()}
        torch.onnx.export(
            Positional(model, names),
            example,
            str(path),
            input_names=names,
            output_names=["output"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )

    def _fuse(self, path: Path) -> None:
        config: Any = self.model.config
        if config.model_type not in FUSED:
            raise SkimError(f"ONNX Runtime fuses no {config.model_type}")
        from onnxruntime.transformers import optimizer

        sizes = {"num_heads": config.num_attention_heads, "hidden_size": config.hidden_size}
        optimizer.optimize_model(str(self.plain()), model_type="bert", **sizes).save_model_to_file(str(path))

    def _quantize(self, path: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        source = self.fused() if self.model.config.model_type in FUSED else self.plain()  # type: ignore[union-attr]
        floats = {"DefaultTensorType": 1}  # of tensors whose type the fused graph does not say
        quantize_dynamic(str(source), str(path), weight_type=QuantType.QInt8, extra_options=floats)


class Positional(nn.Module):
    """A model that takes its inputs in an order, and answers with its first output alone."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Call the model by the names of its inputs."""
        return self.model(**dict(zip(self.names, inputs, strict=True))).to_tuple()[0]


def onnx_runtime(path: Path) -> Call:
    """A file in ONNX Runtime, on as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def call(**batch: Tensor) -> Any:
        return session.run(None, {name: batch[name].numpy() for name in names})[0]

    return call


def openvino(path: Path, precision: str) -> Call:
    """A file in OpenVINO, on as many threads as torch has.

    Args:
        path: of the ONNX file.
        precision: ``f32`` or ``bf16``, in OpenVINO's words.

    Raises:
        SkimError: this CPU has no such arithmetic, and OpenVINO would take another without a word.
    """
    import openvino

    core = core_of(openvino)
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise SkimError("OpenVINO finds no bf16 in this CPU")
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
    }
    request = core.compile_model(str(path), "CPU", settings).create_infer_request()
    names = [given.any_name for given in request.model_inputs]

    def call(**batch: Tensor) -> Any:
        return request.infer({name: batch[name].numpy() for name in names})[0]

    return call


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters say to their developers from the user: an export that fails raises."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
