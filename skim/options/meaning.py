"""The meaning of options, from where they are declared: an ``Args`` section, or a text below a dataclass's field.

A constructor's arguments are explained in the docstring of their class, a dataclass's fields each by a string of their
own below them:

    @dataclass
    class Training:
        lr: NotNegative = 5e-5
        \"\"\"peak learning rate of backbone and head\"\"\"

What a class does not explain itself, or by ``see :class:`Parent```, its parents do. Nothing is said of bounds: those
are in the annotation, and :func:`comment` adds them in words.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
import textwrap
from typing import Any

from skim.options.declared import arguments, declared
from skim.options.words import described


def comment(owner: type, name: str) -> str:
    """Explain an option to people who write YAML: its meaning, its unit, and what it has to be.

    Args:
        owner: the class whose option it is.
        name: of the option.

    Raises:
        KeyError: nothing explains it.
    """
    text = meaning(owner, name)
    for code, yaml in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"``{code}``|\b{code}\b", yaml, text)
    text = re.sub(r":(?:class|meth|func|mod):`~?(?:[\w.]+\.)?(\w+)`", r"\1", text)
    text = re.sub(r"``(.+?)``", r"\1", text).rstrip(".")
    limits = said(declared(owner)[name].json_schema()) if name in declared(owner) else ""
    return f"{text} [{limits}]" if limits else text


def said(schema: dict[str, Any]) -> str:
    """Return what a comment adds to a meaning: kind and bounds of numbers and lists; names stand in the text."""
    kinds = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    numeric = all(one.get("type") in ("number", "integer", "array") for one in kinds)
    return " or ".join(described(one) for one in kinds) if numeric else ""


def meaning(owner: type, name: str) -> str:
    """Return the text that explains an option of a class, on one line."""
    for kind in owner.__mro__:
        text = explained(kind).get(name)
        if text is not None and not text.startswith("see :class:"):
            return text
    raise KeyError(name)


@functools.cache
def explained(kind: type) -> dict[str, str]:
    """Return the meanings that a class states itself, by option; those of its parents are not among them."""
    if "__dataclass_fields__" in vars(kind):
        return field_texts(kind)
    return section(inspect.cleandoc(vars(kind).get("__doc__") or ""), "Args")


def section(docstring: str, title: str) -> dict[str, str]:
    """Read the entries of a section of a docstring in Google's style, each on one line."""
    found = re.search(rf"^{title}:\n((?:[ ]+.*\n?|\n)+)", docstring, re.MULTILINE)
    if found is None:
        return {}
    entries = re.split(r"^(\w+): +", textwrap.dedent(found[1]), flags=re.MULTILINE)[1:]
    return {name: " ".join(text.split()) for name, text in zip(entries[::2], entries[1::2], strict=True)}


def field_texts(kind: type) -> dict[str, str]:
    """Read the strings below the fields of a dataclass, each on one line."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    except (OSError, TypeError):  # made where there is no file
        return {}
    found = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


def unexplained(owner: type) -> list[str]:
    """List the options of a class that nothing explains."""
    return [name for name in arguments(owner) if not any(name in explained(kind) for kind in owner.__mro__)]
