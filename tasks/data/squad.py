"""SQuAD's nested json files, as rows: a question each, with its text and answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.data.answers import COUNTED, NO_START
from tasks.data.cache import Parsed
from tasks.data.cells import Problem, chunks, reason, shown
from tasks.data.files import Reader, opened

FORMAT = (
    "SQuAD's files are {data: [{paragraphs: [{context, qas: [{id, question, answers: [{text, answer_start}]}]}]}]}."
)


def nested(file: Path) -> Parsed | None:
    """Read the questions of a file as SQuAD is published: ``id``, ``context``, ``question``, ``answers`` (its struct).

    Parts that are missing or wrong are null, and a problem of their row. ``None`` if the file is of another kind.
    """
    import pyarrow as pa

    with opened(file) as stream:
        if stream.read(100).lstrip()[:1] != "{":
            return None
        stream.seek(0)
        try:
            whole = json.load(stream)
        except (ValueError, RecursionError):  # one object per line, or broken: for the reader of all other files
            return None
    articles = whole.get("data")
    if not isinstance(articles, list) or not any(isinstance(one, dict) and "paragraphs" in one for one in articles):
        return None
    text, many = pa.string(), pa.list_(pa.string())
    struct = pa.struct([("text", many), ("answer_start", pa.list_(pa.int32()))])
    schema = pa.schema([("id", text), ("context", text), ("question", text), ("answers", struct)])
    problems: list[Problem] = []
    batches = []
    for rows in chunks(_questions(articles, problems)):
        columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), schema, strict=True)]
        batches.append(pa.record_batch(columns, schema))
    return pa.Table.from_batches(batches, schema), problems


READER = Reader((".json",), nested, ["squad"])


def _questions(articles: list[Any], problems: list[Problem]) -> Iterator[tuple[Any, ...]]:
    """Yield a row for each question, and for each part of the file that cannot be read as questions."""
    row = 0

    def bad(column: str | None, why: str, advice: str = FORMAT) -> None:
        problems.append(Problem(row, column, why, advice))

    def parts(of: Any, name: str, what: str) -> list[Any] | None:
        found = of.get(name) if isinstance(of, dict) else None
        if not isinstance(found, list):
            bad(None, f"{what} has no list of {name}")
        return found if isinstance(found, list) else None

    def text(of: Any, name: str, column: str) -> str | None:
        value = of.get(name)
        if value is None:
            bad(column, f"there is no {name}")
        elif not isinstance(value, str):
            bad(column, f"{name} is {shown(value)}, not a text")
        else:
            try:
                value.encode()
            except UnicodeEncodeError as error:
                bad(column, *reason(value, error))
            else:
                return value
        return None

    def answers(of: dict[str, Any]) -> dict[str, list[Any]] | None:
        given = of.get("answers") or []  # none in a file to be predicted
        if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
            bad("answers", f"answers is {shown(given)}, not a list of {{text, answer_start}}")
            return None
        texts, starts = [text(one, "text", "answers") for one in given], [one.get("answer_start") for one in given]
        wrong = [start for start in starts if type(start) is not int or abs(start) >= 2**31]
        if wrong:
            bad("answers", NO_START.format(shown(wrong[0])), COUNTED)
        return None if wrong or None in texts else {"text": texts, "answer_start": starts}

    nothing = (None,) * 4
    for place, article in enumerate(articles, 1):
        paragraphs = parts(article, "paragraphs", f"article {place}")
        if paragraphs is None:
            yield nothing
            row += 1
        for number, paragraph in enumerate(paragraphs or [], 1):
            asked = parts(paragraph, "qas", f"paragraph {number} of article {place}")
            if asked is None:
                yield nothing
                row += 1
            for one in asked or []:
                if isinstance(one, dict):
                    name = one.get("id")
                    name = str(name) if type(name) is int else text(one, "id", "id")
                    yield name, text(paragraph, "context", "context"), text(one, "question", "question"), answers(one)
                else:
                    bad(None, f"the question is {shown(one)}, not an object")
                    yield nothing
                row += 1
