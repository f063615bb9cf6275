"""Options of a method: declared once, as annotations of the constructor's arguments, and checked from there.

    def __init__(self, target: Share | None = None, warmup: Fraction = 0.3, layers: tuple[Layer, ...] = ()) -> None:

Any annotation that pydantic knows will do. Checks are strict: no text is read as a number and ``True`` is none, but a
whole number passes for a number and a list for a tuple. What is equal to the default passes always.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError

from skim.errors import SkimError, nearest, shortened
from skim.options.words import shown

Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]  # of the dense FLOPs
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]  # of training
Between: TypeAlias = Annotated[float, Field(gt=0, lt=1)]  # a probability that is not certain
Positive: TypeAlias = Annotated[float, Field(gt=0)]
NotNegative: TypeAlias = Annotated[float, Field(ge=0)]
Threshold: TypeAlias = Annotated[float, Field(ge=0, lt=1)]  # scores are shares of attention, so 1 prunes everything
Count: TypeAlias = Annotated[int, Field(ge=1)]
Layer: TypeAlias = Annotated[int, Field(ge=0)]  # counted from 0
Special: TypeAlias = Literal["cls", "sep"]  # tokens: what the head reads, and the separator
Preset: TypeAlias = Literal["default", "paper"]

STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


class OptionError(SkimError):
    """Options of a method that cannot be: in a caller's words, or by :meth:`typed` in those of the command line.

    Args:
        method: the method's class.
        reason: what is wrong with them; where it names options as in ``halting=entropy``, the command line's words say
            ``method.halting=entropy``.
        given: the options that it is about.
    """

    def __init__(self, method: type, reason: str, given: Mapping[str, Any]) -> None:
        self.method, self.reason, self.given = method, reason, dict(given)
        values = ", ".join(f"{name}={shortened(repr(value))}" for name, value in given.items())
        super().__init__(f"{method.__name__}{f'({values})' if given else ''}: {reason}")

    def typed(self) -> str:
        """The message with options as one types them: ``method.target=0.5x must be ...``."""
        names = "|".join(map(re.escape, {*arguments(self.method), *self.given}))
        reason = re.sub(rf"(?<![\w.])({names})=", r"method.\1=", self.reason) if names else self.reason
        values = ", ".join(f"method.{name}={shown(value)}" for name, value in self.given.items())
        return f"{values or self.method.__name__} {reason}"


def checked(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor whose arguments are checked by their annotations; one without annotations takes what it is given.

    Raises:
        OptionError: a value that the annotation does not allow, an option that there is not, or one that is missing.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError as error:
            raise misfit(type(self), signature, kwargs, str(error)) from None
        for name, adapter in declared(init).items():
            if name in bound.arguments and not same(bound.arguments[name], signature.parameters[name].default):
                bound.arguments[name] = valid(type(self), name, bound.arguments[name], adapter)
        init(*bound.args, **bound.kwargs)

    return construct


@functools.cache
def declared(init: Callable[..., None]) -> dict[str, TypeAdapter[Any]]:
    """The checks of a constructor's arguments, by name; none where the annotation is missing or says nothing here."""
    found = {}
    for name, parameter in inspect.signature(init).parameters.items():
        annotation = parameter.annotation
        if annotation is parameter.empty or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        try:
            if isinstance(annotation, str):
                annotation = eval(annotation, init.__globals__)
            found[name] = TypeAdapter(annotation, config=STRICT)
        except (NameError, AttributeError, TypeError, PydanticUserError):  # a name for type checkers, or not pydantic's
            continue
    return found


def same(value: Any, default: Any) -> bool:
    """Tell whether a value is the default; 1 is not ``True``, and tensors and arrays are not compared."""
    plain = isinstance(value, (int, float, str, tuple)) and type(value) is type(default)
    return value is default or (plain and value == default)


def valid(method: type, name: str, value: Any, adapter: TypeAdapter[Any]) -> Any:
    """The value as the constructor shall have it."""
    forms = [value]
    if isinstance(value, (list, tuple)):  # files know lists only
        forms.append(tuple(value) if isinstance(value, list) else list(value))
    for form in forms:
        try:
            return adapter.validate_python(form)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
    raise OptionError(method, reason(value, adapter, problem), {name: value})


def reason(value: Any, adapter: TypeAdapter[Any], problem: str) -> str:
    """Say what an option takes, by its declaration; in pydantic's words where that is an object of Python's."""
    try:
        schema = adapter.json_schema()
    except PydanticUserError:
        return f"must be {problem.removeprefix('Input should be ')}."
    hint = nearest(value, enumerated(schema)) if isinstance(value, str) else ""
    return f"must be {described(schema)}.{hint}"


def enumerated(schema: Mapping[str, Any]) -> list[str]:
    """The names of a closed list, if it is one."""
    known = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return [*known, *(name for one in schema.get("anyOf", ()) for name in enumerated(one))]


def described(schema: Mapping[str, Any], many: bool = False) -> str:
    """A JSON schema in words: what a value, or with ``many`` each value of a list, has to be."""
    if "anyOf" in schema:
        kinds = [described(one, many) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(kinds)
    if names := enumerated(schema):
        return f"{'any' if many else 'one'} of {', '.join(map(str, names))}"
    kind = schema.get("type")
    if kind == "array":
        example = f", such as {schema['examples'][0]}" if schema.get("examples") else ""
        return f"a list of {described(schema.get('items', {}), many=True)}{example}"
    words = {"number": "a number", "integer": "a whole number", "string": "a text", "object": "a mapping"}
    if kind == "boolean":
        return "true or false"
    word = words.get(str(kind), "a value")
    return f"{word[2:]}s{bounds(schema)}" if many else f"{word}{bounds(schema)}"


def bounds(schema: Mapping[str, Any]) -> str:
    """The limits of a number in words."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f", from {low:g} to {high:g}"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    said = " and ".join(f"{word} {schema[key]:g}" for key, word in words.items() if key in schema)
    return f", {said}" if said else ""


def arguments(method: type) -> dict[str, inspect.Parameter]:
    """The options of a method: its constructor's arguments, and its parents' where it hands on other keywords."""
    found: dict[str, inspect.Parameter] = {}
    for kind in method.__mro__:
        if "__init__" not in vars(kind) or kind is object:
            continue
        own = list(inspect.signature(kind.__init__).parameters.values())[1:]
        variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        found = {one.name: one for one in own if one.kind not in variadic} | found
        if all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in own):
            break
    return found


def misfit(method: type, signature: inspect.Signature, given: Mapping[str, Any], problem: str) -> OptionError:
    """The error for options that the constructor has no place for, or lacks."""
    known = arguments(method)
    extra = {name: value for name, value in given.items() if name not in signature.parameters}
    if not extra:
        return OptionError(method, f"{problem}. Options: {', '.join(known)}.", {})
    name = next(iter(extra))
    options = f"Options: {', '.join(known)}." if known else "It has none."
    reason = f"is no option of {method.__name__}.{nearest(name, known)}\n{options}"
    return OptionError(method, reason, {name: extra[name]})
