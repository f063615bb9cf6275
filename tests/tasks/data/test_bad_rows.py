"""Bad input of every kind in every kind of file: named by file, row and column, or left out, counted and told."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skim.errors import SkimError
from tasks.base import Task
from tasks.data import cells
from tasks.multiple_choice import MultipleChoice
from tasks.question_answering import QuestionAnswering
from tasks.tagging import Tagging
from tasks.text import Text

WORDS = ["a", "good", "film", "soup"]  # of the good rows, whose labels are their numbers' parity


def csv_file(bad: bytes, separator: bytes = b",") -> bytes:
    """Two good rows, the bad one, two good rows."""
    lines = [f"{word}|{i % 2}".encode().replace(b"|", separator) for i, word in enumerate(WORDS)]
    return b"\n".join([b"text|label".replace(b"|", separator), *lines[:2], bad, *lines[2:]])


def objects(bad: str | bytes) -> list[bytes]:
    good = [json.dumps({"text": word, "label": i % 2}).encode() for i, word in enumerate(WORDS)]
    return [*good[:2], bad if isinstance(bad, bytes) else bad.encode(), *good[2:]]


def lines(bad: str | bytes) -> bytes:
    return b"\n".join(objects(bad))


def listed(bad: str | bytes) -> bytes:
    return b"[" + b",\n".join(objects(bad)) + b"]"


def parquet(text: Any, label: Any, kind: pa.DataType | None = None) -> Callable[[Path], None]:
    texts = [*WORDS[:2], text, *WORDS[2:]]
    table = pa.table({"text": pa.array(texts), "label": pa.array([0, 1, label, 0, 1], kind)})
    return lambda file: pq.write_table(table, file)


def latin(file: Path) -> None:
    """A parquet file whose third text is no UTF-8, which Arrow writes and reads unseen."""
    texts = pa.array([b"a", b"good", b"caf\xe9", b"film", b"soup"]).view(pa.string())
    pq.write_table(pa.table({"text": texts, "label": [0, 1, 0, 0, 1]}), file)


REGRESSION = {"head": "regression"}
NAMED = {"label_names": ["bad", "good"]}
# name: kind, content, settings, what is said of row 3
BAD_ROWS: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "csv: too many cells": (
        "csv",
        csv_file(b"x,0,1"),
        {},
        r': it has 3 cells for 2 columns: after \'label\' comes "1"',
    ),
    "csv: too few": ("csv", csv_file(b"x"), {}, ": it has 1 of 2 cells: column 'label' is missing"),
    "csv: quotes": ("csv", csv_file(b'"x"y,0'), {}, ": a quotation mark inside a quoted cell is not doubled"),
    "csv: bytes": (
        "csv",
        csv_file(b"caf\xe9,0"),
        {},
        r", column 'text': the text is not UTF-8 \(byte 0xE9 at char.* 4\)",
    ),
    "csv: no label": ("csv", csv_file(b"x,"), {}, ", column 'label': there is not a label"),
    "csv: one word": ("csv", csv_file(b"x,good"), REGRESSION, ", column 'label': 'good' is not a number"),
    "csv: nan": ("csv", csv_file(b"x,nan"), REGRESSION, ", column 'label': 'nan' is not a number"),
    "csv: inf": ("csv", csv_file(b"x,-inf"), REGRESSION, ", column 'label': '-inf' is not a number"),
    "csv: another name": ("csv", csv_file(b"x,y"), NAMED, ", column 'label': 'y' is not a label of this task"),
    "csv: a name among ids": ("csv", csv_file(b"x,y"), {}, ", column 'label': 'y' names a class, and most rows number"),
    "csv: half a class": ("csv", csv_file(b"x,0.5"), {}, ", column 'label': 0.5 is not a class"),
    "tsv: too many": (
        "tsv",
        csv_file(b"x\t0\t", b"\t"),
        {},
        r': it has 3 cells for 2 columns: after \'label\' comes ""',
    ),
    "tsv: too few": ("tsv", csv_file(b"x", b"\t"), {}, ": it has 1 of 2 cells: column 'label' is missing"),
    "tsv: bytes": (
        "tsv",
        csv_file(b"\xff\t0", b"\t"),
        {},
        r", column 'text': the text is not UTF-8 \(byte 0xFF at ch.* 1\)",
    ),
    "tsv: no label": ("tsv", csv_file(b"x\t", b"\t"), {}, ", column 'label': there is not a label"),
    "tsv: high label": ("tsv", csv_file(b"x\t2", b"\t"), NAMED, ", column 'label': 2 is not a label of this task"),
    "jsonl: broken": ("jsonl", lines('{"text": "x", '), {}, r": it is not JSON \(.* at character 14\)"),
    "jsonl: cut": ("jsonl", lines('{"text": "x", "la'), {}, r": it is not JSON \(Unterminated string.* character 15\)"),
    "jsonl: no object": ("jsonl", lines('["x", 0]'), {}, r": it is \[\"x\", 0\], not an object with columns"),
    "jsonl: bytes": ("jsonl", lines(b'{"text": "\xc3(", "label": 0}'), {}, ", column 'text': the text is not UTF-8"),
    "jsonl: half": (
        "jsonl",
        lines('{"text": "\\ud83d", "label": 0}'),
        {},
        ", column 'text': the text holds half a char",
    ),
    "jsonl: no text": ("jsonl", lines('{"label": 0}'), {}, ", column 'text': there is no text"),
    "jsonl: null text": ("jsonl", lines('{"text": null, "label": 0}'), {}, ", column 'text': there is no text"),
    "jsonl: no label": ("jsonl", lines('{"text": "x"}'), {}, ", column 'label': there is not a label"),
    "jsonl: number": ("jsonl", lines('{"text": 5, "label": 0}'), {}, ", column 'text': 5 is a number, and .* a text"),
    "jsonl: list": ("jsonl", lines('{"text": ["x"], "label": 0}'), {}, r", column 'text': \[\"x\"\] is a list, and"),
    "jsonl: word": (
        "jsonl",
        lines('{"text": "x", "label": "y"}'),
        {},
        ", column 'label': \"y\" is a text, and .* a number",
    ),
    "jsonl: true": ("jsonl", lines('{"text": "x", "label": true}'), {}, ", column 'label': true is true or false, and"),
    "jsonl: nan": ("jsonl", lines('{"text": "x", "label": NaN}'), REGRESSION, ", column 'label': nan is not a number"),
    "jsonl: inf": (
        "jsonl",
        lines('{"text": "x", "label": 1e999}'),
        REGRESSION,
        ", column 'label': inf is not a number",
    ),
    "jsonl: huge": ("jsonl", lines(f'{{"text": "x", "label": {2**70}}}'), {}, ", column 'label': 1180.* does not fit"),
    "json: no object": ("json", listed('"x"'), {}, ': it is "x", not an object with columns'),
    "json: bytes": ("json", listed(b'{"text": "\xff", "label": 0}'), {}, ", column 'text': the text is not UTF-8"),
    "json: no text": ("json", listed('{"label": 0}'), {}, ", column 'text': there is no text"),
    "json: word": (
        "json",
        listed('{"text": "x", "label": "y"}'),
        {},
        ", column 'label': \"y\" is a text, and other rows",
    ),
    "json: number": ("json", listed('{"text": 5, "label": 0}'), {}, ", column 'text': 5 is a number, and other rows"),
    "parquet: no text": ("parquet", parquet(None, 0), {}, ", column 'text': there is no text"),
    "parquet: no label": ("parquet", parquet("x", None), {}, ", column 'label': there is not a label"),
    "parquet: bytes": ("parquet", latin, {}, r", column 'text': the text is not UTF-8 \(byte 0xE9 at byte 4\)"),
    "parquet: negative": ("parquet", parquet("x", -3), {}, ", column 'label': -3 is not a class"),
    "parquet: nan": (
        "parquet",
        parquet("x", float("nan"), pa.float64()),
        REGRESSION,
        ", column 'label': nan is not a num",
    ),
    "parquet: inf": (
        "parquet",
        parquet("x", float("inf"), pa.float64()),
        REGRESSION,
        ", column 'label': inf is not a num",
    ),
}


def task_on(file: Path, tokenizer: Any, **options: Any) -> Text:
    task = Text(name="text", **{"files": {"train": str(file), "validation": str(file)}, **options})
    task.setup_tokenizer(tokenizer)
    task.setup("fit")
    return task


def put(file: Path, content: Any) -> Path:
    content(file) if callable(content) else file.write_bytes(content)
    return file


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_or_left_out(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    kind, content, options, said = BAD_ROWS[name]
    file = put(tmp_path / f"rows.{kind}", content)
    with pytest.raises(SkimError, match=rf"(?s)rows\.{kind}, row 3{said}.*task.on_bad_row=skip"):
        task_on(file, tokenizer, **options)
    with caplog.at_level(logging.WARNING):
        task = task_on(file, tokenizer, on_bad_row="skip", **options)
    assert task.report["skipped"] == {"train": 1, "validation": 1}
    assert "train: 1 bad rows were skipped, the first: " in caplog.text
    assert "row 3" in caplog.text
    assert task._raw["train"]["text"][:] == WORDS
    assert task._raw["train"]["labels"][:] == [0, 1, 0, 1]
    assert task_on(file, tokenizer, on_bad_row="skip", **options).report["from_cache"]["train"]


BAD_FILES: dict[str, tuple[str, Any, str]] = {
    "csv: empty": ("rows.csv", b"", "is empty"),
    "jsonl: empty": ("rows.jsonl", b"", "is empty"),
    "parquet: empty": ("rows.parquet", b"", "is empty"),
    "csv: only a header": ("rows.csv", b"text,label\n", "has no rows"),
    "tsv: only a header": ("rows.tsv", b"text\tlabel", "has no rows"),
    "csv: blank": ("rows.csv", b"\n\n", "has no rows"),
    "jsonl: blank": ("rows.jsonl", b"\n  \n", "has no rows"),
    "json: no rows": ("rows.json", b"[]", "has no rows"),
    "json: no list": ("rows.json", b'"x"', 'holds "x", not a list of objects'),
    "json: broken": ("rows.json", b'[{"text": "a"},\n{"text": }]', r"row 2: it is not JSON \(.*line 2\)"),
    "json: cut": ("rows.json", b'[{"text": "a"},\n{"text": "b"}', r"row 3: it is not JSON \(.*line 2\)"),
    "csv: a quote without end": (
        "rows.csv",
        b'text,label\na,0\n"b,1\nc,1\nd,0\n',
        r"row 2 \(line 3\): a quotation mark is opened there and never closed",
    ),
    "csv: a header in another encoding": (
        "rows.csv",
        b"text,caf\xe9\na,1\n",
        "the header line is not UTF-8. Save the file",
    ),
    "csv: utf-16": ("rows.csv", "text,label\na,1\n".encode("utf-16"), "the header line is not UTF-8"),
    "csv: a name twice": ("rows.csv", b"text,text,label\na,b,0\n", "names column 'text' 2 times"),
    "csv: no such column": ("rows.csv", b"words,label\na,0\n", "no text column 'text'. Its columns: words, label"),
    "jsonl: no such column": ("rows.jsonl", b'{"words": "a"}', r"no text column 'text'. Its columns: words"),
    "csv: all rows bad": ("rows.csv", b"text,label\na\nb\n", "leaves no rows; the first was bad because"),
    "gz: none": ("rows.csv.gz", b"text,label\na,0\n", "cannot be read as csv: Not a gzipped file"),
    "gz: cut": (
        "rows.jsonl.gz",
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xabV*I",
        "cannot be read as jsonl: Compressed",
    ),
    "no such kind": ("rows.txt", b"a", r"skim reads \.csv, \.tsv, \.json, \.jsonl, \.parquet, not '\.txt'"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_never_skipped(tmp_path: Path, tokenizer: Any, name: str) -> None:
    file, content, said = BAD_FILES[name]
    put(tmp_path / file, content)
    with pytest.raises(SkimError, match=rf"(?s){file}.*{said}") as error:
        task_on(tmp_path / file, tokenizer, on_bad_row="skip")
    assert len(str(error.value).splitlines()) <= 3


@pytest.mark.parametrize("kept", [0.3, 0.95])
def test_a_truncated_parquet(tmp_path: Path, tokenizer: Any, kept: float) -> None:
    file = tmp_path / "rows.parquet"
    pd.DataFrame({"text": WORDS * 100, "label": [0, 1] * 200}).to_parquet(file)
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(SkimError, match=r"rows\.parquet cannot be read as parquet: ") as error:
        task_on(file, tokenizer, on_bad_row="skip")
    assert len(str(error.value)) < 300


def test_a_folder_or_nothing(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "rows.csv").mkdir()
    with pytest.raises(SkimError, match=r"rows\.csv is a folder; name one file"):
        task_on(tmp_path / "rows.csv", tokenizer)
    with pytest.raises(SkimError, match=r"none\.csv is not there"):
        task_on(tmp_path / "none.csv", tokenizer)


def test_what_the_task_does_not_read_may_be_anything(tmp_path: Path, tokenizer: Any) -> None:
    notes = ['"x"', "5", "[1]", '["x", [2]]', "true", '{"a": 1}', '"\\ud83d"']
    rows = [
        f'{{"text": "{word}", "label": {i % 2}, "note": {note}}}'
        for i, (word, note) in enumerate(zip("abcdefg", notes, strict=True))
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    task = task_on(tmp_path / "rows.jsonl", tokenizer)
    assert task._raw["train"]["text"][:] == list("abcdefg")
    assert task.report["skipped"] == {"train": 0, "validation": 0}


def test_labels_are_inferred_from_the_good_rows_of_training(tmp_path: Path, tokenizer: Any) -> None:
    train = put(tmp_path / "train.csv", b"text,label\na,x\nb\nc,y\nd,\n")
    other = put(tmp_path / "other.csv", b"text,label\na,y\nb,z\n")
    files = {"train": str(train), "validation": str(other)}
    task = Text(name="text", files=files, on_bad_row="skip")
    task.setup_tokenizer(tokenizer)
    task.setup("validate")
    assert task.label_names == ["x", "y"]
    assert task.report["skipped"] == {"validation": 1}
    task = Text(name="text", files=files)
    task.setup_tokenizer(tokenizer)
    with pytest.raises(SkimError, match=r"train\.csv, row 2: it has 1 of 2 cells"):
        task.setup("validate")


def test_rows_after_a_lost_one_keep_their_numbers(tmp_path: Path, tokenizer: Any, caplog: Any) -> None:
    file = put(tmp_path / "rows.jsonl", lines("{") + b'\n{"text": "x", "label": null}\n{"text": "x", "label": 7}')
    task = task_on(file, tokenizer, on_bad_row="skip", **NAMED)
    assert task.report["skipped"]["train"] == 3
    assert task.report["rows"]["train"] == 4
    good = json.dumps({"text": "a", "label": 0}).encode()
    file = put(tmp_path / "late.jsonl", b"\n".join([b"{", good, b"{", good, b'{"text": "x", "label": 7}']))
    task = Text(name="text", files={"train": str(file)}, on_bad_row="skip", **NAMED)
    rows, rejects = task.checkable("train")
    assert rejects.lost == 2
    task.check(rows, "train", rejects)
    assert rejects.bad == {2}
    rejects.skip = False
    rejects.bad.clear()
    with pytest.raises(SkimError, match="row 5, column 'label': 7 is not a label"):
        task.check(rows, "train", rejects)


# ---- all kinds of tasks ----


class Kind(NamedTuple):
    task: type[Task]
    row: dict[str, Any]  # a good one, as an object
    cells: dict[str, Any]  # and as cells of a csv file
    settings: dict[str, Any]
    csv_settings: dict[str, Any]


KINDS = {
    "text": Kind(Text, *[{"text": "a film", "label": "x"}] * 2, {"label_names": ["x", "y"]}, {}),
    "pair": Kind(
        Text,
        *[{"one": "a film", "two": "it", "label": 1}] * 2,
        {"text_columns": ["one", "two"], "label_names": [0, 1]},
        {},
    ),
    "regression": Kind(Text, *[{"text": "a film", "label": -0.5}] * 2, {"head": "regression"}, {}),
    "tagging": Kind(
        Tagging,
        {"tokens": ["a", "film"], "tags": ["D", "N"]},
        {"tokens": "a film", "tags": "D N"},
        {"label_names": ["D", "N"]},
        {},
    ),
    "choice": Kind(
        MultipleChoice,
        {"article": "soup", "question": "is it", "options": ["a", "good"], "answer": "B"},
        {"article": "soup", "question": "is it", "o1": "a", "o2": "good", "answer": "B"},
        {},
        {"option_columns": ["o1", "o2"]},
    ),
    "question": Kind(
        QuestionAnswering, *[{"question": "is it", "context": "the soup was", "answers": "soup"}] * 2, {"stride": 8}, {}
    ),
}
NO_TEXT = "there is no text"
# kind of task, column, what stands there in row 3 of a jsonl file, what is said of it
BAD_VALUES: list[tuple[str, str, Any, str]] = [
    *((kind, name, None, NO_TEXT) for kind, name in (("text", "text"), ("pair", "two"), ("choice", "article"))),
    *((kind, name, None, "there is no ") for kind, name in (("question", "context"), ("question", "question"))),
    ("question", "context", "  ", NO_TEXT),
    ("tagging", "tokens", None, "there are no words"),
    ("tagging", "tokens", [], "there are no words"),
    ("tagging", "tokens", ["a", None], "word 2 is null"),
    ("tagging", "tokens", ["a", 5], ".* does not fit the rows before it"),
    ("tagging", "tokens", "a film", '"a film" is a text, and other rows hold a list'),
    ("text", "text", ["a"], r'\["a"\] is a list, and other rows hold a text'),
    ("choice", "question", 5, "5 is a number, and other rows hold a text"),
    ("question", "context", {"a": 1}, ".* is an object, and other rows hold a text"),
    *((kind, name, None, "there is not a label") for kind, name in (("text", "label"), ("regression", "label"))),
    ("choice", "answer", None, "there is not a label"),
    ("text", "label", " ", "there is not a label"),
    ("tagging", "tags", None, "there are 2 words and 0 tags"),
    ("tagging", "tags", ["D"], "there are 2 words and 1 tags"),
    ("tagging", "tags", ["D", None], r"word 2 \('film'\) has no tag"),
    ("tagging", "tags", ["D", "Q"], r"word 2 \('film'\) has the tag 'Q', which is not a label"),
    ("tagging", "tags", ["D", 1], ".* does not fit the rows before it"),
    ("text", "label", "z", "'z' is not a label of this task"),
    ("pair", "label", 2, "2 is not a label of this task"),
    ("pair", "label", -1, "-1 is not a label of this task"),
    ("pair", "label", 0.5, "0.5 is not a label of this task"),
    ("regression", "label", "x", '"x" is a text, and other rows hold a number'),
    ("choice", "options", ["a"], "1 options, and other rows have 2"),
    ("choice", "options", None, "0 options, and other rows have 2"),
    ("choice", "options", ["a", None], "option 2 is not a text"),
    ("choice", "answer", "C", "'C' is none of the 2 options"),
    ("choice", "answer", "2", "2 is none of the 2 options"),
    ("question", "answers", "film", "the answer 'film' does not stand in the context"),
    ("question", "answers", 5, "5 is a number, and other rows hold a text"),
]
# the same of csv files
BAD_CELLS: list[tuple[str, str, str, str]] = [
    ("tagging", "tokens", " ", "there are no words"),
    ("tagging", "tags", "D N D", "there are 2 words and 3 tags"),
    ("tagging", "tags", "D 1", r"word 2 \('film'\) has the tag '1', which is not a label"),
    ("text", "label", "1.5", "1.5 is not a label"),
    ("regression", "label", "1_0", "'1_0' is not a number"),
    ("choice", "answer", "", "there is not a label"),
    ("choice", "answer", "True", "'True' is none of the 2 options"),
    ("question", "context", "", NO_TEXT),
    ("question", "answers", "1984", "the answer '1984' does not stand in the context"),
]


def rows_file(file: Path, kind: Kind, change: dict[str, Any], line: bytes | None = None) -> Path:
    """Five rows, the third of which is bad: in some of its cells, or as a whole."""
    good = kind.cells if file.suffix == ".csv" else kind.row

    def encoded(row: dict[str, Any]) -> bytes:
        return (",".join(map(str, row.values())) if file.suffix == ".csv" else json.dumps(row)).encode()

    lines = [encoded(good), encoded(good), line or encoded({**good, **change}), encoded(good), encoded(good)]
    header = [",".join(good).encode()] if file.suffix == ".csv" else []
    file.write_bytes(b"\n".join([*header, *lines]))
    return file


def assert_named_or_left_out(file: Path, kind: Kind, tokenizer: Any, said: str) -> None:
    settings = {**kind.settings, **(kind.csv_settings if file.suffix == ".csv" else {})}

    def use(on_bad_row: str) -> Task:
        task = kind.task(name="any", files={"train": str(file)}, on_bad_row=on_bad_row, **settings)
        task.setup_tokenizer(tokenizer)
        task._raw["train"] = task._select("train")
        return task

    with pytest.raises(SkimError, match=rf"(?s){file.name}, row 3{said}.*on_bad_row=skip") as error:
        use("error")
    assert len(str(error.value).splitlines()) <= 3
    task = use("skip")
    assert task.numbers["train"].tolist() == [1, 2, 4, 5]
    assert task.report["skipped"] == {"train": 1}
    assert len(task._raw["train"]) == 4


@pytest.mark.parametrize(("kind", "column", "value", "said"), BAD_VALUES)
def test_a_bad_value_of_any_task(tmp_path: Path, tokenizer: Any, kind: str, column: str, value: Any, said: str) -> None:
    file = rows_file(tmp_path / "rows.jsonl", KINDS[kind], {column: value})
    assert_named_or_left_out(file, KINDS[kind], tokenizer, rf", column '{column}': {said}")


@pytest.mark.parametrize(("kind", "column", "value", "said"), BAD_CELLS)
def test_a_bad_cell_of_any_task(tmp_path: Path, tokenizer: Any, kind: str, column: str, value: str, said: str) -> None:
    file = rows_file(tmp_path / "rows.csv", KINDS[kind], {column: value})
    assert_named_or_left_out(file, KINDS[kind], tokenizer, rf", column '{column}': {said}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("suffix", "line", "said"),
    [
        ("jsonl", b'{"text": ', ": it is not JSON"),
        ("jsonl", b"5", ": it is 5, not an object with columns"),
        ("csv", b"x", r": it has 1 of \d cells"),
        ("csv", b"," * 9, r": it has 10 cells for \d columns"),
        ("csv", b'"x"y', ": a quotation mark inside a quoted cell"),
    ],
)
def test_a_bad_line_of_any_task(tmp_path: Path, tokenizer: Any, kind: str, suffix: str, line: bytes, said: str) -> None:
    file = rows_file(tmp_path / f"rows.{suffix}", KINDS[kind], {}, line)
    assert_named_or_left_out(file, KINDS[kind], tokenizer, said)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_bytes_of_another_encoding_in_any_task(tmp_path: Path, tokenizer: Any, kind: str, suffix: str) -> None:
    good = KINDS[kind].cells if suffix == "csv" else KINDS[kind].row
    column = next(iter(good))
    broken = ["xx"] if isinstance(good[column], list) else "xx"
    file = rows_file(tmp_path / f"rows.{suffix}", KINDS[kind], {column: broken})
    file.write_bytes(file.read_bytes().replace(b"xx", b"caf\xe9"))
    if isinstance(broken, list):  # what the lists hold is not looked at one by one
        said = f", column '{column}': "
    else:
        said = rf", column '{column}': the text is not UTF-8 \(byte 0xE9 at character 4\)"
    assert_named_or_left_out(file, KINDS[kind], tokenizer, said)


@pytest.mark.parametrize("kind", KINDS)
def test_files_without_the_columns_of_the_task(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    task = KINDS[kind].task(name="any", files={"train": str(tmp_path / "rows.csv")}, **KINDS[kind].settings)
    task.setup_tokenizer(tokenizer)
    with pytest.raises(SkimError, match=r"(?s)rows\.csv has no .*'\. Its columns: a, b\.\nChoose with task\."):
        task.setup("fit")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_what_is_learned_does_not_hang_on_the_other_rows_of_a_file(tmp_path: Path, tokenizer: Any, suffix: str) -> None:
    """The training file has words among its cells, the validation file holds nothing but numbers, true and false."""
    cases: list[tuple[str, dict[str, Any], dict[str, Any], str, Any]] = [
        ("text", {"label": "x"}, {"text": "12", "label": "y"}, "labels", 1),
        ("tagging", {"tags": "D N"}, {"tokens": "12", "tags": "N"}, "gold", [1]),
        ("choice", {"o1": "True"}, {"question": "2", "o1": "1", "o2": "2", "answer": "2"}, "labels", 1),
        ("choice", {"o1": "x"}, {"o1": "True", "o2": "False", "answer": "False"}, "labels", 1),
        ("question", {}, {"context": "1984", "question": "1", "answers": "1984"}, "golds", ["1984"]),
    ]
    for number, (name, train, other, column, expected) in enumerate(cases):
        kind, files = KINDS[name], {}
        for part, change in (("train", train), ("validation", other)):
            cells = {**kind.cells, **change}
            row: dict[str, Any] = dict(cells)
            if suffix == "jsonl":
                options = [row.pop(name) for name in ("o1", "o2") if name in row]
                row |= {"options": options} if options else {}
                row |= {name: row[name].split() for name in ("tokens", "tags") if name in row}
            file = tmp_path / f"{part}{number}.{suffix}"
            pd.DataFrame([row]).to_csv(file, index=False) if suffix == "csv" else file.write_text(json.dumps(row))
            files[part] = str(file)
        settings = {**kind.settings, **(kind.csv_settings if suffix == "csv" else {})}
        task = kind.task(name="any", files=files, **settings)
        task.setup_tokenizer(tokenizer)
        task.setup("fit")
        assert task._raw["validation"][column][:] == [expected], name


GOOD = st.tuples(st.just(None), st.sampled_from(["a", "good", 'film, "very" good', "soup\nis"]), st.integers(0, 1))
BAD = {
    "csv": ["x", "x,0,0", '"x"y,1', "x,", "x,7"],
    "jsonl": ["{", "[1]", '{"text": 5, "label": 0}', '{"text": "x"}', '{"text": "x", "label": "z"}'],
}


@pytest.mark.parametrize("kind", BAD)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_skip_leaves_exactly_the_good_rows_in_order(tmp_path: Path, tokenizer: Any, kind: str, data: Any) -> None:
    wrong = st.tuples(st.sampled_from(BAD[kind]), st.just(""), st.just(0))
    good = data.draw(st.lists(GOOD, min_size=6, max_size=15))
    bad = data.draw(st.lists(wrong, max_size=5))
    rows = data.draw(st.permutations(good + bad))
    written = ["text,label"] if kind == "csv" else []
    for broken, text, label in rows:
        cell = '"' + text.replace('"', '""') + '"'
        whole = f"{cell},{label}" if kind == "csv" else json.dumps({"text": text, "label": label})
        written.append(broken or whole)
    file = put(tmp_path / f"rows.{kind}", "\n".join(written).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "CHUNK", data.draw(st.integers(1, 20)))
        task = Text(name="text", files={"train": str(file)}, on_bad_row="skip", label_names=["no", "yes"])
        table, rejects = task.checkable("train")
        found = rejects.without(task.check(table, "train", rejects))
    kept = [(text, label) for broken, text, label in rows if broken is None]
    assert list(zip(found["text"][:], found["labels"][:], strict=True)) == kept
    assert len(rejects) == len(bad)
    if bad:
        first = next(i for i, row in enumerate(rows) if row[0] is not None)
        strict = Text(name="text", files={"train": str(file)}, label_names=["no", "yes"])
        with pytest.raises(SkimError, match=r"row \d+") as error:
            strict.check(*(given := strict.checkable("train"))[:1], "train", given[1])
        number = int(str(error.value).partition("row ")[2].split(":")[0].split(",")[0])
        assert rows[number - 1][0] is not None
        assert number > first
