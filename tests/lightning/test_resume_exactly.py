"""A run that was interrupted in the middle of an epoch and goes on is, to the last bit, the run that was not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch

from skim.errors import SkimError
from skim.lightning.callbacks.resume import ExactResume
from skim.lightning.recipe import Run
from tests.runs import composed, watched_by

COMMON = [
    "backbone=tiny",
    "backbone.overrides.num_hidden_layers=2",
    "backbone.overrides.hidden_size=32",
    "backbone.overrides.attention_probs_dropout_prob=0.1",
    "backbone.overrides.num_attention_heads=2",
    "hardware=cpu",
    "hardware.threads=1",
    "benchmark.enabled=false",
    "task.batch_size=8",
    "task.max_eval_samples=16",
    "train.calibrate=16",
    "train.lr=1e-3",
    "callbacks.log_every=1",
    "callbacks.save_every=1",
]
# what is trained, and the steps after which it is interrupted: in the first epoch and in the second, before and after
# an evaluation, and at the end of an epoch
RUNS: dict[str, tuple[list[str], list[int]]] = {
    "classification": (
        [
            *("task=builtin", "method=transkimmer", "method.target=0.6", "task.train_rows=52"),
            *("train.evals_per_epoch=2", "train.ema=0.9"),
        ],
        [3, 7, 9],
    ),
    "a range of budgets": (
        [
            *("task=builtin", "method=transkimmer", "method.target=[0.6,1.0]", "method.bottleneck=8"),
            *("task.train_rows=52", "train.evals_per_epoch=2"),
        ],
        [5],
    ),
    "accumulated": (
        ["task=builtin", "method=transkimmer", "task.train_rows=52", "train.accumulate=2", "train.evals_per_epoch=2"],
        [5],
    ),
    # the evaluation comes between the two batches of a step, when gradients have gathered that no checkpoint holds
    "evaluated between accumulated batches": (
        [
            *("task=builtin", "method=dense", "task.train_rows=52", "train.accumulate=2", "train.evals_per_epoch=2"),
            "callbacks.save_every=null",
        ],
        [2],
    ),
    "masked language": (
        ["task=builtin_text", "method=transkimmer", "task.max_train_samples=60", "train.evals_per_epoch=2"],
        [7],
    ),
    "masked language, accumulated": (
        ["task=builtin_text", "method=dense", "task.max_train_samples=60", "train.accumulate=2"],
        [2],
    ),
    "two stages of a chain, whose members' decisions depend on their progress": (
        [
            *("task=builtin", "method=chain", "task.train_rows=48"),
            *("method.methods=[transkimmer,{method: ltp, target: 0.8}]", "train.ema=0.9"),
        ],
        [5, 10],
    ),
    "a late method that learns from itself": (
        [
            *("task=builtin", "method=transkimmer", "task.train_rows=52", "train.method_after=0.4"),
            *("train.distill=0.5", "train.distill_from=self"),
        ],
        [3, 8],
    ),
    "lengths that are drawn in each step": (
        ["task=builtin", "method=length_drop", "method.target=0.6", "task.train_rows=52", "train.distill_from=self"],
        [3],
    ),
    "a budget of tokens": (
        [
            *("task=builtin", "method=dense", "task.train_rows=52", "task.tokens_per_batch=150", "train.accumulate=2"),
            "train.evals_per_epoch=2",
        ],
        [4],
    ),
    # saved at the end of an epoch, by default; workers fetch before Lightning says which epoch it is
    "between epochs, with a worker": (
        [
            *("task=builtin", "method=dense", "task.train_rows=48", "hardware.num_workers=1"),
            *("train.epochs=3", "callbacks.save_every=null"),
        ],
        [6],
    ),
    "ELECTRA": (
        [
            *("task=electra", "task.hub_id=builtin/text", "task.config=default", "method=dense", "task.max_length=64"),
            *("backbone.overrides.model_type=electra", "task.max_train_samples=60", "task.generator_size=0.5"),
        ],
        [3],
    ),
    "a stream, accumulated": (
        [
            *("task=builtin_text", "method=transkimmer", "task.streaming=true", "task.shuffle_buffer=50"),
            *("train.max_steps=6", "train.eval_every=4", "train.accumulate=2"),
        ],
        [3],
    ),
}


class Interrupted(pl.Callback):
    """Puts the checkpoints aside as they were after some steps: what an interrupted run would have left behind."""

    def __init__(self, folder: Path, steps: list[int]) -> None:
        self.folder, self.steps = folder, list(steps)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step in self.steps:
            self.steps.remove(trainer.global_step)
            aside = self.folder.parent / f"after_{trainer.global_step}"
            shutil.copytree(self.folder / "checkpoints", aside / "checkpoints")
            shutil.copy(self.folder / "config.yaml", aside)


def run(folder: Path, given: list[str], callback: pl.Callback) -> tuple[Run, dict[str, Any]]:
    """A run, and what its last checkpoint holds."""
    done = watched_by(callback, composed(*given), folder)
    return done, torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Places in two nested structures where they are not the same, bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict) and set(one) == set(other):
        return [found for key in one for found in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [f for i, pair in enumerate(zip(one, other, strict=True)) for f in differences(*pair, f"{where}/{i}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    return [] if one == other else [where]


@pytest.mark.parametrize("name", RUNS)
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    given, steps = RUNS[name]
    given = ["train.epochs=2", *given[:1], *COMMON, *given[1:]]
    straight, last = run(tmp_path / "straight", given, Interrupted(tmp_path / "straight", steps))
    for step in steps:
        aside = tmp_path / f"after_{step}" / "checkpoints" / "last.ckpt"
        saved = torch.load(aside, weights_only=True)
        assert saved["global_step"] == step
        resumed, again = run(tmp_path / f"from_{step}", [*given, f"resume={aside}"], pl.Callback())
        averaged = ("current_model_state", "averaging_state") if any("ema" in option for option in given) else ()
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", *averaged):
            assert not differences(last[part], again[part], part)
        assert resumed.results.metrics == straight.results.metrics
        assert resumed.results.keep_ratio == straight.results.keep_ratio


SMALL = ["task=builtin", "method=dense", *COMMON, "task.train_rows=48"]  # six batches per epoch


class Seen(pl.Callback):
    """Which rows were trained on, batch by batch."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, *_: Any) -> None:
        self.rows.append(batch["row"].tolist())


def test_a_run_that_max_steps_has_ended_within_an_epoch_finishes_it(tmp_path: Path) -> None:
    first, then = Seen(), Seen()
    watched_by(first, composed(*SMALL, "train.max_steps=4"), tmp_path / "first")
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    watched_by(then, composed(*SMALL, "train.max_steps=12", f"resume={last}"), tmp_path / "then")
    assert sorted(row for batch in first.rows + then.rows[:2] for row in batch) == list(range(48))
    assert sorted(row for batch in then.rows[2:] for row in batch) == list(range(48))


def test_processes_that_find_other_checkpoints_do_not_train_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where each machine of a run has a folder of its own, and the checkpoint lies in the first one's."""
    monkeypatch.setattr("skim.lightning.callbacks.resume.everywhere", lambda step: [4, step])
    with pytest.raises(SkimError, match=r"from one checkpoint: rank 0 from step 4, rank 1 from step 0\.\nIs the run's"):
        ExactResume().on_fit_start(cast(Any, None), None)


def test_other_batches_within_an_epoch_are_refused(tmp_path: Path) -> None:
    watched_by(pl.Callback(), composed(*SMALL, "train.max_steps=4"), tmp_path / "first")
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    with pytest.raises(SkimError, match=r"resume: the checkpoint stands in the middle of an epoch, .*, now "):
        watched_by(
            pl.Callback(),
            composed(*SMALL, "train.max_steps=12", f"resume={last}", "task.batch_size=16"),
            tmp_path / "then",
        )
