"""A search that fails here and there, is killed, goes on, and ends as one that was not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from skim import cli
from skim.errors import SkimError
from skim.files import write_json
from skim.places import CONF
from skim.sweeps.job import Pruned
from skim.sweeps.pruning import StopsDominated
from tests.report.results import results
from tests.runs import small, watched_by

optuna = pytest.importorskip("optuna")

COMPUTED: list[tuple[float, float]] = []
KILLED_AT: list[int] = []


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> None:
    """A job that learns nothing: the more it spends, and the nearer its rate is to 1e-4, the better it answers."""
    from hydra.core.hydra_config import HydraConfig

    if len(COMPUTED) in KILLED_AT:
        KILLED_AT.clear()
        raise KeyboardInterrupt
    COMPUTED.append((cfg.method.target, cfg.train.lr))
    if len(COMPUTED) == 2:
        raise SkimError("diverged")
    metric = cfg.method.target - abs(cfg.train.lr - 1e-4) * 1e3
    run = results(metrics={"accuracy": metric}, monitor="accuracy", relative_flops=cfg.method.target)
    run["config"] = OmegaConf.to_container(cfg, resolve=True)
    write_json(Path(HydraConfig.get().runtime.output_dir) / "results.json", run)


def search(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Any:
    """The exit code of a command; ``None`` if it simply ends."""
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *overrides])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    try:
        cli.run(main, CONF, "train")
    except SystemExit as end:
        return end.code
    return None


def trials(folder: Path) -> list[Any]:
    return optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/study.db").get_trials()


def test_a_killed_search_goes_on_to_the_end_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep=pareto", "sweep.trials=4", "sweep.random=2", "task=builtin", "backbone=tiny"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    COMPUTED.clear()
    assert search(monkeypatch, *command, f"hydra.sweep.dir={straight}") is None
    drawn, said = list(COMPUTED), capsys.readouterr().out
    assert len(set(drawn)) == 4
    states = [trial.state.name for trial in trials(straight)]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"], "one that fails does not stop the others"
    assert "trial 1, job 1: diverged" in said
    assert f"study: {straight / 'study.db'}" in said

    COMPUTED.clear()
    KILLED_AT.append(3)
    assert search(monkeypatch, *command, f"hydra.sweep.dir={killed}") == 130
    assert [trial.state.name for trial in trials(killed)] == [*states[:3], "RUNNING"]
    assert search(monkeypatch, f"sweep.resume={killed}") is None
    again = trials(killed)
    assert COMPUTED[:4] == drawn, "the same draws, none twice"
    assert len(set(COMPUTED)) == len(COMPUTED) == 5, "in place of the one that failed, another was drawn"
    assert [trial.state.name for trial in again] == [*states, "COMPLETE"]
    for trial in again:
        if trial.state.name == "COMPLETE":
            (folder,) = killed.glob(f"{trial.user_attrs['job']}-*")
            run = json.loads((folder / "results.json").read_text())
            assert trial.values == [run["metrics"]["accuracy"], run["relative_flops"]]
            assert trial.params["method.target"] == run["config"]["method"]["target"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sweep.trials=3"], "A search needs values to draw"),
        (["sweep=pareto", "sweep.cost=time", "benchmark.enabled=false"], "set benchmark.enabled=true"),
        (["sweep=pareto", "method.target=interval(0.3,1.5)"], "method.target=1.5 must be"),
        (["sweep=pareto", "sweep.trials=0"], "sweep.trials=0 must be"),
    ],
)
def test_a_search_that_cannot_be_is_refused(
    overrides: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(monkeypatch, *overrides, f"hydra.sweep.dir={tmp_path / 'sweep'}") == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_a_run_that_a_finished_one_dominates_is_ended_at_its_evaluation(tmp_path: Path) -> None:
    job = tmp_path / "sweep" / "0-builtin-dense"
    job.mkdir(parents=True)
    (job / "job.json").write_text(json.dumps({"number": 0, "overrides": [], "config": {}, "state": "done"}))
    write_json(job / "results.json", results())
    (job / "metrics.csv").write_text("step,train/loss,val/accuracy,val/relative_flops\n1,,0.9,1.0\n3,,1.0,1.0\n")
    cfg = small("method=dense", "train.max_steps=4", "train.eval_every=2", "train.calibrate=0")
    with pytest.raises(Pruned, match=r"job 0 had accuracy 0\.9000 at relative FLOPs 1\.000 .*; here 0\.\d+ at 1\.000"):
        watched_by(StopsDominated(str(tmp_path / "sweep"), margin=0.3), cfg, tmp_path / "run")
    assert StopsDominated(str(tmp_path / "sweep"), 0.1).better("accuracy", 1, 0.85, 1.0) is None
    assert StopsDominated(str(tmp_path / "sweep"), 0.1).better("accuracy", 1, 0.75, 0.9) is None
    assert StopsDominated(str(tmp_path / "sweep"), 0.1).better("accuracy", 2, 0.1, 1.0) is None


def test_other_choices_than_those_of_the_trials_before_are_refused_in_our_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    COMPUTED.clear()
    command = ["sweep.trials=1", "sweep.random=1", "method=transkimmer", "task=builtin", "backbone=tiny"]
    command += ["method.target=choice(0.4,0.6)"]
    assert search(monkeypatch, *command, f"hydra.sweep.dir={tmp_path}/sweep") is None
    command[0], command[-1] = "sweep.trials=3", "method.target=choice(0.4,0.5)"
    assert search(monkeypatch, *command, f"sweep.resume={tmp_path}/sweep") == 2
    said = capsys.readouterr().err
    assert "draw method.target from choice(0.4,0.6), and this command from choice(0.4,0.5).\nGo on with" in said
    assert len(COMPUTED) == 1
