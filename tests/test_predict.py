"""``python -m skim.predict``: files in, a JSON line for each row out, whole or not at all."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import skim
from skim import predict
from skim.pipelines.batches import Batched
from skim.predict import main
from tests.pipelines.models import inputs_of, saved, texts_of, tokenizer_of

TASK = "text-classification"


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(saved(TASK, tmp_path_factory.mktemp("model")))


def answers(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def scores(found: list[Any]) -> Any:
    return pytest.approx([answer["score"] for answer in found], abs=1e-5)


def test_a_file_of_every_kind(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    texts = [*texts_of(9), "", *texts_of(2, seed=1, longest=300)]  # an empty one, and longer ones than the model takes
    expected = skim.pipeline(TASK, model, device="cpu", truncation=True)(texts)
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts))
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8-sig") as file:  # as spreadsheets do
        csv.writer(file).writerows([["id", "text"], *([n, text] for n, text in enumerate(texts))])
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    for ending in ("txt", "jsonl", "csv", "parquet"):
        out = tmp_path / f"{ending}.jsonl"
        assert main([model, str(tmp_path / f"a.{ending}"), str(out), "--device", "cpu", "--batch-tokens", "80"]) == 0
        assert [one["score"] for one in answers(out)] == scores(expected)
        assert [one["label"] for one in answers(out)] == [one["label"] for one in expected]
    assert "12 texts in" in (said := capsys.readouterr().err)
    assert "relative FLOPs 1.000" in said
    assert sorted(path.suffix for path in tmp_path.iterdir()) == sorted([".txt", ".csv", ".parquet"] + [".jsonl"] * 5)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(texts)))
    assert main([model, "-", "-", "--device", "cpu", "--top-k", "1"]) == 0
    said = capsys.readouterr().out
    assert [json.loads(line)[0]["score"] for line in said.splitlines()] == scores(expected)


def test_an_interrupted_file_goes_on_and_a_strange_part_is_refused(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = texts_of(20)
    (tmp_path / "a.txt").write_text("\n".join(texts))
    command = [model, str(tmp_path / "a.txt"), str(tmp_path / "out.jsonl"), "--device", "cpu", "--window", "4"]
    whole, windows = Batched.answers, []

    def stopped(self: Any, window: list[str], *more: Any) -> Any:
        if len(windows) == 3:
            raise KeyboardInterrupt
        windows.append(window)
        return whole(self, window, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Batched, "answers", stopped)
        assert main(command) == 130
    part = tmp_path / "out.jsonl.part"
    assert len(answers(part)) == 12
    assert not (tmp_path / "out.jsonl").exists()
    with part.open("a") as file:
        file.write('{"label": "LAB')  # what a killed process leaves
    assert main([*command, "--top-k", "1"]) == 2
    assert "is of another command, which did not end.\nDelete it" in capsys.readouterr().err
    windows.clear()
    with monkeypatch.context() as patch:
        patch.setattr(
            Batched, "answers", lambda self, window, *more: windows.append(window) or whole(self, window, *more)
        )
        assert main(command) == 0
    assert "going on after row 12" in capsys.readouterr().err
    assert windows == [texts[12:16], texts[16:]]
    expected = skim.pipeline(TASK, model, device="cpu")(texts)
    assert [one["score"] for one in answers(tmp_path / "out.jsonl")] == scores(expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "out.jsonl"]


def test_an_input_that_was_changed_is_not_gone_on_with(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, out = tmp_path / "a.txt", tmp_path / "out.jsonl"
    texts.write_text("fine\nbad\n")
    about = {"model": model, "input": str(texts), "output": str(out), "device": "cpu", "task": TASK}
    (tmp_path / "out.jsonl.part").write_text('{"label": "0", "score": 1.0}\n')
    (tmp_path / "out.jsonl.part.json").write_text(json.dumps({**about, "files": predict.stamps(str(texts), model)}))
    texts.write_text("fine\nbad\nnew\n")
    assert main([model, str(texts), str(out), "--device", "cpu"]) == 2
    assert f"was begun before {texts} was changed" in capsys.readouterr().err
    assert len(answers(tmp_path / "out.jsonl.part")) == 1, "what is there stays as it is"


def test_a_disk_that_is_full_at_the_end_is_told_as_such(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is short stands in a buffer until then."""

    def full(file: int) -> None:
        if os.readlink(f"/proc/self/fd/{file}").endswith("out.jsonl.part"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "a.txt").write_text("fine\n")
    assert main([model, str(tmp_path / "a.txt"), str(tmp_path / "out.jsonl"), "--device", "cpu"]) == 2
    assert "out.jsonl was not written, for the disk is full" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_one_output_has_one_writer(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("fine\n")
    out = tmp_path / "out.jsonl"
    with predict.alone(out):
        assert main([model, str(tmp_path / "a.txt"), str(out), "--device", "cpu"]) == 2
    assert f"{out} is being written by another process.\nWait" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt"]


@pytest.mark.parametrize("task", ["question-answering", "token-classification", "fill-mask", "feature-extraction"])
def test_every_task(task: str, tmp_path: Path) -> None:
    folder = saved(task, tmp_path / "model")
    rows = [{"text": row} if isinstance(row, str) else row for row in inputs_of(task, 3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [str(folder), str(tmp_path / "a.jsonl"), str(tmp_path / "out.jsonl"), "--device", "cpu"]
    assert main(command + (["--task", task] if task == "feature-extraction" else [])) == 0
    expected = skim.pipeline(task, folder, tokenizer_of(), device="cpu")(inputs_of(task, 3))
    assert answers(tmp_path / "out.jsonl")[1] == json.loads(json.dumps(expected[1], default=float))


@pytest.mark.parametrize(
    ("file", "text", "options", "said"),
    [
        ("a.txt", None, [], "There is no file"),
        ("a.doc", "x", [], "is not read by its ending; .txt, .jsonl, .csv, .parquet"),
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}', [], "Row 2 has no text in text"),
        ("a.jsonl", '{"text": "a"}\n{"text"', [], "line 2, is not JSON"),
        ("a.parquet", "x", [], "cannot be read as Parquet"),
        ("a.txt", "a", ["--task", "fill-mask"], "It is one for text-classification"),
        ("a.txt", "a", ["--stride", "4"], "--stride is for token-classification and question-answering"),
        ("a.txt", "a", ["--threads", "0"], "--threads 0 must be at least 1"),
        ("a.txt", "a", ["--dtype", "int3"], "dtype=int3 is unknown"),
    ],
)
def test_what_cannot_be_answered(
    file: str,
    text: str | None,
    options: list[str],
    said: str,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if text is not None:
        (tmp_path / file).write_text(text)
    assert main([model, str(tmp_path / file), str(tmp_path / "out.jsonl"), "--device", "cpu", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error[error.index("error: ") :].splitlines()) <= 3  # before it, a bar of transformers may stand
    assert not (tmp_path / "out.jsonl").exists()


def test_an_output_that_cannot_be_written(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("a film")
    for name, said in (("out.csv", "must end in .jsonl"), ("none/out.jsonl", "There is no folder")):
        assert main([model, str(tmp_path / "a.txt"), str(tmp_path / name), "--device", "cpu"]) == 2
        assert said in capsys.readouterr().err


def test_a_full_disk_is_no_fault_of_a_row(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(io.StringIO):
        def write(self, line: str) -> int:
            raise OSError(28, "No space left on device")

    (tmp_path / "a.txt").write_text("a film")
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", Full())
        assert main([model, str(tmp_path / "a.txt"), "-", "--device", "cpu"]) == 2
    assert "stopped after row 0: [Errno 28] No space left on device" in capsys.readouterr().err


def test_a_row_that_the_pipeline_refuses_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved("fill-mask", tmp_path / "model")
    (tmp_path / "a.txt").write_text("a [MASK]\nno mask\n")
    assert main([str(folder), str(tmp_path / "a.txt"), str(tmp_path / "out.jsonl"), "--device", "cpu"]) == 2
    assert "a.txt, row 1 to 2: cannot be answered: No mask_token" in capsys.readouterr().err
