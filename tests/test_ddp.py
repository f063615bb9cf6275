"""Two real processes (gloo): a sweep runs every job once, and what is learned is the same on both; bf16 on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import torch

from skim.lightning.recipe import train
from tests.runs import ROOT, SMALL, on_two_ranks, small


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
            "train.eval_every=1",
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
    assert "sync_dist" not in done.stderr, "what is logged of an evaluation is the same on both ranks"
    sweeps = list((tmp_path / "sweeps").iterdir())
    assert len(sweeps) == 1
    found = sorted(sweeps[0].glob("*/results.json"))
    rates = [json.loads(path.read_text())["config"]["train"]["lr"] for path in found]
    assert sorted(rates) == [1e-4, 2e-4]
    weights = [torch.load(p.parent / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for p in found]
    assert all(state["model.method.budget.last"] > 0 for state in weights), "the budget was not steered"
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0]), "both jobs trained the same"
    for path in found:
        results = json.loads(path.read_text())
        assert results["metrics"]["accuracy"] >= 0
        assert results["checkpoints"][results["exported"]]["metric"] == results["metrics"]["accuracy"]
        best = torch.load(path.parent / "checkpoints" / "best.ckpt", weights_only=True)
        assert 1 <= best["global_step"] <= 3


RANK = """
import sys
from pathlib import Path
import torch
from tests.lightning.test_stages import watched

folder, rank, *overrides = sys.argv[1:]
run, steps = watched(Path(folder) / "run", *overrides)
torch.save([vars(step) for step in steps], Path(folder) / f"rank{rank}.pt")
"""


def test_both_ranks_learn_the_same_thresholds_and_then_freeze_them(tmp_path: Path) -> None:
    """In the hard stage thresholds get no gradient, and DDP would wait for it; each rank calibrates for itself."""
    overrides = [
        "method=ltp",
        "method.target=0.6",
        "train.max_steps=6",
        "train.lr=1e-3",
        "task.max_eval_samples=32",
    ]
    one, other = on_two_ranks(RANK, tmp_path, *overrides)
    assert [step["stage"] for step in one] == ["soft"] * 3 + ["hard"] * 3
    assert [step["execution"] for step in one] == ["masked"] * 3 + ["packed"] * 3
    assert one[0]["flops"] != other[0]["flops"] or one[3]["flops"] != other[3]["flops"], "both saw the same data"
    for mine, theirs in zip(one, other, strict=True):
        for name in ("delta", "weight"):
            assert torch.equal(mine[name], theirs[name]), f"{name} differs in step {mine['step']}"
        assert mine["shift"] == theirs["shift"]
    assert (one[0]["delta"] == 0).all()
    assert (one[2]["delta"] != 0).any()
    assert all(torch.equal(step["delta"], one[3]["delta"]) for step in one[3:])
    assert one[3]["shift"] != 0
    assert all(not torch.equal(one[i]["weight"], one[i + 1]["weight"]) for i in range(5))


def test_thresholds_learn_in_mixed_precision(tmp_path: Path) -> None:
    """They move by less than bf16 can tell apart from their start."""
    train(small("method=ltp", "hardware.precision=bf16-mixed", "train.max_steps=6", "method.target=0.6"), tmp_path, "")
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {torch.float32}
    assert all(torch.isfinite(tensor).all() for tensor in state.values() if tensor.is_floating_point())
    delta = state["model.method.delta"]
    assert (delta != 0).all()
    assert delta.abs().max() < 0.01
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["status"] == "done"
    assert all(value == value for value in results["readings"].values())


def test_layers_that_do_not_run_keep_their_weights_where_ddp_waits_for_gradients(tmp_path: Path) -> None:
    with mock.patch.dict(os.environ):  # else the rank stays, and trainers of later tests join a group of one by it
        try:
            train(small("method=layer_drop", "hardware.strategy=ddp", "train.max_steps=3"), tmp_path, "")
        finally:
            torch.distributed.destroy_process_group()
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    norms = [state[f"model.bert.encoder.layer.{i}.output.LayerNorm.weight"] for i in range(4)]
    assert [bool((norm == 1).all()) for norm in norms] == [False, False, True, True], "they begin as ones"
