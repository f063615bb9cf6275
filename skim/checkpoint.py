"""A method beside its model: ``skim.json`` says which it is, ``method.safetensors`` holds what it has learned."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from skim.engine.walk import Walk, walk_of
from skim.errors import SkimError, first_line, reading
from skim.files import checksum, read_json, replacing, write_json
from skim.methods import METHODS, REGISTERED, Method, method_class, path_of
from skim.options.declared import places
from skim.published.files import check_inside

FORMAT = 1  # of skim.json
DESCRIBED = "skim.json"  # which method it is
LEARNED = "method.safetensors"  # what the method has learned


def about_method(walk: Walk) -> dict[str, Any]:
    """Describe a method and its model for ``skim.json``.

    Raises:
        SkimError: what says how the method is made cannot be written into a file, or read from one.
    """
    method = walk.method
    about = {
        "format": FORMAT,
        "method": method.name,
        "options": method.options(),
        "stage": method.stage,
        **classes(method, walk.model),
    }
    try:
        json.dumps(about)
    except (TypeError, ValueError) as error:
        raise SkimError(f"{type(method).__name__} has options that no file can hold: {error}.") from None
    return about


def write_method(model: Any, folder: str | Path) -> None:
    """Write the method of a compressed model into the folder where the model lies: two files."""
    walk, folder = walk_of(model), Path(folder)
    about = about_method(walk)
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        config = copy.deepcopy(walk.model.config)
        config.architectures = [type(walk.model).__name__]
        config.save_pretrained(folder)  # of the model under the adapters, with the labels of its head
        about["adapters"] = {"names": list(model.peft_config), "active": list(model.active_adapters)}
    with replacing(folder / LEARNED) as part:
        save_file({name: tensor.contiguous() for name, tensor in walk.method.state_dict().items()}, part)
    write_json(folder / DESCRIBED, about)


def add_checksums(folder: Path) -> None:
    """Let ``skim.json`` hold the checksums of the weights that are in its folder now, and of its adapters'."""
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*/adapter_model.safetensors")])
    sums = {file.relative_to(folder).as_posix(): checksum(file) for file in weights}
    write_json(folder / DESCRIBED, {**parsed(folder / DESCRIBED), "checksums": sums})


def check_whole(folder: Path, about: Mapping[str, Any]) -> None:
    """Refuse weights that are not those that were saved.

    Args:
        folder: of the model.
        about: of its ``skim.json``; one of an older version has no checksums, and nothing is compared.

    Raises:
        SkimError: a file is not there, or differs.
    """
    for name, said in about.get("checksums", {}).items():
        file = folder / name
        if file.is_file() and checksum(file) == said:
            continue
        what = "is damaged, or was replaced since it was saved" if file.is_file() else "is not there"
        raise SkimError(
            f"{file} {what}: it is not the file that skim.json has the checksum of.\nSave the model again; if you "
            "replaced it on purpose, delete 'checksums' from skim.json."
        )


def classes(method: Method, model: nn.Module) -> dict[str, str]:
    """Dotted paths of a method's and a model's class, where it is a user's own and not skim's or transformers'."""
    own = {}
    if path_of(type(method)) != METHODS.get(method.name):
        own["class"] = path_of(type(method))
    if getattr(transformers, type(model).__name__, None) is not type(model):
        own["model_class"] = path_of(type(model))
    return own


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
    check_places(kind, about["options"], folder / DESCRIBED)
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in about["options"].items()}
    try:
        method = kind(**options)
        if about.get("stage"):
            method.enter(about["stage"])
    except SkimError as error:
        raise SkimError(f"{folder}/skim.json: {error}") from error
    file = folder / LEARNED
    with reading(file, "what a method has learned", "Save the model again."):
        return method, load_file(file)


def check_places(kind: type[Method], options: Mapping[str, Any], file: Path) -> None:
    """Refuse options of skim's methods that name a file: what was read from it is saved in its stead.

    What a method of the user's own does with its options is for its code to say, which the user trusts.

    Args:
        kind: the class of the method.
        options: of the method; those of a chain hold its members.
        file: in which they stand.

    Raises:
        SkimError: one does.
    """
    if path_of(kind) == METHODS.get(kind.name):
        for name in places(kind):
            if options.get(name) is not None:
                raise SkimError(
                    f"{file}: '{name}' of {kind.name} names the file {str(options[name])[:60]!r}, which a saved model "
                    "does not read.\nSave the model again: what was read from it is saved in its stead."
                )
    members = options.get("methods")
    for member in members if isinstance(members, (list, tuple)) else ():
        if isinstance(member, Mapping) and member.get("method") in [*METHODS, *REGISTERED]:
            check_places(method_class(member["method"]), member, file)


def described(folder: Path) -> dict[str, Any]:
    """Read ``skim.json`` and check its entries."""
    file = folder / DESCRIBED
    if not file.is_file():
        hint = ""
        if (folder / "adapter_config.json").is_file():
            hint = "\nPEFT wrote an adapter there and nothing beside it: save with skim.save_pretrained(model, folder)."
        raise SkimError(f"{folder} holds no compressed model: there is no skim.json in it.{hint}")
    about = parsed(file)
    if about.get("format") != FORMAT:
        raise SkimError(f"{file} has format {about.get('format')}; this version of skim reads {FORMAT}.")
    kinds = {name: str for name in ("method", "stage", "class", "model_class")}
    kinds |= {name: dict for name in ("options", "adapters", "checksums")}
    for key, kind in kinds.items():
        if (key in about or key in ("method", "options")) and not isinstance(about.get(key), kind):
            raise SkimError(f"{file} is damaged: '{key}' is {json.dumps(about.get(key))[:60]}. Save the model again.")
    names = about.get("adapters", {}).get("names", [])
    for name in [*about.get("checksums", {}), *(names if isinstance(names, list) else [])]:
        check_inside(name, file)
    return about


def parsed(file: Path) -> dict[str, Any]:
    """A JSON file of a model's folder."""
    return read_json(file, "Save the model again.")


def class_of_method(
    folder: Path, about: dict[str, Any], given: type[Method] | None, trust_modules: Sequence[str]
) -> type[Method]:
    """The method's class: skim's own by its name, a user's if the caller gives it or allows its module."""
    name, own = about["method"], about.get("class")
    if given is not None:
        if not (isinstance(given, type) and issubclass(given, Method)):
            raise SkimError(f"method={given!r} is not a method's class; name the class, such as method=First.")
        if given.name != name:
            raise SkimError(f"{folder} holds method '{name}', and method={given.__name__} is '{given.name}'.")
        return given
    if own is None or (name in REGISTERED and path_of(REGISTERED[name]) == own):  # to register is to allow
        return method_class(name)
    kind = allowed(own, f"{folder} holds a method of your own, {own}", "method", trust_modules)
    if not issubclass(kind, Method):
        raise SkimError(f"{folder} holds a {own}, which is not a method.")
    return kind


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
        raise SkimError(f"{what}, which is not a class.")
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
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:  # of values that are no tensors, too
        lines = [line.strip()[:200] for line in str(error).splitlines()[:3]]
        raise SkimError("\n".join([f"{source} does not fit this backbone and method:", *lines])) from None
