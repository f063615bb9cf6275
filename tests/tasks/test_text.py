"""Own files of every kind, labels in every form, and every error a user can make with them."""

from __future__ import annotations

import json
import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torchmetrics.functional import f1_score

from skim.errors import SkimError
from tasks.text import Text

ROWS = {"text": ["a good film", "", 'the "soup was bad'], "label": [1, 0, 0]}


def write(path: Path, rows: dict[str, list]) -> str:
    frame = pd.DataFrame(rows)
    match path.suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".tsv":
            lines = ["\t".join(map(str, row)) for row in [list(frame.columns), *frame.itertuples(index=False)]]
            path.write_text("\n".join(lines) + "\n")
        case ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        case ".json":
            path.write_text(json.dumps(frame.to_dict("records")))
        case ".parquet":
            frame.to_parquet(path)
    return str(path)


def make(folder: Path, tokenizer: Any, rows: dict[str, list] = ROWS, kind: str = "csv", **settings: Any) -> Text:
    """A task on files of these rows, ready for its loaders."""
    file = write(folder / f"rows.{kind}", rows)
    task = Text(name="text", **{"files": {"train": file, "validation": file}, **settings})
    task.setup_tokenizer(tokenizer)
    task.setup("fit")
    return task


def all_rows(loader: Any) -> dict[str, list]:
    """Ids without padding -> label."""
    found = {}
    for batch in loader:
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            found[tuple(ids[mask.bool()].tolist())] = label.item()
    return found


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_kind_of_file(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    task = make(tmp_path, tokenizer, kind=kind)
    expected = {tuple(tokenizer(t).input_ids): y for t, y in zip(ROWS["text"], ROWS["label"], strict=True)}
    assert all_rows(task.train_dataloader()) == all_rows(task.val_dataloader()) == expected
    assert task.report["rows"] == {"train": 3, "validation": 3}


def test_a_text_of_no_tokens_is_its_special_tokens(tmp_path: Path, tokenizer: Any) -> None:
    assert all_rows(make(tmp_path, tokenizer).val_dataloader())[2, 3] == 0


def test_words_that_pandas_takes_for_missing_values(tmp_path: Path, tokenizer: Any) -> None:
    task = make(tmp_path, tokenizer, {"text": ["null", "NA", "nan"], "label": ["None", "NA", "NA"]})
    assert task.label_names == ["NA", "None"]


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        (["pos", "neg", "neg"], ["neg", "pos"], [1, 0, 0]),
        ([2, 0, 1], ["0", "1", "2"], [2, 0, 1]),
        ([1.0, 0.0, 0.0], ["0", "1"], [1, 0, 0]),
        ([True, False, False], ["False", "True"], [1, 0, 0]),
        ([1, -1, -1], ["-1", "1"], [1, 0, 0]),
        ([" x", "x ", "y"], ["x", "y"], [0, 0, 1]),
        (["2.0", " 1", "1"], ["1", "2"], [1, 0, 0]),
    ],
)
def test_labels_come_from_the_data(tmp_path: Path, tokenizer: Any, labels: list, names: list, ids: list) -> None:
    task = make(tmp_path, tokenizer, {"text": ["a", "good", "film"], "label": labels}, kind="parquet")
    assert task.label_names == names
    assert task.model_kwargs()["id2label"] == dict(enumerate(names))
    expected = {tuple(tokenizer(t).input_ids): y for t, y in zip(["a", "good", "film"], ids, strict=True)}
    assert all_rows(task.train_dataloader()) == expected


def test_class_labels_keep_their_names_in_another_order(tmp_path: Path, tokenizer: Any) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])})
    rows = datasets.Dataset.from_dict({"text": ["good", "bad"], "label": [0, 1]}, features=features)
    rows.to_parquet(tmp_path / "own.parquet")
    files = {"train": str(tmp_path / "own.parquet"), "validation": str(tmp_path / "own.parquet")}
    assert make(tmp_path, tokenizer, files=files).label_names == ["pos", "neg"]
    task = make(tmp_path, tokenizer, files=files, label_names=["neg", "pos"])
    assert all_rows(task.train_dataloader())[tuple(tokenizer("good").input_ids)] == 1


def test_evaluation_alone_takes_the_labels_from_the_training_rows(tmp_path: Path, tokenizer: Any) -> None:
    train = write(tmp_path / "train.csv", {"text": ["a", "film", "soup"], "label": ["x", "y", "z"]})
    validation = write(tmp_path / "validation.csv", {"text": ["a", "film"], "label": ["z", "z"]})
    task = Text(name="text", files={"train": train, "validation": validation})
    task.setup_tokenizer(tokenizer)
    task.setup("validate")
    assert task.label_names == ["x", "y", "z"]
    assert set(all_rows(task.val_dataloader()).values()) == {2}
    assert set(task.report["rows"]) == {"validation"}


def test_regression(tmp_path: Path, tokenizer: Any) -> None:
    rows = {"text": ["a", "good", "film"], "label": [0.25, 4, 2.5]}
    task = make(tmp_path, tokenizer, rows, head="regression")
    batch = next(iter(task.val_dataloader()))
    assert batch["labels"].dtype == torch.float32
    assert task.model_kwargs() == {"num_labels": 1, "problem_type": "regression"}
    assert task.monitor == "pearson"
    metrics = task.metrics()
    metrics.update(task.predict(batch["labels"][:, None].bfloat16() * 2), batch["labels"])
    assert metrics.compute()["pearson"].item() == pytest.approx(1.0, abs=1e-4)


def test_classification_metrics(tmp_path: Path, tokenizer: Any) -> None:
    task = make(tmp_path, tokenizer, metric_names=["f1", "accuracy", "matthews"])
    logits, labels = torch.randn(200, 2), torch.randint(0, 2, (200,))
    metrics = task.metrics()
    metrics.update(task.predict(logits), labels)
    values = metrics.compute()
    assert task.monitor == "f1"
    assert values["f1"].item() == pytest.approx(f1_score(logits.argmax(-1), labels, "binary").item())
    assert values["accuracy"].item() == pytest.approx((logits.argmax(-1) == labels).float().mean().item())
    assert set(values) == {"f1", "accuracy", "matthews"}


def test_pairs_have_token_types(tmp_path: Path, tokenizer: Any) -> None:
    rows = {"one": ["a good film", "soup"], "two": ["bad", "the soup was"], "label": [0, 1]}
    task = make(tmp_path, tokenizer, rows, text_columns=["one", "two"])
    batch = next(iter(task.val_dataloader()))
    expected = tokenizer(rows["one"], rows["two"], padding=True, return_tensors="pt")
    order = batch["labels"]  # the label is the row
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert torch.equal(batch[name], expected[name][order])
    assert task.example_texts(2) == [("a good film", "bad"), ("soup", "the soup was")]


def test_left_padding_tokenizers(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.padding_side = "left"
    batch = next(iter(make(tmp_path, tokenizer).val_dataloader()))
    assert batch["attention_mask"][:, -1].all()
    assert (batch["input_ids"][batch["attention_mask"] == 0] == tokenizer.pad_token_id).all()
    assert not batch["attention_mask"].all()


@pytest.mark.parametrize(("max_length", "limit", "count"), [(5, 5, 2), (128, 64, 1), (6, 6, 1)])
def test_truncation_is_counted_and_told(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture, max_length: int, limit: int, count: int
) -> None:
    rows = {"text": ["a good film", "the soup was good", "a " * 100], "label": [0, 1, 1]}
    with caplog.at_level(logging.WARNING):
        task = make(tmp_path, tokenizer, rows, max_length=max_length)
    assert task.report["max_length"] == limit  # the tokenizer's own maximum is 64
    assert task.report["truncated"] == {"train": count, "validation": count}
    assert f"train: {count} of 3 texts were truncated to {limit} tokens" in caplog.text
    assert next(iter(task.val_dataloader()))["input_ids"].shape[1] == limit


def test_second_time_from_the_cache_and_anew_when_something_changed(tmp_path: Path, tokenizer: Any) -> None:
    files = {split: write(tmp_path / f"{split}.csv", ROWS) for split in ("train", "validation")}

    def cached(**settings: Any) -> bool:
        return make(tmp_path, tokenizer, **{"files": files, **settings}).report["from_cache"]["train"]

    assert not cached()
    assert cached()
    tokenizer("a call that leaves truncation and padding behind", truncation=True, padding=True, max_length=7)
    assert cached()
    assert not cached(max_length=5)
    assert cached(files={**files, "train": write(tmp_path / "copy.csv", ROWS)})  # by what is in it
    tokenizer.add_tokens(["soups"])
    assert not cached()
    write(tmp_path / "train.csv", {"text": ["soup"] * 9, "label": [0, 1, 1] * 3})
    assert not cached()


def test_holdout_splits_the_training_rows(tmp_path: Path, tokenizer: Any) -> None:
    rows = {"text": [f"a {'good ' * i}film" for i in range(20)], "label": [i % 2 for i in range(20)]}
    file = write(tmp_path / "train.csv", rows)
    parts = []
    for seed in (1, 2):
        task = Text(name="text", files={"train": file}, holdout=0.25, seed=seed)
        task.setup_tokenizer(tokenizer)
        task.setup("fit")
        train, held_out = all_rows(task.train_dataloader()), all_rows(task.val_dataloader())
        assert (len(train), len(held_out)) == (15, 5)
        assert not set(train) & set(held_out)
        parts.append((train, held_out))
    assert parts[0] == parts[1]  # seeds change the order, never the split
    assert make(tmp_path, tokenizer, holdout=0.5).report["rows"] == {"train": 3, "validation": 3}  # a file wins


def test_a_named_split_takes_precedence_over_the_holdout(tmp_path: Path, tokenizer: Any) -> None:
    rows = {"text": [f"a {'good ' * i}film" for i in range(20)], "label": [i % 2 for i in range(20)]}
    test = {"text": ["soup", "the soup", "bad soup"], "label": [0, 1, 0]}
    files = {"train": write(tmp_path / "train.csv", rows), "test": write(tmp_path / "test.csv", test)}
    task = make(tmp_path, tokenizer, files=files, holdout=0.25, eval_split="test")
    assert set(all_rows(task.val_dataloader())) == {tuple(tokenizer(text).input_ids) for text in test["text"]}
    other = make(tmp_path, tokenizer, files=files, holdout=0.25)
    assert all_rows(task.train_dataloader()) == all_rows(other.train_dataloader())
    assert task.report["rows"] == {"train": 15, "validation": 3}


def test_subsamples_are_the_same_for_every_seed(tmp_path: Path, tokenizer: Any) -> None:
    rows = {"text": [f"a {'good ' * i}film" for i in range(20)], "label": [i % 2 for i in range(20)]}
    found = [make(tmp_path, tokenizer, rows, max_train_samples=7, max_eval_samples=4, seed=s) for s in (1, 2)]
    assert found[0].report["rows"] == {"train": 7, "validation": 4}
    assert all_rows(found[0].train_dataloader()) == all_rows(found[1].train_dataloader())
    assert len(found[0].sample_batches(3, 100)) == 2


def test_withheld_labels_can_be_predicted_only(tmp_path: Path, tokenizer: Any) -> None:
    test = write(tmp_path / "test.csv", {"text": ["a", "film"], "label": [-1, -1]})
    task = make(tmp_path, tokenizer)
    task.files["test"] = test
    task.setup("predict")
    (batch,) = task.predict_dataloader()
    assert "labels" not in batch
    assert batch["input_ids"][:, 1].tolist() == tokenizer.convert_tokens_to_ids(["a", "film"])
    task = Text(name="text", files={"train": str(tmp_path / "rows.csv"), "test": test}, eval_split="test")
    task.setup_tokenizer(tokenizer)
    with pytest.raises(SkimError, match=r"test\.csv: all labels are -1"):
        task.setup("validate")


STARS = ["1", "2", "3", "5+"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("train", "other", "names", "ids"),
    [
        (STARS, [1, 2, 3, 2], STARS, [0, 1, 2, 1]),
        (["True", "False", "Maybe", "True"], [True, False, False, True], None, [2, 0, 0, 2]),
        (["true", "false", "maybe", "true"], [True, False, False, True], None, [2, 0, 0, 2]),
        ([-1, 0, 1, 1], [1, -1, -1, 0], ["-1", "0", "1"], [2, 0, 0, 1]),
        ([-1, 0, 1, 1], [1, 1, 1, 1], [-1, 0, 1], [2] * 4),
        ([-1, 1, 1, 1], ["+1", "-1", "1.0", "1"], None, [1, 0, 1, 1]),
        (["x", "y", "x", "x"], [1, 0, 0, 0], None, [1, 0, 0, 0]),
        (["x", "y", "x", "x"], ["y", "x", " y", "x "], None, [1, 0, 1, 0]),
        (["10", "20", "10", "20"], [20, 20, 20, 10], [10, 20], [1, 1, 1, 0]),
    ],
)
def test_a_label_has_one_id_whatever_else_its_file_holds(
    tmp_path: Path, tokenizer: Any, kind: str, train: list, other: list, names: Any, ids: list[int]
) -> None:
    texts = ["a", "good", "bad", "film"]
    files = {
        "train": write(tmp_path / f"train.{kind}", {"text": texts, "label": train}),
        "validation": write(tmp_path / f"other.{kind}", {"text": texts, "label": other}),
    }
    task = make(tmp_path, tokenizer, files=files, label_names=names)
    expected = {tuple(tokenizer(text).input_ids): i for text, i in zip(texts, ids, strict=True)}
    assert all_rows(task.val_dataloader()) == expected


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("label", "names", "said"),
    [
        (0, STARS, "0 is not a label"),
        (4, STARS, "4 is not a label"),
        (True, ["0", "1"], "'True' is not a label"),
        (True, ["no", "yes"], "'True' is not a label"),
        (-1, ["no", "yes"], "-1 is not a label"),
        (2, ["no", "yes"], "2 is not a label"),
    ],
)
def test_a_number_is_no_id_where_a_name_is_one(
    tmp_path: Path, tokenizer: Any, kind: str, label: Any, names: list[str], said: str
) -> None:
    rows = {"text": ["a", "good"], "label": [label, False if label is True else 1]}
    with pytest.raises(SkimError, match=f"row 1, column 'label': {said} of this task"):
        make(tmp_path, tokenizer, rows, kind=kind, label_names=names)


def test_columns_called_as_the_task_s_own(tmp_path: Path, tokenizer: Any) -> None:
    rows = {"labels": ["a", "good"], "row": ["film", "bad"], "label": [0, 1]}
    task = make(tmp_path, tokenizer, rows, text_columns=["labels", "row"])
    (batch,) = task.val_dataloader()
    assert batch["labels"].tolist() == [0, 1]
    assert task.example_texts(2) == [("a", "film"), ("good", "bad")]
    task = make(tmp_path, tokenizer, rows, text_columns=["labels"])
    task.files["test"] = write(tmp_path / "new.csv", {"labels": ["a", "good"]})
    task.setup("predict")
    (batch,) = task.predict_dataloader()
    assert "labels" not in batch


@pytest.mark.parametrize("labels", [["x", None, "z"], ["x", "y", "q"], [None, "y", "z"]])
@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_labels_keep_no_row_from_being_predicted(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture, labels: list, on_bad_row: str
) -> None:
    test = write(tmp_path / "test.csv", {"text": ["a", "good", "film"], "label": labels})
    task = Text(name="text", files={"test": test}, label_names=["x", "y", "z"], on_bad_row=on_bad_row)
    task.setup_tokenizer(tokenizer)
    with caplog.at_level(logging.WARNING):
        task.setup("predict")
    (batch,) = task.predict_dataloader()
    assert len(batch["row"]) == 3
    assert "labels" not in batch
    assert f"test.csv, row {1 + [one not in ('x', 'y', 'z') for one in labels].index(True)}, col" in caplog.text
    task = Text(name="text", files={"test": test}, label_names=["x", "y", "z"], eval_split="test")
    task.setup_tokenizer(tokenizer)
    with pytest.raises(SkimError, match=r"test\.csv, row \d, column 'label'"):
        task.setup("validate")


def test_a_test_part_with_all_its_labels_is_measured(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "test.csv").write_text("text,label\na,x\ngood\nfilm,y\n")
    files = {"test": str(tmp_path / "test.csv")}
    task = Text(name="text", files=files, label_names=["x", "y"], on_bad_row="skip")
    task.setup_tokenizer(tokenizer)
    task.setup("test")
    assert all_rows(task.test_dataloader()) == {
        (2, *tokenizer("a").input_ids[1:]): 0,
        (*tokenizer("film").input_ids,): 1,
    }


@pytest.mark.parametrize("kind", ["string_view", "large_string", "dictionary"])
def test_texts_of_any_layout_and_decimal_numbers(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    texts = pa.array(["a", "good", "film"])
    texts = texts.dictionary_encode() if kind == "dictionary" else texts.cast(kind)
    table = pa.table({"text": texts, "label": pa.array([Decimal("1.5"), Decimal("-2"), Decimal("0.25")])})
    pq.write_table(table, tmp_path / "own.parquet")
    files = {part: str(tmp_path / "own.parquet") for part in ("train", "validation")}
    task = make(tmp_path, tokenizer, files=files, head="regression")
    assert sorted(all_rows(task.val_dataloader()).values()) == [-2, 0.25, 1.5]


WRONG_ROWS = {
    "no label column": ({"text": ["a"], "score": [1]}, {}, "no label column 'label'. Its columns: text, score"),
    "no text column": ({"words": ["a"], "label": [1]}, {}, "no text column 'text'. Its columns: words, label"),
    "label too high": ({"text": ["a", "b"], "label": [0, 2]}, {"label_names": ["x", "y"]}, "row 2, column 'label': 2"),
    "label below zero": ({"text": ["a", "b", "c"], "label": [0, 1, -1]}, {}, "row 3, column 'label': -1"),
    "unknown label": (
        {"text": ["a", "b"], "label": ["x", "z"]},
        {"label_names": ["x", "y"]},
        "row 2.*'z' is not a label",
    ),
    "label missing": (
        {"text": ["a", "b"], "label": ["x", None]},
        {"label_names": ["x", "y"]},
        "row 2.*there is not a label",
    ),
    "number as a class": ({"text": ["a", "b"], "label": [0.5, 1.0]}, {}, "row 1.*0.5 is not a class.*head=regression"),
    "labels from 2": ({"text": ["a", "b"], "label": [2, 3]}, {}, "column 'label': .*are 2, 3 and not 0, 1.*regression"),
    "a class missing": ({"text": ["a", "b"], "label": [0, 2]}, {}, "are 0, 2 and not 0, 1.*task.label_names"),
    "many numbers": ({"text": ["a"] * 9, "label": range(10**9, 10**9 + 9)}, {}, "1000000004, ... and not 0 to 8"),
    "one high number": ({"text": ["a", "b"], "label": [10**9] * 2}, {}, "every row has the label '1000000000'"),
    "one class": ({"text": ["a", "b"], "label": ["x", "x"]}, {}, "every row has the label 'x'"),
    "class as a number": ({"text": ["a"], "label": ["x"]}, {"head": "regression"}, "row 1.*'x' is not a number"),
    "no number": ({"text": ["a", "b"], "label": [1.0, None]}, {"head": "regression"}, "row 2.*there is not a label"),
    "infinite": (
        {"text": ["a", "b"], "label": [1.0, float("inf")]},
        {"head": "regression"},
        "row 2.*inf is not a number",
    ),
    "lists as labels": (
        {"text": ["a", "b"], "label": [[0], [1]]},
        {},
        "column 'label' holds list.*neither names nor(.|\\n)*task.head=multi_label",
    ),
    "text missing": ({"text": ["a", None], "label": [0, 1]}, {}, "row 2, column 'text': there is no text"),
    "text is a number": ({"text": [3, 4], "label": [0, 1]}, {}, "column 'text' holds int64 and not texts"),
    "no rows": ({"text": [], "label": []}, {}, "has no rows"),
}


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_wrong_rows(tmp_path: Path, tokenizer: Any, case: str) -> None:
    rows, settings, message = WRONG_ROWS[case]
    with pytest.raises(SkimError, match=f"(?s)rows\\.parquet.*{message}"):
        make(tmp_path, tokenizer, rows, kind="parquet", **settings)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("none.csv", None, "none.csv is not there"),
        ("rows.xlsx", b"x", r"skim reads \.csv.*not '\.xlsx'"),
        ("rows.csv", b"", "rows.csv is empty"),
        ("rows.csv", b"text,label\n", "rows.csv has no rows"),
        ("rows.parquet", b"PAR1 but not really", r"rows\.parquet cannot be read as parquet"),
    ],
)
def test_wrong_files(tmp_path: Path, tokenizer: Any, file: str, content: bytes | None, message: str) -> None:
    path = tmp_path / file
    if content is not None:
        path.write_bytes(content)
    task = Text(name="text", files={"train": str(path), "validation": str(path)})
    task.setup_tokenizer(tokenizer)
    with pytest.raises(SkimError, match=f"(?s){message}"):
        task.setup("fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "task=text has no train data.*task.files.train="),
        (
            {"files": {"train": "x.csv", "valid": "y.csv"}},
            "Unknown key of task.files 'valid'. Did you mean 'validation'",
        ),
        ({"head": "classify"}, "must be one of classification, multi_label, regression. Did you mean 'classification'"),
        ({"metric_names": ["pearson"]}, "Unknown metric of a classification 'pearson'"),
        ({"text_columns": []}, r"task.text_columns=\[\]: name one column"),
        ({"holdout": 1.5}, "holdout=1.5.*above 0 and below 1"),
        ({"text_columns": "text"}, "text_columns='text'.*must be a list of texts"),
        ({"metric_names": "f1"}, "metric_names.*must be a list of texts"),
        ({"label_names": "x"}, "label_names.*must be a list of texts"),
        ({"label_names": [1, "1"]}, "task.label_names names '1' twice"),
        ({"text_columns": ["a", "a"]}, "task.text_columns"),
    ],
)
def test_wrong_settings(tokenizer: Any, settings: dict[str, Any], message: str) -> None:
    def use() -> None:
        task = Text(name="text", **settings)
        task.setup_tokenizer(tokenizer)
        task.setup("fit")

    with pytest.raises(SkimError, match=message):
        use()


def test_validation_missing(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(SkimError, match=r"no validation data: give it a file, task\.files\.validation="):
        make(tmp_path, tokenizer, files={"train": write(tmp_path / "t.csv", ROWS)})
