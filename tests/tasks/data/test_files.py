"""User files of every kind: what is in them is what the task sees, whatever its rows look like further down."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skim.errors import SkimError
from tasks.data import cells
from tasks.data.cache import problems
from tasks.data.cells import Problem
from tasks.data.files import Reader, read
from tasks.text import Text
from tests.tasks.test_text import all_rows, make, write

ROWS = {"text": ["a good film", "", 'the "soup, was\nbad', "it is\tgood"], "label": ["x", "y", "x", "007"]}


def rows_of(file: Path, content: bytes | str, **options: Any) -> list[dict[str, Any]]:
    """What a file of this content holds."""
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read(str(file), **options).to_list()


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "json", "json.gz", "jsonl", "jsonl.gz", "parquet"])
def test_every_kind_holds_the_same(tmp_path: Path, suffix: str) -> None:
    kind, _, packed = suffix.partition(".")
    file = Path(write(tmp_path / f"rows.{kind}", ROWS))
    if packed:
        (tmp_path / f"rows.{suffix}").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    rows = read(str(tmp_path / f"rows.{suffix}"))
    assert rows.to_dict() == ROWS
    assert rows.cache_files  # mapped, not held in memory
    assert problems(rows) == []


def test_a_tsv_quotes_nothing(tmp_path: Path) -> None:
    found = rows_of(tmp_path / "rows.tsv", 'text\tlabel\nthe "soup\t1\n"it" is\'nt\t0\n')
    assert found == [{"text": 'the "soup', "label": "1"}, {"text": '"it" is\'nt', "label": "0"}]


@pytest.mark.parametrize(
    "content",
    [
        '[{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]',
        '{"data": [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], "version": 1}',
        '{"version": 1,\n "data": [\n{"a": 1, "b": "x"},\n{"a": 2, "b": "y"}]}',
        '{"a": 1, "b": "x"}\n\n{"b": "y", "a": 2}\n',
        '\ufeff[{"a": 1, "b": "x"},\r\n {"a": 2, "b": "y"}]',
    ],
)
def test_the_forms_of_json(tmp_path: Path, content: str) -> None:
    assert rows_of(tmp_path / "rows.json", content) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]


@pytest.mark.parametrize("column", [["1", "-2", "", " 30"], ["1", "2.50", "007"], ["True", "false"], ["NA", "nan"]])
def test_a_csv_cell_is_the_text_that_is_written(tmp_path: Path, column: list[str]) -> None:
    found = rows_of(tmp_path / "rows.csv", "a,b\n" + "".join(f"{cell},x\n" for cell in column))
    assert [row["a"] for row in found] == column


def test_what_the_first_rows_hold_does_not_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "CHUNK", 7)
    column = [*range(50), 1.5]
    found = rows_of(tmp_path / "rows.jsonl", "\n".join(json.dumps({"n": n, "t": "t"}) for n in column))
    assert [row["n"] for row in found] == column


def test_columns_that_only_some_objects_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "CHUNK", 2)
    objects: list[dict[str, Any]] = [{"a": 1}, {"b": [1]}, {}, {"a": None}, {"a": 2.5, "c": {"d": [["x"]]}}]
    found = rows_of(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, objects)))
    assert found == [{"a": None, "b": None, "c": None} | one for one in objects]


def test_lists_and_objects_keep_their_shape_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "CHUNK", 2)
    objects: list[dict[str, Any]] = [
        {"tags": [], "answers": {"text": [], "start": []}},
        {"tags": [], "answers": {"text": [], "start": []}},
        {"tags": ["a", "b"], "answers": {"text": ["soup"], "start": [3]}},
    ]
    rows = read(str(write_lines(tmp_path / "rows.jsonl", objects)))
    assert rows.to_list() == objects
    assert problems(rows) == []


def write_lines(file: Path, objects: list[Any]) -> Path:
    file.write_text("\n".join(map(json.dumps, objects)), encoding="utf-8")
    return file


def test_a_document_longer_than_the_csv_modules_limit(tmp_path: Path) -> None:
    text = "word " * 100_000
    assert rows_of(tmp_path / "rows.csv", f"text,label\n{text},x\n") == [{"text": text, "label": "x"}]


def test_the_unnamed_index_of_pandas_is_a_column(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["a"], "label": [1]}).to_csv(tmp_path / "rows.csv")
    assert read(str(tmp_path / "rows.csv")).column_names == ["column 1", "text", "label"]


def test_without_a_header_line(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "yelp.csv").write_text('"5","a good film"\n"1","bad soup, very bad"\n"3",""\n"2","the"\n"4","it"\n')
    file = str(tmp_path / "yelp.csv")
    task = make(tmp_path, tokenizer, files={"train": file, "validation": file}, file_columns=["label", "text"])
    assert task.label_names == ["1", "2", "3", "4", "5"]
    assert all_rows(task.train_dataloader())[tuple(tokenizer("a good film").input_ids)] == 4
    with pytest.raises(SkimError, match=r"(?s)has no text column 'text'. Its columns: 5, a good film.*file_columns"):
        make(tmp_path, tokenizer, files={"train": file, "validation": file})
    with pytest.raises(SkimError, match=r"row 1 has 2 cells; task\.file_columns names 3"):
        read(file, ["id", "label", "text"])


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_labels_from_one_are_names(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    rows = {"text": ["a", "good", "film", "soup"], "label": [1, 2, 3, 2]}
    task = make(tmp_path, tokenizer, rows, kind=kind)
    assert task.label_names == ["1", "2", "3"]
    ids = [tuple(tokenizer(text).input_ids) for text in rows["text"]]
    assert all_rows(task.val_dataloader()) == dict(zip(ids, [0, 1, 2, 1], strict=True))
    zero = write(tmp_path / f"zero.{kind}", {"text": ["a", "good"], "label": [0, 1]})
    with pytest.raises(
        SkimError, match=r"(?s)row 1, column 'label': 0 is not a label of this task\.\nLabels: 1, 2, 3\."
    ):
        make(tmp_path, tokenizer, rows, kind=kind, files={"train": task.files["train"], "validation": zero})


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_ids_may_be_written_as_texts(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    rows = {"text": ["a", "good", "film"], "label": ["1", "0", "1"]}
    task = make(tmp_path, tokenizer, rows, kind=kind, label_names=["bad", "good"])
    assert all_rows(task.val_dataloader())[tuple(tokenizer("good").input_ids)] == 0
    assert sum(all_rows(task.val_dataloader()).values()) == 2


def test_the_same_content_is_read_once_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.data import files

    parsed = []
    parse = files.parse
    monkeypatch.setattr(files, "parse", lambda *arguments: parsed.append(1) or parse(*arguments))
    one, two = (read(write(tmp_path / f"{name}.csv", ROWS)) for name in ("one", "two"))
    assert one._fingerprint == two._fingerprint
    assert one.cache_files == two.cache_files
    assert len(parsed) == 1
    assert read(str(tmp_path / "one.csv"), ["a", "b"]).column_names == ["a", "b"]  # another way to read it
    write(tmp_path / "one.csv", {"text": ["new"], "label": ["x"]})
    assert read(str(tmp_path / "one.csv")).to_dict() == {"text": ["new"], "label": ["x"]}


letters = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(letters, st.sampled_from(["yes", "no", ""])), min_size=1, max_size=25), st.integers(1, 30))
def test_any_text_comes_back_as_it_was(tmp_path: Path, rows: list[tuple[str, str]], chunk: int) -> None:
    frame = pd.DataFrame({"text": [f"t{text}" for text, _ in rows], "label": [f"l{label}" for _, label in rows]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "CHUNK", chunk)
        for kind in ("csv", "jsonl"):
            file = tmp_path / f"rows.{kind}"
            if kind == "csv":
                frame.to_csv(file, index=False, lineterminator="\n", quoting=1)
            else:
                frame.to_json(file, orient="records", lines=True)
            assert read(str(file)).to_dict() == frame.to_dict("list")


def test_predicting_a_file_without_labels(tmp_path: Path, tokenizer: Any) -> None:
    task = make(tmp_path, tokenizer, {"text": ["a", "good"], "label": ["x", "y"]})
    for kind, content in (
        ("csv", "text\na film\nbad\n"),
        ("jsonl", '{"text": "a film", "label": null}\n{"text": "bad"}'),
    ):
        (tmp_path / f"new.{kind}").write_text(content)
        task = Text(name="text", files={"test": str(tmp_path / f"new.{kind}")}, label_names=["x", "y"])
        task.setup_tokenizer(tokenizer)
        task.setup("predict")
        (batch,) = task.predict_dataloader()
        assert "labels" not in batch
        assert torch.equal(batch["row"], torch.arange(2))


def test_rows_that_were_changed_since_have_no_known_problems(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n{\n{"a": 2}\n')
    rows = read(str(file))
    assert [(problem.row, problem.column) for problem in problems(rows)] == [(1, None)]
    assert problems(rows.select([0, 2])) == problems(Dataset.from_dict({"a": [1]})) == []


def test_a_line_nested_too_deeply_is_a_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for deep, why in (
        ("[" * 100_000, "it is not JSON (it is nested too deeply)"),
        ("[" * 100 + "]" * 100, "it is nested too deeply"),
        ('{"b": ' * 900 + "1" + "}" * 900, "it is nested too deeply"),
    ):
        file.write_text('{"a": [["b"]]}\n{"a": ' + deep + "}\n")
        rows = read(str(file))
        assert rows["a"][:] == [[["b"]], None]
        assert [problem[:3] for problem in problems(rows)] == [(1, None, why)]
    (tmp_path / "rows.json").write_text('[{"a": 1}, {"a": ' + "[" * 100_000)
    with pytest.raises(SkimError, match=r"rows\.json, row 2: it is not JSON \(it is nested too deeply\)"):
        read(str(tmp_path / "rows.json"))


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [("rows.jsonl", "text,label\ngood,1\n", "not JSON"), ("rows.json", "[1, 2]", "1, not an object with columns")],
)
def test_where_no_row_can_be_read_the_first_tells_why(tmp_path: Path, name: str, content: str, why: str) -> None:
    for _ in range(2):
        with pytest.raises(SkimError, match=rf"rows\.jsonl?: none of its 2 rows can be read\. Row 1: it is {why}"):
            rows_of(tmp_path / name, content)


def test_parquet_of_any_name_and_with_columns_of_no_use(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = {
        "text": pa.array(["a", "b"]).dictionary_encode(),
        "label": pa.array([0, 1]),
        "more": pa.array([[("k", 1)]] * 2, pa.map_(pa.string(), pa.int32())),
    }
    features = Features({"label": ClassLabel(names=["no", "yes"])}).arrow_schema
    table = pa.table(columns).replace_schema_metadata(features.metadata)
    pq.write_table(table, tmp_path / "d[1]*.parquet")
    rows = read(str(tmp_path / "d[1]*.parquet"))
    assert rows.to_dict() == {"text": ["a", "b"], "label": [0, 1]}
    assert rows.features["label"].names == ["no", "yes"]
    assert "column 'more' is not read: it holds map<string, int32" in caplog.text
    pq.write_table(pa.Table.from_arrays([[1], [2]], ["a", "a"]), tmp_path / "twice.parquet")
    with pytest.raises(SkimError, match=r"twice\.parquet has 2 columns 'a'"):
        read(str(tmp_path / "twice.parquet"))
    (tmp_path / "none.parquet").write_text("text,label")
    with pytest.raises(SkimError, match=r"none\.parquet cannot be read as parquet: "):
        read(str(tmp_path / "none.parquet"))


def test_a_reader_of_its_own_is_cached_by_what_it_depends_on(tmp_path: Path) -> None:
    """And what it leaves is read as the suffix says."""
    asked = []

    def reader(key: str) -> Reader:
        def parse(file: Path) -> Any:
            asked.append(key)
            return (pa.table({"a": [key]}), [Problem(0, "a", "why")]) if file.suffix == ".own" else None

        return Reader((".own", ".jsonl"), parse, [key])

    write_lines(tmp_path / "rows.own", ["x"])
    for _ in range(2):
        for key in ("one", "two"):
            rows = read(str(tmp_path / "rows.own"), reader=reader(key))
            assert (rows["a"][:], problems(rows)) == ([key], [Problem(0, "a", "why")])
    assert asked == ["one", "two"]
    assert read(str(write_lines(tmp_path / "rows.jsonl", [{"a": 1}])), reader=reader("one"))["a"][:] == [1]
    with pytest.raises(SkimError, match=r"skim reads \.csv, .*\.parquet, \.own, not '\.doc'"):
        read(str(write_lines(tmp_path / "rows.doc", ["x"])), reader=reader("one"))
