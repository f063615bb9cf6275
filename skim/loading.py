"""Load what :mod:`skim.saving` wrote, from a folder or the hub.

Nothing is unpickled, and no module is imported that is not skim's or transformers', unless the caller names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from skim import hub
from skim.budgets import fastest_enough, set_budget
from skim.checkpoint import LEARNED, allowed, check_whole, described, read_method, restore
from skim.compression import compress
from skim.engine.dtype import fastest
from skim.errors import SkimError, reading
from skim.methods import Method
from skim.published.files import check_folder


def from_pretrained(
    name: str | Path,
    *,
    base: nn.Module | None = None,
    execution: str = "auto",
    budget: float | None = None,
    max_latency_ms: float | None = None,
    batch_size: int = 1,
    method: type[Method] | None = None,
    model_class: type[nn.Module] | None = None,
    trust_modules: Sequence[str] = (),
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> nn.Module:
    """Load what :func:`skim.save_pretrained` or a trainer wrote: compressed, in evaluation mode.

    Args:
        name: a folder, or a hub id (looked for in ``SKIM_MIRROR``, the cache and the hub).
        base: the plain model to compress, such as a ``SentenceTransformer`` of that folder, or the one under a PEFT
            adapter; ``None``: loaded from the folder, or from where ``adapter_config.json`` says.
        execution: see :func:`skim.execution`.
        budget: relative FLOPs that a model for a range of them shall spend; ``None``: those that it was saved with.
        max_latency_ms: in place of a budget: the largest that takes no longer for a batch, of those that ``what=curve
            timed=true`` has measured and written beside the model; on another machine they take another time.
        batch_size: sequences of that batch.
        method: the class of the method, if it is none of skim's.
        model_class: the class of the model, if it is none of transformers'.
        trust_modules: modules that such classes may be imported from instead, with those in them: ``("mine",)``.
        revision: of the hub: a branch, a tag or a commit; the mirror is then not looked at.
        token: for private models of the hub.
        cache_dir: instead of the hub's usual one.
        options: for ``from_pretrained`` of transformers, such as ``dtype=torch.bfloat16`` or ``device_map="cuda"``.
            Without a ``dtype`` it is that of the file; ``"auto"`` is the one in which the device infers fastest, by
            :func:`skim.engine.dtype.fastest`, which the log ``skim`` tells.

    Raises:
        SkimError: the model was found nowhere, is damaged, is of a class that the caller did not allow to import, or
            knows no such budget.
    """
    folder = Path(hub.model_path(str(name), None, revision=revision, token=token, cache_dir=cache_dir))
    about = described(folder)
    check_folder(folder)
    check_whole(folder, about)
    if max_latency_ms is not None:
        if budget is not None:
            raise SkimError("budget and max_latency_ms both say what a model shall spend; use one of them.")
        budget = fastest_enough(folder, max_latency_ms, batch_size)
    made, state = read_method(folder, method, trust_modules)
    if base is not None and options:
        raise SkimError(f"base is a model that is loaded already; load it with {', '.join(options)} yourself.")
    if options.get("dtype") == "auto":
        options["dtype"] = fastest(device_of(options.get("device_map"))).dtype
    if base is not None and "adapters" not in about:
        compress(base, made, execution)
        restore(made, state, folder / LEARNED)
        return ready(base, budget)
    if not (model_class is None or hasattr(model_class, "from_pretrained")):
        raise SkimError(
            f"model_class={model_class!r} is not a model's class; name the class, such as model_class=Mine."
        )
    kind = model_class or class_of_model(folder, about, trust_modules)
    with reading(folder, kind.__name__):
        if "adapters" in about:
            from skim.integrations import peft

            loaded = peft.load(folder, about["adapters"], made, state, base, kind, execution, options)
            return ready(loaded, budget)
        model, found = kind.from_pretrained(folder, output_loading_info=True, **options)  # type: ignore[attr-defined]
    unexpected = [key for key in found["unexpected_keys"] if not key.startswith("method.")]  # a trainer's has them
    if found["missing_keys"] or unexpected:
        raise SkimError(
            f"{folder} is not a whole model: {sorted(found['missing_keys'])[:3]} are missing in its weights, "
            f"{sorted(unexpected)[:3]} are too many."
        )
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise SkimError("skim runs a model on one device, and device_map spreads this one over several: name one.")
    compress(model, made, execution)
    restore(made, state, folder / LEARNED)
    return ready(model, budget)


def ready(model: nn.Module, budget: float | None) -> nn.Module:
    """The model in evaluation mode, at a budget if one is given."""
    if budget is not None:
        set_budget(model, budget)
    return model.eval()


def device_of(device_map: Any) -> torch.device:
    """The device on which transformers puts a model by this ``device_map``."""
    if isinstance(device_map, dict):
        device_map = next(iter(device_map.values()), None)
    try:
        return torch.device("cpu" if device_map is None else device_map)
    except RuntimeError:  # a word such as auto
        return torch.device(torch.get_default_device() if torch.cuda.device_count() == 0 else "cuda")


def class_of_model(folder: Path, about: dict[str, Any], trust_modules: Sequence[str] = ()) -> Any:
    """The model's class: transformers' by its name in ``config.json``, a user's if the caller allows its module."""
    own = about.get("model_class")
    if own is not None:
        return allowed(own, f"{folder} holds a model of your own class, {own}", "model_class", trust_modules)
    if not (folder / "config.json").is_file():
        raise SkimError(f"{folder} is not a whole model: there is no config.json in it.")
    names = check_folder(folder).get("architectures")
    found = getattr(transformers, str(names[0]), None) if isinstance(names, list) and len(names) == 1 else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise SkimError(f"{folder}/config.json names no transformers class in 'architectures': {names}.")
    return found
