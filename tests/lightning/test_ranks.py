"""Ranks that end, and rules for several devices."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path
from unittest import mock

import pytest
import pytorch_lightning.strategies.launchers.subprocess_script as launcher
from torch.distributed import TCPStore

from skim.cli import agree, settled
from skim.errors import SkimError
from skim.lightning import ranks
from skim.lightning.hardware import nodes_of, scaled
from skim.lightning.recipe import train
from skim.options.run import Schedule
from skim.stages import Stage
from tests.runs import CONF, composed, small


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "LOOK", 0.01)
    monkeypatch.setattr(ranks, "GRACE", 1.0)


def process(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(["sh", "-c", code], text=True)


def failing(processes: list[subprocess.Popen[str]], error: Exception) -> None:
    """A run that has started ranks, and then fails."""
    with ranks.watched(lambda said: None):
        launcher._launch_process_observer(processes)
        raise error


def test_who_hangs_is_ended_when_a_rank_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    """The run's folder says so first; the other ranks are ended as well."""
    told: list[object] = []
    waits = process("exec sleep 60")
    watch = ranks.Watch([process("kill -KILL $$"), waits], told.append, told.append)
    watch.start()
    watch.join(timeout=30)
    said = "rank 1 has ended by SIGKILL, and the run with it. Its own error, if it had one, stands above."
    assert told == [said, 1]
    assert capsys.readouterr().err == f"error: {said}\n"
    assert waits.wait(timeout=30) < 0


def test_an_error_because_of_a_rank_names_the_rank() -> None:
    """What a hung up connection says tells nobody anything."""
    waits = process("exec sleep 60")
    with pytest.raises(SkimError, match="rank 2 has ended with exit code 3"):
        failing([waits, process("exit 3")], RuntimeError("gloo: Connection closed by peer"))
    assert waits.wait(timeout=30) < 0, "it would wait for this rank"


def test_an_error_of_its_own_stays_as_it_is_and_a_run_that_is_over_is_not_ended() -> None:
    for own in (SkimError("mine"), ValueError("mine")):
        with pytest.raises(type(own), match="mine"):
            failing([process("exit 3")], own)
    before = launcher._launch_process_observer
    with ranks.watched(lambda said: None):
        launcher._launch_process_observer([done := process("exit 0")])
        done.wait()
    assert launcher._launch_process_observer is before
    assert not [thread for thread in threading.enumerate() if thread.name == "ranks" and not thread.over.is_set()]


def test_a_rank_whose_launcher_is_gone_ends(capsys: pytest.CaptureFixture[str]) -> None:
    ended: list[int] = []
    ranks.orphaned(os.getppid() + 1, threading.Event(), ended.append)
    assert ended == [1]
    over = threading.Event()
    over.set()
    ranks.orphaned(os.getppid() + 1, over, ended.append)
    assert ended == [1]
    assert "rank 0 is gone" in capsys.readouterr().err


def test_learning_rates_follow_the_number_of_processes_by_the_rule() -> None:
    stage = Stage("soft", lr=1.0, method_lr=2.0, members={"ltp": Schedule(lr=1.0, method_lr=3.0)})
    for rule, factor in (("none", 1), ("linear", 4), ("sqrt", 2)):
        (found,) = scaled([stage], 4, rule)
        assert (found.lr, found.method_lr, found.members["ltp"].method_lr) == (factor, 2 * factor, 3 * factor)
        assert found.name == "soft"


def test_machines_are_those_that_the_run_was_started_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = composed("hardware=ddp_multinode")
    assert nodes_of(cfg) == 1
    monkeypatch.setenv("SLURM_NNODES", "3")
    assert nodes_of(cfg) == 3
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert nodes_of(cfg) == 2
    assert nodes_of(composed("hardware=ddp", "hardware.num_nodes=4")) == 4


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_stage_2", "ddp_spawn"])
def test_strategies_that_cannot_be_are_refused_with_reasons(strategy: str, tmp_path: Path) -> None:
    with pytest.raises(SkimError, match=rf"hardware\.strategy={strategy} (shards|starts)") as caught:
        train(small("method=dense", f"hardware.strategy={strategy}"), tmp_path / "run", "")
    assert len(str(caught.value).splitlines()) == 2
    assert not (tmp_path / "run").exists()


def test_processes_of_torchrun_and_slurm_agree_on_the_folder_of_their_run() -> None:
    """Each would take the time at which it has started."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": "2"}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    with mock.patch.dict(os.environ, {**started, **where, "RANK": "0"}):
        assert agree() == "torchrun"
        first = os.environ["SKIM_STAMP"]
    with mock.patch.dict(os.environ, {**started, **where, "RANK": "1"}):
        agree()
        assert os.environ["SKIM_STAMP"] == first
        with pytest.raises(SkimError, match="torchrun has started this process as one of a run's"):
            settled(["-m", "seed=1,2"], CONF, "train")
    with mock.patch.dict(os.environ, {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_ID": "7"}):
        assert agree() == "srun"
        assert os.environ["SKIM_STAMP"] == "slurm-7-0"
    assert agree() is None
