"""Multiple choice: text, question and option in a sequence, answers in every form, and whole runs in 3-D."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset

from skim.analysis.depth import Depths, by_token, survived
from skim.compression import execution, walk_of
from skim.errors import SkimError
from skim.lightning.looks import evaluate, load
from skim.lightning.module import accepted
from skim.lightning.recipe import train
from tasks.data.batches import Rows
from tasks.data.choices import put
from tasks.multiple_choice import MultipleChoice
from tests.runs import composed, looking
from tests.tasks.conftest import in_order

ROWS: dict[str, list] = {
    "article": ["a good film", "the soup was bad and it is not good", "soup"],
    "question": ["the film was _ .", "is it good", "it is __ and _"],
    "options": [["good", "bad", "very bad"], ["it is", "it is not", "not"], ["a", "the film", "soup"]],
    "answer": ["A", "B", "C"],
}


def make(folder: Path, tokenizer: Any, rows: dict[str, list] = ROWS, kind: str = "jsonl", **settings: Any) -> Any:
    file = folder / f"rows.{kind}"
    if kind == "parquet":
        Dataset.from_dict(rows).to_parquet(file)
    elif kind == "csv":
        pd.DataFrame(rows).to_csv(file, index=False)
    else:
        pd.DataFrame(rows).to_json(file, orient="records", lines=True)
    task = MultipleChoice(
        name="multiple_choice", **{"files": {"train": str(file), "validation": str(file)}, **settings}
    )
    task.setup_tokenizer(tokenizer)
    task.setup("fit")
    return task


def test_the_option_stands_in_the_blank_or_behind_the_question() -> None:
    assert put("the film was _ .", r"go\1od") == r"the film was go\1od ."
    assert put("it is ___ and _", "bad") == "it is bad and bad"
    assert put("is it good", "no") == "is it good no"
    assert put(None, "no") == "no"


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_hold_what_the_tokenizer_makes_of_each_option(tmp_path: Path, tokenizer: Any, side: str) -> None:
    tokenizer.padding_side = side
    batch = in_order(make(tmp_path, tokenizer))
    first = [text for text in ROWS["article"] for _ in range(3)]
    asked = zip(ROWS["question"], ROWS["options"], strict=True)
    second = [put(question, option) for question, options in asked for option in options]
    expected = tokenizer(first, second, padding=True, return_tensors="pt")
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert batch[name].shape == (3, 3, batch["input_ids"].shape[2])
        assert torch.equal(batch[name].flatten(0, 1), expected[name]), name
    assert batch["labels"].tolist() == [0, 1, 2]


def test_length_is_the_longest_option_s(tmp_path: Path, tokenizer: Any) -> None:
    task = make(tmp_path, tokenizer)
    lengths = task._rows["train"]["length"][:]
    batch = in_order(task)
    assert lengths == batch["attention_mask"].sum(-1).amax(-1).tolist()
    assert make(tmp_path, tokenizer, length_max=lengths[0]).report["left_out"]["train"] == sum(
        length > lengths[0] for length in lengths
    )


def test_a_budget_of_tokens_counts_all_options(tmp_path: Path, tokenizer: Any) -> None:
    task = make(tmp_path, tokenizer)
    taken = sorted(3 * length for length in task._rows["train"]["length"][:])
    two = make(tmp_path, tokenizer, tokens_per_batch=max(2 * taken[1], taken[2]))
    assert [batch["input_ids"].numel() for batch in two.val_dataloader()] == [taken[2], 2 * taken[1]]
    with pytest.raises(SkimError, match=f"train: a row takes {taken[2]} tokens of a batch"):
        make(tmp_path, tokenizer, tokens_per_batch=taken[2] - 1)


def test_the_article_is_cut_and_question_and_option_survive(tmp_path: Path, tokenizer: Any) -> None:
    rows = {**ROWS, "article": ["a good film", "a " * 200, "soup"]}
    # the second fills most of the room, the third more than all
    rows["question"] = [ROWS["question"][0], "is it good and is it not bad", "it is very " * 40]
    task = make(tmp_path, tokenizer, rows, max_length=16)
    batch = in_order(task)
    assert batch["input_ids"].shape == (3, 3, 16)
    assert task.report["truncated"] == {"train": 2, "validation": 2}
    ends = tokenizer([put(rows["question"][1], option) for option in ROWS["options"][1]]).input_ids
    for ids, end in zip(batch["input_ids"][1], ends, strict=True):
        assert ids.tolist()[-len(end) + 1 :] == end[1:]
    assert (batch["attention_mask"][2].sum(-1) == 16).all()  # cut too, where nothing else could be


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["A", "B", "C"], [0, 1, 2]),
        ([2, 0, 1], [2, 0, 1]),
        (["very bad", "it is", "soup"], [2, 0, 2]),
        ([2.0, 0.0, 1.0], [2, 0, 1]),
        (["C", "it is not", "A"], [2, 1, 0]),
        (["2", "0", "1"], [2, 0, 1]),
        (["C", " it is not", "0"], [2, 1, 0]),
    ],
)
def test_answers_are_letters_numbers_or_texts(
    tmp_path: Path, tokenizer: Any, answers: list[Any], expected: list[int]
) -> None:
    task = make(tmp_path, tokenizer, {**ROWS, "answer": answers}, kind="parquet")
    assert in_order(task)["labels"].tolist() == expected


def test_a_csv_file_has_a_column_for_each_option(tmp_path: Path, tokenizer: Any) -> None:
    columns = {f"option {i}": [options[i] for options in ROWS["options"]] for i in range(3)}
    rows = {**{name: ROWS[name] for name in ("article", "question", "answer")}, **columns}
    task = make(tmp_path, tokenizer, rows, kind="csv", option_columns=list(columns))
    other = make(tmp_path, tokenizer)
    for name, tensor in in_order(other).items():
        assert torch.equal(in_order(task)[name], tensor), name


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_number_is_the_option_that_says_it_and_true_is_no_number(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    def labels(options: list[str], answer: Any) -> list[int]:
        rows: dict[str, list] = {"article": ["soup"], "question": ["is it"], "answer": [answer]}
        columns = {f"option {i}": [option] for i, option in enumerate(options)}
        if kind == "jsonl":
            return in_order(make(tmp_path, tokenizer, {**rows, "options": [options]}))["labels"].tolist()
        task = make(tmp_path, tokenizer, {**rows, **columns}, kind=kind, option_columns=list(columns))
        return in_order(task)["labels"].tolist()

    assert labels(["1", "2", "3"], 2) == labels(["1", "2", "3"], "2") == [1]
    assert labels(["2.5", "10", "2"], 2) == [2]
    assert labels(["not", "film", "soup"], 2) == [2]
    assert (
        labels(["True", "False"], True) == labels(["true", "false"], True) == labels(["True", "False"], "True") == [0]
    )
    assert labels(["soup", "False"], False) == [1]
    with pytest.raises(
        SkimError, match=r"(?s)row 1, column 'answer': 0 is none of the 3 options.*if no option is a nu"
    ):
        labels(["1", "2", "3"], 0)
    with pytest.raises(SkimError, match="row 1, column 'answer': 'True' is none of the 2 options"):
        labels(["yes", "no"], True)


def test_a_column_called_labels_is_any_other(tmp_path: Path, tokenizer: Any) -> None:
    rows = {"labels": ROWS["article"], **{name: ROWS[name] for name in ("question", "options", "answer")}}
    assert in_order(make(tmp_path, tokenizer, rows, text_column="labels"))["labels"].tolist() == [0, 1, 2]


def test_endings_without_a_question(tmp_path: Path, tokenizer: Any) -> None:
    rows = {name: ROWS[name] for name in ("article", "options", "answer")}
    batch = in_order(make(tmp_path, tokenizer, rows, question_column=None))
    assert batch["input_ids"][0, 0][batch["attention_mask"][0, 0] > 0].tolist() == (
        tokenizer("a good film", "good").input_ids
    )


WRONG = {
    "null article": ({"article": ["a", None, "b"]}, "row 2, column 'article': there is no text"),
    "null question": ({"question": ["a", "b", None]}, "row 3, column 'question': there is no text"),
    "answer beyond": (
        {"answer": ["A", "D", "B"]},
        "row 2, column 'answer': 'D' is none of the 3 options.*A to C, an option's text, or 0 to 2",
    ),
    "number beyond": ({"answer": [0, 1, 3]}, "row 3, column 'answer': 3 is none of the 3 options"),
    "no such text": ({"answer": ["good", "so", "soup"]}, "row 2, column 'answer': 'so' is none of"),
    "no answer": ({"answer": ["A", None, "B"]}, "row 2, column 'answer': there is not a label"),
    "fewer options": (
        {"options": [["a", "b", "c"], ["a", "b"], ["a", "b", "c"]]},
        "row 2, column 'options': 2 options, and other rows have 3",
    ),
    "first has more": (
        {"options": [["a", "b", "c", "d"], ["a", "b", "c"], ["a", "b", "c"]]},
        "row 1, column 'options': 4 options, and other rows have 3",
    ),
    "null options": (
        {"options": [["a", "b", "c"], ["a", "b", "c"], None]},
        "row 3, column 'options': 0 options, and other rows have 3",
    ),
    "null option": (
        {"options": [["a", "b", "c"], ["a", None, "c"], ["a", "b", "c"]]},
        "row 2, column 'options': option 2 is not a text",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_rows_are_named_or_skipped(tmp_path: Path, tokenizer: Any, case: str) -> None:
    change, message = WRONG[case]
    rows = {**ROWS, **change}
    with pytest.raises(SkimError, match=f"(?s)rows.parquet, {message}.*on_bad_row=skip"):
        make(tmp_path, tokenizer, rows, kind="parquet")
    task = make(tmp_path, tokenizer, rows, kind="parquet", on_bad_row="skip")
    assert task.report["skipped"] == {"train": 1, "validation": 1}
    assert in_order(task)["input_ids"].shape[:2] == (2, 3)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"options": ["a", "b", "c"]}, {}, "column 'options' holds string and not lists of texts"),
        ({"options": [["a"], ["b"], ["c"]]}, {}, "column 'options': rows of 1 options leave nothing to choose"),
        ({}, {"options_column": "endings"}, "no column of options 'endings'. Its columns: article, .*option_columns"),
        ({}, {"option_columns": ["a", "b"]}, "no text column 'a'"),
        ({}, {"option_columns": ["a"]}, "there is nothing to choose"),
        ({}, {"text_column": "text"}, "no text column 'text'.*task.text_column="),
    ],
)
def test_wrong_files(
    tmp_path: Path, tokenizer: Any, change: dict[str, list], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SkimError, match=f"(?s){message}"):
        make(tmp_path, tokenizer, {**ROWS, **change}, kind="parquet", **settings)


def test_rows_of_lists_of_lists_in_any_order() -> None:
    table = Dataset.from_dict({"input_ids": [[[1], [2, 3]], [[4, 5, 6], []], [[7], [8]]], "label": [0, 1, 2]})
    batch = Rows(table, {"input_ids": 9})[[2, 0]]
    assert batch["input_ids"].tolist() == [[[7, 9], [8, 9]], [[1, 9], [2, 3]]]
    assert batch["attention_mask"].tolist() == [[[1, 0], [1, 0]], [[1, 0], [1, 1]]]
    assert Rows(table, {"input_ids": 9}, left=True)[[1]]["input_ids"].tolist() == [[[4, 5, 6], [9, 9, 9]]]
    assert batch["label"].tolist() == [2, 0]


# ---- whole runs ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose predictors disagree about tokens."""
    import skim

    folder = tmp_path_factory.mktemp("runs") / "one"
    size = ["task.max_train_samples=48", "task.max_eval_samples=24", "task.batch_size=8", "train.max_steps=3"]
    quick = ["hardware=cpu", "hardware.threads=1", "train.calibrate=0", "method.margin=0", "callbacks.progress=false"]
    timed = ["benchmark.samples=4", "benchmark.batch_sizes=[2]", "benchmark.repeats=1"]
    cfg = composed("task=builtin_choices", "method=transkimmer", *size, *quick, *timed)
    results = train(cfg, folder, "").results
    assert set(results.latency["2"]) == {"padded_hf", "packed_dense", "packed"}
    assert set(results.metrics) == {"accuracy", "loss"}
    loaded = load(asked(folder))
    torch.manual_seed(0)
    for predictor in walk_of(loaded.parts.model).method.predictors.values():
        torch.nn.init.normal_(predictor[-1].weight, std=0.5)
    skim.save_pretrained(loaded.parts.model, folder / "model")
    return folder


def asked(folder: Path, *overrides: str) -> Any:
    return looking(folder, "max_samples=24", *overrides)


def test_packed_and_masked_agree_on_options(folder: Path) -> None:
    loaded = load(asked(folder))
    model = loaded.parts.model
    for batch in loaded.parts.task.val_dataloader():
        outputs = {}
        for name in ("packed", "masked"):
            with execution(model, name), torch.no_grad():
                outputs[name] = model(**accepted(model, batch)).logits
        assert outputs["packed"].shape == (len(batch["row"]), 4)
        torch.testing.assert_close(outputs["packed"], outputs["masked"], atol=1e-5, rtol=1e-5)
        kept = model.trace.counts()
        assert kept.shape[1] == 4 * len(batch["row"])
        assert len(set((kept[-1] / kept[0]).tolist())) > 1, "sequences lose different shares"


def test_metrics_and_predictions_of_a_run(folder: Path) -> None:
    evaluate(asked(folder, "what=metrics"))
    metrics = json.loads((folder / "evaluation.json").read_text())["metrics"]
    evaluate(asked(folder, "what=predict", "split=validation"))
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 24
    right = [line["prediction"] == line["label"] for line in lines]
    assert sum(right) / 24 == pytest.approx(metrics["accuracy"])
    assert all(0.25 <= line["probability"] <= 1 and len(line["options"]) == 4 for line in lines)


def test_depth_counts_the_tokens_of_all_options(folder: Path) -> None:
    evaluate(asked(folder, "what=depth", "depth.samples=8"))
    depth = json.loads((folder / "results.json").read_text())["depth"]
    loaded = load(asked(folder))
    model, tokenizer = loaded.parts.model, loaded.parts.tokenizer
    batches = loaded.parts.task.sample_batches(8, 8)
    assert depth["tokens"]["all"]["count"] == sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert depth["tokens"]["[CLS]"] == {"mean": 4.0, "count": 32}
    assert set(depth["corrupted"]) >= {"masked", "untouched"}
    (batch,) = batches
    one = {name: tensor[3, 1:2] for name, tensor in batch.items() if tensor.dim() == 3}
    assert torch.equal(survived(model, batch)[3, 1:2], survived(model, one))
    depths = Depths(4)
    by_token(model, tokenizer, [one], depths)
    assert depths.to_dict()["tokens"]["[CLS]"]["count"] == 1


def test_other_looks_at_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(asked(folder, "what=tokens", "text=the waiter opened the window"))
    assert "waiter" in (folder / "tokens.html").read_text()
    evaluate(asked(folder, "what=curve", "shifts=[1,-1]"))
    one, other = json.loads((folder / "curve.json").read_text())
    assert one["relative_flops"] > other["relative_flops"]
    quick = ["benchmark.samples=4", "benchmark.train_batch_size=4", "benchmark.repeats=1"]
    evaluate(asked(folder, "what=throughput", *quick))
    assert json.loads((folder / "results.json").read_text())["training"]["samples"] == 4


def test_a_method_that_reads_the_head_says_that_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(SkimError, match=r"(?s)BertForMultipleChoice gives no single prediction"):
        train(composed("task=builtin_choices", "method=early_exit", "hardware=cpu"), tmp_path / "run", "")


def test_the_uncompressed_self_teaches(tmp_path: Path, folder: Path) -> None:
    """And what it says of a batch is (B, C)."""
    size = ["task.max_train_samples=16", "task.max_eval_samples=8", "task.batch_size=8", "train.max_steps=2"]
    quick = ["hardware=cpu", "hardware.threads=1", "benchmark.enabled=false", "callbacks.progress=false"]
    distilled = ["train.distill=0.5", "train.distill_from=self", f"init_from={folder}"]
    cfg = composed("task=builtin_choices", "method=topk", *size, *quick, *distilled)
    assert train(cfg, tmp_path / "run", "").results.status == "done"
