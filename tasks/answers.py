"""SQuAD's rows: its nested files, the forms in which answers are written down, and where they stand in the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skim.errors import SkimError
from tasks.columns import column_of

if TYPE_CHECKING:
    from datasets import Dataset

FORMS = "{text: [...], answer_start: [...]}, a list of {text, answer_start}, a text, or a list of texts"


def nested(file: Path) -> Dataset | None:
    """The questions of a file as SQuAD is published, ``{"data": [{"paragraphs": [...]}]}``; ``None`` if it is none.

    Raises:
        SkimError: it is one, and something is missing in it.
    """
    from datasets import Dataset, Features, List, Value

    with file.open(encoding="utf-8") as opened:
        if opened.read(100).lstrip("\ufeff \n\r\t")[:1] != "{":
            return None
    try:
        whole = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError:  # one object per line, or broken: for the reader of all other files
        return None
    if not isinstance(whole.get("data"), list):
        return None
    rows = []
    try:
        for article in whole["data"]:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    answers = asked.get("answers") or []  # none in a file to be predicted
                    rows.append(
                        {
                            "id": str(asked["id"]),
                            "context": paragraph["context"],
                            "question": asked["question"],
                            "answers": {
                                name: [answer[name] for answer in answers] for name in ("text", "answer_start")
                            },
                        }
                    )
    except (KeyError, TypeError, AttributeError) as error:
        raise SkimError(f"{file}, question {len(rows) + 1}: {error} is missing or wrong in SQuAD's format.") from error
    text = Value("string")
    answers = {"text": List(text), "answer_start": List(Value("int32"))}
    return Dataset.from_list(rows, Features({"id": text, "context": text, "question": text, "answers": answers}))


def listed(rows: Dataset, name: str, where: str) -> list[tuple[list[Any], list[Any] | None]]:
    """Texts and first characters, ``None`` if they are not given, of each row's answers.

    Args:
        rows: the split.
        name: of the column of the answers.
        where: the file or split, for errors.

    Raises:
        SkimError: the column has none of the forms.
    """
    import pyarrow.types as kinds

    column = column_of(rows, name)
    kind, many = column.type, False
    if kinds.is_list(kind) or kinds.is_large_list(kind):
        kind, many = kind.value_type, True
    fields = {kind.field(i).name for i in range(kind.num_fields)} if kinds.is_struct(kind) else set()
    if not (kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_null(kind) or "text" in fields):
        raise SkimError(f"{where}, column '{name}' holds {column.type}.\nWrite answers as {FORMS}.")
    starts = "answer_start" in fields

    def one(value: Any) -> tuple[list[Any], list[Any] | None]:
        if not value:
            return [], None
        if not fields:
            return (value if many else [value]), None
        if many:
            value = {key: [answer and answer[key] for answer in value] for key in fields}
        texts, begins = (_as_list(value.get(key)) for key in ("text", "answer_start"))
        return texts, begins if starts and (begins or texts) and value["answer_start"] is not None else None

    return [one(value) for value in column.to_pylist()]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def place(context: str, texts: list[Any], starts: list[Any] | None) -> tuple[int, int] | str:
    """Where the first answer stands, first and last character (exclusive), (-1, -1) without any; or what is wrong.

    Args:
        context: the text.
        texts: the answers.
        starts: their first characters; ``None``: each stands where it first occurs.
    """
    if starts is not None and len(starts) != len(texts):
        return f"{len(texts)} answers have {len(starts)} answer_start"
    found = []
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            return f"{text!r} is no answer"
        if not text.strip():  # as some say that there is none
            continue
        start = context.find(text) if starts is None else starts[i]
        if start is None or start < 0 or start != int(start) or not context.startswith(text, int(start)):
            at = "" if starts is None else f" at character {start}"
            return f"the answer {shortened(text)} does not stand in the context{at}"
        # no token holds the spaces around an answer
        begin = int(start) + len(text) - len(text.lstrip())
        found.append((begin, begin + len(text.strip())))
    return found[0] if found else (-1, -1)


def shortened(text: str) -> str:
    """A text for an error."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
