"""Parts of a run that a config names: callbacks, loggers, Trainer, optimizer, scheduler, through the real recipe."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import skim
from skim.errors import SkimError
from skim.lightning.assembly import callbacks_of, made, trainer_of
from skim.lightning.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from skim.lightning.optim import constant, cosine, grouped, linear, optimized, scheduled
from skim.lightning.recipe import train
from skim.options.settle import settle
from skim.resume import changes, inherited
from skim.stages import Plan, Stage
from tests.runs import CONF, ROOT, SMALL

TINY = [
    *("backbone.overrides.num_hidden_layers=2", "backbone.overrides.hidden_size=32"),
    *("backbone.overrides.num_attention_heads=2", "task.max_eval_samples=8", "task.batch_size=4"),
    *("method=transkimmer", "train.calibrate=0", "train.max_steps=4"),
]
MINE = """
import pytorch_lightning as pl


class Counts(pl.Callback):
    seen = []

    def __init__(self, every=1):
        self.every = every

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step % self.every == 0:
            Counts.seen.append(trainer.global_step)


def halves(optimizer, plan):
    from torch.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, lambda step: 0.5 ** (step * plan.steps / 4))


class NoCallback:
    pass
"""


def typed(*overrides: str, small: list[str] = SMALL) -> DictConfig:
    """What ``python train.py <overrides>`` composes, with every option looked at first."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", settle(inherited([*small, *overrides], "train"), "train"))


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the user's."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "mine_of_parts.py").write_text(MINE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mine_of_parts", raising=False)
    import mine_of_parts  # type: ignore[import-not-found]

    return mine_of_parts


def test_a_users_own_callback_and_arguments_of_the_trainer(own_module: Any, tmp_path: Path) -> None:
    mine = ["callbacks.mine._target_=mine_of_parts.Counts", "callbacks.mine.every=2"]
    limits = ["trainer.limit_train_batches=3", "trainer.limit_val_batches=1", "train.max_steps=-1", "train.epochs=2"]
    run = train(typed(*TINY, *mine, *limits), tmp_path / "run", "")
    assert own_module.Counts.seen == [2, 4, 6]
    assert run.results.steps == 6, "two epochs of three batches"


def test_every_callback_can_be_switched_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    off = [f"callbacks.{name}=null" for name in ("best_checkpoint", "last_checkpoint", "early_stopping")]
    run = train(typed(*TINY, *off, "callbacks.progress_bar=null", "logger.csv=null"), tmp_path / "run", "")
    assert run.results.status == "done"
    assert list(run.results.checkpoints) == ["last"]
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "metrics.csv").exists()
    assert not re.search(r"^step \d", capsys.readouterr().out, re.MULTILINE)


def test_what_needs_another_callback_says_so(tmp_path: Path) -> None:
    with pytest.raises(SkimError, match=r"callbacks\.patience=2 goes by the evaluations of callbacks\.best_checkpoint"):
        train(typed(*TINY, "callbacks.best_checkpoint=null", "callbacks.patience=2"), tmp_path / "run", "")


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        (["optimizer=sgd"], torch.optim.SGD),
        (["optimizer._target_=torch.optim.RAdam", "optimizer.betas=[0.8,0.9]"], torch.optim.RAdam),
    ],
)
def test_an_optimizer_of_ones_choice_trains_with_the_groups_of_skim(
    overrides: list[str], kind: type, tmp_path: Path
) -> None:
    cfg = typed(*TINY, "train.lr=0.1", "train.weight_decay=0.3", *overrides)
    run = train(cfg, tmp_path / "run", "")
    assert run.results.status == "done"
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]
    assert [(group["kind"], group["weight_decay"]) for group in state["param_groups"]] == [
        *(("decay", 0.3), ("plain", 0.0), ("method", 0.0))
    ]
    weights = [torch.nn.Parameter(torch.zeros(2, 2))]
    made_one = optimized(made(cfg, "optimizer", _partial_=True), grouped(weights, skim.Dense(), Stage()), True)
    assert type(made_one) is kind
    assert made_one.param_groups[0]["fused" if kind is torch.optim.SGD else "betas"] in (True, [0.8, 0.9])
    # a run that goes on does so with this optimizer, though no file of conf/optimizer has it
    again = typed(f"resume={tmp_path / 'run'}", "train.max_steps=6", small=[])
    assert again.optimizer == cfg.optimizer
    assert changes(again) == ["train.max_steps: 4 -> 6"]


def rates(make: Any, stages: list[Stage], steps: int, method_after: float = 0.0) -> list[float]:
    """Learning rates of the weights, step by step."""
    weights = [torch.nn.Parameter(torch.zeros(2, 2))]
    optimizer = optimized(torch.optim.SGD, grouped(weights, skim.Dense(), stages[0]), fused=False)
    schedule = scheduled(make, optimizer, Plan(stages, steps, method_after))
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_schedules_fall_as_they_are_called() -> None:
    """Two steps of warmup, then four; and a second stage with a peak of its own."""
    stages = [Stage("a", lr=1.0, warmup=1 / 3), Stage("b", lr=0.5, warmup=0.0)]
    assert rates(linear, stages, 12)[:6] == pytest.approx([1 / 2, 1, 1, 3 / 4, 2 / 4, 1 / 4])
    half = [(1 + torch.pi * 0) / 2 * 2, 0.8535534, 0.5, 0.1464466]
    assert rates(cosine, stages, 12)[:6] == pytest.approx([1 / 2, 1, *half])
    assert rates(constant, stages, 12) == pytest.approx([1 / 2, 1, 1, 1, 1, 1, *[0.5] * 6])


def test_a_schedule_of_torchs_starts_from_the_peaks_and_one_of_ones_own_may_follow_the_plan(own_module: Any) -> None:
    cfg = typed("scheduler._target_=torch.optim.lr_scheduler.StepLR", "scheduler.step_size=2", "scheduler.gamma=0.1")
    assert rates(made(cfg, "scheduler", _partial_=True), [Stage(lr=1.0)], 5) == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    cfg = typed("scheduler._target_=mine_of_parts.halves")
    assert rates(made(cfg, "scheduler", _partial_=True), [Stage(lr=1.0), Stage(lr=1.0)], 4) == [1, 0.5, 0.25, 0.125]


@pytest.mark.parametrize(
    ("stages", "after", "says"),
    [
        ([Stage("a"), Stage("b")], 0.0, "knows nothing of stages"),
        ([Stage()], 0.5, "knows nothing of train.method_after"),
    ],
)
def test_a_schedule_that_cannot_follow_the_plan_is_refused(stages: list[Stage], after: float, says: str) -> None:
    with pytest.raises(SkimError, match=says):
        rates(torch.optim.lr_scheduler.ConstantLR, stages, 4, after)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["trainer.precision=half"], "trainer or hardware cannot be used as configured: "),
        (["trainer.callbacks=[]"], "trainer.callbacks is filled from the group callbacks"),
        (["optimizer.lr=1"], "optimizer.lr would change nothing"),
        (["callbacks.mine._target_=nowhere.Mine"], "callbacks.mine._target_=nowhere.Mine cannot be imported"),
        (["callbacks.mine._target_=mine_of_parts.NoCallback"], "is of type NoCallback, and not a Lightning Callback"),
        (
            ["callbacks.mine={_target_:mine_of_parts.Counts,evry:2}"],
            "callbacks.mine (mine_of_parts.Counts) cannot be made",
        ),
        (["optimizer._target_=torch.optim.SGD", "optimizer.momentum=-1"], "optimizer cannot be used as configured"),
        (
            ["method=dense", "scheduler._target_=torch.optim.lr_scheduler.StepLR"],
            "scheduler cannot be used as configured",
        ),
        (["paths.run=elsewhere"], "hydra.run.dir="),
        (["trainer.max_steps=abc"], "trainer.max_steps=abc must be a whole number"),
        (["backbone.overrides.hidden_siz=64"], "Did you mean hidden_size?"),
    ],
)
def test_parts_that_cannot_be_made_are_refused(
    overrides: list[str], says: str, own_module: Any, tmp_path: Path
) -> None:
    with pytest.raises(SkimError) as caught:
        train(typed(*TINY, *overrides), tmp_path / "run", "")
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.limit_trian_batches=5", "Did you mean trainer.limit_train_batches?"),
        ("optimizer.momentum=0.9", "optimizer.momentum"),
        ("callbacks.best_checkpoint.foldr=x", "Did you mean callbacks.best_checkpoint.folder?"),
    ],
)
def test_an_argument_that_no_part_takes_ends_in_a_few_lines(
    override: str, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *SMALL, override, f"paths.runs={tmp_path / 'runs'}"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    said = capfd.readouterr().err
    assert left.value.code == 2
    assert says in said
    assert len(said.strip().splitlines()) <= 3


def test_the_trainer_says_once_what_hardware_and_train_say(tmp_path: Path) -> None:
    cfg = typed("train.max_steps=7", "train.clip=0.5", "train.accumulate=3", "trainer.max_epochs=9")
    cfg = OmegaConf.merge(cfg, {"paths": {"run": str(tmp_path)}})
    assert isinstance(cfg, DictConfig)
    trainer = trainer_of(cfg, callbacks_of(cfg), epochs=2)
    assert (trainer.max_steps, trainer.gradient_clip_val, trainer.accumulate_grad_batches) == (7, 0.5, 3)
    assert trainer.max_epochs == 9, "as given, and not as it follows from train.epochs"
    assert (trainer.val_check_interval, trainer.check_val_every_n_epoch) == (1.0, 1)
    kinds = [type(callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    assert kinds[0] is BestCheckpoint
    assert kinds[-1] is LastCheckpoint
