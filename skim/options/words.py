"""Values in words: as Hydra reads them behind an option, and as people do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from skim.errors import shortened


def written(value: Any) -> str:
    """Write a value as Hydra reads it on the right of an override."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(written, value)) + "]"
    return quoted(str(value))


def budgets(target: float | Sequence[float]) -> str:
    """Write a target for people: ``0.4``, and ``0.25-1`` of a range."""
    return "-".join(f"{one:g}" for one in target) if isinstance(target, Sequence) else f"{target:g}"


def shown(value: Any) -> str:
    """Write a value for people, on one line of YAML: ``null``, ``[1, 2]``; texts in quotes where they need them."""
    import yaml

    if isinstance(value, float):  # YAML would have 5.0e-05
        return repr(value)
    plain = list(value) if isinstance(value, tuple) else value
    try:
        return shortened(yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip())
    except yaml.YAMLError:  # nothing that a file could say
        return shortened(repr(value))


def quoted(text: str) -> str:
    """Write a text as one string of Hydra's, in whose quotes a backslash is itself, except in front of a quote."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"


def described(schema: Mapping[str, Any], many: bool = False) -> str:
    """Say a JSON schema in words: what a value, or with ``many`` each value of a list, has to be."""
    if "anyOf" in schema:
        kinds = [described(one, many) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(kinds)
    if names := enumerated(schema):
        return f"{'any' if many else 'one'} of {', '.join(map(str, names))}"
    kind = schema.get("type")
    if kind == "array":
        example = f", such as {schema['examples'][0]}" if schema.get("examples") else ""
        places = schema.get("prefixItems", [])  # of a list of a fixed length
        least = {0: "", 1: "one or more "}.get(schema.get("minItems", 0), f"{schema.get('minItems')} or more ")
        several = f"{len(places)} " if places else least
        of = described(places[0] if places else schema.get("items", {}), many=True)
        return f"{'lists' if many else 'a list'} of {several}{of.removeprefix('any of ') if several else of}{example}"
    if kind == "boolean":
        return "true or false"
    words = {"number": "a number", "integer": "a whole number", "string": "a text", "object": "a mapping"}
    word = words.get(str(kind), "a value")
    return f"{word[2:]}s{bounds(schema)}" if many else f"{word}{bounds(schema)}"


def enumerated(schema: Mapping[str, Any]) -> list[str]:
    """List the names of a closed list, if a schema is one."""
    known = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return [*known, *(name for one in schema.get("anyOf", ()) for name in enumerated(one))]


def bounds(schema: Mapping[str, Any]) -> str:
    """Say the limits of a number in words."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f", from {low:.10g} to {high:.10g}"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    said = " and ".join(f"{word} {schema[key]:.10g}" for key, word in words.items() if key in schema)
    return f", {said}" if said else ""
