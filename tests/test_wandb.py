"""``logger=wandb`` without an account: a run that is written locally, and that asks nobody anything."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from skim.lightning.recipe import train
from tests.runs import small


def test_without_a_key_the_run_is_written_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)
    wandb.teardown()  # what it may have read of the real home in this process
    try:
        settings = ["method=dense", "logger=wandb", "train.max_steps=1", "callbacks.log_every=1"]
        train(small(*settings, "task.max_train_samples=32", "task.max_eval_samples=8"), tmp_path / "run", "train.py")
    finally:
        wandb.teardown()
    assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "done"
    (offline,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    (log,) = offline.glob("run-*.wandb")
    assert log.stat().st_size > 0
