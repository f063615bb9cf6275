"""Checkpoints of LTP's published code: ``init_from=<its output folder>`` with ``method=ltp`` or ``ltp_hard``.

Its backbone is RoBERTa, named ``ltp`` in ``config.json`` and ``ibert`` in the names of the weights; beside these lies a
learned threshold per layer, on top of a ramp that only ``config.json`` knows. Its options do not come along: that its
thresholds mean the same in this run is checked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor

from skim.errors import SkimError, reading
from skim.published.files import check_folder, unpickled

MODEL_TYPE = "ltp"
PREFIX, RENAMED = "ibert.", "roberta."
PUBLISHED_NORMS = ("fixed", "padded")  # attention received / 128, the length to which its inputs are padded


def model_config(folder: str | Path) -> Any:
    """The transformers config in a folder, also in one that the published code wrote."""
    told = check_folder(Path(folder))
    with reading(Path(folder) / "config.json", "the config of a model"):
        if told.pop("model_type", None) == MODEL_TYPE:
            return transformers.RobertaConfig.from_dict(told)
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)


def weights(folder: str | Path) -> dict[str, Tensor]:
    """All weights that the published code saved, under RoBERTa's names; empty for a checkpoint of anything else."""
    safe, pickled = Path(folder) / "model.safetensors", Path(folder) / "pytorch_model.bin"
    if safe.is_file():
        with reading(safe, "weights"), safe_open(safe, "pt") as file:
            names = list(file.keys())
            state = {name: file.get_tensor(name) for name in names} if any(map(is_threshold, names)) else {}
    elif pickled.is_file():
        state = unpickled(pickled)
        state = state if any(map(is_threshold, state)) else {}
    else:
        return {}
    return {RENAMED + name.removeprefix(PREFIX) if name.startswith(PREFIX) else name: state[name] for name in state}


def is_threshold(name: str) -> bool:
    """Tell whether a weight is a learned threshold by its published name."""
    return name.endswith(".pruner.keep_threshold")


def take_thresholds(method: Any, folder: Path) -> bool:
    """Take over the thresholds of a published checkpoint; False if the folder, or the method, has none.

    Raises:
        SkimError: they were learned for another ramp, in other units, or for another number of layers.
    """
    found = {name: tensor for name, tensor in weights(folder).items() if is_threshold(name)}
    if not found or method.name != MODEL_TYPE:
        return False
    ramp = json.loads((folder / "config.json").read_text()).get("final_token_threshold", 0.0)
    if method.final_token_threshold != ramp:
        raise SkimError(
            f"init_from={folder} was trained with final_token_threshold={ramp}, this run has "
            f"{method.final_token_threshold}: what it learned lies on top of that.\n"
            f"Use method.final_token_threshold={ramp}."
        )
    if method.score_norm not in PUBLISHED_NORMS:
        raise SkimError(
            f"init_from={folder} learned thresholds for attention received / 128, and method.score_norm="
            f"{method.score_norm} divides by something else.\nUse method.score_norm=fixed."
        )
    delta = from_published(found)["delta"]
    if delta.shape != method.delta.shape:
        raise SkimError(f"init_from={folder} has {len(delta)} thresholds for a backbone of {len(method.delta)} layers.")
    with torch.no_grad():
        method.delta.copy_(delta)
    return True


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The learned thresholds of a published checkpoint under our name.

    ``<prefix>.layer.<i>.attention.self.pruner.keep_threshold`` holds what was learned on top of the ramp; the ramp's
    own end, ``final_token_threshold``, stands in the published config only. Everything else is the plain backbone.
    """
    mark = ".attention.self.pruner.keep_threshold"
    found = {int(name.removesuffix(mark).rpartition(".")[2]): tensor for name, tensor in state.items() if mark in name}
    return {"delta": torch.stack([found[i].float().reshape(()) for i in range(len(found))])}
