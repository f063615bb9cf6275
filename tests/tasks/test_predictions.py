"""What a run was evaluated on can be predicted: the same rows, their labels, and what is said of every class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from skim.errors import SkimError
from skim.lightning.looks import evaluate
from skim.lightning.recipe import train
from tests.runs import composed, looking

QUICK = ["hardware=cpu", "hardware.threads=1", "benchmark.enabled=false", "callbacks.progress=false"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on the built-in grammar's own words, in a file of 60 rows with a bad one, a fifth of them held out."""
    folder = tmp_path_factory.mktemp("predictions")
    rows: list[dict[str, Any]] = [{"text": f"row {i}", "label": ["no", "yes", "who knows"][i % 3]} for i in range(60)]
    rows[7]["label"] = None
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = [f"task.files.train={folder / 'rows.jsonl'}", "task.on_bad_row=skip", "task.holdout=0.2"]
    cfg = composed("task=text", "method=dense", "backbone=minilm", "train.max_steps=1", *tiny(folder), *QUICK, *given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        train(cfg, folder / "run", "")
    return folder / "run"


def tiny(folder: Path) -> list[str]:
    import transformers

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "row", *map(str, range(60))]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(pieces), **sizes)
    transformers.BertModel(config).save_pretrained(folder / "bert")
    tokenizer = transformers.BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=64)
    tokenizer.save_pretrained(folder / "bert")
    return [f"backbone.hub_id={folder / 'bert'}"]


def predicted(run: Path, *overrides: str) -> list[dict[str, Any]]:
    evaluate(looking(run, "what=predict", *overrides))
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("split", ["holdout", "validation"])
def test_held_out_rows_are_predicted_as_they_were_evaluated(run: Path, split: str) -> None:
    found = predicted(run, f"split={split}")
    results = json.loads((run / "results.json").read_text())
    assert len(found) == results["samples"]["validation"] == 12
    right = sum(row["prediction"] == row["label"] for row in found)
    assert right / len(found) == pytest.approx(results["metrics"]["accuracy"])
    labels = [row["label"] for row in found]
    assert [labels.count(name) for name in results["classes"]["names"]] == results["classes"]["rows"]
    for row in found:
        assert row["text"] == f"row {row['row'] - 1}", "its number in the file, from 1"
        assert row["label"] == ["no", "yes", "who knows"][(row["row"] - 1) % 3]
        shares = row["probabilities"]
        assert list(shares) == ["no", "who knows", "yes"]
        assert sum(shares.values()) == pytest.approx(1)
        assert row["probability"] == shares[row["prediction"]] == max(shares.values())


def test_the_held_out_rows_can_be_evaluated_by_name(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    metrics = results["metrics"]
    assert any("validation: its 12 rows hold" in note for note in results["notes"])
    for split in ("holdout", "validation"):
        evaluate(looking(run, f"split={split}"))
        found = json.loads((run / "evaluation.json").read_text())
        assert found["metrics"] == pytest.approx(metrics)
        assert any(f"{split}: its 12 rows hold" in note for note in found["notes"])


def test_a_run_that_held_no_rows_out_says_so(run: Path) -> None:
    with pytest.raises(SkimError, match=r"split=holdout: task=text holds no rows out, as task.holdout is null"):
        predicted(run, "split=holdout", "+overrides.task.holdout=null")
    file = run.parent / "rows.jsonl"
    with pytest.raises(SkimError, match=r"holds no rows out, as it is evaluated on .*files.validation=.*rows.jsonl"):
        predicted(run, "split=holdout", f"+overrides.task.files.validation={file}")
    found = predicted(run, "split=validation", f"+overrides.task.files.validation={file}")
    assert len(found) == 60, "a file of other rows is what split=validation means"
    with pytest.raises(SkimError, match=r"has no test data: .*\nOr predict the rows that were held .*: split=holdout"):
        predicted(run)
