"""The method goes where a model's weights go: its own ``save_pretrained`` and ``load_adapter``, for trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from skim.checkpoint import DESCRIBED, LEARNED, about_method, add_checksums, read_method, restore, write_method
from skim.engine.adapters import is_copied
from skim.engine.walk import walk_of


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
            add_checksums(Path(save_directory))
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
        if beside and adapter_name in self.model.active_adapters and (Path(model_id) / DESCRIBED).is_file():
            restore(walk.method, read_method(model_id, type(walk.method))[1], Path(model_id) / LEARNED)
        return result


def keep_method(model: nn.Module) -> None:
    """Let the method of a compressed model, or of a PEFT model around one, go where its weights go."""
    vars(model)["save_pretrained"] = SavePretrained(model)
    if hasattr(model, "peft_config"):
        vars(model)["load_adapter"] = LoadAdapter(model)
