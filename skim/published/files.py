"""Files that others wrote, or may have, read without running anything in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from skim.errors import SkimError, reading
from skim.files import read_json


def check_folder(folder: Path) -> dict[str, Any]:
    """Refuse a model's folder whose files name code, or weights outside it.

    A link is followed, whoever made it: the hub's cache is made of links, and transformers follows them as well.

    Args:
        folder: of the model.

    Returns:
        What its ``config.json`` holds; nothing where there is none.

    Raises:
        SkimError: they do, or are damaged.
    """
    path = folder / "config.json"
    told = read_json(path, "Save the model again.") if path.is_file() else {}
    check_settings(told, path)
    for index in folder.glob("*.index.json"):  # which shard of the weights each tensor is in
        named = read_json(index, "Save the model again.").get("weight_map")
        for name in set(map(str, named.values())) if isinstance(named, dict) else ():
            check_inside(name, index)
    return told


def check_inside(name: object, path: Path) -> None:
    """Refuse the name of a file, or folder, that would not lie in the folder of the file that names it.

    Args:
        name: as it stands in the file.
        path: of the file.

    Raises:
        SkimError: it leads elsewhere, on this system or another.
    """
    parts = PureWindowsPath(str(name))  # which takes slashes of both kinds, and drives
    if parts.anchor or ".." in parts.parts or "\0" in str(name):
        raise SkimError(f"{path} names {str(name)[:60]!r}, which is outside its folder, and is not read.")


def check_settings(told: Mapping[str, Any], path: Path) -> None:
    """Refuse a model's config that names code: kernels of the hub, which transformers would download and run.

    Args:
        told: the config, as it stands in the file.
        path: of the file.

    Raises:
        SkimError: it names some.
    """
    for key, value in told.items():
        if isinstance(value, Mapping):
            check_settings(value, path)
            if "implementation" not in key:
                continue
            value = list(value.values())
        if "implementation" in key and "/" in str(value):
            raise SkimError(
                f"{path}: '{key}' names code of the hub, {str(value)[:60]}, which skim does not run. Remove it."
            )


def tensors_of(path: str | Path, mmap: bool = False) -> Any:
    """Read a file of ``torch.save``: tensors, numbers, texts and what holds them; a pickle of more is refused, not run.

    Args:
        path: of the file.
        mmap: leave the tensors on the disk until they are looked at.

    Raises:
        SkimError: it holds more, or is damaged.
    """
    with reading(path, "a checkpoint"):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except pickle.UnpicklingError:  # torch says how to load it all the same, which is no advice
            what = "it is broken, or holds more than tensors, and skim runs no pickle"
            raise SkimError(f"{path} cannot be read as a checkpoint: {what}.") from None


def unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors in a file, by name; anything else in a pickle is refused and not run."""
    if path.suffix == ".safetensors":
        with reading(path, "tensors"):
            return load_file(path)
    state = tensors_of(path)
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise SkimError(f"{path} holds something else than tensors by their names.")
    return state


def load(module: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Load all weights of a module; tied ones may be missing."""
    try:
        report = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise SkimError(
            f"{source}: the weights do not fit the config:\n{str(error).splitlines()[1].strip()}"
        ) from error
    tied = getattr(module, "all_tied_weights_keys", {})
    missing = [name for name in report.missing_keys if name not in tied]
    if missing or report.unexpected_keys:
        wrong = f"{missing[0]} is missing" if missing else f"{report.unexpected_keys[0]} is not known"
        raise SkimError(f"{source}: the weights do not fit the config, such as: {wrong}.")
