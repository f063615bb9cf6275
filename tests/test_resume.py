"""Going on with a run: its own config, what may be changed on the way, and what is said when it is interrupted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from skim.errors import SkimError
from skim.lightning import recipe
from skim.lightning.callbacks.checkpoints import spoken_of
from skim.lightning.checkpoint_io import write_checkpoint
from skim.options.settle import settle
from skim.resume import LAST, PREVIOUS, changes, check_named, checkpoint_of, done, found, inherited, passed_over
from tests.runs import CONF, composed, small, watched_by


def going_on(*overrides: str) -> DictConfig:
    """What ``python train.py resume=<run> <overrides>`` composes."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", settle(inherited(overrides, "train"), "train"))


def left(folder: Path, *overrides: str) -> DictConfig:
    """A run's folder, as far as its config and a checkpoint go."""
    cfg = composed(*overrides)
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({}, folder / "checkpoints" / "last.ckpt")
    OmegaConf.save(cfg, folder / "config.yaml")
    return cfg


MADE = {
    "nothing": [],
    "a value": ["method=transkimmer", "method.bottleneck=16", "train.lr=3e-5", "method.layers=[0,2]"],
    "stages": ["method=ltp", "method.stages.soft.epochs=3", "method.stages.hard.lr=1e-5", "method.coefficient=0.02"],
    "a stage left out": ["method=ltp_hard", "init_from=runs/soft", "method.stages.hard.epochs=2"],
    "an experiment": ["experiment=sst2_ltp", "seed=3"],
    "a logger": ["logger=wandb", "logger.wandb.project=it's (mine), no?"],
    "hardware": ["hardware=ddp_cpu", "hardware.devices=[0,1]"],
    "files": ["task=text", "task.files.train='/a b/it\\'s [1], {x}=2.csv'", "task.text_columns=[one,two words]"],
    "a model's config": ["backbone=tiny", "task=builtin", "+backbone.overrides.layer_norm_eps=1e-6"],
    "a family's": ["backbone=funnel_small", "backbone.overrides.hf_compat=true"],
    "a task's backbone": ["task=builtin_spans", "method=early_exit", "callbacks.patience=2", "formulas=[ltp]"],
}


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_a_run_goes_on_by_its_own_config(made: list[str], tmp_path: Path) -> None:
    before = left(tmp_path / "run", *[o.replace("=it's (mine), no?", "='it\\'s (mine), no?'") for o in made])
    cfg = going_on(f"resume={tmp_path / 'run'}")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert OmegaConf.to_container(cfg, resolve=True) == {
        **OmegaConf.to_container(before, resolve=True),  # type: ignore[dict-item]
        "resume": str(last),
    }
    assert OmegaConf.to_container(going_on(f"resume={last}")) == OmegaConf.to_container(cfg)
    assert changes(cfg) == []


def test_a_run_of_an_older_version_goes_on(tmp_path: Path) -> None:
    """Whose config does not name the options that came later."""
    left(tmp_path / "run", "task=sst2", "method=topk")
    file = tmp_path / "run" / "config.yaml"
    file.write_text("".join(line for line in file.open() if not re.match(r" *(nonfinite|min_tokens|trust_mod)", line)))
    assert changes(going_on(f"resume={tmp_path / 'run'}")) == []
    assert changes(going_on(f"resume={tmp_path / 'run'}", "train.nonfinite=skip")) == ["train.nonfinite: null -> skip"]
    with pytest.raises(SkimError, match=r"cannot change method.min_tokens \(was null, now 8\)"):
        changes(going_on(f"resume={tmp_path / 'run'}", "method.min_tokens=8"))


def test_what_is_typed_beside_it_comes_last(tmp_path: Path) -> None:
    left(tmp_path / "run", "method=topk", "hardware=ddp_cpu", "train.max_steps=30", "callbacks.log_every=5")
    here = f"resume={tmp_path / 'run'}"
    cfg = going_on("train.max_steps=60", "hardware=cpu", "method=topk", here, "+callbacks.patience=3")
    assert (cfg.hardware.strategy, cfg.callbacks.log_every) == ("auto", 5)
    assert changes(cfg) == [
        "train.max_steps: 30 -> 60",
        "hardware.devices: 2 -> 1",
        "hardware.strategy: ddp -> auto",
        "hardware.threads: 1 -> null",
        "callbacks.patience: null -> 3",
    ]


def test_the_folder_of_the_new_run_is_named_after_the_old_ones_choices(tmp_path: Path) -> None:
    left(tmp_path / "run", "method=topk", "task=builtin")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "train", settle(inherited([f"resume={tmp_path / 'run'}"], "train"), "train"), return_hydra_config=True
        )
    choices = cfg.hydra.runtime.choices
    assert (choices.task, choices.method, choices.backbone) == ("builtin", "topk", "tiny")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.lr=1", r"train.lr \(was 5e-05, now 1\)"),
        ("train.warmup=0.5", r"train.warmup \(was 0.1, now 0.5\)"),
        ("train.accumulate=2", r"train.accumulate \(was 1, now 2\)"),
        ("train.distill=0.1", "train.distill "),
        ("seed=2", r"seed \(was 1, now 2\)"),
        ("method.bottleneck=8", r"method.bottleneck \(was 16, now 8\)"),
        ("method.lambda=0.1", r"method.lambda"),
        ("method=topk", "method._target_"),
        ("task=builtin_pairs", r"task._target_"),
        ("task.train_rows=8", "task.train_rows"),
        ("backbone.overrides.hidden_size=64", "backbone.overrides.hidden_size"),
        ("backbone.overrides.layer_norm_eps=1", r"backbone.overrides.layer_norm_eps \(was null, now 1\)"),
    ],
)
def test_what_would_break_the_schedule_is_refused(override: str, says: str, tmp_path: Path) -> None:
    left(tmp_path / "run", "method=transkimmer", "task=builtin", "method.bottleneck=16")
    says = says.replace("method.lambda", "method.coefficient")
    with pytest.raises(SkimError, match=says) as caught:
        changes(going_on(f"resume={tmp_path / 'run'}", override))
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["resume=nowhere"], "is neither a file nor a run's folder"),
        (["resume=nowhere.ckpt"], "is neither a file nor a run's folder"),
        (["resume=one,two"], "one at a time"),
        (["resume={run}", "experiment=demo"], "Leave it away"),
        (["resume={empty}"], "ended before it wrote one"),
        (["resume={run}", "train.learning_rate=1"], "Did you mean train.lr"),
    ],
)
def test_what_no_run_can_go_on_from(given: list[str], says: str, tmp_path: Path) -> None:
    left(tmp_path / "run", "method=topk")
    left(tmp_path / "empty", "method=topk")
    (tmp_path / "empty" / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(SkimError, match=says):
        going_on(*[o.format(run=tmp_path / "run", empty=tmp_path / "empty") for o in given])


def test_a_run_of_somebodys_own_method_asks_for_its_file(tmp_path: Path) -> None:
    cfg = left(tmp_path / "run", "method=topk")
    OmegaConf.save(OmegaConf.merge(cfg, {"method": {"_target_": "mine.First"}}), tmp_path / "run" / "config.yaml")
    with pytest.raises(SkimError, match=r"Name it: method=<file>"):
        going_on(f"resume={tmp_path / 'run'}")


def test_going_on_by_itself_needs_a_folder_with_a_name() -> None:
    with pytest.raises(SkimError, match=r"by default each start has a new one\.\nName it: resume=auto hydra"):
        check_named(["method=topk", "resume=auto"])
    for given in (["resume=auto", "hydra.run.dir=runs/mine"], ["resume=runs/auto"], ["resume=auto", "resume=null"]):
        check_named(given)


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    left(tmp_path, "method=topk")
    last, previous = tmp_path / LAST, tmp_path / PREVIOUS
    torch.save({"global_step": 3}, previous)
    assert checkpoint_of(tmp_path) == last
    assert passed_over(last) == []
    damaged(last)
    assert checkpoint_of(tmp_path) == previous
    assert passed_over(previous) == [
        f"{last} is cut or damaged (its checksum differs); previous.ckpt, the one before it, is used"
    ]
    cfg = found(composed("method=topk", "resume=auto"), tmp_path)
    assert cfg.resume == str(previous)
    damaged(previous)
    assert found(composed("method=topk", "resume=auto"), tmp_path).resume is None
    with pytest.raises(SkimError, match=r"last\.ckpt and .*previous\.ckpt are cut or damaged"):
        checkpoint_of(tmp_path)


def test_a_damaged_checkpoint_is_not_asked_which_best_one_it_remembers(tmp_path: Path) -> None:
    for path, step in ((tmp_path / LAST.name, 3), (tmp_path / PREVIOUS.name, 2)):
        write_checkpoint({"callbacks": {"best": {"best": {"step": step}}}}, path)
    assert spoken_of(tmp_path, "best") == {2, 3}
    damaged(tmp_path / PREVIOUS.name)
    assert spoken_of(tmp_path, "best") == {3}


def test_a_finished_run_is_told_from_another_one_in_its_folder(tmp_path: Path) -> None:
    cfg = composed("method=topk", "resume=auto")
    left(tmp_path, "method=topk")
    assert done(cfg, tmp_path) is None
    (tmp_path / "results.json").write_text('{"status": "failed"}')
    assert done(cfg, tmp_path) is None
    (tmp_path / "results.json").write_text('{"status": "done"}')
    assert done(cfg, tmp_path) == []
    assert done(composed("method=topk", "resume=auto", "train.epochs=2"), tmp_path) == ["train.epochs: 1 -> 2"]
    with pytest.raises(SkimError, match=r"cannot change seed \(was 1, now 2\)"):
        done(composed("method=topk", "resume=auto", "seed=2"), tmp_path)


# --------------------------------------------------------------------------- with a training
class Interrupts(pl.Callback):
    """Ctrl-C at the end of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


SHORT = ["method=transkimmer", "method.stages.hard=null", "method.bottleneck=16"]
SHORT += ["train.max_steps=6", "callbacks.save_every=2"]


def test_an_interrupted_run_says_from_where_it_goes_on_and_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "one"
    with pytest.raises(KeyboardInterrupt) as interrupt:
        watched_by(Interrupts(5), small(*SHORT), run)
    assert str(interrupt.value) == "interrupted; resume=runs/one goes on from step 4"
    written = json.loads((run / "results.json").read_text())
    assert (written["status"], written["notes"]) == ("failed", [str(interrupt.value)])

    capsys.readouterr()
    done = recipe.train(going_on("resume=runs/one", "train.max_steps=8"), tmp_path / "runs" / "two", "")
    said = capsys.readouterr().out
    assert "going on from runs/one/checkpoints/last.ckpt\ntrain.max_steps: 6 -> 8\n" in said
    assert done.results.status == "done"
    last = torch.load(tmp_path / "runs" / "two" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 8
    assert done.results.config["method"]["bottleneck"] == 16


def test_an_interrupted_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="before it wrote a checkpoint: start it anew"):
        watched_by(Interrupts(1), small(*SHORT), tmp_path / "run")
