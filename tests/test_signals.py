"""Signals: a run writes its checkpoint, says how to go on or is queued again, and ends as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
import pytorch_lightning as pl
import torch

from skim import signals
from skim.errors import SkimError
from skim.lightning.recipe import train
from skim.train import start
from tests.lightning.test_resume_exactly import COMMON, differences
from tests.runs import composed, watched_by
from tests.signals import SendsSignal

submitit = pytest.importorskip("submitit")
from submitit.core import submission  # noqa: E402
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE  # noqa: E402

# evaluations after steps 3 and 6 of the seven of an epoch
RUN = ["task=builtin", *COMMON, "method=transkimmer", "method.target=0.6", "task.train_rows=52", "train.epochs=2"]
RUN += ["train.evals_per_epoch=2", "callbacks.save_every=null"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(composed(*RUN), folder, "")
    return folder


def sends(step: int, name: str, once: Path) -> list[str]:
    """Overrides of a run that is sent a signal after a step."""
    made = {"_target_": f"{SendsSignal.__module__}.{SendsSignal.__name__}", "step": step, "name": name, "once": once}
    return [f"+callbacks.sends.{key}={value}" for key, value in made.items()]


def ended(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Any:
    """The exit code of ``python train.py <overrides>``, run in this process."""
    monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the command sets it, and later tests start processes
    with pytest.raises(SystemExit) as end:
        start()
    return end.value.code


def same(one: Path, other: Path) -> bool:
    """Whether two runs have ended alike, to the last bit."""
    last = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other)]
    results = [json.loads((run / "results.json").read_text()) for run in (one, other)]
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    return not any(differences(last[0][part], last[1][part]) for part in parts) and all(
        results[0][part] == results[1][part] for part in ("metrics", "keep_ratio", "checkpoints", "exported")
    )


# a step whose evaluation is due, which is done first; and one of the second epoch
@pytest.mark.parametrize("step", [2, 8])
def test_a_run_that_is_killed_says_how_to_go_on_and_goes_on_bit_for_bit(
    step: int, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    code = ended(monkeypatch, *RUN, *sends(step, "SIGTERM", tmp_path / "once"), f"hydra.run.dir={run}")
    said = capfd.readouterr().err.splitlines()[-1]
    assert (code, said) == (143, f"stopped by SIGTERM; resume={run} goes on from step {step + 1}")
    results = json.loads((run / "results.json").read_text())
    assert (results["status"], results["notes"][-1]) == ("failed", said)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train(composed(*RUN, f"resume={run}/checkpoints/last.ckpt", *sends(step, "SIGTERM", tmp_path / "once")), run, "")
    assert same(run, undisturbed)
    steps = [pandas.read_csv(folder / "metrics.csv")["step"].tolist() for folder in (run, undisturbed)]
    assert steps[0] == steps[1], "the log of a run that goes on in its folder holds every step once"


def test_a_job_of_slurm_is_queued_again_and_goes_on_by_itself(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    command = [*RUN, *sends(5, "SIGUSR1", tmp_path / "once"), f"hydra.run.dir={tmp_path}/run"]
    assert ended(monkeypatch, *command) == 128 + signal.SIGUSR1
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "preempted"
    train(composed(*command[:-1]), tmp_path / "run", "")
    assert same(tmp_path / "run", undisturbed)
    scontrol.unlink()
    with pytest.raises(SkimError, match=r"^stopped by SIGUSR1, but SLURM did not queue job 7 again: .*scontrol"):
        signals.requeue(signals.Stopped(signal.SIGUSR1), signal.SIG_DFL)


def test_ctrl_c_saves_and_ends_and_the_run_goes_on_bit_for_bit(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    code = ended(monkeypatch, *RUN, *sends(4, "SIGINT", tmp_path / "once"), f"hydra.run.dir={run}")
    said = capfd.readouterr().err.splitlines()
    assert said[-2] == "interrupted: the run saves at the end of this step, and ends; once more ends it now"
    assert (code, said[-1]) == (130, f"stopped by SIGINT; resume={run} goes on from step 5")
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    train(composed(*RUN, f"resume={run}/checkpoints/last.ckpt", *sends(4, "SIGINT", tmp_path / "once")), run, "")
    assert same(run, undisturbed)


def test_ctrl_c_twice_ends_the_run_in_the_middle_of_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, more = tmp_path / "run", [f"+callbacks.more.{one[17:]}" for one in sends(4, "SIGINT", tmp_path / "twice")]
    assert ended(monkeypatch, *RUN, *sends(4, "SIGINT", tmp_path / "once"), *more, f"hydra.run.dir={run}") == 130
    note = json.loads((run / "results.json").read_text())["notes"][-1]
    assert note == f"interrupted; resume={run} goes on from step 3", "the evaluation's checkpoint is the last"


class Submitted:
    """A job of submitit, as Hydra's launcher makes one: requeued with what it began with."""

    def __call__(self, overrides: list[str], folder: Path) -> None:
        with signals.heeded():
            train(composed(*overrides), folder, "")

    def checkpoint(self, *given: Any) -> Any:
        return submitit.helpers.DelayedSubmission(self, *given)


def test_a_job_of_submitit_is_queued_again_and_goes_on_by_itself(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What submitit's local executor runs in a process of its own, twice; that costs ten seconds of imports."""
    for name, value in {"EXECUTOR": "local", "FOLDER": str(tmp_path), "LOCAL_JOB_ID": "1"}.items():
        monkeypatch.setenv(f"SUBMITIT_{name}", value)
    paths = submitit.JobEnvironment().paths
    job = Submitted().checkpoint([*RUN, *sends(5, "SIGUSR2", tmp_path / "once")], tmp_path / "run")
    job.set_timeout(60, 3)
    job.dump(paths.submitted_pickle)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)}
    try:
        with pytest.raises(SystemExit) as requeued:
            submission.process_job(tmp_path)
        assert requeued.value.code == LOCAL_REQUEUE_RETURN_CODE
        assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "preempted"
        submission.process_job(tmp_path)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert submitit.core.utils.pickle_load(paths.result_pickle) == ("success", None)
    assert same(tmp_path / "run", undisturbed)


def test_sigterm_on_a_cluster_writes_the_checkpoint_and_training_goes_on(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes before the signal that ends the job, or before the kill: then there is something to go on from."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    seen = SavedAt()
    with signals.heeded():
        watched_by(seen, composed(*RUN, *sends(2, "SIGTERM", tmp_path / "once")), tmp_path / "run")
    assert seen.steps[:2] == [None, 3], "a run that goes on from before an evaluation would leave it out"
    assert same(tmp_path / "run", undisturbed)


class SavedAt(pl.Callback):
    """The step of ``last.ckpt`` before each evaluation, and before the step after it."""

    def __init__(self) -> None:
        self.steps: list[int | None] = []

    def look(self, trainer: pl.Trainer) -> None:
        last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        self.steps.append(torch.load(last, weights_only=True)["global_step"] if last.is_file() else None)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.look(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if len(self.steps) % 2:
            self.look(trainer)
