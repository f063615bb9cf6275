"""A disk that is full: every file of a run is whole or not there, and the error says so."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

import skim
from skim.errors import SkimError
from skim.files import whole
from skim.lightning.recipe import train
from skim.predict import main as predict
from skim.report.__main__ import main as report
from skim.resume import LAST
from tests.lightning.test_resume_exactly import COMMON
from tests.pipelines.models import saved
from tests.runs import composed

RUN = [
    "task=builtin",
    *COMMON,
    "method=dense",
    "task.train_rows=52",
    "train.evals_per_epoch=2",
    "callbacks.sentences=2",
]
PAGE = 4096


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of some bytes that a test may fill."""
    folder.mkdir()
    options = ["-o", f"size={size // PAGE * PAGE}", "none", str(folder)]
    if subprocess.run(["mount", "-t", "tmpfs", *options], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def check_whole(folder: Path) -> list[str]:
    """Read every file of a run; returns their names."""
    names = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        names.append(path.relative_to(folder).as_posix())
        if path.suffix == ".ckpt":
            assert whole(path), path
            torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".yaml":
            assert OmegaConf.load(path)
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".csv":
            assert len({len(row) for row in csv.reader(path.read_text().splitlines())}) == 1
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>")
        else:
            assert path.suffix in (".md", ".txt"), f"{path}: what is whole?"
    return names


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run with all room, and the bytes that it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train(composed(*RUN), folder / "run", "")
    return folder / "run", sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_full(share: float, undisturbed: tuple[Path, int], tmp_path: Path) -> None:
    """A run on a disk with room for a share of it: it ends in two lines, and goes on once there is room."""
    with disk(tmp_path / "disk", int(undisturbed[1] * share)) as folder:
        results, said = None, None
        try:
            results = train(composed(*RUN), folder / "run", "").results
        except SkimError as error:
            said = str(error)
        assert (said is None) == (results is not None)
        assert said is None or ("for the disk is full" in said and len(said.splitlines()) <= 3)
        names = check_whole(folder / "run") if (folder / "run").exists() else []
        print(f"room for {share:.2f} of a run: {'done' if results else 'full'}, {len(names)} files, all whole")
        if LAST.as_posix() in names and results is None:
            shutil.copytree(folder / "run", tmp_path / "run")
    if (tmp_path / "run").exists():
        done = train(composed(*RUN, f"resume={tmp_path}/run/{LAST}"), tmp_path / "run", "").results
        expected = json.loads((undisturbed[0] / "results.json").read_text())
        assert done.metrics == expected["metrics"]


@pytest.mark.parametrize("share", [0.02, 0.6])
def test_a_run_on_a_full_disk(share: float, undisturbed: tuple[Path, int], tmp_path: Path) -> None:
    check_full(share, undisturbed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.005, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.2])
def test_a_run_on_disks_of_many_sizes(share: float, undisturbed: tuple[Path, int], tmp_path: Path) -> None:
    check_full(share, undisturbed, tmp_path)


def exported(run: Path, full: Path) -> None:
    skim.save_pretrained(skim.from_pretrained(run / "model"), full / "model")


def tokenised(run: Path, full: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", full / "cache")
        rows = "".join(f"a film {i},{i % 2}\n" for i in range(2000))
        for part in ("train", "validation"):
            (run.parent / f"{part}.csv").write_text(f"text,label\n{rows}")
        files = [f"task.files.{part}={run.parent}/{part}.csv" for part in ("train", "validation")]
        hub_id = saved("text-classification", run.parent / "bert")
        given = ["task=text", *files, "backbone=minilm", f"backbone.hub_id={hub_id}", *COMMON[6:]]
        train(composed(*given, "method=dense"), run.parent / "other", "")


def reported(run: Path, full: Path) -> None:
    assert report([str(run), "--out", str(full)]) == 2
    raise SkimError("for the disk is full")


def predicted(run: Path, full: Path) -> None:
    (run.parent / "texts.txt").write_text("a good film\n" * 500)
    assert predict([str(run), str(run.parent / "texts.txt"), str(full / "out.jsonl"), "--device", "cpu"]) == 2
    raise SkimError("for the disk is full")


@pytest.mark.parametrize("act", [exported, tokenised, reported, predicted])
def test_what_else_is_written_to_a_full_disk(
    act: Callable[[Path, Path], Any], undisturbed: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with disk(tmp_path / "disk", 8 * PAGE) as full:
        (full / "mine").write_bytes(bytes(3 * PAGE))
        with pytest.raises(SkimError) as caught:
            act(undisturbed[0], full)
        said = f"{caught.value}{capsys.readouterr().err}"
        assert "disk is full" in said or "No space left on device" in said
        for path in (path for path in full.rglob("*") if path.is_file() and path.name != "mine"):
            assert path.name.endswith((".part", ".lock", ".json")), f"{path} is half-written"
            if path.suffix == ".json":
                json.loads(path.read_text())
