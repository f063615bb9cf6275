"""A sweep over joblib that is killed, goes on, and tries again what has failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from skim.lightning.recipe import train
from skim.resume import newest
from skim.sweeps.launch import cores
from tests.runs import SMALL, composed

pytest.importorskip("hydra_plugins.hydra_joblib_launcher")

ROOT = Path(__file__).resolve().parents[2]


GRID = ["method=ltp,topk", "method.target=0.4,0.5,0.6", "seed=1,2", "task=builtin", "backbone=tiny"]


def command(state: Path, runs: Path, *overrides: str) -> subprocess.Popen[str]:
    """A sweep of twelve jobs, two at a time, in a process of its own."""
    program = [sys.executable, "tests/sweeps/twelve.py", str(state), "-m", *GRID, "sweep.jobs=2", f"paths.runs={runs}"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    return subprocess.Popen([*program, *overrides], env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_sweep_that_is_ended_lets_its_jobs_save(number: int, code: int, tmp_path: Path) -> None:
    """The signal reaches the sweep alone; joblib would kill the processes that compute its jobs."""
    sweep = command(tmp_path, tmp_path / "runs")
    while not (tmp_path / "trains").exists() and sweep.poll() is None:
        time.sleep(0.05)
    sweep.send_signal(number)
    said = sweep.communicate()[0]
    assert sweep.returncode == code, said
    assert "the jobs that are running save, and end" in said
    assert "The sweep was interrupted; sweep.resume=" in said
    assert (tmp_path / "saved").read_text() == "SIGTERM"
    states = {path.parent.name: json.loads(path.read_text())["state"] for path in tmp_path.glob("runs/*/*/*/job.json")}
    assert states["3-builtin-ltp"] == "interrupted"
    assert not [name for name, state in states.items() if state == "running"]
    assert "waiting" in states.values(), "no other job is begun"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_trainings_of_a_sweep_save_when_it_is_ended_and_go_on(name: str, tmp_path: Path) -> None:
    """Two at a time, by the command; what comes out is what a run alone comes to."""
    run = [*SMALL, "method=dense", "task.batch_size=2", "callbacks.log_every=1", "callbacks.progress=false"]
    program = [sys.executable, "train.py", "-m", *run, "seed=1,2", "sweep.jobs=2", f"paths.runs={tmp_path}"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}

    def steps() -> list[int]:
        logs = [path.read_text().splitlines() for path in tmp_path.glob("sweeps/*/*/metrics.csv")]
        return [len(lines) for lines in logs]

    first = subprocess.Popen(program, **pipes)
    while not (len(steps()) == 2 and min(steps()) > 3) and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.Signals[name])
    said = first.communicate()[0]
    assert first.returncode == {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": -signal.SIGKILL}[name], said
    (folder,) = (tmp_path / "sweeps").iterdir()
    jobs = sorted(path.parent for path in folder.glob("*/job.json"))
    until = time.monotonic() + 30  # of a sweep that was killed the jobs see it for themselves
    while name == "SIGKILL" and time.monotonic() < until and not all(newest(job) for job in jobs):
        time.sleep(0.05)
    for job in jobs:
        checkpoint = newest(job)
        assert checkpoint is not None, said
        assert 3 <= torch.load(checkpoint, weights_only=True)["global_step"] < 128
    second = subprocess.run([*program, f"sweep.resume={folder}"], **pipes, check=False)
    assert second.returncode == 0, second.stdout
    for job in jobs:
        assert "going on from" in (job / "log.txt").read_text()
        results = json.loads((job / "results.json").read_text())
        alone = train(composed(*run, f"seed={results['seed']}"), tmp_path / f"alone-{job.name}", "").results
        assert (results["status"], results["metrics"]) == ("done", alone.metrics)
        print(f"{name}: job {job.name} was ended and went on to the metrics of a run alone")


@pytest.mark.slow  # twelve processes of jobs; the one above, of a sweep that is ended, is its sample
def test_a_killed_sweep_computes_each_job_once_and_tries_a_failed_one_again(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()

    def start(*overrides: str) -> subprocess.Popen[str]:
        return command(state, tmp_path / "runs", *overrides)

    def done() -> list[str]:
        return (state / "computed.txt").read_text().splitlines() if (state / "computed.txt").exists() else []

    first = start()
    while len(done()) < 5 and first.poll() is None:
        time.sleep(0.05)
    assert first.poll() is None, first.communicate()[0]
    first.kill()
    first.communicate()
    assert "ltp 0.5 2" not in done()  # it was being computed

    (state / "go").touch()
    second = start("sweep.resume=true")
    said = second.communicate()[0]
    assert second.returncode == 2, said
    (folder,) = (tmp_path / "runs" / "sweeps").iterdir()
    assert "out of luck" in said
    assert "1 of 12 jobs has not finished" in said
    assert str(folder / "6-builtin-topk" / "log.txt") in said
    assert "computing topk 0.4 1\nerror: out of luck\n" in (folder / "6-builtin-topk" / "log.txt").read_text()
    assert len(done()) == 11

    (state / "mended").touch()
    third = start(f"sweep.resume={folder.name}")
    said = third.communicate()[0]
    assert third.returncode == 0, said
    assert "12 jobs, 11 of them done before" in said
    assert sorted(done()) == sorted(f"{m} {t} {s}" for m in ("ltp", "topk") for t in (0.4, 0.5, 0.6) for s in (1, 2))
    found = [json.loads(path.read_text()) for path in folder.glob("*/results.json")]
    assert len(found) == 12
    assert {run["config"]["hardware"]["threads"] for run in found} == {max(cores() // 2, 1)}
    alone = next(run for run in found if run["method"] == "topk" and run["target"] == 0.4 and run["seed"] == 1)
    beginning = "python tests/sweeps/twelve.py method=topk task=builtin backbone=tiny method.target=0.4 seed=1 "
    assert alone["command"].startswith(beginning)
    assert said.count("topk 0.4") == said.count("topk 0.5") == 1  # one table, seeds joined
