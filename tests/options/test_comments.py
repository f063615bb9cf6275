"""Files of conf, declarations and meanings agree: the same options, defaults, words and bounds."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from skim.methods import METHODS, method_class
from skim.options.check import PLACES
from skim.options.comments import ancestors, owners, value_of, written
from skim.options.declared import arguments, declared
from skim.options.files import entries
from skim.options.meaning import meaning, unexplained
from skim.options.words import enumerated
from tests.runs import CONF

TASKS: dict[type, list[Path]] = {}  # the files of each class of tasks
for path in sorted((CONF / "task").glob("[a-z]*.yaml")):
    for kind in owners(path).values():
        TASKS.setdefault(kind, []).append(path)
GIVEN = {"seed", "num_workers"}  # to a task, by the recipe
OWNERS = [*(method_class(name) for name in METHODS), *(kind for places in PLACES.values() for kind in places.values())]
WRITTEN = [  # every option of a class stands in the first file, with the value that the class gives it
    *((f"method/{path.stem}", "") for path in sorted((CONF / "method").glob("*.yaml"))),
    *(
        ("train", place)
        for place in PLACES["train"]
        if place.partition(".")[0] not in ("hardware", "callbacks", "sweep")
    ),
    ("hardware/auto", ""),
    ("callbacks/default", ""),
    ("sweep/default", ""),
    ("sweep/wandb", "agents"),
    *(("evaluate", place) for place in PLACES["evaluate"]),
]
FILES = [file for file in sorted(CONF.rglob("*.yaml")) if file.parent.name not in ("experiment", "debug", "hydra")]
MISSING = "???"  # a value that every command gives


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_comments_are_those_of_the_declarations(file: Path) -> None:
    assert file.read_text() == written(file), "python -m skim.options.comments conf writes them anew"


@pytest.mark.parametrize("owner", [*OWNERS, *TASKS], ids=lambda owner: owner.__name__)
def test_every_option_says_what_it_means_and_each_name_that_it_takes(owner: type) -> None:
    assert unexplained(owner) == []
    assert set(declared(owner)) == set(arguments(owner))
    for name, adapter in declared(owner).items():
        text = meaning(owner, name)
        assert text[:1].islower() or text.startswith(("``", "CPU")), f"{name}: {text}"
        absent = [known for known in enumerated(adapter.json_schema()) if known not in text]
        assert not absent or name == "formulas"


@pytest.mark.parametrize(("name", "place"), WRITTEN)
def test_a_file_has_every_option_with_the_value_of_the_declaration(name: str, place: str) -> None:
    file = CONF / f"{name}.yaml"
    owner = owners(file)[place]
    files = (*reversed(ancestors(file)), file) if "/" in name else (file,)
    found = {entry.name: entry for one in files for entry in entries(one.read_text()) if entry.place == place}
    known = arguments(owner)
    assert set(known) <= set(found)
    for option, parameter in known.items():
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        value = value_of(found[option])
        assert (value, type(value)) == (default, type(default)) or value == MISSING


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_every_option_has_a_comment_in_its_file_or_in_one_that_it_starts_from(file: Path) -> None:
    def generic(path: str) -> str:
        """Stages of a method have the same options, so one comment does for all of them."""
        path = path.removeprefix(f"{file.parent.name}.")
        return ".".join("*" if n == 1 and path.startswith("stages.") else key for n, key in enumerate(path.split(".")))

    known = {
        generic(entry.path) for one in (file, *ancestors(file)) for entry in entries(one.read_text()) if entry.comment
    }
    options = {generic(entry.path): entry for entry in entries(file.read_text()) if entry.value is not None}
    evident = {
        path for path, entry in options.items() if entry.value == file.stem or path.startswith(("overrides.", "files."))
    }
    evident |= {path for path in options if path.startswith(("overrides.", "files."))}  # the keys of one option
    assert options.keys() - known - evident == set()


def test_every_option_of_a_task_stands_in_a_file_of_its_class_or_of_one_below() -> None:
    missing = set()
    for parent in {kind for owner in TASKS for kind in owner.__mro__ if is_dataclass(kind)}:
        files = {one for owner in TASKS if issubclass(owner, parent) for file in TASKS[owner] for one in with_all(file)}
        named = {entry.path.removeprefix("task.") for file in files for entry in entries(file.read_text())}
        own = set(vars(parent)["__annotations__"]) & {one.name for one in fields(parent) if one.init}
        missing |= own - GIVEN - named
    assert missing == set()


def with_all(file: Path) -> list[Path]:
    """A file, and those that it starts from."""
    return [file, *ancestors(file)]


def test_a_comment_that_contradicts_and_a_default_that_differs_are_found(tmp_path: Path) -> None:
    """What the tests above hold on to, on a copy of a file that was changed."""
    (tmp_path / "method").mkdir()
    file = tmp_path / "method" / "topk.yaml"
    text = (CONF / "method" / "topk.yaml").read_text()
    file.write_text(text.replace("at most 1]", "at most 2]").replace("start: null", "start: 3"))
    assert file.read_text() != text
    assert "at most 2" not in written(file)
    assert written(file).replace("start: 3", "start: null") == text
    start = next(entry for entry in entries(file.read_text()) if entry.name == "start")
    assert value_of(start) != arguments(get_class(OmegaConf.load(file)._target_))["start"].default
