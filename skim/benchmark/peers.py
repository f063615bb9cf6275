"""Peers: what a user would run instead of skim, from the same weights, timed on the same batches in the same turns.

A peer is an entry of :data:`PEERS`. One that cannot be had here, because something is not installed or the model is
nothing for it, is a line that says so.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skim.benchmark.runtimes import Call, Exports, onnx_runtime, openvino, quiet
from skim.compression import compress, twin
from skim.errors import SkimError, first_line
from skim.export.exporting import export
from skim.export.loaded import load
from skim.merging import merged
from skim.methods import method_class

Batches = Sequence[dict[str, Tensor]]


@dataclass(frozen=True)
class Offer:
    """Model and batches that peers are built for.

    Attributes:
        model: plain model of transformers, in evaluation mode, on the device to run on.
        batches: padded batches, on that device.
        layers: of the first layers as many as have the FLOPs of the compressed model; ``None`` if there is none.
        folder: for exported files; whoever made it takes it away.
    """

    model: nn.Module
    batches: Batches
    layers: int | None
    folder: Path

    @property
    def exports(self) -> Exports:
        """ONNX files of the model, in float32."""
        return Exports(self.folder, self.model, self.batches[0])


@dataclass(frozen=True)
class Peer:
    """One thing that a user would run instead.

    Attributes:
        name: in tables; ``{layers}`` is how many layers.
        build: makes what is called with each batch, ``call(**batch)``; a SkimError says why it cannot.
        needs: packages that it imports.
        extra: of skim, which installs them.
        regrouped: True if it takes the texts as they come, and not grouped by length.
        anywhere: True if it runs on the batches' device, False if on the CPU alone.
        rounds: True if its arithmetic is coarser than float32, so that it answers otherwise than the model.
    """

    name: str
    build: Callable[[Offer], Call]
    needs: tuple[str, ...] = ()
    extra: str = ""
    regrouped: bool = False
    anywhere: bool = False
    rounds: bool = False


def itself(offer: Offer) -> Call:
    """Padded Hugging Face itself."""
    return offer.model


def compiled(offer: Offer) -> Call:
    """Compile the model, and run each batch once: no compilation is in the times.

    Raises:
        SkimError: there is no compiler, or it failed.
    """
    device = offer.batches[0]["input_ids"].device.type
    if device == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise SkimError("torch.compile needs a C++ compiler, such as g++")
    shapes = {tuple(batch["input_ids"].shape) for batch in offer.batches}
    model: Any = twin(offer.model)
    mode = "reduce-overhead" if device == "cuda" and len(shapes) == 1 else "default"
    torch.compiler.reset()  # what an earlier shape compiled would make this one dynamic, or give up on it
    graph = torch.compile(model, dynamic=len(shapes) > 1, mode=mode)

    def call(**batch: Tensor) -> Any:  # no module, whose operations would be counted: with a mode on, none is compiled
        return graph(**batch)

    with quiet(), torch.inference_mode():
        for batch in offer.batches:
            call(**batch)
    return call


def first_layers(offer: Offer) -> Call:
    """Cut the layers behind those that have the FLOPs of the compressed model.

    Raises:
        SkimError: the model has no such half, or nothing is compressed.
    """
    if offer.layers is None:
        raise SkimError("nothing beside it costs less than the dense model")
    drop: Any = method_class("layer_drop")
    cut: Any = merged(compress(twin(offer.model), drop(layers=offer.layers)))
    cut.set_attn_implementation(offer.model.config._attn_implementation)  # type: ignore[union-attr]
    return cut.eval()


def torch_int8(offer: Offer) -> Call:
    """Quantize the weights of linear layers to int8, and activations as they come, by PyTorch."""
    with quiet():
        from torch.ao.quantization import quantize_dynamic

        return quantize_dynamic(deepcopy(offer.model), {nn.Linear}, dtype=torch.qint8)


def onnx(name: str, build: Callable[[Exports], Path]) -> Peer:
    """A file in ONNX Runtime."""
    needs = ("onnx", "onnxscript", "onnxruntime")
    return Peer(name, lambda offer: onnx_runtime(build(offer.exports)), needs, "onnx", rounds=build is Exports.int8)


def vino(name: str, precision: str) -> Peer:
    """The plain graph in OpenVINO."""
    needs = ("onnx", "onnxscript", "openvino")
    rounds = precision != "f32"
    return Peer(name, lambda offer: openvino(offer.exports.plain(), precision), needs, "onnx,openvino", rounds=rounds)


CHECKED = 8  # batches on which an exported model is compared with the one in torch


def exported(name: str, model: nn.Module) -> Peer:
    """A compressed model as skim exports it, quantized to int8, in ONNX Runtime."""

    def build(offer: Offer) -> Call:
        file = offer.folder / f"{name.replace(' ', '-')}.onnx"
        together = any(len(batch["input_ids"]) > 1 for batch in offer.batches)
        with quiet():
            # of a head that was not trained, all outputs are nearly alike: its int8 is timed, and nobody's answer
            checked = offer.batches[:CHECKED]
            export(model, file, precision="int8", batch="any" if together else "one", inputs=checked, strict=False)
        return load(file, threads=torch.get_num_threads())

    return Peer(f"{name}, exported int8", build, ("onnx", "onnxscript", "onnxruntime"), "onnx", rounds=True)


PEERS = (
    Peer("HF, not grouped by length", itself, regrouped=True, anywhere=True),
    Peer("HF, torch.compile", compiled, anywhere=True),
    Peer("HF, first {layers} layers", first_layers, anywhere=True),
    Peer("torch int8 dynamic", torch_int8, rounds=True),
    onnx("ONNX Runtime fp32", Exports.plain),
    onnx("ONNX Runtime fp32 fused", Exports.fused),
    onnx("ONNX Runtime int8", Exports.int8),
    vino("OpenVINO fp32", "f32"),
    vino("OpenVINO bf16", "bf16"),
)


@dataclass(frozen=True)
class Built:
    """A peer that is ready: what is called with each of its batches."""

    name: str
    call: Call
    batches: Batches
    rounds: bool


def built(offer: Offer, peers: Sequence[Peer]) -> tuple[list[Built], list[str]]:
    """Build the peers that can be had here, and say of each other one why it cannot."""
    ready, left_out = [], []
    for peer in peers:
        name = peer.name.format(layers=offer.layers or "k")
        try:
            check_had(peer, offer)
            batches = regrouped(offer.batches) if peer.regrouped else offer.batches
            call = peer.build(offer)
            with torch.inference_mode():
                call(**batches[0])
        except SkimError as error:
            left_out.append(f"{name}: {error}")
        except Exception as error:  # of a runtime that is not ours: the others are timed all the same
            left_out.append(f"{name}: {type(error).__name__}: {first_line(error)[:160]}")
        else:
            ready.append(Built(name, call, batches, peer.rounds))
    return ready, left_out


def check_had(peer: Peer, offer: Offer) -> None:
    """Refuse a peer whose packages are not installed, or that does not run where the model does.

    Raises:
        SkimError: what is missing, and how to have it.
    """
    parameter = next(offer.model.parameters())
    if not peer.anywhere and (parameter.device.type, parameter.dtype) != ("cpu", torch.float32):
        raise SkimError("is timed on a CPU alone, from a float32 model")
    missing = [name for name in peer.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise SkimError(f'needs {", ".join(missing)}: pip install "skim[{peer.extra}]"')


def regrouped(batches: Batches) -> Batches:
    """Batches of the same texts and sizes in a random order, as texts come: every batch as long as its longest.

    Raises:
        SkimError: there is one batch only, or its rows are more than one text each.
    """
    if len(batches) < 2:
        raise SkimError("there is one batch, whose order changes nothing")
    if any(value.dim() != 2 for batch in batches for value in batch.values()):
        raise SkimError("a row is several texts, whose lengths are not grouped")
    if any("attention_mask" not in batch for batch in batches):
        raise SkimError("there is no attention_mask, which says how long a text is")
    rows = [
        {name: value[i, batch["attention_mask"][i] > 0] for name, value in batch.items()}
        for batch in batches
        for i in range(len(batch["input_ids"]))
    ]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    mixed = []
    for batch in batches:
        taken, order = order[: len(batch["input_ids"])], order[len(batch["input_ids"]) :]
        names = list(batch)
        mixed.append(
            {name: nn.utils.rnn.pad_sequence([rows[i][name] for i in taken], batch_first=True) for name in names}
        )
    return mixed
