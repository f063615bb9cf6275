"""Every option of every config group composes, says what it is, and names real constructor arguments."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf

from skim.cli import settled
from skim.lightning.check import check, method_of
from skim.lightning.stages import stages_of
from skim.options.run import Schedule

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = (
    "backbone",
    "task",
    "method",
    "hardware",
    "trainer",
    "optimizer",
    "scheduler",
    "recipe",
    "logger",
    "callbacks",
    "experiment",
    "debug",
    "sweep",
)
OPTIONS = [(g, p.stem) for g in GROUPS for p in sorted((CONF / g).glob("*.yaml")) if not p.stem.startswith("_")]
METHODS = [o for g, o in OPTIONS if g == "method"]
PAPERS = [o for g, o in OPTIONS if g == "experiment" and "_paper" in o]
HABITS = [("callbacks", "best"), ("callbacks", "early_stopping"), *((g, o) for g, o in OPTIONS if g == "debug")]


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[f"{g}={o}" for g, o in OPTIONS])
def test_option_composes_without_missing_values(group: str, option: str) -> None:
    cfg = composed(f"{group}={option}")
    assert not OmegaConf.missing_keys(cfg)


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONF)))
def test_every_file_opens_with_a_comment(path: Path) -> None:
    assert path.read_text().startswith("#"), "say what the file is for, and the command that runs it"


@pytest.mark.parametrize("name", METHODS)
def test_stages_are_those_of_the_method_with_the_options_of_training(name: str) -> None:
    cfg = composed(f"method={name}")
    known = get_class(cfg.method._target_).stages
    if isinstance(known, property):  # a chain's are its members', each with the options of training
        known = ()
    assert tuple(cfg.method.get("stages") or ()) == known
    options = {field.name for field in fields(Schedule)}
    assert options <= set(cfg.train)
    for stage in known:
        assert cfg.method.stages[stage] is None or set(cfg.method.stages[stage]) == options


def test_ltp_in_halves_is_ltp_in_one_run() -> None:
    """What ltp_soft and ltp_hard say is one word each: the stage that they leave out."""
    whole = OmegaConf.to_container(composed("method=ltp").method)
    for name, left_out in (("ltp_soft", "hard"), ("ltp_hard", "soft")):
        half = OmegaConf.to_container(composed(f"method={name}").method)
        assert half == {**whole, "stages": {**whole["stages"], left_out: None}}


@pytest.mark.parametrize("name", PAPERS)
def test_the_setting_of_a_paper_can_be_run_and_says_where_it_is_from(name: str) -> None:
    cfg = composed(f"experiment={name}")
    check(cfg)
    stages = stages_of(cfg, method_of(cfg))
    assert sum(stage.epochs for stage in stages) > 0
    text = " ".join((CONF / "experiment" / f"{name}.yaml").read_text().replace("#", "").split())
    assert "github" in text, "the repository that the values are from"
    assert "What differs here:" in text


@pytest.mark.parametrize(
    ("name", "overrides", "seen"),
    [
        ("transkimmer_paper_sst2", (), {"method.preset": "paper", "train.accumulate": 2, "train.clip": None}),
        ("ltp_paper_mnli", (), {"method.stages.soft.method_lr": 2e-5, "method.stages.hard.epochs": 5}),
        ("ltp_paper_mnli", ("task=rte", "method.stages.soft.epochs=10"), {"task.batch_size": 64, "task.name": "rte"}),
        ("funnel_paper_glue", ("task=qnli", "train.epochs=3"), {"optimizer.betas": [0.9, 0.99], "train.epochs": 3}),
        ("act_paper", ("method.preset=tiny",), {"backbone.overrides.num_hidden_layers": 12, "train.epochs": 4}),
    ],
)
def test_what_is_typed_beside_a_papers_setting_changes_that_alone(
    name: str, overrides: tuple[str, ...], seen: dict[str, object]
) -> None:
    cfg = composed(f"experiment={name}", *overrides)
    assert {key: OmegaConf.select(cfg, key) for key in seen} == seen


@pytest.mark.parametrize(("group", "option"), [*(("experiment", name) for name in PAPERS), *HABITS])
def test_the_commands_in_a_files_first_comment_compose(group: str, option: str) -> None:
    """Every option in them exists; one that goes on in the next line is looked at as far as the first goes."""
    lines = [line.lstrip("# ") for line in (CONF / group / f"{option}.yaml").read_text().splitlines()]
    commands = [line for line in lines if line.startswith(("python train.py", "python evaluate.py"))]
    assert f"{group}={option}" in commands[0] or option == "act_paper"
    for command in commands:
        _, script, *arguments = re.sub(r"<[^>]+>", "some", command).split()
        settled(arguments, CONF, script.removesuffix(".py"))
