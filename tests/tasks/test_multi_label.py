"""Any number of labels for a text: every way to write them, what is learned and said, and every method."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from skim.errors import SkimError
from skim.lightning.looks import evaluate
from skim.lightning.recipe import train
from tasks.text import Text
from tests.runs import composed
from tests.tasks.conftest import in_order

TEXTS = ["a good film", "the soup was bad", "it is", "a soup"]
SETS = [["film", "praise"], ["soup"], [], ["film", "soup"]]
NAMES = ["film", "praise", "soup"]
MATRIX = [[1.0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 1]]


def ready(file: Path, tokenizer: Any, **given: Any) -> Text:
    task = Text(name="text", **{"head": "multi_label", "files": {"train": str(file), "validation": str(file)}, **given})
    task.setup_tokenizer(tokenizer)
    task.setup("fit")
    return task


def lines(folder: Path, labels: list[Any], texts: list[str] = TEXTS) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in zip(texts, labels, strict=True)))
    return file


def written(folder: Path, form: str) -> tuple[Path, dict[str, Any]]:
    """The same rows in every form, and what a user says of it."""
    if form == "lists":
        return lines(folder, SETS), {}
    if form == "ids":
        ids = [[NAMES.index(name) for name in row] for row in SETS]
        return lines(folder, ids), {"label_names": NAMES}
    if form == "joined":
        return lines(folder, [" | ".join(row) for row in SETS]), {}
    if form == "csv":
        file = folder / "rows.csv"
        rows = [f"{text},{';'.join(row)}" for text, row in zip(TEXTS, SETS, strict=True)]
        file.write_text("text,label\n" + "\n".join(rows) + "\n")
        return file, {"label_separator": ";"}
    if form == "columns":
        file = folder / "rows.csv"
        rows = [",".join([text, *(str(int(flag)) for flag in row)]) for text, row in zip(TEXTS, MATRIX, strict=True)]
        file.write_text(f"text,{','.join(NAMES)}\n" + "\n".join(rows) + "\n")
        return file, {"label_column": NAMES}
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.List(datasets.ClassLabel(names=NAMES))}
    )
    rows = {"text": TEXTS, "label": SETS}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet", {}


@pytest.mark.parametrize("form", ["lists", "ids", "joined", "csv", "columns", "parquet"])
def test_every_way_to_write_labels(tmp_path: Path, tokenizer: Any, form: str) -> None:
    file, given = written(tmp_path, form)
    task = ready(file, tokenizer, **given)
    assert task.label_names == NAMES
    labels = in_order(task)["labels"]
    assert labels.dtype == torch.float32
    assert labels.tolist() == MATRIX
    said = {"num_labels": 3, "problem_type": "multi_label_classification"}
    assert said.items() <= task.model_kwargs().items()


@pytest.mark.parametrize(
    ("labels", "given", "message"),
    [
        ([["film"], None, [], ["soup"]], {}, "row 2, column 'label': there are no labels"),
        (
            [["film"], ["x"], [], ["soup"]],
            {"label_names": ["film", "soup"]},
            "row 2, .*'x' is not a label of this task",
        ),
        ([["film"], ["soup", None], [], []], {}, "row 2, column 'label': a label is null"),
        ([["film"], [], [], []], {}, "there are fewer than two labels"),
        ([0, 1, 0, 1], {}, "holds int64: neither lists of labels nor texts"),
        (SETS, {"positive": "film"}, "with task.head=multi_label, every label is"),
        (SETS, {"metric_names": ["accuracy"]}, "Unknown metric of a multi_label 'accuracy'"),
        (SETS, {"label_column": ["text", "label"]}, "'a good film' is neither 0 nor 1"),
        (SETS, {"label_column": ["a", "b"], "label_names": ["a", "c"]}, "are not the labels that task.label_column"),
        (SETS, {"label_column": ["a", "b"]}, "has no label column 'a'"),
        (SETS, {"label_column": ["a", "b"], "head": "classification"}, "task.head=classification has one column"),
    ],
)
def test_wrong_labels(tmp_path: Path, tokenizer: Any, labels: list, given: dict[str, Any], message: str) -> None:
    file = lines(tmp_path, labels)
    with pytest.raises(SkimError, match=message):
        ready(file, tokenizer, **given)


def test_a_row_without_labels_is_skipped_and_a_test_part_needs_none(tmp_path: Path, tokenizer: Any) -> None:
    task = ready(lines(tmp_path, [["film"], None, [], ["soup"]]), tokenizer, on_bad_row="skip")
    assert in_order(task)["labels"].tolist() == [[1, 0], [0, 0], [0, 1]]
    assert task.report["skipped"]["train"] == 1
    file = tmp_path / "new.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    alone = Text(name="text", head="multi_label", label_names=NAMES, files={"test": str(file)})
    alone.setup_tokenizer(tokenizer)
    alone.setup("predict")
    assert "labels" not in next(iter(alone.test_dataloader()))


def test_metrics_are_those_of_scikit_learn(tmp_path: Path, tokenizer: Any) -> None:
    task = ready(lines(tmp_path, SETS), tokenizer)
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 3), (torch.rand(50, 3) > 0.6).float()
    metrics, counts = task.metrics(), task.counts()
    for rows in (slice(0, 20), slice(20, 50)):
        for one in (metrics, counts):
            task.update(one, SimpleNamespace(logits=logits[rows]), {"labels": labels[rows]})
    found, said = {name: value.item() for name, value in metrics.compute().items()}, logits > 0
    assert task.monitor == "micro_f1"
    assert found["micro_f1"] == pytest.approx(f1_score(labels, said, average="micro"))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, said, average="macro"))
    assert found["subset_accuracy"] == pytest.approx(accuracy_score(labels, said))
    table = task.table(counts.compute())
    wanted = precision_recall_fscore_support(labels, said)
    for name, values in zip(("precision", "recall", "f1", "rows"), wanted, strict=True):
        assert table[name] == pytest.approx(values.tolist())
    right = ((labels == 1) & said).sum(0).tolist()
    assert [matrix[1][1] for matrix in table["confusion"]] == right


def test_what_is_said_and_how_far_it_is_from_a_teacher(tmp_path: Path, tokenizer: Any) -> None:
    task = ready(lines(tmp_path, SETS), tokenizer)
    logits = torch.tensor([[1.0, -1.0, 0.5], [-3.0, -2.0, -1.0]])
    first, second = task.predictions(SimpleNamespace(logits=logits), {})
    assert first["prediction"] == ["film", "soup"]
    assert first["probabilities"] == pytest.approx(dict(zip(NAMES, logits[0].sigmoid().tolist(), strict=True)))
    assert second["prediction"] == []
    assert task.named([1.0, 0.0, 1.0]) == ["film", "soup"]
    taught = torch.tensor([[0.0, 2.0, 0.5], [1.0, -2.0, 4.0]])
    p, q = (logits / 2).sigmoid(), (taught / 2).sigmoid()
    divergence = (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).mean() * 4
    outputs = (SimpleNamespace(logits=one) for one in (logits, taught))
    torch.testing.assert_close(task.distance(*outputs, {}, 2.0), divergence)


def test_balanced_weights_are_of_positive_rows(tmp_path: Path, tokenizer: Any) -> None:
    loss = ready(lines(tmp_path, SETS), tokenizer, class_weights="balanced").training_loss()
    assert loss.weights.tolist() == [1, 3, 1]  # film and soup in two of four rows, praise in one
    task = ready(lines(tmp_path, SETS), tokenizer, class_weights=[1, 1, 1])
    batch = in_order(task)
    logits = torch.randn(4, 3)
    found = task.training_loss()(SimpleNamespace(logits=logits), batch)
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(logits, batch["labels"]))


def test_a_held_out_part_has_rare_labels(tmp_path: Path, tokenizer: Any) -> None:
    sets = [["common"] + ["rare"] * (i in (3, 40)) for i in range(60)]
    file = lines(tmp_path, sets, texts=[f"a film {i}" for i in range(60)])
    task = ready(file, tokenizer, files={"train": str(file)}, holdout=0.1)
    assert in_order(task)["labels"].sum(0).tolist() == [6, 1]
    (note,) = task.notes("validation")
    assert "its 6 rows hold 6 of 'common', 1 of 'rare'" in note


METHODS = ["dense", "transkimmer", "ltp", "topk", "act", "funnel"]
ONCE = ["hardware=cpu", "hardware.threads=1", "benchmark.enabled=false", "callbacks.progress=false"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_packed_as_masked(tmp_path: Path, method: str) -> None:
    given = ["task.max_train_samples=64", "task.max_eval_samples=32", "train.max_steps=2", "train.distill=0.5"]
    given[3:] = [] if method == "dense" else ["train.distill=0.5", "train.distill_from=self"]
    results = train(composed("task=builtin_labels", f"method={method}", *ONCE, *given), tmp_path, "").results
    assert results.status == "done"
    assert set(results.metrics) == {"micro_f1", "macro_f1", "subset_accuracy", "loss"}
    if method != "dense":
        assert results.masked_metrics == pytest.approx(results.metrics, abs=1e-4)
    assert results.classes["names"] == ["deed", "move", "day", "praise", "blame"]


def test_early_exit_refuses(tmp_path: Path) -> None:
    with pytest.raises(SkimError, match="it has several labels for each"):
        train(composed("task=builtin_labels", "method=early_exit", *ONCE), tmp_path / "run", "")


def test_it_learns_what_clauses_are_about_and_says_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = ["task.max_train_samples=1000", "task.max_eval_samples=100", "train.lr=3e-3", "train.epochs=2"]
    given += ["backbone.overrides.num_hidden_layers=1"]
    results = train(composed("task=builtin_labels", "method=dense", *ONCE, *given), tmp_path, "").results
    assert min(results.classes["f1"][1:3]) > 0.7, "praise and blame hang on negations, and take longer"
    look = [f"ckpt={tmp_path}", "hardware.accelerator=cpu", "max_samples=20"]
    evaluate(composed(*look, "what=predict", config="evaluate"))
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    assert np.mean([("move" in row["prediction"]) == ("move" in row["label"]) for row in rows]) > 0.8
    for row in rows:
        assert row["prediction"] == [name for name, share in row["probabilities"].items() if share > 0.5]
    evaluate(composed(*look, "what=tokens", "text='we walked in the garden .'", config="evaluate"))
    assert "move" in capsys.readouterr().out
