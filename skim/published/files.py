"""Files that other code wrote, read without running anything in them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from skim.errors import SkimError


def described(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds options."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # neither JSON nor UTF-8
        raise SkimError(f"{path} is broken: {error}") from None
    if not isinstance(told, dict):
        raise SkimError(f"{path} is broken: it holds no options.")
    return told


def unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors in a file, by name; anything else in a pickle is refused and not run."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise SkimError(f"{path} cannot be read: it is broken, or holds more than tensors.") from error
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
