"""Malformed files on the way that a user takes: ``evaluate.py`` ends in a few lines, and leaves the run as it was."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from skim.lightning.recipe import train
from tests.runs import Refused, small

GOOD = b"text,label\nthe film is good,positive\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    train(
        small("task=builtin_pairs", "method=dense", "train.max_steps=1", "train.calibrate=0"), folder, "python train.py"
    )
    return folder


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", b"a,b\n1,2\n"),
        ("x.csv", b'text,label\n"the film,positive\n'),
        ("x.csv", b"\xff\xfe\x00"),
        ("x.csv.gz", gzip.compress(GOOD)[:-9]),
        ("x.jsonl", b'{"text": \n'),
        ("x.json", b"[" * 5000),
        ("x.parquet", b"PAR1 nothing PAR1"),
        ("x.csv", b""),
    ],
    ids=["columns", "quotes", "bytes", "cut", "json", "depth", "parquet", "empty"],
)
def test_a_run_whose_data_are_malformed(
    tmp_path: Path, run: Path, name: str, content: bytes, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / name
    file.write_bytes(content)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said = refused("evaluate.py", f"ckpt={run}", f"+overrides.task.files.validation={file}", "hardware.accelerator=cpu")
    assert name in said
    assert len(said.strip().splitlines()) <= 4
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
