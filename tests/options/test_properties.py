"""Every declared option takes exactly what its declaration says: in Python, and on the command line.

The options of all methods, all tasks, a training and a look; values are of every kind, at each bound and just beyond.
"""

from __future__ import annotations

import copy
import functools
import math
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from skim.errors import SkimError
from skim.lightning.check import check
from skim.methods import METHODS, method_class
from skim.options.check import PLACES
from skim.options.declared import OptionError, arguments, declared
from skim.options.words import enumerated, written
from tests.runs import CONF

NEEDED = {"name": "mine"}  # options without a default
THINGS: list[Any] = [None, True, False, 0, 1, -1, 7, 2.5, -0.5, math.nan, math.inf, -math.inf, "abc", "0.5", "", b"a"]
THINGS += [{}, {"a": 1}, {"train": "a.csv"}, [], [0], [1, 2], [1.5], ["a"], ["a", "b"], [None], [[1]], (1, 2), object()]


def tasks() -> dict[str, str]:
    """The classes of tasks, each with a file of conf/task that names it."""
    found = {}
    for path in sorted((CONF / "task").glob("[a-z]*.yaml")):
        tree = OmegaConf.load(path)
        target = OmegaConf.select(tree, "_target_") or OmegaConf.select(tree, "task._target_")
        if target:
            found.setdefault(target, path.stem)
    return found


# by what to compose, what its options are called on the command line, and whose they are
OWNERS = [
    *(("train", f"method={name}", "method", method_class(name)) for name in METHODS),
    *(("train", f"task={file}", "task", get_class(target)) for target, file in tasks().items()),
    *((config, "", place, owner) for config, places in PLACES.items() for place, owner in places.items()),
]
GIVEN = ("seed", "num_workers")  # to a task, by the recipe


def home(owner: type, name: str) -> type:
    """The class that declares an option: what a dataclass inherits is as good as its parent's."""
    return next((kind for kind in owner.__mro__ if name in vars(kind).get("__annotations__", {})), owner)


EVERY = [(*o, name) for o in OWNERS for name in declared(o[-1]) if o[2] != "task" or name not in GIVEN]
OPTIONS = list({(*one[:1], one[2], home(*one[-2:]), one[-1]): one for one in reversed(EVERY)}.values())[::-1]
IDS = [f"{owner.__name__}.{name}" for *_, owner, name in OPTIONS]


def kinds(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a schema allows, kind by kind."""
    return [one for kind in schema["anyOf"] for one in kinds(kind)] if "anyOf" in schema else [schema]


def allows(schema: Mapping[str, Any], value: Any) -> bool:
    """Read a schema by oneself: what JSON Schema says, with texts that are no numbers and ``True`` that is none."""
    return any(allows_kind(kind, value) for kind in kinds(schema))


def allows_kind(kind: Mapping[str, Any], value: Any) -> bool:
    if not kind:  # a thing of any kind
        return True
    known = enumerated(kind)
    if known or kind.get("type") == "string":
        named = kind.get("numbers") and isinstance(value, (int, float))  # a name that YAML reads as a number
        return named or (isinstance(value, str) and (not known or value in known))
    if kind["type"] in ("integer", "number"):
        right = isinstance(value, int) or (kind["type"] == "number" and isinstance(value, float))
        return right and not isinstance(value, bool) and math.isfinite(value) and within(kind, value)
    if kind["type"] == "array":
        if not isinstance(value, (list, tuple)):
            return False
        places = kind.get("prefixItems")
        if places is not None:
            return len(value) == len(places) and all(map(allows, places, value))
        least, most = kind.get("minItems", 0), kind.get("maxItems", math.inf)
        return least <= len(value) <= most and all(allows(kind["items"], item) for item in value)
    if kind["type"] == "object":
        return isinstance(value, dict) and all(
            allows(kind.get("propertyNames", {"type": "string"}), key) and allows(kind["additionalProperties"], item)
            for key, item in value.items()
        )
    return {"boolean": isinstance(value, bool), "null": value is None}[kind["type"]]


def right(owner: type, name: str, value: Any) -> bool:
    """Tell whether an option may have a value: by its declaration, or since it is the default."""
    default = arguments(owner)[name].default
    return allows(declared(owner)[name].json_schema(), value) or (type(value) is type(default) and value == default)


def within(kind: Mapping[str, Any], value: float) -> bool:
    return (
        kind.get("minimum", -math.inf) <= value <= kind.get("maximum", math.inf)
        and value > kind.get("exclusiveMinimum", -math.inf)
        and value < kind.get("exclusiveMaximum", math.inf)
    )


def limits(schema: Mapping[str, Any]) -> list[float]:
    """The bounds of numbers anywhere in a schema."""
    found = [schema[key] for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum") if key in schema]
    for inner in (*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())):
        found += limits(inner)
    return found


def values(schema: Mapping[str, Any]) -> list[Any]:
    """Values of every kind, each bound and its neighbours on both sides, the names of a closed list and one more."""
    found = list(THINGS)
    for bound in limits(schema):
        beside = [bound, bound - 1, bound + 1, math.nextafter(bound, math.inf), math.nextafter(bound, -math.inf)]
        found += [*beside, *([one] for one in beside)]
    names = [name for kind in kinds(schema) for name in (*enumerated(kind), *enumerated(kind.get("items", {})))]
    return [*found, *names, *(f"{name}x" for name in names), *([name] for name in names)]


@pytest.mark.parametrize(("config", "file", "place", "owner", "name"), OPTIONS, ids=IDS)
def test_an_option_takes_what_its_declaration_says_and_nothing_else(
    config: str, file: str, place: str, owner: type, name: str
) -> None:
    schema = declared(owner)[name].json_schema()
    refusals = 0
    for value in values(schema):
        error = refusal(owner, {name: value})
        if right(owner, name, value):  # what is allowed may still be wrong beside the other options, by another rule
            assert " must be " not in str(error)
            continue
        refusals += 1
        assert isinstance(error, OptionError), f"{name}={value!r} was taken"
        assert list(error.given) == [name]
        assert str(error).startswith(f"{owner.__name__}({name}=")
        say_what_it_may_be(str(error), schema)
    assert refusals > 5


def refusal(owner: type, options: dict[str, Any]) -> SkimError | None:
    needed = {name: NEEDED[name] for name, one in arguments(owner).items() if one.default is one.empty}
    try:
        owner(**needed | options)
    except SkimError as error:
        return error
    return None


def say_what_it_may_be(said: str, schema: Mapping[str, Any]) -> None:
    """The bounds, and the names of a closed list, in one line."""
    assert " must be " in said
    assert "\n" not in said
    for known in [*(f"{bound:.10g}" for bound in limits(schema)), *enumerated(schema)]:
        assert known in said.partition(" must be ")[2]


@functools.cache
def config_of(name: str, file: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, [file] if file else [])


@pytest.mark.parametrize(("config", "file", "place", "owner", "name"), OPTIONS, ids=IDS)
def test_the_command_line_refuses_by_the_same_declaration(
    config: str, file: str, place: str, owner: type, name: str
) -> None:
    schema = declared(owner)[name].json_schema()
    wrong = [value for value in values(schema) if is_typed(value) and not right(owner, name, value)]
    wrong = [*wrong[:1], *[value for value in wrong if type(value) in (int, float)][-2:]]  # of another kind, and beyond
    path = f"{place}.{name}" if place else name
    for value in wrong:
        cfg = copy.deepcopy(config_of(config, file))
        given = OverridesParser.create().parse_override(f"{path}={written(value)}").value()
        OmegaConf.update(cfg, path, given, force_add=True)
        with pytest.raises(SkimError) as refused:
            check(cfg)
        said = str(refused.value)
        assert said.startswith(f"{path}=")
        say_what_it_may_be(said, schema)
        assert not isinstance(refused.value, OptionError)


def is_typed(value: Any) -> bool:
    """Tell whether Hydra reads a value back as it was written."""
    try:
        return bool(OverridesParser.create().parse_override(f"a={written(value)}").value() == value)
    except Exception:
        return False


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("train.lr=abc", "train.lr=abc must be a number, at least 0."),
        ("task.max_length=abc", "task.max_length=abc must be a whole number, at least 3."),
        (
            "method.target=0.5x",
            "method.target=0.5x must be a number, above 0 and at most 1 or a list of 2 numbers, above 0 and at most 1, "
            "such as [0.25, 1.0].",
        ),
        ("hardware.threads=0", "hardware.threads=0 must be a whole number, at least 1."),
        ("callbacks.export=bst", "callbacks.export=bst must be one of best, last. Did you mean 'best'?"),
        ("seed=-1", "seed=-1 must be a whole number, from 0 to 4294967295."),
    ],
)
def test_train_py_ends_with_2_in_one_line(
    option: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = CONF.parent / "train.py"
    monkeypatch.setattr(
        sys, "argv", ["train.py", "task=builtin", "backbone=tiny", option, f"paths.runs={tmp_path / 'runs'}"]
    )
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(script.parent)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(script), run_name="__main__")
    assert left.value.code == 2
    assert capfd.readouterr().err == f"error: {says}\n"
    assert not list(tmp_path.glob("runs/**/*.json"))
