"""Own files from training to prediction: labels travel with the model, bad rows are counted and told."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers
from rich.console import Console

from skim.errors import SkimError
from skim.lightning.looks import evaluate
from skim.lightning.recipe import train
from skim.report.table import print_run
from tests.runs import composed, looking
from tests.tasks.conftest import WORDS

TEXTS = ["a good film", "the soup was bad", "it is very good", "not a film"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on stars from 1 to 3, in a file without a header and with three bad rows, which is gone afterwards."""
    folder = tmp_path_factory.mktemp("own")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    transformers.BertModel(transformers.BertConfig(vocab_size=len(pieces), **SIZES)).save_pretrained(folder / "bert")
    tokenizer = transformers.BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=64)
    tokenizer.save_pretrained(folder / "bert")
    rows = [f'"{1 + i % 3}","{TEXTS[i % 4]}"' for i in range(40)]
    rows[5], rows[11], rows[12] = '"2"', '"two","it is"', '"","it is"'
    (folder / "train.csv").write_text("\n".join(rows))
    given = ["task.file_columns=[label,text]", "task.on_bad_row=skip", f"task.files.train={folder / 'train.csv'}"]
    cfg = composed(
        *("task=text", "method=dense", "backbone=minilm", f"backbone.hub_id={folder / 'bert'}", "hardware=cpu"),
        *("hardware.threads=1", "benchmark.enabled=false", "train.max_steps=1", "callbacks.progress=false", *given),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        train(cfg, folder / "run", "python train.py ...")
    (folder / "train.csv").unlink()
    return folder / "run"


def look(run: Path, *overrides: str) -> None:
    evaluate(looking(run, *overrides))


def test_the_model_knows_its_labels_and_the_results_what_was_skipped(run: Path) -> None:
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "1", "1": "2", "2": "3"}
    assert config["label2id"] == {"1": 0, "2": 1, "3": 2}
    results = json.loads((run / "results.json").read_text())
    assert results["skipped"] == {"train": 3}  # the rows held out are of the same file
    assert sum(results["samples"].values()) == 37
    said = io.StringIO()
    print_run(results, run, Console(file=said, width=100))
    assert "bad rows skipped: 3 (train)\n" in said.getvalue()


def test_another_file_is_evaluated_with_the_models_labels(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    rows: list[dict[str, Any]] = [{"text": text, "label": 3} for text in TEXTS]
    other.write_text("\n".join(map(json.dumps, rows)))
    look(run, "what=metrics", f"+overrides.task.files.validation={other}")
    once = json.loads((run / "evaluation.json").read_text())
    assert once["samples"] == {"validation": 4}
    # the same labels as texts, and one that the model does not know
    other.write_text("\n".join(json.dumps({**row, "label": "3"}) for row in rows))
    look(run, "what=metrics", f"+overrides.task.files.validation={other}")
    assert json.loads((run / "evaluation.json").read_text())["metrics"] == once["metrics"]
    other.write_text("\n".join(json.dumps({**row, "label": 0}) for row in rows))
    with pytest.raises(
        SkimError, match=r"(?s)other\.jsonl.*0 is not a label of this task.*Labels: 1, 2, 3\.|leaves no rows"
    ):
        look(run, "what=metrics", f"+overrides.task.files.validation={other}")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_without_labels_is_predicted(run: Path, tmp_path: Path, kind: str) -> None:
    new = tmp_path / f"new.{kind}"
    broken = {"csv": "x,y", "jsonl": "{"}[kind]
    lines = TEXTS if kind == "csv" else [json.dumps({"text": text}) for text in TEXTS]
    new.write_text("\n".join([*lines[:2], broken, *lines[2:]]))
    columns = "+overrides.task.file_columns=[text]"
    look(run, "what=predict", f"+overrides.task.files.test={new}", columns)
    found = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [row["text"] for row in found] == TEXTS
    assert {row["prediction"] for row in found} <= {"1", "2", "3"}
    with pytest.raises(SkimError, match="row 3: it "):
        look(run, "what=predict", f"+overrides.task.files.test={new}", columns, "+overrides.task.on_bad_row=error")


def test_predictions_pass_over_labels_that_the_model_does_not_know(run: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.csv"
    for labels, known in ((["1", "", "2", "3"], False), (["1", "3", "2", "soup"], False), (["1", "3", "2", "3"], True)):
        new.write_text("".join(f"{label},{text}\n" for label, text in zip(labels, TEXTS, strict=True)))
        look(run, "what=predict", f"+overrides.task.files.test={new}", "+overrides.task.on_bad_row=error")
        found = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
        assert [row["text"] for row in found] == TEXTS
        assert [row.get("label") for row in found] == (labels if known else [None] * 4)


def test_label_names_that_hydra_reads_as_numbers() -> None:
    from hydra.utils import instantiate

    for names, expected in (("[0,1]", ["0", "1"]), ("[-1,0,1]", ["-1", "0", "1"]), ("[true,false]", ["True", "False"])):
        for kind in ("text", "tagging"):
            task = instantiate(composed(f"task={kind}", f"task.label_names={names}").task)
            assert task.label_names == expected
            assert list(task.model_kwargs()["label2id"]) == expected
