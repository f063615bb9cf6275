"""Load what :mod:`skim.saving` wrote, from a folder or the hub.

Nothing is unpickled, and no module is imported that is not skim's or transformers', unless the caller names it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from skim import hub
from skim.compression import compress
from skim.errors import SkimError, first_line
from skim.methods import Method, method_class
from skim.saving import FORMAT, LEARNED

BROKEN = (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, ImportError, AssertionError)


def from_pretrained(
    name: str | Path,
    *,
    base: nn.Module | None = None,
    execution: str = "auto",
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
        method: the class of the method, if it is none of skim's.
        model_class: the class of the model, if it is none of transformers'.
        trust_modules: modules that such classes may be imported from instead, with those in them: ``("mine",)``.
        revision: of the hub: a branch, a tag or a commit; the mirror is then not looked at.
        token: for private models of the hub.
        cache_dir: instead of the hub's usual one.
        options: for ``from_pretrained`` of transformers, such as ``dtype=torch.bfloat16`` or ``device_map="cuda"``.

    Raises:
        SkimError: it is not to be had, damaged, or of a class that nobody allowed to import.
    """
    folder = Path(hub.model_path(str(name), None, revision=revision, token=token, cache_dir=cache_dir))
    about = described(folder)
    made, state = read_method(folder, method, trust_modules)
    if base is not None and options:
        raise SkimError(f"base is a model that is loaded already; load it with {', '.join(options)} yourself.")
    if base is not None and "adapters" not in about:
        compress(base, made, execution)
        restore(made, state, folder / LEARNED)
        return base.eval()
    if not (model_class is None or hasattr(model_class, "from_pretrained")):
        raise SkimError(
            f"model_class={model_class!r} is no class of a model; name the class, such as model_class=Mine."
        )
    kind = model_class or class_of_model(folder, about, trust_modules)
    try:
        if "adapters" in about:
            from skim.integrations import peft

            return peft.load(folder, about["adapters"], made, state, base, kind, execution, options)
        model, found = kind.from_pretrained(folder, output_loading_info=True, **options)  # type: ignore[attr-defined]
    except (*BROKEN, SafetensorError) as error:
        raise SkimError(f"{folder} cannot be loaded as {kind.__name__}: {first_line(error)}") from error
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
    return model.eval()


def described(folder: Path) -> dict[str, Any]:
    """Read ``skim.json`` and check its entries."""
    file = folder / "skim.json"
    if not file.is_file():
        hint = ""
        if (folder / "adapter_config.json").is_file():
            hint = "\nPEFT wrote an adapter there and nothing beside it: save with skim.save_pretrained(model, folder)."
        raise SkimError(f"{folder} holds no compressed model: there is no skim.json in it.{hint}")
    about = parsed(file)
    if about.get("format") != FORMAT:
        raise SkimError(f"{file} has format {about.get('format')}; this version of skim reads {FORMAT}.")
    kinds = {"method": str, "options": dict, "stage": str, "class": str, "model_class": str, "adapters": dict}
    for key, kind in kinds.items():
        if (key in about or key in ("method", "options")) and not isinstance(about.get(key), kind):
            raise SkimError(f"{file} is damaged: '{key}' is {json.dumps(about.get(key))[:60]}. Save the model again.")
    return about


def parsed(file: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping."""
    try:
        about = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise SkimError(f"{file} cannot be read: {first_line(error)}. Save the model again.") from error
    if not isinstance(about, dict):
        raise SkimError(f"{file} is damaged: it holds no mapping. Save the model again.")
    return about


def read_method(
    folder: str | Path, given: type[Method] | None = None, trust_modules: Sequence[str] = ()
) -> tuple[Method, dict[str, torch.Tensor]]:
    """The method that was saved, not yet built, and its state.

    Args:
        folder: what :func:`skim.save_pretrained` wrote.
        given: the method's class, if the caller has it.
        trust_modules: modules from which it may be imported.
    """
    folder = Path(folder)
    about = described(folder)
    kind = class_of_method(folder, about, given, trust_modules)
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in about["options"].items()}
    try:
        method = kind(**options)
        if about.get("stage"):
            method.enter(about["stage"])
    except SkimError as error:
        raise SkimError(f"{folder}/skim.json: {error}") from error
    file = folder / LEARNED
    try:
        return method, load_file(file)
    except (OSError, SafetensorError) as error:
        what = first_line(error) if file.is_file() else "it is not there"
        raise SkimError(f"{file}, what the method learned, cannot be read: {what}. Save the model again.") from error


def class_of_method(
    folder: Path, about: dict[str, Any], given: type[Method] | None, trust_modules: Sequence[str]
) -> type[Method]:
    """The method's class: skim's own by its name, a user's if the caller gives it or allows its module."""
    name, own = about["method"], about.get("class")
    if given is not None:
        if not (isinstance(given, type) and issubclass(given, Method)):
            raise SkimError(f"method={given!r} is no class of a method; name the class, such as method=First.")
        if given.name != name:
            raise SkimError(f"{folder} holds method '{name}', and method={given.__name__} is '{given.name}'.")
        return given
    if own is None:
        return method_class(name)
    kind = allowed(own, f"{folder} holds a method of your own, {own}", "method", trust_modules)
    if not issubclass(kind, Method):
        raise SkimError(f"{own}, of which {folder} holds one, is no method.")
    return kind


def class_of_model(folder: Path, about: dict[str, Any], trust_modules: Sequence[str] = ()) -> Any:
    """The model's class: transformers' by its name in ``config.json``, a user's if the caller allows its module."""
    own = about.get("model_class")
    if own is not None:
        return allowed(own, f"{folder} holds a model of your own class, {own}", "model_class", trust_modules)
    if not (folder / "config.json").is_file():
        raise SkimError(f"{folder} is not a whole model: there is no config.json in it.")
    names = parsed(folder / "config.json").get("architectures")
    found = getattr(transformers, str(names[0]), None) if isinstance(names, list) and len(names) == 1 else None
    if not hasattr(found, "from_pretrained"):
        raise SkimError(f"{folder}/config.json names no transformers class in 'architectures': {names}.")
    return found


def allowed(dotted: str, what: str, argument: str, trust_modules: Sequence[str]) -> Any:
    """Import a class of a user's own; a SkimError with what to pass if it is not allowed, or not there."""
    module, _, name = dotted.rpartition(".")
    trusted = ("skim", "transformers", *((trust_modules,) if isinstance(trust_modules, str) else trust_modules))
    if not any(module == one or module.startswith(f"{one}.") for one in trusted):
        raise SkimError(
            f"{what}, which is not imported unless you say so.\nPass {argument}={name} (the class), or "
            f"trust_modules=({module!r},) if you trust that module's code."
        )
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SkimError(
            f"{what}, and it cannot be imported: {first_line(error)}.\nPass {argument}=<the class>."
        ) from error
    if not isinstance(found, type):
        raise SkimError(f"{what}, and that is no class.")
    return found


def restore(module: nn.Module, state: dict[str, torch.Tensor], source: str | Path) -> None:
    """Load weights that must fit exactly; a SkimError in a few lines if they are of another model or method.

    Args:
        module: a method, or a whole model with its own.
        state: of it.
        source: the file that they are from.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip()[:200] for line in str(error).splitlines()[:3]]
        raise SkimError("\n".join([f"{source} does not fit this backbone and method:", *lines])) from None
