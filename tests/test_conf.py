"""Every option of every config group composes, says what it is, and names real constructor arguments."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf

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
    "logger",
    "callbacks",
    "experiment",
)
OPTIONS = [(g, p.stem) for g in GROUPS for p in sorted((CONF / g).glob("*.yaml")) if not p.stem.startswith("_")]
METHODS = [o for g, o in OPTIONS if g == "method"]


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
