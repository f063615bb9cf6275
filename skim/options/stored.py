"""Configs that a run has left in its folder, read as what a stranger may have written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from skim.errors import SkimError, first_line

NODES = 100_000  # a config has some 300; one of aliases of aliases has billions
# another option, or a variable of the environment; no other resolver of OmegaConf's
PLAIN = re.compile(r"\$\{(?:[\w.\[\]]+|oc\.env:(\w+)(?:,[^${}]*)?)\}")
# in the name of a variable; TOKENIZED_DATA, KEYWORDS and AUTHOR are none
SECRET = re.compile("key(?!word|board)|token(?!iz|is)|secret|passw|credential|auth(?!or)", re.IGNORECASE)


def read(file: Path) -> dict[str, Any]:
    """Read a config as plain dicts and lists; interpolations of other options stay.

    Raises:
        SkimError: it cannot be read, or asks for more than options: a resolver, a secret of the environment.
    """
    import yaml
    from omegaconf._utils import get_yaml_loader  # which reads 1e-5 as a number, and nothing of Python's

    try:
        with file.open(encoding="utf-8") as stream:
            tree: Any = yaml.load(stream, Loader=get_yaml_loader())
    except (OSError, ValueError, LookupError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise SkimError(f"{file} cannot be read: {first_line(error)}. Is it the config of a run?") from error
    if not isinstance(tree, dict):
        raise SkimError(f"{file} is damaged: it holds no options.")
    check(tree, file)
    return tree


def check(tree: Any, file: Path) -> None:
    """Refuse what no run has written, part by part.

    Raises:
        SkimError: keys that are no names, values of other kinds than options have, too many of them, or what
            :func:`check_text` refuses.
    """
    left, seen = [tree], 0
    while left:
        node = left.pop()
        seen += 1
        if seen > NODES:
            raise SkimError(f"{file} is damaged: it holds more than {NODES:,} values.")
        if isinstance(node, dict):
            left += [*node, *node.values()]
        elif isinstance(node, list):
            left += node
        elif isinstance(node, str):
            check_text(node, file)
        elif not (node is None or isinstance(node, (int, float, bool))):
            raise SkimError(f"{file} is damaged: it holds a {type(node).__name__}, which no option is.")


def check_text(text: str, file: Path) -> None:
    """Refuse an interpolation that computes, or that copies a secret into files.

    Raises:
        SkimError: such a one.
    """
    for found in re.finditer(r"\$\{", text):
        match = PLAIN.match(text, found.start())
        if match is None or (match[1] and SECRET.search(match[1])):
            said = text[found.start() : found.start() + 60]
            raise SkimError(
                f"{file} asks for {said}, and a stored config may only refer to its own options and to variables "
                "that hold no secret.\nWrite the value there, if it is your run."
            )
