"""Files of columns: one word per line with its tags beside it, an empty line between sentences, as CoNLL has them.

    He        PRP  B-NP
    reckons   VBZ  B-VP

Columns are parted by tabs, where a line has one, or by spaces: only these, as a word may hold any other kind of space.
CoNLL-U (``.conllu``) has ten columns, numbered words, and comments; spans of words (``1-2``) and empty nodes (``1.1``)
are passed over. Elsewhere ``#`` may be a word, and a line that starts with it is a comment if it stands between
sentences and has not as many columns as the words have. ``-DOCSTART-`` lines are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from skim.errors import SkimError

FILES = (".conllu", ".conll", ".iob", ".iob2", ".bio", ".txt")  # endings of such files
UNIVERSAL = ".conllu"
FIRST_AND_LAST = (1, -1)  # columns of word and tag
FORM_AND_UPOS = (2, 4)  # in CoNLL-U
WIDTH = 10  # columns of CoNLL-U


class Sentence(NamedTuple):
    """Words, the tag of each and the number of each line, from 1.

    The tag is ``None`` where the line has one column, or not as many as the file's first; so is what is not UTF-8.
    """

    words: list[str | None]
    tags: list[str | None]
    lines: list[int]


def sentences(path: Path, columns: Sequence[int] | None = None) -> Iterator[Sentence]:
    """The sentences of a file.

    Args:
        path: ``.conllu``, or anything else for other files of columns.
        columns: that of the word and that of the tag, from 1, or from the last with -1; by default the first and the
            last, in CoNLL-U the second and the fourth.

    Raises:
        SkimError: columns that are none, or that the file has not.
    """
    universal = path.suffix.lower() == UNIVERSAL
    word, tag = columns_of(columns or (FORM_AND_UPOS if universal else FIRST_AND_LAST))
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    broken = not is_text(text)
    # not splitlines: words may hold what Unicode takes for line ends
    lines = text.replace("\r\n", "\n").split("\n")
    width = WIDTH if universal else usual_width(lines)
    for place, what in ((word, "words"), (tag, "tags")):
        if width > 1 and not -width <= place < width:
            raise SkimError(f"{path} has {width} columns, and task.columns names another for {what}.")
    found = Sentence([], [], [])
    for number, line in enumerate([*lines, ""], 1):
        cells = split(line)
        whole = len(cells) == width
        if not cells:
            if found.words:
                yield found
                found = Sentence([], [], [])
            continue
        comment = line.startswith("#") and (universal or not (found.words or whole))
        no_word = universal and whole and not cells[0].isdigit()
        form = cells[word] if whole and width > 1 else cells[0]
        if comment or no_word or cells[0] == "-DOCSTART-" or form == "-DOCSTART-":
            continue
        label = cells[tag] or None if whole and width > 1 else None
        found.words.append(None if broken and not is_text(form) else form)
        found.tags.append(None if broken and label and not is_text(label) else label)
        found.lines.append(number)


def columns_of(columns: Sequence[int]) -> tuple[int, int]:
    """Places of word and tag in a line's list of columns."""
    if len(columns) != 2 or 0 in columns or any(type(column) is not int for column in columns):
        raise SkimError(
            f"task.columns={list(columns)}: name the column of the word and that of the tag, from 1, or from the last "
            "with -1: task.columns=[1,-1]."
        )
    word, tag = (column - 1 if column > 0 else column for column in columns)
    return word, tag


def is_text(text: str) -> bool:
    """Whether it was UTF-8; other bytes have become surrogates, which are no characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def split(line: str) -> list[str]:
    """A line's columns; none, if it is empty."""
    line = line.strip(" \t\r")
    if not line:
        return []
    return [cell.strip(" ") for cell in line.split("\t")] if "\t" in line else re.split(" +", line)


def usual_width(lines: list[str]) -> int:
    """Columns of the first line that is a word's for sure."""
    sure = (line for line in lines if line.strip(" \t\r") and not line.startswith(("#", "-DOCSTART-")))
    return len(split(next(sure, "")))
