"""The one-liner: make a Hugging Face encoder skim, undo it, save it, load it."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from skim import backbones
from skim.engine.adapters import adapters, unwrapped, whole_of
from skim.engine.head import Head, HeadForward
from skim.engine.trace import LastTrace
from skim.engine.walk import Walk
from skim.errors import SkimError
from skim.methods import METHODS, Method, Spec, method_class
from skim.methods.dense import Dense
from skim.methods.options import shortened

FORMAT = 1  # of skim.json


def compress(model: nn.Module, method: Method | str, execution: str = "auto") -> nn.Module:
    """Let ``method`` decide what ``model`` computes. Works in place and returns the same object.

    The class, the parameter names and every head stay Hugging Face's. What is added: ``model.method`` (the method, with
    its parameters under ``method.``) and, after a forward, ``model.trace`` (what was computed).

    Args:
        model: any supported ``AutoModel...`` of transformers, with or without a head, or a PEFT model around one.
        method: a :class:`~skim.methods.Method` or the name of one, then with its default options.
        execution: ``auto``, ``masked``, ``packed`` or ``narrowed``; see :func:`execution`.

    A method that another model had before :func:`decompress` goes on with what it has learned, if this one is alike.

    Raises:
        SkimError: for an unsupported family, an unknown method or what is none, a method that serves another model, or
            a model that is compressed already.
    """
    if not isinstance(model, nn.Module):
        raise SkimError(f"skim.compress takes a model of transformers, loaded, and got {shortened(repr(model))}.")
    whole = whole_of(model)
    if hasattr(whole, "skim_walk"):
        raise SkimError("This model is compressed already; skim.decompress(model) first.")
    inner = [part for part in whole.modules() if isinstance(vars(part).get("forward"), Walk)]
    if inner:
        raise SkimError(
            f"{type(whole).__name__} holds a {type(inner[0]).__name__} that is compressed already, by itself or under "
            "another head.\nskim.decompress the model in which it was compressed; then compress this one. Heads "
            "that share an encoder cannot be compressed each for itself."
        )
    backbone = backbones.find(whole)
    base: Any = whole.base_model
    method = chosen(method)
    head = Head(whole, base, backbone)
    if method.reads_head:
        head.price()
    spec = Spec(
        layers=len(backbone.layers(base)),
        width=base.config.hidden_size,
        sep_token_id=getattr(base.config, "sep_token_id", None),
        looks_apart=backbone.looks_apart,
        outputs=head.outputs if method.reads_head else None,
    )
    build(method, spec)
    method.train(whole.training)
    parameter = next(whole.parameters())
    walk = Walk(whole, base, backbone, method.to(parameter.device, parameter.dtype), execution, head)
    if backbone.packs:
        _own_config(whole)
        walk.attention_before = whole.config._attn_implementation
        whole.set_attn_implementation("skim")
    whole.method = method
    method.serves = True
    whole.skim_walk = walk
    base.forward = walk
    if whole is not base:
        whole.forward = HeadForward(walk)
    if not hasattr(type(whole), "trace"):
        type(whole).trace = LastTrace()
    for part in {whole, unwrapped(model)}:
        keep_method(part)
    return model


def chosen(method: Any) -> Method:
    """The method that a caller of :func:`compress` means; a SkimError for what is none, or is in use."""
    if isinstance(method, str):
        return method_class(method)()
    if isinstance(method, type) and issubclass(method, Method):
        raise SkimError(f"skim.compress takes a method, and {method.__name__} is a class of them: {method.__name__}().")
    if not isinstance(method, Method):
        raise SkimError(
            f"skim.compress takes a method or the name of one, and got {shortened(repr(method))}.\n"
            f"Such as skim.Transkimmer(target=0.5), or a name: {', '.join(METHODS)}."
        )
    if method.serves:
        raise SkimError(
            "This method object serves another model already; make a new one for each model, or skim.decompress "
            "that one first."
        )
    return method


def build(method: Method, spec: Spec) -> None:
    """Build a method for a backbone, unless it was built for one like it: then it keeps what it has learned."""
    before = method.built_for
    if before is None:
        method.build(spec)
        method.built_for = spec
    elif before != spec:
        was, now = asdict(before), asdict(spec)
        differs = "; ".join(f"{name} was {was[name]} and is {now[name]}" for name in was if was[name] != now[name])
        raise SkimError(
            f"This method object was built for another backbone ({differs}).\n"
            f"Make a new one: {type(method).__name__}(...)."
        )


def _own_config(model: nn.Module) -> None:
    """Give the model a config of its own: models built from one config object share it, attention choice included."""
    shared = model.config
    own = copy.deepcopy(shared)
    for module in model.modules():
        if getattr(module, "config", None) is shared:
            module.config = own


def walk_of(model: nn.Module) -> Walk:
    """The walk of a compressed model; a SkimError for any other."""
    walk = getattr(whole_of(model), "skim_walk", None)
    if walk is None:
        raise SkimError("This model is not compressed; skim.compress(model, method) first.")
    return walk


def accepted(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch the forward of a compressed model has a name for: the encoder's inputs, and labels."""
    names = inspect.signature(walk_of(model).model.forward).parameters
    return {name: value for name, value in batch.items() if name in names}


def decompress(model: nn.Module) -> nn.Module:
    """Undo :func:`compress`: the plain Hugging Face model, with the weights as they are now."""
    walk = walk_of(model)
    whole = walk.model
    walk.method.serves = False
    del walk.base.forward, whole.skim_walk, whole.method
    for part in (whole, unwrapped(model)):
        for name in ("save_pretrained", "load_adapter"):
            vars(part).pop(name, None)
    if whole is not walk.base:
        del whole.forward
    if walk.backbone.packs:
        whole.set_attn_implementation(walk.attention_before)
    return model


@contextlib.contextmanager
def execution(model: nn.Module, value: str) -> Iterator[nn.Module]:
    """Run a compressed model in a chosen execution for the length of a ``with``.

    Args:
        model: a compressed model.
        value: ``auto`` (masked while gradients pass through decisions, else tokens leave), ``masked`` (padded,
            decisions as masks), ``packed`` (no pads, retired tokens gone), ``narrowed`` (padded to the longest
            survivor).
    """
    walk = walk_of(model)
    before, walk.execution = walk.execution, value
    try:
        yield model
    finally:
        walk.execution = before


@contextlib.contextmanager
def uncompressed(model: nn.Module) -> Iterator[nn.Module]:
    """Run a compressed model as the dense backbone for the length of a ``with``: the same weights, no decisions.

    Its trace is then a dense one. The method stays where it is, with its parameters, its stage and its schedules.
    """
    walk = walk_of(model)
    before, walk.stand_in = walk.stand_in, Dense()
    try:
        yield model
    finally:
        walk.stand_in = before


def save_pretrained(model: nn.Module, folder: str | Path) -> None:
    """Write a compressed model so that skim *and* plain transformers, or PEFT, can load it.

    ``config.json`` and ``model.safetensors`` are the backbone as transformers writes it; ``skim.json`` and
    ``method.safetensors`` hold the method beside it. Of a PEFT model, PEFT's own files take the backbone's place.
    """
    walk, outer = walk_of(model), unwrapped(model)
    if outer is walk.model and adapters(outer):
        raise SkimError(
            "This model has adapters in its layers and is not the PEFT model around them.\nSave what get_peft_model "
            "returned, or merge them first (merge_and_unload)."
        )
    folder = Path(folder)
    if outer is walk.model:
        weights = {k: v for k, v in outer.state_dict().items() if not k.startswith("method.")}
        type(outer).save_pretrained(outer, folder, state_dict=weights)
    else:
        type(outer).save_pretrained(outer, str(folder))
    write_method(outer, folder)


def write_method(model: Any, folder: str | Path) -> None:
    """Write the method of a compressed model into the folder where the model lies: two files."""
    from safetensors.torch import save_file

    walk, folder = walk_of(model), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in walk.method.state_dict().items()}
    save_file(state, folder / "method.safetensors")
    about = {"format": FORMAT, "method": walk.method.name, "options": walk.method.options(), "stage": walk.method.stage}
    if hasattr(model, "peft_config"):
        config = copy.deepcopy(walk.model.config)
        config.architectures = [type(walk.model).__name__]
        config.save_pretrained(folder)  # of the model under the adapters, with the labels of its head
        about["adapters"] = {"names": list(model.peft_config), "active": list(model.active_adapters)}
    (folder / "skim.json").write_text(json.dumps(about, indent=2) + "\n")


class SavePretrained:
    """``save_pretrained`` of a compressed model, as trainers call it: what its class writes, and the method beside.

    Args:
        model: compressed, or a PEFT model around one.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        result = type(self.model).save_pretrained(self.model, save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            write_method(self.model, save_directory)
        return result


def keep_method(model: nn.Module) -> None:
    """Let the method of a compressed model, or of a PEFT model around one, go where its weights go."""
    vars(model)["save_pretrained"] = SavePretrained(model)
    if hasattr(model, "peft_config"):
        from skim.integrations.peft import LoadAdapter

        vars(model)["load_adapter"] = LoadAdapter(model)


def read_method(folder: str | Path) -> tuple[Method, dict[str, torch.Tensor]]:
    """The method that :func:`save_pretrained` wrote, not yet built, and its state."""
    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / "skim.json").is_file():
        raise SkimError(f"{folder} holds no compressed model: there is no skim.json in it.")
    about = json.loads((folder / "skim.json").read_text())
    if about.get("format") != FORMAT:
        raise SkimError(f"{folder}/skim.json has format {about.get('format')}; this version of skim reads {FORMAT}.")
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in about["options"].items()}
    method = method_class(about["method"])(**options)
    if about.get("stage"):
        method.enter(about["stage"])
    return method, load_file(folder / "method.safetensors")


def from_pretrained(folder: str | Path, base: nn.Module | None = None) -> nn.Module:
    """Load what :func:`save_pretrained` wrote, or a trainer's checkpoint: compressed, in evaluation mode.

    Args:
        folder: with the backbone and its head, or with a PEFT adapter, and the method beside.
        base: the plain model under a PEFT adapter; ``None``: the one that ``adapter_config.json`` names.
    """
    import transformers

    method, state = read_method(folder)
    about = json.loads((Path(folder) / "skim.json").read_text())
    if "adapters" in about:
        from skim.integrations import peft

        return peft.load(Path(folder), about["adapters"], method, state, base)
    config = transformers.AutoConfig.from_pretrained(folder)
    model, found = model_class(config, folder).from_pretrained(folder, output_loading_info=True)
    unexpected = [name for name in found["unexpected_keys"] if not name.startswith("method.")]  # a trainer's has them
    if found["missing_keys"] or unexpected:
        raise SkimError(
            f"{folder} is not a whole model: {sorted(found['missing_keys'])[:3]} are missing in its weights."
        )
    compress(model, method)
    restore(method, state, folder)
    return model.eval()


def model_class(config: Any, folder: str | Path) -> Any:
    """The transformers class that a saved model had."""
    import transformers

    names = config.architectures or []
    if len(names) != 1 or not hasattr(transformers, names[0]):
        raise SkimError(f"{folder}/config.json names no transformers class in 'architectures': {names}.")
    return getattr(transformers, names[0])


def restore(method: Method, state: dict[str, torch.Tensor], folder: str | Path) -> None:
    """Load what a method has learned."""
    try:
        method.load_state_dict(state)
    except RuntimeError as error:
        raise SkimError(f"{folder}/method.safetensors does not fit its skim.json: {error}") from error
