"""Runs that are killed at random and started again by ``resume=auto`` end, bit for bit, as if nothing had been."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kills.lives import lives, survives

COMMON = [
    *("resume=auto", "backbone=tiny", "backbone.overrides.num_hidden_layers=2", "backbone.overrides.hidden_size=32"),
    *("backbone.overrides.num_attention_heads=2", "backbone.overrides.attention_probs_dropout_prob=0.1"),
    *("hardware.threads=1", "benchmark.enabled=false", "print_config=false", "task.batch_size=8"),
    *("task.max_eval_samples=16", "train.calibrate=16", "train.lr=1e-3", "callbacks.log_every=1"),
    *("callbacks.save_every=3", "callbacks.progress=false"),
]
SHORT = ["task=builtin", "task.train_rows=52", "train.epochs=3", "train.evals_per_epoch=2"]  # seven steps an epoch
RUNS = {
    "dense": [*SHORT, "method=dense"],
    "transkimmer with a target": [*SHORT, "method=transkimmer", "method.target=0.6"],
    "ltp in two stages": [*SHORT, "method=ltp", "method.target=0.6"],
    "act": [*SHORT, "method=act"],
    "any budget": [*SHORT, "method=transkimmer", "method.target=[0.6,1.0]", "method.bottleneck=8"],
    "a stream of text with workers": [
        *("task=builtin_text", "method=transkimmer", "task.streaming=true", "task.shuffle_buffer=50"),
        *("train.max_steps=20", "train.eval_every=4", "hardware.num_workers=1"),
    ],
    "an average of the weights, accumulated": [
        *(*SHORT, "method=transkimmer", "method.target=0.6", "method.stages.hard=null", "train.ema=0.9"),
        *("train.accumulate=2", "callbacks.patience=2", "train.epochs=6"),
    ],
}
KILLS, SEED = 20, 17


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", RUNS)
def test_twenty_kills_change_nothing(name: str, ranks: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hardware = "hardware=cpu" if ranks == 1 else "hardware=ddp_cpu"
    outcome = survives([*RUNS[name], *COMMON, hardware], tmp_path, KILLS, SEED + ranks, ranks)
    with capsys.disabled():
        print(f"\n{name}, {ranks} process{'es' * (ranks > 1)}: {outcome}")


def test_a_run_that_is_killed_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    command = [*RUNS["transkimmer with a target"], *COMMON, "hardware=cpu", "train.epochs=1"]
    survives(command, tmp_path, kills=2, seed=SEED)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "straight").rglob("*")}
    code, events = lives(command, tmp_path / "straight", tmp_path / "cache-straight")
    assert (code, events) == (0, [])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "straight").rglob("*")} == before
    assert "straight has finished: nothing is left to do" in (tmp_path / "straight.log0").read_text()
