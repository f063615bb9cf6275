"""Weights that a run starts from: a checkpoint, a finished run, or none."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import DictConfig, OmegaConf
from torch import nn

from skim.checkpoint import described, read_method
from skim.errors import SkimError
from skim.methods import Method
from skim.published import ltp as published
from skim.resume import recorded
from tasks.base import Task


def continue_method(method: Method, folder: Path) -> bool:
    """Take over the parameters of the same method from the run that ``init_from`` names; False for another.

    Not its steering: a budget is steered anew. Thresholds that published code saved are taken over as well.
    """
    if not (folder / "skim.json").is_file():
        return published.take_thresholds(method, folder)
    if described(folder)["method"] != method.name or not any(True for _ in method.parameters()):  # nothing was learned
        return False
    before, state = read_method(folder, type(method))
    learned = before.definition()
    for option, now in method.definition().items():
        if (was := learned.get(option)) != now:
            raise SkimError(
                f"init_from={folder.parent} was trained with method.{option}={was}, this run has {now}: what it "
                f"learned means something else.\nUse method.{option}={was}, or another init_from."
            )
    state = {name: tensor for name, tensor in state.items() if not of_a_budget(name)}
    try:
        report = method.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise SkimError(
            f"init_from={folder.parent} was trained with other options of method={method.name}, such that its "
            f"parameters do not fit:\n{str(error).splitlines()[1].strip()[:200]}"
        ) from None
    if other := report.unexpected_keys + [name for name in report.missing_keys if not of_a_budget(name)]:
        raise SkimError(
            f"init_from={folder.parent} was trained with other options of method={method.name}: {other[0]} is in one "
            "and not in the other."
        )
    return True


def of_a_budget(name: str) -> bool:
    """Tell whether a tensor of a method's state is of a budget, its own or that of a chain's member."""
    return "budget" in name.split(".")[:-1]


def backbone_config(cfg: DictConfig, tokenizer: Any, source: str | Path | None) -> Any:
    """The model's config: the checkpoint's or one from scratch, with the user's changes and the tokenizer's ids."""
    overrides = OmegaConf.to_container(cfg.backbone.overrides, resolve=True) or {}
    assert isinstance(overrides, dict)
    if source is None:
        config = transformers.AutoConfig.for_model(overrides.pop("model_type"), vocab_size=len(tokenizer))
    else:
        config = published.model_config(source)
    # set one by one: as keywords, what a family's config does not name would go to the model's constructor
    specials = {name: getattr(tokenizer, name) for name in ("pad_token_id", "cls_token_id", "sep_token_id")}
    for name, value in {**overrides, **specials}.items():
        near = difflib.get_close_matches(str(name), config.to_dict(), n=1, cutoff=0.85)
        if near and not hasattr(config, name):  # what is like nothing may be an option of the family's own
            raise SkimError(
                f"backbone.overrides.{name} is not an option of {type(config).__name__}. Did you mean {near[0]}?"
            )
        setattr(config, name, value)
    return config


def load_backbone(task: Task, config: Any, source: str | Path | None) -> nn.Module:
    """The Hugging Face model with the task's head, in float32."""
    kinds = task.auto_class()._model_mapping
    if type(config) not in kinds:
        raise SkimError(
            f"transformers has no {task.auto_class().__name__} for {config.model_type}, as task={task.name} needs."
        )
    if source is None:
        return task.auto_class().from_config(config)
    state = published.weights(source) or None
    # with weights instead of a folder only the class itself can be loaded
    kind = task.auto_class() if state is None else kinds[type(config)]
    try:
        # dtype: transformers takes the file's by default, and training in half precision is not what anyone asked for
        model, found = kind.from_pretrained(
            None if state else source, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise SkimError(
            f"{source} cannot be loaded as {task.auto_class().__name__} for task={task.name}:\n{error}"
        ) from error
    # a head may be new, and a pooler; an encoder that is not in the file would be trained from noise, silently
    missing = [
        name
        for name in sorted(found["missing_keys"])
        if name.startswith(f"{model.base_model_prefix}.") and "pooler" not in name
    ]
    if missing:
        raise SkimError(
            f"{source} lacks {len(missing)} weights of the encoder, such as {missing[0]}.\n"
            "It is a checkpoint of another architecture, or backbone.overrides do not fit it."
        )
    return model


def dense_folder(cfg: DictConfig) -> Path:
    """The exported model that ``init_from`` names; a SkimError if it is of another backbone or not there."""
    folder = Path(str(cfg.init_from))
    if (folder / "model" / "config.json").is_file():
        before = recorded(folder)
        if before.backbone.name != cfg.backbone.name:
            raise SkimError(
                f"init_from={folder} was trained with backbone={before.backbone.name}, this run has "
                f"backbone={cfg.backbone.name}.\nUse backbone={before.backbone.name}, or another init_from."
            )
        return folder / "model"
    if (folder / "config.json").is_file():
        return folder
    raise SkimError(
        f"init_from={folder} holds no trained model (neither model/config.json nor config.json).\n"
        "Name the folder of a finished run, such as runs/sst2/dense/minilm/<stamp>."
    )
