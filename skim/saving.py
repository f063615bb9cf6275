"""Save a compressed model: the backbone as transformers, or PEFT, writes it, and the method in two files beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from skim.checkpoint import LEARNED, about_method, read_method, restore, write_method
from skim.engine.adapters import adapters, is_copied, unwrapped
from skim.engine.walk import walk_of
from skim.errors import SkimError


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
    about_method(walk)  # a refusal comes before anything is written
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise SkimError(f"{folder} is a file; name the folder to save the model in.")
    if outer is walk.model:
        weights = {k: v for k, v in outer.state_dict().items() if not k.startswith("method.")}
        type(outer).save_pretrained(outer, folder, state_dict=weights)
    else:
        type(outer).save_pretrained(outer, str(folder))
    write_method(outer, folder)


class SavePretrained:
    """``save_pretrained`` of a compressed model, as trainers call it: what its class writes, and the method beside.

    Args:
        model: compressed, or a PEFT model around one.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        about_method(walk_of(self.model))
        result = type(self.model).save_pretrained(self.model, save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            write_method(self.model, save_directory)
        return result


class LoadAdapter:
    """``load_adapter`` of a PEFT model whose method stands beside its adapters: it comes with the adapter in use.

    Args:
        model: a PEFT model around a compressed one.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, model_id: str, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        result = type(self.model).load_adapter(self.model, model_id, adapter_name, *args, **kwargs)
        walk = walk_of(self.model)
        beside = not is_copied(walk.model._modules["method"])
        if beside and adapter_name in self.model.active_adapters and (Path(model_id) / "skim.json").is_file():
            restore(walk.method, read_method(model_id, type(walk.method))[1], Path(model_id) / LEARNED)
        return result


def keep_method(model: nn.Module) -> None:
    """Let the method of a compressed model, or of a PEFT model around one, go where its weights go."""
    vars(model)["save_pretrained"] = SavePretrained(model)
    if hasattr(model, "peft_config"):
        vars(model)["load_adapter"] = LoadAdapter(model)
