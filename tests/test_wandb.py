"""``logger=wandb``: what is written without an account, which numbers a dashboard shows, and how a run ends there."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skim.lightning import dashboard
from skim.lightning.module import SkimModule
from skim.lightning.recipe import train
from tests.runs import CONF, small

wandb = pytest.importorskip("wandb")
SHORT = ["logger=wandb", "train.max_steps=2", "callbacks.log_every=1", "task.max_train_samples=96"]


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)
    wandb.teardown()  # what it may have read of the real home in this process
    yield
    wandb.teardown()


def written(log: Path) -> dict[str, list[Any]]:
    """Records of an offline run's file by their kind; in LevelDB's format of logs, blocks of 32 KiB with chunks."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = log.read_bytes(), 7, b""  # behind the file's own header
    found: dict[str, list[Any]] = {}
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # too little of the block for a chunk's header
            place += left
            continue
        length, part = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if part in (1, 4):  # a whole record, or its last part
            record = Record()
            record.ParseFromString(whole)
            kind, whole = record.WhichOneof("record_type"), b""
            found.setdefault(kind, []).append(getattr(record, kind))
    return found


@pytest.mark.usefixtures("no_account")
def test_without_a_key_the_run_is_written_offline(tmp_path: Path) -> None:
    train(small("method=dense", *SHORT, "task.max_eval_samples=8"), tmp_path / "run", "train.py")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "done"
    wandb.teardown()  # its service writes in blocks
    (offline,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    (log,) = offline.glob("run-*.wandb")
    records = written(log)
    assert records["run"][0].run_group == "builtin"
    summary = {item.key: item.value_json for record in records["summary"] for item in record.update}
    assert json.loads(summary["val/accuracy"]) == results["metrics"]["accuracy"]
    assert json.loads(summary["status"]) == "done"
    assert [record.exit_code for record in records["exit"]] == [0]


class Board:
    """Stands in for a W&B run and writes down what it is told."""

    id = name = "fake"

    def __init__(self, **settings: Any) -> None:
        self.settings, self.history, self.summary = settings, [], {}
        self.config: dict[str, Any] = {}
        self.ended: int | None = None
        self.of_metrics: list[Any] = []

    def log(self, values: dict[str, Any]) -> None:
        self.history.append(values)


@pytest.fixture
def boards(monkeypatch: pytest.MonkeyPatch) -> list[Board]:
    boards: list[Board] = []

    def init(**settings: Any) -> Board:
        boards.append(Board(**settings))
        monkeypatch.setattr(wandb, "run", boards[-1])
        return boards[-1]

    def finish(exit_code: int | None = None) -> None:
        if wandb.run is not None:
            wandb.run.ended = exit_code
        monkeypatch.setattr(wandb, "run", None)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "finish", finish)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return boards


def test_curves_are_those_of_training_and_the_summary_is_that_of_the_results(
    tmp_path: Path, boards: list[Board]
) -> None:
    """After training came three more points of val/*, the last of them in masked execution."""
    overrides = ["method=transkimmer", "method.margin=0", "train.max_steps=3", "train.eval_every=3"]
    timed = ["benchmark.enabled=true", "benchmark.samples=4", "benchmark.batch_sizes=[2]", "benchmark.repeats=1"]
    results = train(small(*SHORT, *overrides, *timed), tmp_path / "run", "").results
    (board,) = boards
    assert sum("val/accuracy" in row for row in board.history) == 1
    steps = [row for row in board.history if "train/loss" in row]
    assert len(steps) == 3
    assert [row["train/lr"] for row in steps] == pytest.approx([5e-5, 5e-5, 2.5e-5])
    assert [row["train/method_lr"] for row in steps] == pytest.approx([1e-3, 1e-3, 0.5e-3])
    for row in steps:
        assert row["train/grad_norm"] > 0
        assert row["train/method_grad_norm"] > 0
    assert board.summary["val/accuracy"] == results.metrics["accuracy"]
    assert board.summary["val/relative_flops"] == results.relative_flops
    assert board.summary["val/keep_ratio/layer_3"] == results.keep_ratio[3]
    assert results.masked_metrics is not None
    assert board.summary["masked/loss"] == results.masked_metrics["loss"]
    assert results.latency is not None
    measured = {name: ms["median_ms"] for name, ms in results.latency["2"].items()}
    assert board.summary["latency/batch_2/packed_ms"] == measured["packed"]
    speedup = measured["packed_dense"] / measured["packed"]
    assert board.summary["latency/batch_2/speedup_over_packed_dense"] == pytest.approx(speedup)
    assert (board.summary["status"], board.ended) == ("done", 0)


@pytest.mark.parametrize(
    ("error", "noted"), [(RuntimeError("out of luck"), "RuntimeError"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_run_that_ends_by_an_error_ends_so_on_the_dashboard(
    error: BaseException, noted: str, tmp_path: Path, boards: list[Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(SkimModule, "training_step", fail)
        with pytest.raises(type(error)):
            train(small("method=dense", *SHORT), tmp_path / "one", "")
    train(small("method=dense", *SHORT), tmp_path / "two", "")
    one, two = boards
    assert (one.ended, one.summary["status"]) == (1, "failed")
    assert noted in one.summary["notes"]
    assert (two.ended, two.summary["status"]) == (0, "done")


def test_the_jobs_of_a_sweep_share_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hydra

    found: list[str | None] = [dashboard.sweep()]

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
    def main(cfg: Any) -> None:
        found.append(dashboard.sweep())

    for mode, folder in (("-m", "hydra.sweep.dir"), ("", "hydra.run.dir")):
        arguments = ["train.py", mode, "seed=1", "method=dense", f"{folder}={tmp_path / 'tuesday'}"]
        monkeypatch.setattr(sys, "argv", [argument for argument in arguments if argument])
        main()
    assert found == [None, "tuesday", None]
