"""Values in words: as Hydra reads them behind an option, and as people do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from skim.errors import shortened


def written(value: Any) -> str:
    """A value as Hydra reads it on the right of an override."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(written, value)) + "]"
    return quoted(str(value))


def shown(value: Any) -> str:
    """A value for people, on one line of YAML: ``null``, ``[1, 2]``; a text in quotes only where it needs them."""
    import yaml

    if isinstance(value, float):  # YAML would have 5.0e-05
        return repr(value)
    plain = list(value) if isinstance(value, tuple) else value
    try:
        return shortened(yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip())
    except yaml.YAMLError:  # nothing that a file could say
        return shortened(repr(value))


def quoted(text: str) -> str:
    """A text as one string of Hydra's, in whose quotes a backslash is itself, except in front of a quote."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"
