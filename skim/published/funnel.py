"""Checkpoints of Funnel-Transformer's published code, PyTorch's and TensorFlow's, as models of transformers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from skim.errors import SkimError
from skim.files import read_json
from skim.published import tensorflow
from skim.published.files import load, unpickled

TF_INPUT = {
    "model/input/word_embedding/lookup_table": "input_layer.0.lookup_table",
    "model/input/layer_norm/gamma": "input_layer.1.weight",
    "model/input/layer_norm/beta": "input_layer.1.bias",
}
TF_LAYER = re.compile(r"model/(encoder|decoder)/layer_(\d+)/(rel_attn|ff)/(\w+)(?:/(kernel|bias|gamma|beta))?")
DECODER = re.compile(r"decoder\.\w+\.(\d+)\.")
TF_HALVES = {"rel_attn": "attn_layers", "ff": "pffn_layers"}
TF_PARTS = {
    **{"q": "q_head", "k": "k_head", "v": "v_head", "o": "post_proj", "r": "r_kernel"},
    **{"layer_1": "pffn.0", "layer_2": "pffn.3"},
}
NET_KEYS = (
    *("vocab_size", "d_model", "n_head", "d_head", "d_inner"),
    *("block_size", "dropout", "dropatt", "dropact", "pooling_type", "separate_cls", "pool_q_only"),
)
TF_ENDS = {"kernel": ".weight", "gamma": ".weight", "beta": ".bias", "bias": ".bias", None: ""}


def convert_funnel(source: Path, target: Path) -> str:
    """Write a published Funnel checkpoint, PyTorch's or TensorFlow's, as a model of transformers."""
    import transformers

    about = sorted(source.glob("net_config*.json"))[0]
    state = pytorch_weights(source) or from_tensorflow(tensorflow_weights(source))
    config = funnel_config(read_json(about), about)
    blocks = [f"encoder.blocks.{b}.{i}" for b, size in enumerate(config.block_sizes) for i in range(size)]
    places = {str(number): place for number, place in enumerate(blocks)}
    decoder = sorted({int(found[1]) for name in state if (found := DECODER.match(name))})
    places |= {f"decoder.{number}": f"decoder.layers.{i}" for i, number in enumerate(decoder)}
    name = "FunnelBaseModel"
    if decoder:
        name, config.num_decoder_layers = "FunnelModel", len(decoder)
    if "cls_head.3.bias" in state:
        name, config.num_labels = "FunnelForSequenceClassification", len(state["cls_head.3.bias"])
    model = getattr(transformers, name)(config)
    prefix = "funnel." if hasattr(model, "funnel") else ""
    load(model, dict(placed(name, x, places, prefix, source) for name, x in state.items()), source)
    model.save_pretrained(target)
    said = f"wrote {target}: {name}"
    for vocabulary in source.glob("vocab*.txt"):
        words = vocabulary.read_text(encoding="utf-8").splitlines()
        transformers.FunnelTokenizer({word: i for i, word in enumerate(words)}).save_pretrained(target)
        return f"{said} and its tokenizer"
    return f"{said}; no tokenizer, because there is no vocab*.txt in {source}"


def funnel_config(told: dict[str, Any], path: Path) -> Any:
    """The config of transformers from ``net_config.json`` or ``net_config.pytorch.json``."""
    missing = [key for key in NET_KEYS if key not in told]
    if missing:
        raise SkimError(f"{path} is incomplete: it lacks {', '.join(missing)}.")
    if told.get("d_embed", told["d_model"]) != told["d_model"] or told.get("pooling_size", 2) != 2:
        raise SkimError(f"{path} has an embedding of another width, or windows of more than two; transformers cannot.")
    wrong = [key for key in NET_KEYS[:5] if type(told[key]) is not int or told[key] < 1]
    if wrong:
        raise SkimError(f"{path} has {wrong[0]}={told[wrong[0]]}, which must be a whole number, at least 1.")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?(_[1-9]\d*(x[1-9]\d*)?)*", str(told["block_size"])):
        raise SkimError(f"{path} has block_size={told['block_size']}; expected layers per block, such as 4_4_4.")
    try:
        return config_of(told)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise SkimError(f"{path} is not what transformers takes: {' '.join(str(error).split())[:200]}") from None


def config_of(told: dict[str, Any]) -> Any:
    """The same config in transformers' words."""
    import transformers

    blocks = [[int(n) for n in block.split("x")] for block in str(told["block_size"]).split("_")]
    return transformers.FunnelConfig(
        **{key: told[key] for key in NET_KEYS[:5]},
        block_sizes=[block[0] for block in blocks],
        block_repeats=[block[1] if len(block) > 1 else 1 for block in blocks],
        hidden_dropout=told["dropout"],
        attention_dropout=told["dropatt"],
        activation_dropout=told["dropact"],
        pooling_type=told["pooling_type"],
        separate_cls=told["separate_cls"],
        pool_q_only=told["pool_q_only"],
    )


def pytorch_weights(source: Path) -> dict[str, Tensor]:
    """The tensors of the one ``*.pt`` in a folder, by their published names; empty if there is none."""
    files = sorted(source.glob("*.pt"))
    return unpickled(files[0]) if files else {}


def tensorflow_weights(source: Path) -> dict[str, Tensor]:
    """The variables of the one TensorFlow checkpoint in a folder."""
    files = sorted(source.glob("*.index"))
    if not files:
        raise SkimError(f"{source} holds a config and no weights: neither *.pt nor *.index with *.data-* is in it.")
    return tensorflow.read(files[0].with_suffix(""))


def from_tensorflow(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's variables under published PyTorch's names; those of the optimizer and of heads are left out.

    The shapes are the same. Published PyTorch has no decoder: here its layers have ``decoder.`` before their names.
    """
    found = {TF_INPUT[path]: tensor for path, tensor in state.items() if path in TF_INPUT}
    for path, tensor in state.items():
        matched = TF_LAYER.fullmatch(path)
        if matched:
            scope, number, half, part, end = matched.groups()
            end = "" if part == "r" else TF_ENDS[end]
            decoder = "decoder." if scope == "decoder" else ""
            found[f"{decoder}{TF_HALVES[half]}.{number}.{TF_PARTS.get(part, part)}{end}"] = tensor
    return found


def placed(name: str, tensor: Tensor, places: dict[str, str], prefix: str, source: Path) -> tuple[str, Tensor]:
    """A published parameter under transformers' name and in its shape."""
    try:
        return renamed(name, places, prefix), oriented(name, tensor.float())
    except (IndexError, RuntimeError, ValueError):
        shape = " x ".join(map(str, tensor.shape))
        raise SkimError(f"{source}: {name} ({shape}) does not belong to a published Funnel.") from None


def renamed(name: str, places: dict[str, str], prefix: str) -> str:
    """The name in transformers of a published PyTorch parameter; of a layer that the config lacks, its own."""
    bare = name.removeprefix("decoder.")
    part, number, *rest = bare.split(".")
    if part == "input_layer":
        return prefix + ("embeddings.word_embeddings.weight" if number == "0" else f"embeddings.layer_norm.{rest[0]}")
    if part == "cls_head":
        return f"classifier.{'linear_hidden' if number == '0' else 'linear_out'}.{rest[0]}"
    place = places.get(number if bare == name else f"decoder.{number}")
    if place is None:
        return name
    if part == "attn_layers":
        return f"{prefix}{place}.attention.{'.'.join(rest)}"
    end = ".".join(rest).replace("pffn.0", "linear_1").replace("pffn.3", "linear_2")
    return f"{prefix}{place}.ffn.{end}"


def oriented(name: str, tensor: Tensor) -> Tensor:
    """A published parameter as transformers has it: outputs first, heads side by side."""
    part, _, end = name.rpartition(".")
    if part.endswith("_head") and part != "cls_head":
        return tensor.flatten(-2).mT if end == "weight" else tensor.flatten()
    if end == "weight" and part.endswith("post_proj"):
        return tensor.flatten(0, 1).mT
    return tensor.mT if end == "weight" and tensor.dim() == 2 else tensor
