"""``sweep=wandb``: the file that is written, and command lines as W&B's agents make them of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir

from skim import cli
from skim.errors import SkimError
from skim.lightning.loggers import told
from tests.runs import CONF

TYPED = ["task=builtin", "backbone=tiny", "method=ltp", "method.target=0.3,0.5", "hardware.threads=null,1"]
MORE = ["train.gradient_checkpointing=true,false", "formulas=[],[ltp]", "seed=1,2"]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The file of the sweep that a command line writes."""
    monkeypatch.chdir(tmp_path)

    def write(*typed: str) -> dict[str, Any]:
        with pytest.raises(SystemExit) as end:
            cli.settled(["sweep=wandb", *typed], CONF, "train")
        assert end.value.code == 0
        return yaml.safe_load(Path("sweep.yaml").read_text())

    return write


def called(sweep: dict[str, Any], choose: int, form: str) -> list[str]:
    """What an agent calls with the given values of a grid, behind the interpreter's module."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    values = {name: {"value": one["values"][choose]} for name, one in sweep["parameters"].items()}
    filled = utils.create_sweep_command_args({"args": values})
    command = [part for part in sweep["command"] if not part.startswith("${")]
    assert command[:3] == ["python", "-m", "skim.train"]
    return [*command[3:], *filled[form]]


def test_an_agent_runs_what_was_typed(written: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = written(*TYPED, *MORE)
    assert "wandb sweep sweep.yaml\n  wandb agent <" in capsys.readouterr().out
    assert (sweep["method"], sweep["metric"]) == ("grid", {"name": "metric", "goal": "maximize"})
    found = []
    for choose, form in enumerate(("args_no_hyphens", "args")):  # the second is what agents do by themselves
        overrides = cli.settled(called(sweep, choose, form), CONF, "train")
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", overrides)
        assert (cfg.task.name, cfg.method._target_) == ("builtin", "skim.methods.ltp.LTP")
        assert cfg.logger.wandb is not None
        found.append(
            (cfg.method.target, cfg.hardware.threads, cfg.train.gradient_checkpointing, list(cfg.formulas), cfg.seed)
        )
    assert found == [(0.3, None, True, [], 1), (0.5, 1, False, ["ltp"], 2)]


def test_intervals_are_drawn_from(written: Any) -> None:
    typed = ["train.lr=tag(log,interval(1e-5,1e-4))", "train.warmup=interval(0.0,0.2)", "seed=int(interval(1,9))"]
    options = ["sweep.agents.search=bayes", "sweep.agents.runs=20", "sweep.agents.goal=minimize"]
    sweep = written(*typed, *options, "logger=[wandb,tensorboard]", "logger.wandb.project=mine")
    assert sweep["parameters"] == {
        "train.lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-4},
        "train.warmup": {"distribution": "uniform", "min": 0.0, "max": 0.2},
        "seed": {"distribution": "int_uniform", "min": 1, "max": 9},
    }
    assert (sweep["method"], sweep["run_cap"], sweep["project"]) == ("bayes", 20, "mine")
    assert sweep["metric"]["goal"] == "minimize"
    assert [part for part in sweep["command"] if part.startswith("logger=")] == ["logger=[wandb,tensorboard]"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["method=ltp"], "sweep=wandb sweeps over nothing"),
        (
            ["train.lr=interval(1e-5,1e-4)"],
            "train.lr=interval.* a grid has no end in an interval.\nUse sweep.agents.search",
        ),
        (["method.target=0.3,1.5"], "method.target=1.5 must be"),
        (["method.tarket=0.3,0.5"], "method.tarket is not an option .* Did you mean method.target"),
        (["sweep.agents.serch=bayes", "seed=1,2"], "Unknown option of sweep.agents 'serch'. Did you mean 'search'"),
        (["sweep.agents.goal=best", "seed=1,2"], "sweep.agents.goal=best must be one of maximize, minimize"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_written(
    typed: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SkimError, match=said):
        cli.settled(["sweep=wandb", *typed], CONF, "train")
    assert os.listdir(tmp_path) == []


def test_runs_of_agents_are_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "7abc")
    assert told.sweep() == "7abc"
