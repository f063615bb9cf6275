"""A sweep of real trainings, one after another in one process: what fails, what is interrupted, and going on."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from skim.sweeps.folder import Job, Sweep
from tests.runs import ROOT, SMALL


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run ``python train.py -m ...`` in this process: its exit code, and what it printed."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # run() sets it

    def run(*overrides: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", "-m", *overrides])
        code = 0
        try:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        except SystemExit as left:
            code = int(left.code or 0)
        said = capfd.readouterr()
        return code, said.out + said.err

    return run


def test_jobs_fail_and_stop_alone_and_go_on(typed, tmp_path: Path) -> None:
    script = tmp_path / "script.txt"
    script.write_text("fail - interrupt")
    command = [
        *SMALL,
        "method=dense",
        "train.max_steps=5",
        "callbacks.save_every=1",
        "seed=1,2,3",
        "callbacks.scripted._target_=tests.sweeps.scripted.Scripted",
        f"callbacks.scripted.file={script}",
        f"paths.runs={tmp_path / 'runs'}",
    ]
    code, said = typed(*command)
    assert code == 130
    (folder,) = (tmp_path / "runs" / "sweeps").iterdir()
    assert f"sweep.resume={folder} goes on with it" in said
    jobs = Sweep(folder).jobs()
    assert [(job.state, job.error) for job in jobs] == [("failed", "a bug"), ("done", None), ("interrupted", None)]
    before = (jobs[1].folder / "results.json").stat().st_mtime_ns

    # typed anew, it is another sweep; in the same folder it is refused
    code, said = typed(*command, f"hydra.sweep.dir={folder}")
    assert code == 2
    assert f"Go on with it by sweep.resume={folder}" in said

    script.write_text("- -")
    code, said = typed(*command, "sweep.resume=true")
    assert code == 0, said
    assert "3 jobs, 1 of them done before" in said
    assert [job.state for job in Sweep(folder).jobs()] == ["done"] * 3
    assert (jobs[1].folder / "results.json").stat().st_mtime_ns == before
    resumed = [OmegaConf.load(job.folder / "config.yaml").resume for job in jobs]
    assert resumed[1] is None
    assert Path(resumed[2]).resolve() == (jobs[2].folder / "checkpoints" / "last.ckpt").resolve()
    results = [json.loads((job.folder / "results.json").read_text()) for job in jobs]
    assert [run["steps"] for run in results] == [5, 5, 5]
    assert " seed=3 " in f"{results[2]['command']} "
    assert "1,2,3" not in results[2]["command"]

    # half a file is none: the job runs again, and ends where it had ended
    (jobs[0].folder / "results.json").write_text(json.dumps(results[0])[:100])
    assert Job.at(jobs[0].folder).state == "interrupted"
    script.write_text("-")
    code, said = typed(*command, "sweep.resume=true")
    assert code == 0, said
    again = json.loads((jobs[0].folder / "results.json").read_text())
    assert again["metrics"] == results[0]["metrics"]
