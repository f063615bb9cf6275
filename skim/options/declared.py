"""Options declared once: what one may be is the annotation of a constructor's argument, or of a dataclass's field.

    class Mine(skim.Method):
        def __init__(self, target: Share | None = None, warmup: Fraction = 0.3, layers: tuple[Layer, ...] = ()) -> None:

Any annotation that pydantic knows will do, such as ``Annotated[int, Field(ge=2)]``. Checks are strict: a text is never
read as a number, and ``True`` is no number either, but a whole number passes for a number and a list for a tuple. What
is equal to the default always passes, and an argument without an annotation takes whatever it is given.

A method checks the arguments of its constructor (:func:`checked`), a dataclass its fields (:func:`check_fields`), and a
config the options of a class that it names, without making one (:func:`check_options`). All raise :class:`OptionError`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, get_args

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from skim.errors import SkimError, nearest, shortened
from skim.options.words import described, enumerated, shown

STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class OptionError(SkimError):
    """Options that cannot be: the message is in a caller's words, :meth:`typed` has those of the command line.

    Args:
        owner: the class whose options they are.
        reason: what is wrong with them; where it names options as in ``halting=entropy``, the command line's words say
            ``method.halting=entropy``.
        given: the options that it is about.
        within: the group among the caller's options in which they stand, such as a member of a chain.
    """

    def __init__(self, owner: type, reason: str, given: Mapping[str, Any], within: str = "") -> None:
        self.owner, self.reason, self.given, self.within = owner, reason, dict(given), within
        values = ", ".join(f"{name}={shortened(repr(value))}" for name, value in given.items())
        super().__init__(f"{owner.__name__}{f'({values})' if given else ''}: {reason}")

    def typed(self, place: str) -> str:
        """Write the message with options as one types them: ``method.target=0.5x must be ...``.

        Args:
            place: the group that the options stand in, such as ``method``; empty for options that stand in none.
        """
        before = "".join(f"{part}." for part in (place, self.within) if part)
        names = "|".join(map(re.escape, {*arguments(self.owner), *self.given}))
        reason = re.sub(rf"(?<![\w.])({names})=", rf"{before}\1=", self.reason) if names else self.reason
        values = ", ".join(f"{before}{name}={shown(value)}" for name, value in self.given.items())
        return f"{values or self.owner.__name__} {reason}"


def checked(init: Callable[..., None]) -> Callable[..., None]:
    """Make a constructor check its arguments by their annotations.

    Raises:
        OptionError: a value that the annotation does not allow, an option that does not exist, or one that is missing.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError as error:
            raise misfit(type(self), signature, kwargs, str(error)) from None
        for name, adapter in checks(init).items():
            if name in bound.arguments and not same(bound.arguments[name], signature.parameters[name].default):
                bound.arguments[name] = valid(type(self), name, bound.arguments[name], adapter)
        init(*bound.args, **bound.kwargs)

    return construct


def check_fields(made: Any) -> None:
    """Check the fields of a dataclass by their annotations; for its ``__post_init__``.

    Raises:
        OptionError: a value that the annotation does not allow.
    """
    names = [field.name for field in dataclasses.fields(made) if field.init]
    given = check_options(type(made), {name: getattr(made, name) for name in names})
    for name in names:
        object.__setattr__(made, name, given[name])  # also where it is frozen


def check_options(owner: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check options of a class by their declarations; returns them as the class would have them.

    Raises:
        OptionError: a value that the annotation does not allow. Options that do not exist are not looked at.
    """
    known, valued = arguments(owner), dict(given)
    for name, adapter in declared(owner).items():
        if name in valued and not same(valued[name], known[name].default):
            valued[name] = valid(owner, name, valued[name], adapter)
    return valued


def arguments(owner: type) -> dict[str, inspect.Parameter]:
    """List the options of a class: its constructor's arguments, and its parents' where it hands on other keywords.

    Annotations are types here, and not their texts; an annotation that names nothing at run time is left out.
    """
    found: dict[str, inspect.Parameter] = {}
    for kind in owner.__mro__:
        if "__init__" not in vars(kind) or kind is object:
            continue
        own = list(inspect.signature(kind.__init__).parameters.values())[1:]
        told = {one.name: one.replace(annotation=annotation(kind, one)) for one in own if one.kind not in VARIADIC}
        found = told | found
        if all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in own):
            break
    return found


def annotation(kind: type, parameter: inspect.Parameter) -> Any:
    """Find the type that an argument of a class's own constructor is annotated with."""
    if "__dataclass_fields__" in vars(kind):  # whose fields may be those of parents in other files
        homes = [one for one in kind.__mro__ if parameter.name in vars(one).get("__annotations__", {})]
        names = vars(sys.modules[homes[0].__module__]) if homes else {}
    else:
        names = inspect.unwrap(kind.__init__).__globals__
    return evaluated(parameter.annotation, names)


def evaluated(text: Any, names: dict[str, Any]) -> Any:
    """Evaluate an annotation to a type; empty where it names nothing, or only a type checker's."""
    if not isinstance(text, str):
        return text
    try:
        return eval(text, names)
    except (NameError, AttributeError, TypeError, SyntaxError):
        return inspect.Parameter.empty


def places(owner: type) -> tuple[str, ...]:
    """Name the options of a class that may name a file or a folder: a path is among what they are declared to be."""

    def kinds(kind: Any) -> Iterator[Any]:
        yield kind
        for part in get_args(kind):
            yield from kinds(part)

    return tuple(
        name
        for name, one in arguments(owner).items()
        if any(isinstance(kind, type) and issubclass(kind, os.PathLike) for kind in kinds(one.annotation))
    )


@functools.cache
def declared(owner: type) -> dict[str, TypeAdapter[Any]]:
    """Make the checks of a class's options, by name; none where the annotation is missing, or not for pydantic."""
    adapters = {name: adapter_of(one.annotation) for name, one in arguments(owner).items()}
    return {name: adapter for name, adapter in adapters.items() if adapter is not None}


@functools.cache
def checks(init: Callable[..., None]) -> dict[str, TypeAdapter[Any]]:
    """Make the checks of one constructor's own arguments, by name."""
    parameters = [one for one in inspect.signature(init).parameters.values() if one.kind not in VARIADIC]
    adapters = {one.name: adapter_of(evaluated(one.annotation, init.__globals__)) for one in parameters}
    return {name: adapter for name, adapter in adapters.items() if adapter is not None}


def adapter_of(kind: Any) -> TypeAdapter[Any] | None:
    """Make the check of one annotation; ``None`` where pydantic knows nothing of the kind."""
    if kind is inspect.Parameter.empty:
        return None
    try:
        return TypeAdapter(kind, config=STRICT)
    except (NameError, AttributeError, TypeError, PydanticUserError):  # pydantic knows nothing of the kind
        return None


def same(value: Any, default: Any) -> bool:
    """Tell whether a value is the default; 1 is not ``True``, and tensors and arrays are not compared."""
    plain = isinstance(value, (int, float, str, tuple)) and type(value) is type(default)
    return value is default or (plain and value == default)


def valid(owner: type, name: str, value: Any, adapter: TypeAdapter[Any]) -> Any:
    """Check a value, and return it as the constructor shall have it.

    Raises:
        OptionError: the declaration does not allow it.
    """
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
    if isinstance(value, list):  # of objects, where a tuple is declared
        with suppress(ValidationError):
            return adapter.validate_python(tuple(value))
    if isinstance(value, (Mapping, Sequence)) and not isinstance(value, (str, bytes)):
        try:  # files know no tuples, and configs are no dicts: in JSON a list is either, and numbers stay strict
            return adapter.validate_json(json.dumps(value, default=plain))
        except (ValidationError, TypeError, ValueError):
            pass
    raise OptionError(owner, reason(value, adapter, problem), {name: value})


def plain(value: Any) -> Any:
    """Turn a mapping or list of any class into one that JSON can write."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, Sequence) else json.JSONEncoder().default(value)


def reason(value: Any, adapter: TypeAdapter[Any], problem: str) -> str:
    """Say what an option takes, by its declaration; in pydantic's words where that is an object of Python's."""
    try:
        schema = adapter.json_schema()
    except PydanticUserError:
        return f"must be {problem.removeprefix('Input should be ')}."
    hint = nearest(value, enumerated(schema)) if isinstance(value, str) else ""
    return f"must be {described(schema)}.{hint}"


def misfit(owner: type, signature: inspect.Signature, given: Mapping[str, Any], problem: str) -> OptionError:
    """Make the error for options that the constructor has no place for, or lacks."""
    known = arguments(owner)
    extra = {name: value for name, value in given.items() if name not in signature.parameters}
    if not extra:
        return OptionError(owner, f"{problem}. Options: {', '.join(known)}.", {})
    name = next(iter(extra))
    options = f"Options: {', '.join(known)}." if known else "It has none."
    reason = f"is not an option of {owner.__name__}.{nearest(name, known)}\n{options}"
    return OptionError(owner, reason, {name: extra[name]})
