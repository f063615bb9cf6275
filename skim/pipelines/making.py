"""A pipeline from a folder, a hub id or a model: what is loaded, and where and in which numbers it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from skim import hub
from skim.budgets import set_budget
from skim.checkpoint import DESCRIBED, described
from skim.compression import compress
from skim.engine.adapters import whole_of
from skim.engine.dtype import fastest
from skim.errors import SkimError, first_line, reading, unknown
from skim.loading import class_of_model, from_pretrained
from skim.pipelines.batches import Batched
from skim.pipelines.kinds import ALIASES, KINDS

ON_ACCELERATOR = 8  # times the tokens of a batch on a CPU, where more of them are no faster


def pipeline(
    task: str,
    model: str | Path | nn.Module,
    tokenizer: Any = None,
    *,
    device: int | str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    budget: float | None = None,
    window: int | None = None,
    batch_tokens: int | None = None,
    **options: Any,
) -> Batched:
    """Make a pipeline: called, and answering, as transformers' of the same task, with every option of its.

    It answers a list with a list and a generator with a generator, in order; how texts are batched is its own affair.

    Args:
        task: ``text-classification``, ``token-classification``, ``question-answering``, ``fill-mask`` or
            ``feature-extraction``.
        model: a folder (of a run, too) or a hub id, of skim or of transformers (which then runs dense and packed), or a
            loaded model, which runs as it is.
        tokenizer: a tokenizer, or where there is one; ``None``: beside the model.
        device: as transformers takes it; ``None``: an accelerator if there is one.
        dtype: numbers to infer with; ``None``: those of the file; ``"auto"``: in which the device infers fastest.
        budget: relative FLOPs, of a model for a range of them; ``None``: those that are set.
        window: texts that are held and sorted by length at a time; ``None``: 1,024 (64 for ``feature-extraction``).
        batch_tokens: tokens of a forward, at most; ``None``: 2,048 on a CPU, 16,384 elsewhere (a quarter of that for
            ``fill-mask``).
        options: of the task, for every call: ``top_k``, ``truncation``, ``aggregation_strategy``, ``doc_stride``, ...

    Raises:
        SkimError: a task that skim has no pipeline for, a model that was found nowhere or has another head.
    """
    task = ALIASES.get(task, task)
    if task not in KINDS:
        raise unknown("task of pipelines", task, KINDS)
    for name, value in (("window", window), ("batch_tokens", batch_tokens)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise SkimError(f"skim.pipeline: {name}={value} must be a whole number, at least 1.")
    source: Any = tokenizer
    if not isinstance(model, nn.Module):
        folder = folder_of(model)
        source = folder if tokenizer is None else tokenizer
        model = opened(folder, task)
    check_head(model, task)
    if budget is not None:
        set_budget(model, budget)
    if source is None:
        raise SkimError("skim.pipeline: a loaded model has no tokenizer beside it; pass tokenizer=.")
    if isinstance(source, (str, Path)):
        source = hub.tokenizer_of(hub.model_path(str(source), None))
    try:
        made = KINDS[task].pipeline(model=model.eval(), tokenizer=source, task=task, device=device, **options)
    except (TypeError, ValueError, KeyError, RuntimeError, AssertionError) as error:  # transformers' own words
        raise SkimError(f"skim.pipeline({task!r}): {first_line(error)}.") from error
    if dtype is not None:
        try:
            numbers = fastest(made.device).dtype if dtype == "auto" else dtype
            model.to(numbers if isinstance(numbers, torch.dtype) else getattr(torch, str(numbers)))
        except (AttributeError, TypeError) as error:
            raise SkimError(
                f"skim.pipeline: dtype={dtype} is unknown; there are auto, float32, bfloat16, float16."
            ) from error
    made.walk = vars(whole_of(model)).get("skim_walk")
    if made.walk is not None:
        made.longest = made.walk.backbone.longest_input(made.walk.base.config)
        if made.longest is not None and source is not tokenizer:  # some say 1e30, and then truncation cuts nothing
            source.model_max_length = min(source.model_max_length, made.longest)
    if KINDS[task].models is None:
        made.model = whole_of(model).base_model
    if window is not None:
        made.window = window
    made.batch_tokens = batch_tokens or made.batch_tokens * (1 if made.device.type == "cpu" else ON_ACCELERATOR)
    return made


def task_of(name: str | Path) -> str:
    """Tell the task that a model's head is for, by its class.

    Raises:
        SkimError: it has none, or one that no pipeline is for.
    """
    folder = folder_of(name)
    kind = class_of_model(folder, described(folder) if (folder / DESCRIBED).is_file() else {}).__name__
    for task in KINDS:
        if kind in classes(task):
            return task
    raise SkimError(f"{folder} holds a {kind}, whose head tells no task: name one of {', '.join(KINDS)}.")


def folder_of(name: str | Path) -> Path:
    """Find a model's folder: as it is named, a run's model/, or of the mirror, the cache or the hub."""
    folder = Path(hub.model_path(str(name), None))
    inner = folder / "model"
    return inner if not (folder / "config.json").is_file() and (inner / "config.json").is_file() else folder


def classes(task: str) -> set[str]:
    """Name the classes of transformers that have the head of a task; empty where any will do."""
    found = (KINDS[task].models or {}).values()
    return {name for one in found for name in (one if isinstance(one, tuple) else (one,))}


def opened(folder: Path, task: str) -> nn.Module:
    """Load a model: skim's with its method, transformers' own as dense."""
    if (folder / DESCRIBED).is_file():
        return from_pretrained(folder)
    kind = class_of_model(folder, {})
    with reading(folder, kind.__name__):
        model, found = kind.from_pretrained(folder, output_loading_info=True)
    if found["missing_keys"]:
        raise SkimError(f"{folder} is not a whole model: {sorted(found['missing_keys'])[:3]} are missing.")
    return compress(model, "dense")


def check_head(model: nn.Module, task: str) -> None:
    """Refuse a model with the head of another task."""
    kind = type(whole_of(model)).__name__
    if KINDS[task].models is None or kind in classes(task):
        return
    others = [other for other in KINDS if kind in classes(other)]
    also = f"\nIt is one for {' or '.join(others)}." if others else ""
    raise SkimError(f"skim.pipeline({task!r}): {kind} has no head for that.{also}")
