"""Published checkpoints of other code, written as transformers and skim read them.

    python -m skim.hub convert B4-4-4H768-ELEC-PT funnel-small-base            # PyTorch: the encoder
    python -m skim.hub convert B4-4-4H768-ELEC-FULL-TF funnel-small            # TensorFlow: with the decoder
    python -m skim.hub convert asi/albert-act-tiny act-tiny --preset tiny      # a folder, or a model of the hub

Funnel-Transformer becomes a model of transformers, to be named as ``backbone.hub_id=<out>``; ALBERT-ACT a model with
its method, as :func:`skim.save_pretrained` writes it.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch

from skim.compression import compress
from skim.errors import SkimError
from skim.files import read_json
from skim.hub.models import model_path
from skim.methods import method_class
from skim.published.act import PRESETS, from_published
from skim.published.files import load, unpickled
from skim.published.funnel import convert_funnel
from skim.saving import save_pretrained

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def convert(source: Path, target: Path, preset: str | None = None) -> str:
    """Convert a published checkpoint to one of transformers and skim; returns what was done, in words.

    Args:
        source: a folder with what was published: weights beside ``net_config*.json`` (Funnel) or ``config.json``
            (ALBERT-ACT); or the hub id of such a model.
        target: the folder to write.
        preset: of ALBERT-ACT: ``tiny``, ``small`` or ``base``.

    Raises:
        SkimError: there is nothing in ``source`` that can be converted, or something is in ``target``.
    """
    there = next((path for path in (target, *target.absolute().parents) if path.exists()), target)
    if not there.is_dir():
        raise SkimError(f"{there} is a file; name a new folder.")
    if there == target and any(target.iterdir()):
        raise SkimError(f"{target} is not empty; name a new folder.")
    source = folder_of(source)
    if any(source.glob("net_config*.json")):
        if preset is not None:
            raise SkimError("--preset is for ALBERT-ACT; Funnel's sizes stand in its net_config.")
        return convert_funnel(source, target)
    if (source / "config.json").is_file():
        return convert_act(source, target, preset)
    raise SkimError(
        f"{source} holds no checkpoint that can be converted: neither net_config*.json (Funnel-Transformer) nor "
        "config.json (ALBERT-ACT) is in it."
    )


def folder_of(source: Path) -> Path:
    """A folder, or that of a model of the hub, whose weights may be pickled: only tensors are read from them."""
    if source.is_dir():
        return source
    if source.exists() or not HUB_ID.fullmatch(str(source)):
        raise SkimError(f"{source} is not a folder; name one with a published checkpoint, or a model of the hub.")
    try:
        return Path(model_path(str(source), pickled=True))
    except SkimError as error:
        what, looked = str(error).splitlines()[:2]
        raise SkimError(f"{what}\n{looked}\nName the folder of a downloaded one, or run this with internet.") from None


def convert_act(source: Path, target: Path, preset: str | None) -> str:
    """Write a published ALBERT-ACT checkpoint as a model that skim loads with its method."""
    import transformers

    if preset not in PRESETS:
        raise SkimError(f"Which ALBERT-ACT is {source}? Add --preset with one of: {', '.join(PRESETS)}.")
    told = read_json(source / "config.json")
    epsilon = told.pop("act_epsilon", 0.01)
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float):
        raise SkimError(f"{source}/config.json has act_epsilon={epsilon}, which must be a number, such as 0.01.")
    names = told.get("architectures") or ["AlbertModel"]
    name = str(names[0] if isinstance(names, list) else names).replace("AlbertAct", "Albert")
    if not (name.startswith("Albert") and hasattr(transformers, name)):
        raise SkimError(f"{source}/config.json is of {name}, and transformers has no ALBERT of that name.")
    usual = [path for path in (source / "model.safetensors", source / "pytorch_model.bin") if path.is_file()]
    files = usual + sorted(source.glob("*.safetensors")) + sorted(source.glob("*.bin"))
    if not files:
        raise SkimError(f"{source} holds a config and no weights: neither *.safetensors nor *.bin is in it.")
    backbone, units = from_published(unpickled(files[0]))
    model = getattr(transformers, name)(transformers.AlbertConfig.from_dict({**told, "model_type": "albert"}))
    load(model, backbone, source)
    method: Any = method_class("act")(preset=preset, epsilon=epsilon)
    compress(model, method)
    load(method, {"shift": torch.zeros(()), **units}, source)
    save_pretrained(model.eval(), target)
    for file in (*source.glob("tokenizer*"), *source.glob("spiece.model"), *source.glob("special_tokens_map.json")):
        shutil.copy(file, target)
    return f"wrote {target}: {name} with method=act, preset={preset}"
