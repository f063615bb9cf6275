"""Weights that a run starts from: a checkpoint, a finished run, or none."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import DictConfig, OmegaConf
from torch import nn

from skim.checkpoint import DESCRIBED, check_whole, described, read_method
from skim.errors import SkimError
from skim.methods import METHODS, Method, method_class
from skim.published import ltp as published
from skim.resume import recorded
from tasks.base import Task


def fewer_layers(folder: Path) -> Method:
    """The method that runs those layers on all tokens which ran when a folder's model was trained.

    The others know nothing of the task. ``dense`` where there are no others.
    """
    if (folder / "skim.json").is_file() and described(folder)["method"] in METHODS:
        method, _ = read_method(folder)
        skips = [part for part in method.by_label.values() if "skips" in part.does]
        if skips:
            return skips[0] if len(skips) == 1 else method_class("chain")(tuple(skips))
    return method_class("dense")()


def untrained(method: Method, folder: Path) -> tuple[str, ...]:
    """A note where a run brings back layers that did not run when ``init_from`` was trained, else nothing.

    Args:
        method: of the run, built.
        folder: the model that it starts from.
    """
    try:
        ran = running(fewer_layers(folder), method)
    except SkimError:  # a backbone of another depth, which backbone.overrides asked for
        return ()
    back = [str(i) for i in running(method, method) if i not in ran]
    if not back:
        return ()
    layers, they = ("layer", "it has") if len(back) == 1 else ("layers", "they have")
    return (
        f"init_from={folder.parent}: {layers} {', '.join(back)} did not run there, and so {they} not learned the task; "
        "here every one of them runs. Without them: that run's layer_drop, alone or as the first member of a chain.",
    )


@dataclass(frozen=True)
class Continued:
    """Parts of a method that go on from an earlier run.

    Attributes:
        labels: of the method's parts, see :attr:`skim.methods.Method.by_label`.
        notes: what does not, and why.
    """

    labels: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def continue_method(method: Method, folder: Path) -> Continued:
    """Take over what a method has learned from the run that ``init_from`` names, if that has one of its name.

    So do the members of a chain, each by its label, from a chain or from a run of that method alone; and a method alone
    from a chain. Where other layers ran, a method starts anew. So does its steering: a budget is steered anew.
    Thresholds that published code saved are taken over as well.

    Raises:
        SkimError: what was learned means something else by the options of this run, or does not fit.
    """
    parts = {label: part for label, part in method.by_label.items() if any(True for _ in part.parameters())}
    if not (folder / "skim.json").is_file():
        return Continued(frozenset(label for label, part in parts.items() if published.take_thresholds(part, folder)))
    named = {label or part.name: label for label, part in parts.items()}
    about = described(folder)
    saved = about["options"].get("methods") if about["method"] == "chain" else [{"method": about["method"]}]
    if not {one["method"] for one in saved or ()} & {part.name for part in parts.values()}:
        return Continued()
    kinds = {part.name: type(part) for part in (method, *parts.values())}
    before, state = read_method(folder, kinds.get(about["method"]))
    earlier = {label or part.name: part for label, part in before.by_label.items()}
    both = [name for name in named if name in earlier]
    if both and running(before, method) != running(method, method):
        anew = f"so {' and '.join(both)} of this run starts anew"
        return Continued(notes=(f"init_from={folder.parent}: other layers run than there, {anew}.",))
    for name in both:
        take_over(parts[named[name]], named[name], earlier[name], part_of(state, before, earlier[name]), folder.parent)
    return Continued(frozenset(named[name] for name in both))


def take_over(part: Method, label: str, before: Method, state: dict[str, torch.Tensor], run: Path) -> None:
    """Give a method, or a chain's member, what one like it has learned.

    Args:
        part: the method or member.
        label: of the member.
        before: the one of the earlier run.
        state: of that.
        run: the earlier run.
    """
    place = f"method.{label}" if label else "method"
    learned = before.definition()
    for option, now in part.definition().items():
        if (was := learned.get(option)) != now:
            raise SkimError(
                f"init_from={run} was trained with {place}.{option}={was}, this run has {now}: what it learned means "
                f"something else.\nUse {place}.{option}={was}, or another init_from."
            )
    state = {name: tensor for name, tensor in state.items() if not of_a_budget(name)}
    try:
        report = part.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise SkimError(
            f"init_from={run} was trained with other options of method={part.name}, such that its parameters do not "
            f"fit:\n{str(error).splitlines()[1].strip()[:200]}"
        ) from None
    differ = [*report.unexpected_keys, *report.missing_keys]
    if other := [name for name in differ if not of_a_budget(name) and name not in part.by_budget]:
        raise SkimError(
            f"init_from={run} was trained with other options of method={part.name}: {other[0]} is in one and not in "
            "the other."
        )


def running(method: Method, like: Method) -> list[int]:
    """The layers of a backbone that a method lets run.

    Args:
        method: may not be built yet.
        like: another, which has been built for that backbone.
    """
    assert like.built_for is not None
    layers = range(like.built_for.layers)
    if "skips" not in method.does:
        return list(layers)
    with torch.random.fork_rng():  # what is drawn here is thrown away
        method.build_for(like.built_for)
    return [i for i in layers if method.runs(i)]


def part_of(state: dict[str, torch.Tensor], method: Method, part: Method) -> dict[str, torch.Tensor]:
    """The state of a method's part, by its own names, out of that of the whole."""
    path = next(name for name, module in method.named_modules() if module is part)
    prefix = f"{path}." if path else ""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def of_a_budget(name: str) -> bool:
    """Tell whether a tensor of a method's state is of its budget, or of its table of them."""
    return name.startswith(("budget.", "table."))


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
        folder = folder / "model"
    if (folder / "config.json").is_file():
        if (folder / DESCRIBED).is_file():
            check_whole(folder, described(folder))
        return folder
    raise SkimError(
        f"init_from={folder} holds no trained model (neither model/config.json nor config.json).\n"
        "Name the folder of a finished run, such as runs/sst2/dense/minilm/<stamp>."
    )
