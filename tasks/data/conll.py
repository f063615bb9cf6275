"""Files of columns: one word per line with its tags beside it, an empty line between sentences, as CoNLL has them.

    He        PRP  B-NP
    reckons   VBZ  B-VP

Columns are parted by tabs, where a line has one, or by spaces: only these, as a word may hold any other kind of space.
CoNLL-U (``.conllu``) has ten columns, numbered words, and comments; spans of words (``1-2``) and empty nodes (``1.1``)
are passed over. Elsewhere ``#`` may be a word, and a line that starts with it is a comment if it stands between
sentences and has not as many columns as the words have. ``-DOCSTART-`` lines are passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from skim.errors import SkimError
from tasks.data.cache import Parsed
from tasks.data.cells import chunks
from tasks.data.files import Reader, kind_of, opened

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


def reader(columns: Sequence[int] | None, words: str, tags: str) -> Reader:
    """Make a reader for :func:`tasks.data.files.read`: a row for each sentence, with lists of words, tags and lines.

    Args:
        columns: see :func:`sentences`.
        words: name of the column of words.
        tags: name of the column of tags.
    """
    import pyarrow as pa

    texts, numbers = pa.list_(pa.string()), pa.list_(pa.int64())
    schema = pa.schema([(words, texts), (tags, texts), ("line", numbers)])

    def parse(path: Path) -> Parsed:
        parts = [
            pa.record_batch(
                [pa.array(column, field.type) for column, field in zip(zip(*some, strict=True), schema, strict=True)],
                schema,
            )
            for some in chunks(sentences(path, columns))
        ]
        return pa.Table.from_batches(parts, schema), []  # words that cannot be read are null, and named by their line

    return Reader(FILES, parse, ["columns", columns and list(columns), words, tags])


def sentences(path: Path, columns: Sequence[int] | None = None) -> Iterator[Sentence]:
    """Yield the sentences of a file.

    Args:
        path: ``.conllu``, or anything else for other files of columns; may be gzipped.
        columns: that of the word and that of the tag, from 1, or from the last with -1; by default the first and the
            last, in CoNLL-U the second and the fourth.

    Raises:
        SkimError: columns that cannot be, or that the file lacks.
    """
    universal = kind_of(path) == UNIVERSAL
    word, tag = columns_of(columns or (FORM_AND_UPOS if universal else FIRST_AND_LAST))
    found = Sentence([], [], [])
    with opened(path) as lines:  # a line ends where a file's does: words may hold what Unicode takes for line ends
        width = WIDTH if universal else usual_width(lines)
        lines.seek(0)
        for place, what in ((word, "words"), (tag, "tags")):
            if width > 1 and not -width <= place < width:
                raise SkimError(f"{path} has {width} columns, and task.columns names another for {what}.")
        for number, line in enumerate(lines, 1):
            cells = split(line)
            if not cells:
                if found.words:
                    yield found
                    found = Sentence([], [], [])
                continue
            whole = len(cells) == width
            comment = line.startswith("#") and (universal or not (found.words or whole))
            no_word = universal and whole and not cells[0].isdigit()
            form = cells[word] if whole and width > 1 else cells[0]
            if comment or no_word or cells[0] == "-DOCSTART-" or form == "-DOCSTART-":
                continue
            label = cells[tag] or None if whole and width > 1 else None
            plain = line.isascii()
            found.words.append(form if plain or is_text(form) else None)
            found.tags.append(label if plain or label is None or is_text(label) else None)
            found.lines.append(number)
    if found.words:
        yield found


def columns_of(columns: Sequence[int]) -> tuple[int, int]:
    """Turn the user's columns of word and tag into places in a line's list."""
    if len(columns) != 2 or 0 in columns or any(type(column) is not int for column in columns):
        raise SkimError(
            f"task.columns={list(columns)}: name the column of the word and that of the tag, from 1, or from the last "
            "with -1: task.columns=[1,-1]."
        )
    word, tag = (column - 1 if column > 0 else column for column in columns)
    return word, tag


def is_text(text: str) -> bool:
    """Tell whether a text was UTF-8; other bytes have become surrogates, which cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def split(line: str) -> list[str]:
    """Split a line into its columns; an empty one has none."""
    line = line.strip(" \t\r\n")
    if not line:
        return []
    if "\t" in line:
        return [cell.strip(" ") for cell in line.split("\t")] if " " in line else line.split("\t")
    return [cell for cell in line.split(" ") if cell]


def usual_width(lines: Iterable[str]) -> int:
    """Count the columns of the first line that surely holds a word."""
    sure = (line for line in lines if line.strip(" \t\r\n") and not line.startswith(("#", "-DOCSTART-")))
    return len(split(next(sure, "")))
