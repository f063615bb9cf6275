"""GLUE from training to the leader board's files, and its metrics beside scikit-learn's and SciPy's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from skim.errors import SkimError
from skim.lightning.looks import evaluate
from skim.lightning.recipe import train
from tasks.glue import AX, SPECS, Glue
from tests.runs import composed, looking
from tests.tasks import samples
from tests.tasks.test_every_task import ONCE, backbones  # noqa: F401
from tests.tasks.test_glue import real_data

SCORES: dict[str, Any] = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "matthews": matthews_corrcoef,
    "pearson": lambda wanted, found: pearsonr(wanted, found).statistic,
    "spearman": lambda wanted, found: spearmanr(wanted, found).statistic,
}


def scored(task: Any, wanted: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """The task's metrics of batches of several sizes."""
    metrics = task.metrics()
    for start, end in ((0, 7), (7, 8), (8, len(wanted))):
        batch = {"labels": torch.from_numpy(wanted[start:end])}
        task.update(metrics, SimpleNamespace(logits=torch.from_numpy(logits[start:end])), batch)
    return {name: value.item() for name, value in metrics.compute().items()}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", [name for name in SPECS if name != AX])
def test_metrics_are_those_of_scikit_learn_and_scipy(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    task, count = Glue(name=name), (9, 40, 277, 872, 5000)[seed]
    if task.head == "regression":
        wanted = (rng.integers(0, 26, count) / 5).astype(np.float32)  # with ties, as people's scores have
        logits = (0.5 * wanted[:, None] + rng.normal(2, 0.7, (count, 1))).astype(np.float32)
        found = logits[:, 0]
    else:
        wanted = rng.integers(0, task.num_labels, count)
        logits = rng.normal(size=(count, task.num_labels)).astype(np.float32)
        logits[np.arange(count), wanted] += seed / 4
        found = logits.argmax(1)
    values = scored(task, wanted, logits)
    assert tuple(values) == SPECS[name].metric_names
    for metric, value in values.items():
        assert value == pytest.approx(SCORES[metric](wanted.astype(float), found.astype(float)), abs=1e-9, rel=0), (
            metric
        )


def test_metrics_of_a_model_that_says_one_thing() -> None:
    """A collapsed run has a score, and the score is no praise."""
    labels = np.array([0, 1] * 6)
    assert scored(Glue(name="cola"), labels, np.tile([1.0, 0.0], (12, 1))) == {"matthews": 0.0}
    assert scored(Glue(name="mrpc"), labels, np.tile([1.0, 0.0], (12, 1))) == {"accuracy": 0.5, "f1": 0.0}
    numbers = labels.astype(np.float32)
    assert scored(Glue(name="stsb"), numbers, np.full((12, 1), 0.1, np.float32)) == {"pearson": 0.0, "spearman": 0.0}
    nan = scored(Glue(name="stsb"), numbers, np.full((12, 1), np.nan, np.float32))
    assert all(np.isnan(value) for value in nan.values())


def test_the_holdout_is_the_same_for_every_seed_and_leaves_the_official_split_for_the_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: Any,
) -> None:
    splits = samples.glue("rte")
    texts = {f"it is {'very ' * i}good": i % 2 for i in range(40)}
    rows = {"sentence1": list(texts), "sentence2": ["a"] * 40, "label": list(texts.values()), "idx": range(40)}
    monkeypatch.setitem(samples.SAMPLES, "rte", lambda: {**splits, "train": splits["train"].from_dict(rows)})
    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path))
    samples.write(tmp_path, "rte", composed("task=rte").task)
    parts = []
    for seed in (1, 2, 3):
        task = Glue(name="rte", holdout=0.1, seed=seed)
        task.setup_tokenizer(tokenizer)
        task.setup("fit")
        parts.append([set(task._raw[part]["sentence1"]) for part in ("train", "validation")])
        trained, held_out = parts[-1]
        assert (len(trained), len(held_out)) == (36, 4)
        assert trained | held_out == set(texts)
    assert parts[0] == parts[1] == parts[2]
    official = Glue(name="rte", holdout=0.1, eval_split="validation")
    official.setup_tokenizer(tokenizer)
    official.setup("validate")
    assert official._raw["validation"]["sentence1"][:] == splits["validation"]["sentence1"][:]


def run_of(task: str, mirror: Path, folder: Path, backbone: Path, *overrides: str) -> Any:
    """A run of one step on the samples."""
    samples.write(mirror, task, composed(f"task={task}").task)
    chosen = ["backbone=minilm", f"backbone.hub_id={backbone}"]
    return train(composed(f"task={task}", "method=dense", *ONCE, *chosen, *overrides), folder, "").results


def predicted(folder: Path, *overrides: str) -> None:
    evaluate(looking(folder, "what=predict", *overrides))


def table(file: Path) -> list[list[str]]:
    return [line.split("\t") for line in file.read_text().splitlines()]


FILES = {
    "cola": ("CoLA.tsv", {"0", "1"}),
    "sst2": ("SST-2.tsv", {"0", "1"}),
    "mrpc": ("MRPC.tsv", {"0", "1"}),
    "qqp": ("QQP.tsv", {"0", "1"}),
    "wnli": ("WNLI.tsv", {"0", "1"}),
    "qnli": ("QNLI.tsv", {"entailment", "not_entailment"}),
    "rte": ("RTE.tsv", {"entailment", "not_entailment"}),
    "mnli": ("MNLI-m.tsv", {"entailment", "neutral", "contradiction"}),
}


@pytest.mark.parametrize("name", ["sst2", "rte"])
def test_a_run_writes_the_file_of_its_test_split(
    name: str,
    tmp_path: Path,
    backbones: dict[str, Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path / "mirror"))
    run = tmp_path / "run"
    run_of(name, tmp_path / "mirror", run, backbones["bert"])
    predicted(run)
    file, answers = FILES[name]
    assert file in capsys.readouterr().out.replace("\n", "")
    header, *rows = table(run / file)
    assert header == ["index", "prediction"]
    assert [row[0] for row in rows] == [str(i) for i in range(12)]
    said = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    names = SPECS[name].label_names
    wanted = [row["prediction"] if name == "rte" else str(names.index(row["prediction"])) for row in said]
    assert [row[1] for row in rows] == wanted
    assert set(wanted) <= answers
    (run / file).unlink()
    predicted(run, "max_samples=5")  # not a whole split
    predicted(run, "split=validation")  # not what the leader board asks for
    assert not (run / file).exists()


def test_mnli_reports_both_splits_and_predicts_three(
    tmp_path: Path,
    backbones: dict[str, Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path / "mirror"))
    mirror, run = tmp_path / "mirror", tmp_path / "run"
    samples.write(mirror, AX, composed("task=ax").task)
    splits = samples.glue("mnli")
    mismatched = splits["validation_mismatched"].map(lambda _: {"label": 0})
    monkeypatch.setitem(samples.SAMPLES, "mnli", lambda: {**splits, "validation_mismatched": mismatched})
    metrics = run_of("mnli", mirror, run, backbones["bert"]).metrics
    assert set(metrics) == {"accuracy", "loss", "accuracy_mismatched", "loss_mismatched"}
    assert metrics["loss"] != metrics["loss_mismatched"]
    looks = {"what=metrics": metrics, "what=metrics split=validation_mismatched": None}
    for look, expected in looks.items():
        evaluate(looking(run, *look.split()))
        found = json.loads((run / "evaluation.json").read_text())["metrics"]
        expected = expected or {name: metrics[f"{name}_mismatched"] for name in ("accuracy", "loss")}
        assert found == pytest.approx(expected, abs=1e-5)
    for split, file in (("null", "MNLI-m.tsv"), ("test_mismatched", "MNLI-mm.tsv"), ("ax", "AX.tsv")):
        predicted(run, f"split={split}")
        header, *rows = table(run / file)
        assert (header, len(rows)) == (["index", "prediction"], 12)
        assert {row[1] for row in rows} <= FILES["mnli"][1]
    with pytest.raises(SkimError, match="all labels are -1"):
        evaluate(looking(run, "what=metrics", "split=ax"))


def test_files_of_all_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path / "mirror"))
    for name, (file, answers) in FILES.items():
        samples.write(tmp_path / "mirror", name, composed(f"task={name}").task)
        task = Glue(name=name)
        task.setup_tokenizer(tokenizer)
        task.setup("predict")
        names = SPECS[name].label_names
        found = [{"prediction": names[i % len(names)], "probability": 1.0} for i in range(12)]
        assert tmp_path / file in task.write_predictions(found, tmp_path)
        rows = table(tmp_path / file)[1:]
        assert {row[1] for row in rows} == answers
        if names[0] not in answers:
            assert [int(row[1]) for row in rows] == [i % len(names) for i in range(12)]


def test_similarities_are_numbers_from_0_to_5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path / "mirror"))
    samples.write(tmp_path / "mirror", "stsb", composed("task=stsb").task)
    task = Glue(name="stsb")
    task.setup_tokenizer(tokenizer)
    task.setup("predict")
    numbers = [-0.4, 0.0004, 2.71828, 5.2, *range(8)]
    task.write_predictions([{"prediction": float(number)} for number in numbers], tmp_path)
    wanted = [
        "0.000",
        "0.000",
        "2.718",
        "5.000",
        "0.000",
        "1.000",
        "2.000",
        "3.000",
        "4.000",
        "5.000",
        "5.000",
        "5.000",
    ]
    assert [row[1] for row in table(tmp_path / "STS-B.tsv")[1:]] == wanted


def test_own_test_files_are_no_submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    (tmp_path / "mine.csv").write_text("sentence\na good film\n")
    task = Glue(name="sst2", files={"test": str(tmp_path / "mine.csv")})
    task.setup_tokenizer(tokenizer)
    task.setup("predict")
    assert task.write_predictions([{"prediction": "positive"}], tmp_path) == [tmp_path / "predictions.jsonl"]


@real_data
@pytest.mark.parametrize(
    ("name", "file", "count"),
    [pytest.param("sst2", "SST-2.tsv", 1821, marks=pytest.mark.slow), ("stsb", "STS-B.tsv", 1379)],
)
def test_real_data(
    name: str,
    file: str,
    count: int,
    tmp_path: Path,
    backbones: dict[str, Path],  # noqa: F811
) -> None:
    """Every row of the published test split is in the file; which model predicts it is of no matter."""
    assert os.environ["SKIM_MIRROR"]
    chosen = ["method=dense", "backbone=minilm", f"backbone.hub_id={backbones['bert']}"]
    train(composed(f"task={name}", *ONCE, *chosen), tmp_path / "run", "")
    evaluate(looking(tmp_path / "run", "what=predict", "max_samples=10000"))
    header, *rows = table(tmp_path / "run" / file)
    assert header == ["index", "prediction"]
    assert [int(row[0]) for row in rows] == list(range(count))
