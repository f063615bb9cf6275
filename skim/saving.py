"""Save a compressed model: the backbone as transformers, or PEFT, writes it, and the method in two files beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn

from skim.checkpoint import DESCRIBED, LEARNED, about_method, add_checksums, write_method
from skim.engine.adapters import adapters, unwrapped, whole_of
from skim.engine.walk import walk_of
from skim.errors import SkimError
from skim.files import filling
from skim.merging import merged as without_idle

CARD = "README.md"  # of the model


def save_pretrained(model: nn.Module, folder: str | Path, *, merged: bool = False) -> None:
    """Write a compressed model so that skim *and* plain transformers, or PEFT, can load it.

    ``config.json`` and ``model.safetensors`` are the backbone as transformers writes it; ``skim.json`` and
    ``method.safetensors`` hold the method beside it. Of a PEFT model, PEFT's own files take the backbone's place.

    Args:
        model: compressed, or what is around such a model.
        folder: to write into; made if it is not there.
        merged: write the model of :func:`skim.merging.merged`: without layers that never run, adapters in the weights.
            With ``method=layer_drop`` that is a plain checkpoint of transformers, and there is no ``skim.json``.

    Raises:
        SkimError: the model cannot be written so; before anything is.
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
    if merged:
        if (folder / "adapter_config.json").is_file():
            raise SkimError(
                f"{folder} holds a PEFT adapter, which transformers would put on the merged weights once more."
            )
        outer = unwrapped(without_idle(model))
        if not hasattr(whole_of(outer), "skim_walk"):
            for name in (DESCRIBED, LEARNED):
                (folder / name).unlink(missing_ok=True)  # of a model that was saved here before
            with filling(folder, last="config.json") as part:
                outer.save_pretrained(str(part))
            return
    with filling(folder, last=DESCRIBED) as part:
        if (folder / CARD).is_file():
            shutil.copy(folder / CARD, part)  # to which PEFT adds
        if outer is whole_of(outer):
            weights = {k: v for k, v in outer.state_dict().items() if not k.startswith("method.")}
            type(outer).save_pretrained(outer, part, state_dict=weights)
        else:
            type(outer).save_pretrained(outer, str(part))
        write_method(outer, part)
        add_checksums(part)
