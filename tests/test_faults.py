"""What may go wrong around a run: its clock, its folder's name, its data, and others at work beside it."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import pytorch_lightning as pl
import transformers

from skim.errors import SkimError
from skim.lightning.looks import evaluate
from skim.lightning.recipe import train
from skim.report.__main__ import main as report
from skim.train import start
from tests.runs import NARROW, SMALL, composed, small, watched_by
from tests.tasks import samples
from tests.tasks.conftest import WORDS

SHORT = ["method=dense", "train.max_steps=2", "task.max_train_samples=32", "task.max_eval_samples=16"]


class At(pl.Callback):
    """Does something behind the first step."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 1:
            self.act()


def test_a_clock_that_is_set_back_changes_no_duration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, passed = time.time(), itertools.count()
    monkeypatch.setattr(time, "time", lambda: now - 3600.0 * next(passed))
    results = train(small(*SHORT), tmp_path / "run", "").results
    assert results.status == "done"
    assert 0 < results.wall_seconds < 3600


@pytest.mark.parametrize(
    "name",
    [
        "what's=this, [then] {now} $(ls) %d ;#",
        pytest.param("a folder with  spaces", marks=pytest.mark.slow),
        pytest.param("Übung № 5 — 練習", marks=pytest.mark.slow),
        pytest.param("n" * 250, marks=pytest.mark.slow),
    ],
)
def test_a_run_may_lie_in_a_folder_of_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is trained there by the command, gone on with, looked at and reported of."""
    folder = tmp_path / name
    quoted = "'" + str(folder).replace("'", "\\'") + "'"
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["train.py", *SMALL, *SHORT, f"hydra.run.dir={quoted}"])
    start()
    assert json.loads((folder / "results.json").read_text())["status"] == "done"
    monkeypatch.setattr(sys, "argv", ["train.py", f"resume={quoted}", "train.max_steps=3", f"hydra.run.dir={quoted}"])
    start()
    assert json.loads((folder / "results.json").read_text())["steps"] == 3
    evaluate(composed(f"ckpt={quoted}", "hardware.accelerator=cpu", "what=metrics", config="evaluate"))
    assert (folder / "evaluation.json").is_file()
    assert report([str(folder)]) == 0
    assert "dense" in capsys.readouterr().out


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(pieces), **sizes)).save_pretrained(folder)
    transformers.BertTokenizer(vocab={one: i for i, one in enumerate(pieces)}, model_max_length=64).save_pretrained(
        folder
    )
    return folder


def write_own(folder: Path) -> list[str]:
    """Write own files; returns what a run on them is of."""
    lines = "".join(f"a {'good' if i % 2 else 'bad'} film {'very ' * (i % 5)},{i % 2}\n" for i in range(40))
    for part in ("train", "validation"):
        (folder / f"{part}.csv").write_text(f"text,label\n{lines}")
    return ["task=text", *(f"task.files.{part}={folder}/{part}.csv" for part in ("train", "validation"))]


def write_mirror(folder: Path) -> list[str]:
    """Write a mirror; returns what a run on its data is of."""
    samples.write(folder / "mirror", "sst2", composed("task=sst2").task)
    return ["task=sst2"]


@pytest.mark.parametrize("write", [write_own, write_mirror])
def test_data_that_change_or_vanish_during_a_run_are_those_that_it_began_with(
    write: Callable[[Path], list[str]], bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path / "mirror"))

    def change() -> None:
        shutil.rmtree(tmp_path / "mirror", ignore_errors=True)
        for file in tmp_path.glob("*.csv"):
            file.write_text("text,label\nanother film,0\n")

    given = [*write(tmp_path), "backbone=minilm", f"backbone.hub_id={bert}", *SMALL[len(NARROW) + 2 :], *SHORT]
    left, changed = (
        watched_by(At(act), composed(*given), tmp_path / name).results
        for name, act in (("left", lambda: None), ("changed", change))
    )
    assert left.metrics == changed.metrics
    assert changed.status == "done"


def test_a_run_goes_on_within_an_epoch_with_the_file_that_it_began_with(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    given = [*write_own(tmp_path), "backbone=minilm", f"backbone.hub_id={bert}", *SMALL[len(NARROW) + 2 :], *SHORT]
    given += ["task.batch_size=8", "callbacks.save_every=1"]
    train(composed(*given), tmp_path / "run", "")
    file = tmp_path / "train.csv"
    file.write_text(file.read_text().replace("good", "nice"))
    with pytest.raises(SkimError, match=r"in the middle of an epoch, .* content of task\.files\.train="):
        train(
            composed(*given, "train.max_steps=3", f"resume={tmp_path}/run/checkpoints/last.ckpt"), tmp_path / "on", ""
        )
