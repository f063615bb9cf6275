"""Pages from the templates in ``templates/``: one file each, nothing fetched, light and dark, texts escaped."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from skim.report.shades import rules, step

FORMULA = ("=", "+", "-", "@", "\t", "\r", "|", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # also in full width
TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values: Any) -> str:
    """Fill in a template.

    Args:
        template: its file in ``templates/``.
        values: that it names; texts are escaped there.
    """
    return _environment().get_template(template).render(values)


def cell(value: Any) -> Any:
    """Quote a text of a CSV file that a spreadsheet would take for a formula; a number stays one."""
    if not isinstance(value, str) or not value.lstrip().startswith(FORMULA):
        return value
    with suppress(ValueError):
        return value if math.isfinite(float(value)) else f"'{value}"
    return f"'{value}"


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {"shades": rules("span", background="background", ink="color"), "step": step}
    return environment
