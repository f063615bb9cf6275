"""The one-liner: make a Hugging Face encoder skim, and undo it."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from torch import nn

from skim import backbones
from skim.beside import keep_method
from skim.budgets import SetBudget
from skim.engine.adapters import unwrapped, whole_of
from skim.engine.forward import HeadForward
from skim.engine.head import Head
from skim.engine.hooks import Hooks
from skim.engine.trace import LastTrace
from skim.engine.walk import Walk, walk_of
from skim.errors import SkimError, shortened
from skim.methods import METHODS, Method, Spec, method_class
from skim.methods.base import check_free

__all__ = [
    "accepted",
    "compress",
    "decompress",
    "execution",
    "keeping_states",
    "standing_in",
    "twin",
    "uncompressed",
    "walk_of",
]


def compress(model: nn.Module, method: Method | str | Sequence[Method | str], execution: str = "auto") -> nn.Module:
    """Let ``method`` decide what ``model`` computes. Works in place and returns the same object.

    The class, the parameter names and every head stay Hugging Face's. What is added: ``model.method`` (the method, with
    its parameters under ``method.``), ``model.budget`` (what it is asked to spend; it can be set, of a method that was
    trained for a range) and, after a forward, ``model.trace`` (what was computed).

    Args:
        model: any supported ``AutoModel...`` of transformers, with or without a head, or what is around one: a PEFT
            model, a ``SentenceTransformer`` or ``CrossEncoder``.
        method: a :class:`~skim.methods.Method`, the name of one, then with its default options, or a list of both: a
            :class:`~skim.methods.chain.Chain`. One that another model had before :func:`decompress` goes on with what
            it has learned, if this model is alike.
        execution: ``auto``, ``masked``, ``packed`` or ``narrowed``; see :func:`execution`.

    Raises:
        SkimError: for an unsupported family, an unknown method or what is none, a method that serves another model, or
            a model that is compressed already.
    """
    if not isinstance(model, nn.Module):
        raise SkimError(f"skim.compress takes a model of transformers, loaded, and got {shortened(repr(model))}.")
    whole = whole_of(model)
    if hasattr(whole, "skim_walk"):
        raise SkimError("This model is compressed already; skim.decompress(model) first.")
    inner = [part for part in whole.modules() if isinstance(vars(part).get("forward"), Walk) or _serves(part, whole)]
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
    method.build_for(spec)
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
    for part in {whole, unwrapped(model)}:
        for name, shown in (("trace", LastTrace), ("budget", SetBudget)):
            if not hasattr(type(part), name):
                setattr(type(part), name, shown())
        keep_method(part)
    return model


def chosen(method: Any) -> Method:
    """The method that a caller of :func:`compress` means; a SkimError for what is none, or is in use."""
    if isinstance(method, str):
        return method_class(method)()
    if isinstance(method, (list, tuple)):
        return method_class("chain")(tuple(method))
    if isinstance(method, type) and issubclass(method, Method):
        raise SkimError(f"skim.compress takes a method, and {method.__name__} is a class of them: {method.__name__}().")
    if not isinstance(method, Method):
        raise SkimError(
            f"skim.compress takes a method or the name of one, and got {shortened(repr(method))}.\n"
            f"Such as skim.Transkimmer(target=0.5), or a name: {', '.join(METHODS)}."
        )
    check_free(method)
    return method


def _serves(part: nn.Module, whole: nn.Module) -> bool:
    """Tell whether a part belongs to another model, which is compressed, and whose layers ``whole`` has."""
    config = getattr(part, "config", None)
    return config is not getattr(whole, "config", None) and getattr(config, "_attn_implementation", None) == "skim"


def _own_config(model: nn.Module) -> None:
    """Give the model a config of its own: models built from one config object share it, attention choice included."""
    shared = model.config
    own = copy.deepcopy(shared)
    for module in model.modules():
        if getattr(module, "config", None) is shared:
            module.config = own


def accepted(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Select the entries of a batch that a compressed model's forward names: the encoder's inputs, and labels."""
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


def twin(model: nn.Module) -> nn.Module:
    """A copy with modules and a config of its own that shares every weight: nothing is loaded or held twice."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


@contextlib.contextmanager
def execution(
    model: nn.Module, value: str, static: bool | None = None, graphs: bool | None = None
) -> Iterator[nn.Module]:
    """Run a compressed model in a chosen execution for the length of a ``with``.

    Args:
        model: a compressed model.
        value: ``auto`` (masked while gradients pass through decisions, else tokens leave), ``masked`` (padded,
            decisions as masks), ``packed`` (no pads, retired tokens gone), ``narrowed`` (padded to the longest
            survivor).
        static: let packed execution run on static rows, whose shapes wait for no decision; ``None``: on a GPU,
            where no gradients are wanted.
        graphs: let static rows run by captured graphs, a launch for each layer; ``None``: on a GPU.
    """
    walk = walk_of(model)
    before, walk.execution = (walk.execution, walk.static, walk.graphs), value
    walk.static, walk.graphs = static, graphs
    try:
        yield model
    finally:
        walk.execution, walk.static, walk.graphs = before


@contextlib.contextmanager
def keeping_states(model: nn.Module, wanted: bool = True) -> Iterator[nn.Module]:
    """Let the traces of a compressed model keep the rows behind each layer, for the length of a ``with``.

    They are in ``model.trace.states``, in the form of the execution; of a layer that does not run, those before it.

    Args:
        model: a compressed model.
        wanted: False leaves it as it is.
    """
    walk = walk_of(model)
    before, walk.keeps_states = walk.keeps_states, wanted or walk.keeps_states
    try:
        yield model
    finally:
        walk.keeps_states = before


@contextlib.contextmanager
def standing_in(model: nn.Module, method: Hooks) -> Iterator[nn.Module]:
    """Let another method, built for this backbone, decide for the length of a ``with``: the same weights.

    The model's own stays where it is, with its parameters, its stage and its schedules.
    """
    walk = walk_of(model)
    before, walk.stand_in = walk.stand_in, method
    try:
        yield model
    finally:
        walk.stand_in = before


@contextlib.contextmanager
def uncompressed(model: nn.Module) -> Iterator[nn.Module]:
    """Run a compressed model as the dense backbone for the length of a ``with``: the same weights, no decisions.

    Its trace is then a dense one. The method stays where it is, with its parameters, its stage and its schedules.
    """
    with standing_in(model, method_class("dense")()):
        yield model
