"""Sweeps over two real processes (gloo): every job once, in one sweep folder, with equal weights on both ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from tests.runs import SMALL

ROOT = Path(__file__).resolve().parents[1]


def test_a_sweep_with_ddp_runs_each_job_once_and_learns_alike(tmp_path: Path) -> None:
    """Lightning's own launcher repeats the whole sweep in every rank, in a second folder, and hangs on the second."""
    overrides = [o for o in SMALL if not o.startswith("hardware")]
    done = subprocess.run(
        [
            sys.executable,
            "train.py",
            "-m",
            *overrides,
            "hardware=ddp_cpu",
            "method=transkimmer",
            "method.target=0.5",
            "train.max_steps=3",
            "train.lr=1e-4,2e-4",
            f"paths.runs={tmp_path}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sweeps = list((tmp_path / "sweeps").iterdir())
    assert len(sweeps) == 1
    found = sorted(sweeps[0].glob("*/results.json"))
    rates = [json.loads(path.read_text())["config"]["train"]["lr"] for path in found]
    assert sorted(rates) == [1e-4, 2e-4]
    weights = [torch.load(p.parent / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for p in found]
    assert all(state["model.method.steering.last"] > 0 for state in weights), "the budget was not steered"
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0]), "both jobs trained the same"
    for path in found:
        assert json.loads(path.read_text())["metrics"]["accuracy"] >= 0
