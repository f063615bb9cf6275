import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir

from skim.errors import SkimError
from skim.places import CONF
from skim.results import SCHEMA
from skim.sweeps.folder import Asked, Job, Sweep, noted
from skim.sweeps.job import Recorded, take_gpu
from tests.report.results import results

BASE = ["task=builtin", "backbone=tiny"]


def asked(*overrides: str) -> Asked:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return Asked(overrides, compose("train", [*BASE, *overrides], return_hydra_config=True))


def finish(job: Job, text: str | None = None) -> None:
    job.note("done")
    (job.folder / "results.json").write_text(json.dumps(results()) if text is None else text)


def test_a_job_is_found_by_what_it_computes_and_not_by_its_number_or_where_it_runs(tmp_path):
    sweep = Sweep(tmp_path)
    first = sweep.enlist([asked("method=ltp", "seed=1"), asked("method=ltp", "seed=2"), asked("method=dense")])
    assert [job.folder.name for job in first] == ["0-builtin-ltp", "1-builtin-ltp", "2-builtin-dense"]
    finish(first[1])
    # another order, another machine, one new setting, one asked for twice
    again = sweep.enlist(
        [
            asked("method=dense", "paths.runs=elsewhere"),
            asked("method=topk"),
            asked("method=ltp", "seed=2", "hardware=cpu", "hardware.threads=1", "callbacks.progress=false"),
            asked("method=dense"),
        ]
    )
    assert [(job.number, job.state) for job in again] == [(2, "waiting"), (3, "waiting"), (1, "done")]
    assert [job.number for job in sweep.jobs()] == [0, 1, 2, 3]


def test_a_job_that_has_to_run_runs_as_it_is_asked_for_now(tmp_path):
    sweep = Sweep(tmp_path)
    first = sweep.enlist([asked("seed=1"), asked("seed=2")])
    finish(first[0])
    now = [("seed=1", "hardware=cpu"), ("seed=2", "hardware=cpu"), ("seed=2", "hardware.threads=3")]
    again = sweep.enlist([asked(*one) for one in now])
    assert [job.overrides for job in again] == [("seed=1",), ("seed=2", "hardware=cpu")]
    assert again[1] == Job.at(first[1].folder)
    assert again[1].config["hardware"]["accelerator"] == "cpu"


def test_jobs_side_by_side_take_a_gpu_each(tmp_path, monkeypatch):
    took, workers = [], [[], [], []]
    for held in workers:
        monkeypatch.setattr("skim.sweeps.job.HELD", held)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
        take_gpu(tmp_path)
        took.append(os.environ["CUDA_VISIBLE_DEVICES"])
        take_gpu(tmp_path)  # its next job
    assert took == ["3", "5", "3"]
    assert [len(held) for held in workers] == [1, 1, 1]


def test_other_processes_of_a_job_neither_hold_it_nor_wait(tmp_path, monkeypatch):
    (job,) = Sweep(tmp_path).enlist([asked()])
    there = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(job.folder)))
    monkeypatch.setattr("hydra.core.hydra_config.HydraConfig.get", lambda: there)
    monkeypatch.setenv("SLURM_PROCID", "1")
    ran = []
    with job.claimed():
        Recorded(ran.append, os.getpid(), ("train.py", ()))("config")
    assert ran == ["config"]
    assert Job.at(job.folder).state == "waiting"


def test_what_is_swept_over_tells_jobs_apart(tmp_path):
    pair = [asked("hardware.precision=32-true"), asked("hardware.precision=bf16-mixed")]
    assert len(Sweep(tmp_path / "a").enlist(pair)) == 1
    assert len(Sweep(tmp_path / "b").enlist(pair, swept=["hardware.precision"])) == 2


def test_a_job_is_done_if_its_results_can_be_read(tmp_path):
    (job,) = Sweep(tmp_path).enlist([asked()])

    def state() -> str:
        return Job.at(job.folder).state

    job.note("running")
    assert state() == "interrupted"  # no process holds it
    with job.claimed():
        assert state() == "running"
    finish(job, '{"schema": ')
    assert state() == "interrupted"
    finish(job, json.dumps(results(status="failed")))
    assert state() == "interrupted"
    finish(job)
    assert state() == "done"
    job.note("interrupted")  # killed behind its results
    assert state() == "done"
    (job.folder / "results.json").unlink()
    job.note("failed", error="out of memory")
    assert (Job.at(job.folder).state, Job.at(job.folder).error) == ("failed", "out of memory")


def test_a_job_goes_on_from_its_checkpoint_if_that_is_whole(tmp_path):
    import torch

    (job,) = Sweep(tmp_path).enlist([asked("seed=3")])
    assert job.launched() == ["seed=3", "hydra.sweep.subdir='0-builtin-transkimmer'"]
    path = job.folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    torch.save({"global_step": 3}, path)
    assert job.launched()[-1] == f"resume='{path}'"
    (job.folder / "config.yaml").write_text("train: {lr: 3e-4}")
    found = replace(job, config={**job.config, "train": {"lr_find": "use"}})
    assert "train.lr=0.0003" in found.launched(), "the rate that it found is part of what it goes on with"
    before = path.with_name("previous.ckpt")
    torch.save({"global_step": 2}, before)
    path.write_bytes(path.read_bytes()[:-100])
    assert job.launched()[-1] == f"resume='{before}'"
    before.unlink()
    assert job.checkpoint() is None


def test_a_job_of_an_older_version_is_the_one_that_is_asked_for(tmp_path):
    (job,) = Sweep(tmp_path).enlist([asked("seed=3", "method=topk")])
    config = {**job.config, "train": {**job.config["train"]}, "method": {**job.config["method"]}}
    del config["train"]["nonfinite"], config["method"]["min_tokens"], config["trust_modules"]
    (job.folder / "job.json").write_text(json.dumps({**noted(job.folder), "config": config}))
    assert [one.number for one in Sweep(tmp_path).enlist([asked("seed=3", "method=topk")])] == [0]
    assert [one.number for one in Sweep(tmp_path).enlist([asked("method=topk", "method.min_tokens=8")])] == [1]
    assert [one.number for one in Sweep(tmp_path).enlist([asked("seed=3", "train.nonfinite=skip")])] == [2]


HOLD = """
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from skim.sweeps.folder import Sweep
with Sweep(Path(sys.argv[1])).claimed("python train.py -m seed=1,2", ["seed=1,2"]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_has_one_sweep_and_a_dead_one_holds_nothing(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], **pipes, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(SkimError) as refused, Sweep(tmp_path).claimed("python train.py -m seed=3", ["seed=3"]):
        pass
    assert f"Another sweep is at work in {tmp_path} (process {other.pid} on " in str(refused.value)
    assert len(str(refused.value).splitlines()) == 2
    os.kill(other.pid, signal.SIGKILL)
    other.communicate()
    with (
        pytest.raises(SkimError, match=r"has a sweep in it: python train\.py -m seed=1,2\n.*sweep\.resume="),
        Sweep(tmp_path).claimed("python train.py -m seed=3", ["seed=3"], resumed=False),
    ):
        raise AssertionError("somebody else's folder was taken")
    with Sweep(tmp_path).claimed("python train.py -m seed=1,2 sweep.resume=true", ["seed=1,2"]) as sweep:
        assert sweep.about["command"] == "python train.py -m seed=1,2"
        assert sweep.about["claimed"]["process"] == os.getpid()
    with Sweep(tmp_path).claimed("python train.py -m seed=1,2,3", ["seed=1,2,3"]) as sweep:
        assert sweep.about["overrides"] == ["seed=1,2,3"], "by its name alone it goes on with what was added"


def test_a_sweep_of_another_version_is_left_alone(tmp_path: Path):
    said = json.dumps({"schema": SCHEMA - 1, "overrides": []})
    (tmp_path / "sweep.json").write_text(said)
    with pytest.raises(SkimError, match="another version") as refused, Sweep(tmp_path).claimed("", []):
        pass
    assert len(str(refused.value).splitlines()) == 2
    assert (tmp_path / "sweep.json").read_text() == said


@pytest.mark.parametrize(
    "content", ["", '{"number": 1', "[]", '{"number": "1", "overrides": [], "config": {}, "state": "done"}']
)
def test_a_job_whose_notes_are_damaged_is_named(content: str, tmp_path: Path):
    (tmp_path / "3-sst2-ltp").mkdir()
    (tmp_path / "3-sst2-ltp" / "job.json").write_text(content)
    with pytest.raises(SkimError, match=r"3-sst2-ltp/job\.json is damaged: .*\nMove .*3-sst2-ltp out of the sweep"):
        Sweep(tmp_path).jobs()
