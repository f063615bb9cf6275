"""Compression methods by name.

One of the package is a file here, a line in :data:`METHODS`, and ``conf/method/<name>.yaml``. One from outside gets its
name by :func:`register`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, TypeVar, overload

from skim.errors import SkimError, first_line, unknown
from skim.methods.base import Method, Spec

METHODS = {
    "act": "skim.methods.act.ACT",
    "adapler": "skim.methods.adapler.AdapLeR",
    "chain": "skim.methods.chain.Chain",
    "dense": "skim.methods.dense.Dense",
    "early_exit": "skim.methods.early_exit.EarlyExit",
    "funnel": "skim.methods.funnel.Funnel",
    "layer_drop": "skim.methods.layer_drop.LayerDrop",
    "length_drop": "skim.methods.length_drop.LengthDrop",
    "ltp": "skim.methods.ltp.LTP",
    "ltp_manual": "skim.methods.threshold.Manual",
    "ltp_relative": "skim.methods.threshold.Relative",
    "ltp_rising": "skim.methods.threshold.Rising",
    "random_tokens": "skim.methods.random_tokens.RandomTokens",
    "stop_words": "skim.methods.stop_words.StopWords",
    "tome": "skim.methods.tome.ToMe",
    "topk": "skim.methods.topk.TopK",
    "transkimmer": "skim.methods.transkimmer.Transkimmer",
    "truncate": "skim.methods.truncate.Truncate",
}
REGISTERED: dict[str, str | type[Method]] = {}  # methods from outside the package, by name
M = TypeVar("M", bound=Method)


@overload
def register(method: type[M], /) -> type[M]: ...
@overload
def register(method: str, target: str, /) -> None: ...
def register(method: Any, target: Any = None, /) -> Any:
    """Give a method from outside the package a name, by which models are compressed with it and loaded.

        @skim.register
        class Power(skim.Method): ...

        skim.register("power", "mypackage.power.Power")  # imported when a model asks for it

    Args:
        method: the class, known by its ``name`` from now on; or a name.
        target: with a name, the dotted path of the class.

    Returns:
        The class, as a decorator does.

    Raises:
        SkimError: another method has that name, or the class is not one of methods.
    """
    if isinstance(method, str):
        name, kind = method, target
        if not (isinstance(target, str) and "." in target):
            raise SkimError(f"skim.register({name!r}, {target!r}): the second is the dotted path of the class.")
    elif isinstance(method, type) and issubclass(method, Method):
        name, kind = method.name, method
    else:
        raise SkimError(f"skim.register takes a class of methods, or a name and a dotted path, and got {method!r}.")
    if name in METHODS or (name in REGISTERED and path_of(REGISTERED[name]) != path_of(kind)):
        raise SkimError(
            f"The name '{name}' is that of {METHODS.get(name) or path_of(REGISTERED[name])} already.\n"
            f"Give {path_of(kind)} another: name = ... in its class."
        )
    REGISTERED[name] = kind
    return None if isinstance(method, str) else kind


def path_of(kind: str | type) -> str:
    """The dotted path of a class, or of one that is not imported yet."""
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def method_class(name: str) -> type[Method]:
    """The class behind a method's name.

    Raises:
        SkimError: no method has that name, or what was registered by it cannot be imported or is none.
    """
    if name in METHODS:
        return imported(METHODS[name])
    if name not in REGISTERED:
        raise SkimError(f"{unknown('method', name, [*METHODS, *REGISTERED])}\nOne of your own: skim.register it first.")
    found = REGISTERED[name]
    kind = imported(found) if isinstance(found, str) else found
    if not (isinstance(kind, type) and issubclass(kind, Method) and kind.name == name):
        what = f"a method named '{kind.name}'" if hasattr(kind, "name") else "not a method"
        raise SkimError(f"'{name}' is registered for {found}, which is {what}.")
    return kind


def has_its_name(kind: type[Method]) -> bool:
    """Tell whether a class is the one that is found by its name."""
    known = METHODS.get(kind.name) or REGISTERED.get(kind.name)
    return known is not None and path_of(known) == path_of(kind)


def imported(path: str) -> Any:
    """Import a class by its dotted path."""
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SkimError(f"{path} cannot be imported: {first_line(error)}.") from error


def method_name(target: str) -> str:
    """The name of the method that a config's ``_target_`` makes."""
    known = {path: name for name, path in METHODS.items()}
    return known[target] if target in known else imported(target).name


__all__ = [
    "METHODS",
    "REGISTERED",
    "Method",
    "Spec",
    "has_its_name",
    "method_class",
    "method_name",
    "path_of",
    "register",
]
