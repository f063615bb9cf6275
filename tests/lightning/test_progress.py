"""A run is never silent, and never talks without end: lines in a log, a bar that fits a terminal."""

from __future__ import annotations

import csv
import io
import itertools
import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from skim.lightning import recipe
from skim.lightning.callbacks import progress
from skim.lightning.callbacks.progress import Lines, columns
from tests.runs import small

LTP = ["method=ltp", "method.target=0.6", "train.max_steps=4", "train.calibrate=16", "task.max_eval_samples=32"]
TIMED = ["benchmark.enabled=true", "benchmark.samples=4", "benchmark.batch_sizes=[2]", "benchmark.repeats=1"]


class Clock:
    """A minute goes by whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 60
        return self.now


def test_a_log_tells_where_a_run_goes_how_far_it_is_and_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "progress_of", lambda folder, bar: Lines(Console(), Path(folder), Clock()))
    recipe.train(small(*LTP, *TIMED, "train.eval_every=2"), tmp_path, "")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "task=builtin, method=ltp, backbone=tiny: loading data and model"
    assert lines[1] == f"{tmp_path}: 4 steps, cpu"
    assert "stage soft: 2 steps" in lines
    steps = [line for line in lines if re.match(r"step \d of 4: loss \d\.\d+, keep \d\.\d+, FLOPs \d\.\d+, ", line)]
    assert [line.split()[1] for line in steps] == ["1", "2", "3", "4"]
    # looked at twice per step, which is every two minutes, and once per evaluated batch
    assert [line.split(", ")[-1] for line in steps[:2]] == ["0:06:00 left", "0:04:00 left"]
    assert steps[-1].endswith("0:00:00 left")
    assert sum(line.startswith("step 2: accuracy") for line in lines) == 1
    assert "evaluation: 1 of 1 batches" in lines
    assert lines.count("calibration to 0.6") >= 3, "before either stage, and at the end"
    assert lines[-1] == "latency at batch size 2: 2 batches"


def test_a_week_has_some_hundred_lines() -> None:
    now = [0.0]
    lines = Lines(Console(file=io.StringIO()), Path(), lambda: now[0])
    said = []
    for now[0] in range(0, 7 * 24 * 3600, 5):
        if lines.due():
            said.append(now[0])
    assert said[:3] == [30, 60, 90]
    assert 100 < len(said) < 400
    assert max(later - one for one, later in itertools.pairwise(said)) < 4.5 * 3600


def test_a_bar_is_one_line_of_80_columns() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    progress = Progress(*columns(), console=console)
    progress.add_task("evaluation", total=1234567, completed=1034567, shown="loss 0.695 keep 0.941 FLOPs 1.019")
    with console.capture() as capture:
        console.print(progress.get_renderable())
    (line,) = capture.get().splitlines()
    assert len(line) <= 80
    assert line.startswith("evaluation ━━━")
    assert "1034567/1234567" in line
    assert line.rstrip().endswith("loss 0.695 keep 0.941 FLOPs 1.019")


def test_a_terminal_shows_one_bar_over_all_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr(progress, "Console", lambda **_: terminal)
    overrides = ["method=transkimmer", "method.stages.hard=null", "method.target=0.6", "train.epochs=2"]
    overrides += ["task.max_train_samples=64"]
    recipe.train(small(*overrides, "task.max_eval_samples=16", "train.calibrate=16"), tmp_path, "")
    assert isinstance(terminal.file, io.StringIO)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.file.getvalue())
    lines = [line for part in shown.splitlines() for line in part.split("\r")]
    assert max(map(len, lines[2:])) <= 80  # what comes first names the folder
    frames = [line for line in lines if line.startswith("soft ")]  # the bar has the name of the stage
    assert re.search(r"4/4 .* loss 0\.\d+ keep \d\.\d+ FLOPs \d\.\d+$", frames[-1].rstrip())
    assert any(line.startswith("evaluation ━") for line in lines)
    assert any(line.startswith("calibration to 0.6 ━") for line in lines)
    assert sum(line.startswith("step 2: accuracy") for line in lines) == 1


def test_a_short_run_has_a_row_of_its_training(tmp_path: Path) -> None:
    """Shorter than ``callbacks.log_every``, whether it begins or goes on."""

    def steps(folder: Path) -> list[str]:
        with (folder / "metrics.csv").open() as file:
            return [row["step"] for row in csv.DictReader(file) if row["train/loss"]]

    recipe.train(small("method=dense", "train.max_steps=3"), tmp_path / "one", "")
    assert steps(tmp_path / "one") == ["2"]  # counted from 0
    last = tmp_path / "one" / "checkpoints" / "last.ckpt"
    recipe.train(small("method=dense", "train.max_steps=5", f"resume={last}"), tmp_path / "two", "")
    assert len(steps(tmp_path / "two")) == 1
