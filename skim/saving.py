"""Save a compressed model: the backbone as transformers, or PEFT, writes it, and the method in two files beside it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import save_file
from torch import nn

from skim.engine.adapters import adapters, unwrapped
from skim.engine.walk import walk_of
from skim.errors import SkimError
from skim.methods import METHODS, Method

FORMAT = 1  # of skim.json
LEARNED = "method.safetensors"  # what the method has learned


def save_pretrained(model: nn.Module, folder: str | Path) -> None:
    """Write a compressed model so that skim *and* plain transformers, or PEFT, can load it.

    ``config.json`` and ``model.safetensors`` are the backbone as transformers writes it; ``skim.json`` and
    ``method.safetensors`` hold the method beside it. Of a PEFT model, PEFT's own files take the backbone's place.
    """
    walk, outer = walk_of(model), unwrapped(model)
    if outer is walk.model and adapters(outer):
        raise SkimError(
            "This model has adapters in its layers and is not the PEFT model around them.\nSave what get_peft_model "
            "returned, or merge them first (merge_and_unload)."
        )
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise SkimError(f"{folder} is a file; name the folder to save the model in.")
    if outer is walk.model:
        weights = {k: v for k, v in outer.state_dict().items() if not k.startswith("method.")}
        type(outer).save_pretrained(outer, folder, state_dict=weights)
    else:
        type(outer).save_pretrained(outer, str(folder))
    write_method(outer, folder)


def write_method(model: Any, folder: str | Path) -> None:
    """Write the method of a compressed model into the folder where the model lies: two files."""
    walk, folder = walk_of(model), Path(folder)
    method = walk.method
    about: dict[str, Any] = {
        "format": FORMAT,
        "method": method.name,
        "options": method.options(),
        "stage": method.stage,
        **classes(method, walk.model),
    }
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        config = copy.deepcopy(walk.model.config)
        config.architectures = [type(walk.model).__name__]
        config.save_pretrained(folder)  # of the model under the adapters, with the labels of its head
        about["adapters"] = {"names": list(model.peft_config), "active": list(model.active_adapters)}
    try:
        told = json.dumps(about, indent=2) + "\n"
    except TypeError as error:
        raise SkimError(f"{type(method).__name__} has options that no file can hold: {error}.") from None
    save_file({name: tensor.contiguous() for name, tensor in method.state_dict().items()}, folder / LEARNED)
    (folder / "skim.json").write_text(told)


def classes(method: Method, model: nn.Module) -> dict[str, str]:
    """Dotted paths of a method's and a model's class, where it is a user's own and not skim's or transformers'."""
    own = {}
    if dotted(type(method)) != METHODS.get(method.name):
        own["class"] = dotted(type(method))
    if getattr(transformers, type(model).__name__, None) is not type(model):
        own["model_class"] = dotted(type(model))
    return own


def dotted(kind: type) -> str:
    """The dotted path of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


class SavePretrained:
    """``save_pretrained`` of a compressed model, as trainers call it: what its class writes, and the method beside.

    Args:
        model: compressed, or a PEFT model around one.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        result = type(self.model).save_pretrained(self.model, save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            write_method(self.model, save_directory)
        return result


def keep_method(model: nn.Module) -> None:
    """Let the method of a compressed model, or of a PEFT model around one, go where its weights go."""
    vars(model)["save_pretrained"] = SavePretrained(model)
    if hasattr(model, "peft_config"):
        from skim.integrations.peft import LoadAdapter

        vars(model)["load_adapter"] = LoadAdapter(model)
