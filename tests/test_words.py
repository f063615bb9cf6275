"""Words that strangers read: docstrings begin with a verb or a noun, messages are plain English."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    *sorted(ROOT.glob("skim/**/*.py")),
    *sorted(ROOT.glob("tasks/**/*.py")),
    ROOT / "train.py",
    ROOT / "evaluate.py",
]
# a docstring that begins so names its thing at the end, or nowhere
REFUSED = {"what", "whether", "who", "of", "those", "where"}
# "there is no file x" is plain English; "x is no file" (is not a file) and "x is not to be had" (is missing) are not
ODD = re.compile(r"(?<!there )\b(is|are) no (?!longer\b|more\b|less\b)\w|\bto be had\b", re.IGNORECASE)


def texts(file: Path) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Docstrings, and all other constant texts, with their lines."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documented = [
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node)
    ]
    others = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in documented]
    return (
        [(node.lineno, node.value.strip()) for node in documented],
        [(node.lineno, node.value) for node in others if isinstance(node.value, str)],
    )


def first_word(text: str) -> str:
    return re.match(r"[\"'(]*(\w*)", text)[1].lower()


def wrong(kind: int, refused: Callable[[str], object]) -> list[str]:
    """Lines of the repository whose docstrings (0) or messages (1) are refused."""
    return [
        f"{name}:{line}: {text.strip().splitlines()[0]}"
        for name, file in ((str(file.relative_to(ROOT)), file) for file in FILES)
        for line, text in texts(file)[kind]
        if refused(text)
    ]


def test_docstrings_begin_with_a_verb_or_a_noun():
    assert wrong(0, lambda text: first_word(text) in REFUSED) == []


def test_messages_are_plain_english():
    assert wrong(1, ODD.search) == []


def test_words_that_are_refused():
    assert first_word("Whether a file is there.") in REFUSED
    assert first_word("``what=curve``: one model at several budgets.") not in REFUSED
    assert ODD.search("x.txt is no file.")
    assert ODD.search("sst2 is not to be had.")
    assert not ODD.search("There is no file x.txt, and x is no longer read.")
