"""Translate the reStructuredText roles of skim's docstrings into Markdown, for mkdocstrings."""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

from griffe import Extension, Object

BLOCK = re.compile(r"^([ \t]*)\.\. math::(.*(?:\n(?:\1[ \t]+.*|[ \t]*(?=\n)))*)", re.MULTILINE)
INLINE = re.compile(r":math:`([^`]+)`")
NAME = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`(~?)([^`]+)`")


def markdown(text: str) -> str:
    """Translate ``:math:``, ``.. math::`` and cross-references; everything else is Markdown as it is."""
    text = BLOCK.sub(lambda found: f"{found[1]}$${dedent(found[2]).strip()}$$", text)
    text = INLINE.sub(lambda found: f"${found[1]}$", text)
    return NAME.sub(lambda found: f"`{found[2].rpartition('.')[2] if found[1] else found[2]}`", text)


class Roles(Extension):
    """Translates every docstring as griffe reads it."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Translate the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
