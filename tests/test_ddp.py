"""Two real processes (gloo): a sweep runs every job once, and what is learned is the same on both; bf16 on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from skim.lightning.callbacks.finite import NonFinite
from skim.lightning.recipe import train
from skim.train import start
from tests.lightning.test_finite import Spoils
from tests.lightning.test_method_after import recorded, same
from tests.lightning.test_stages import watched
from tests.ranks import COMMON, ROWS, RUNS, config, differences, trained
from tests.runs import ROOT, environment, small, watched_by


@pytest.mark.parametrize("rates", [[1e-4], pytest.param([1e-4, 2e-4], marks=pytest.mark.slow)], ids=len)
def test_a_sweep_with_ddp_runs_each_job_once_and_learns_alike(
    rates: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Lightning's own launcher repeats the whole sweep in every rank, in a second folder, and hangs on the second."""
    common = [option for option in COMMON if not option.startswith(("train.lr", "train.max_steps"))]
    command = [
        *("-m", *ROWS, *common, "hardware=ddp_cpu", "method=transkimmer", "method.target=0.5", "train.max_steps=3"),
        *("train.eval_every=1", f"train.lr={','.join(map(str, rates))}", f"paths.runs={tmp_path}"),
    ]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train.py", *command])
    monkeypatch.setattr("skim.started.started", list)  # ranks are started with train.py, and not with this pytest
    with mock.patch.dict(os.environ):
        start()
    assert "sync_dist" not in capfd.readouterr().err, "what is logged of an evaluation is the same on both ranks"
    sweeps = list((tmp_path / "sweeps").iterdir())
    assert len(sweeps) == 1
    found = sorted(sweeps[0].glob("*/results.json"))
    assert sorted(json.loads(path.read_text())["config"]["train"]["lr"] for path in found) == rates
    weights = [torch.load(p.parent / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for p in found]
    assert all(state["model.method.budget.last"] > 0 for state in weights), "the budget was not steered"
    if len(rates) > 1:
        differ = [not torch.equal(weights[0][name], weights[1][name]) for name in weights[0]]
        assert any(differ), "both jobs trained the same"
    for path in found:
        results = json.loads(path.read_text())
        assert results["metrics"]["accuracy"] >= 0
        assert results["checkpoints"][results["exported"]]["metric"] == results["metrics"]["accuracy"]
        best = torch.load(path.parent / "checkpoints" / "best.ckpt", weights_only=True)
        assert 1 <= best["global_step"] <= 3


STAGES = [
    *("method=ltp", "method.target=0.6", "train.max_steps=6", "train.lr=1e-3", "task.max_eval_samples=32"),
]
LATE = [
    *("method=transkimmer", "method.stages.hard=null", "train.max_steps=4", "train.method_after=0.5"),
    "task.max_eval_samples=32",
    *("train.distill=0.5", "train.distill_from=self"),
]


def runs(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Some runs of two processes, as one of them sees it: both pay for their imports and for joining once."""
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=300))
    try:
        return {
            "stages": [vars(step) for step in watched(folder / "stages", "hardware=ddp_cpu", *STAGES)[1]],
            "late": recorded(folder / "late", "hardware=ddp_cpu", *LATE)[1],
            **{name: trained(name, folder / name, "ddp_cpu") for name in names},
            "spoilt": spoilt(folder / "spoilt"),
        }
    finally:
        torch.distributed.destroy_process_group()


def spoilt(folder: Path) -> dict[str, Any]:
    """What a rank says when the loss of the other one, of rank 1, is NaN in the third step."""
    spoils = Spoils("loss", *([3] if torch.distributed.get_rank() else []))
    with pytest.raises(NonFinite) as caught:
        watched_by(spoils, config("dense", "ddp_cpu"), folder)
    return {"said": str(caught.value), "rows": spoils.rows}


def other(folder: str, *names: str) -> None:
    """The process of rank 1."""
    torch.save(runs(Path(folder), names), Path(folder) / "other.pt")


@pytest.fixture(scope="module")
def joined(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the runs, and what either rank saw of each; this process is rank 0.

    Of the runs of :data:`RUNS` those that a test is going to ask for.
    """
    folder = tmp_path_factory.mktemp("ranks")
    asked = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    names = [name for name in RUNS if any(call and call.params.get("name") == name for call in asked)]
    with mock.patch.dict(os.environ, environment(0)):
        there = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from tests.test_ddp import other; other(*sys.argv[1:])",
                folder,
                *names,
            ],
            cwd=ROOT,
            env=os.environ | {"LOCAL_RANK": "1", "RANK": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            here = runs(folder, names)
            said = there.communicate(timeout=100)[1]
        finally:
            there.kill()
    assert there.returncode == 0, said[-3000:]
    return folder, [here, torch.load(folder / "other.pt", weights_only=False)]


# each is beside another of the sample: dense steps, a loss of tokens, a loss by weights, a classifier of tokens
SLOW = ("dense", "class weights", "tagging", "ELECTRA")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in RUNS])
def test_two_processes_are_one(name: str, joined: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    """At the same global batch: losses, gradients (by the weights), metrics, FLOPs; no sequence twice or left out."""
    two = [found[name] for found in joined[1]]
    one = trained(name, tmp_path, "cpu")
    assert one["rows"] == [sum(rows) for rows in zip(*(each["rows"] for each in two), strict=True)]
    assert any(a != b for a, b in zip(*(each["rows"] for each in two), strict=True)), "batches were even"
    for each in two:
        found = differences(one, each)
        assert found["losses"] < 1e-5
        assert found["weights"] < 1e-6
        assert found["metrics"] < 1e-5
        assert found["FLOPs and kept"] < 1e-5


def test_both_ranks_learn_the_same_thresholds_and_then_freeze_them(joined: tuple[Path, list[dict[str, Any]]]) -> None:
    """In the hard stage thresholds get no gradient, and DDP would wait for it; each rank calibrates for itself."""
    one, other = (steps["stages"] for steps in joined[1])
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


def test_ranks_stop_together_at_a_loss_that_is_nan_on_one(joined: tuple[Path, list[dict[str, Any]]]) -> None:
    one, other = (found["spoilt"] for found in joined[1])
    assert one["said"] == other["said"]
    rows = ", ".join(map(str, other["rows"]))
    assert one["said"].startswith("step 3 of 4: the loss is nan before it wrote a checkpoint: start it anew")
    assert f"\nIts batch has the rows {rows} of the training data." in one["said"]
    assert not (joined[0] / "spoilt" / "checkpoints" / "last.ckpt").exists()


def test_two_ranks_begin_a_late_method_together(joined: tuple[Path, list[dict[str, Any]]]) -> None:
    """DDP waits for a gradient of every parameter, the method's too; and one teacher more does not disturb it."""
    folder, seen = joined
    one, other = (steps["late"] for steps in seen)
    for mine, theirs in zip(one, other, strict=True):
        assert torch.equal(mine["weight"], theirs["weight"])
        assert same(mine["method"], theirs["method"])
    assert [step["execution"] for step in one] == ["packed"] * 2 + ["masked"] * 2
    assert not same(one[2]["method"], one[3]["method"])
    assert json.loads((folder / "late" / "results.json").read_text())["status"] == "done"


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
