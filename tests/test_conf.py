"""Every option of every config group composes, says what it is, and names real constructor arguments."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = ("backbone", "task", "method", "hardware", "logger", "callbacks", "experiment")
OPTIONS = [(g, p.stem) for g in GROUPS for p in sorted((CONF / g).glob("*.yaml")) if not p.stem.startswith("_")]


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


@pytest.mark.parametrize("name", [o for g, o in OPTIONS if g == "method"])
def test_method_options_are_the_constructor_arguments(name: str) -> None:
    cfg = composed(f"method={name}").method
    given = {key for key in cfg if not key.startswith("_")}
    parameters = dict(inspect.signature(get_class(cfg._target_).__init__).parameters)
    del parameters["self"]
    assert given == set(parameters)
    for key in given:
        default = parameters[key].default
        value = OmegaConf.to_container(cfg)[key]
        assert value == (list(default) if isinstance(default, tuple) else default), (
            f"{name}.{key} differs from the code"
        )


def test_every_option_of_a_method_is_explained() -> None:
    for path in (CONF / "method").glob("*.yaml"):
        lines = path.read_text().splitlines()
        for before, line in itertools.pairwise(lines):
            if ":" in line and not line.startswith(("#", " ", "_")):
                assert before.startswith("#"), f"{path.name}: '{line}' has no comment above it"
