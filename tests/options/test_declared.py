"""Declarations of dataclasses and of constructors: checks, words and meanings from one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from omegaconf import OmegaConf
from pydantic import Field

import skim
from skim.errors import SkimError
from skim.methods.options import Share
from skim.options.check import typed
from skim.options.declared import OptionError, arguments, check_fields, check_options, checked, declared
from skim.options.kinds import Count, Fraction
from skim.options.meaning import comment, meaning, unexplained


@dataclass(kw_only=True, frozen=True)
class Reading:
    """What a task would be."""

    length: Annotated[int, Field(ge=3)] = 128
    """tokens per sequence; ``None`` is not for this one"""
    files: dict[str, str | None] = field(default_factory=dict)
    """own files, by part"""
    pair: tuple[tuple[int, int], ...] = ()
    bad: Literal["error", "skip"] = "error"
    """a bad row: ``error`` or ``skip``"""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(kw_only=True, frozen=True)
class Longer(Reading):
    """Inherits the fields of the other, and says one more."""

    share: Fraction | None = None
    """share of the rows; ``None`` is all"""


@pytest.mark.parametrize(
    ("options", "library", "command_line"),
    [
        (
            {"length": "abc"},
            "Longer(length='abc'): must be a whole number, at least 3.",
            "task.length=abc must be a whole number, at least 3.",
        ),
        (
            {"share": 2},
            "Longer(share=2): must be a number, from 0 to 1.",
            "task.share=2 must be a number, from 0 to 1.",
        ),
        ({"files": 3}, "Longer(files=3): must be a mapping.", "task.files=3 must be a mapping."),
        (
            {"bad": "skipp"},
            "Longer(bad='skipp'): must be one of error, skip. Did you mean 'skip'?",
            "task.bad=skipp must be one of error, skip. Did you mean 'skip'?",
        ),
    ],
)
def test_a_dataclass_is_refused_in_a_callers_words_and_in_those_of_the_command_line(
    options: dict[str, Any], library: str, command_line: str
) -> None:
    with pytest.raises(OptionError) as refused:
        Longer(**options)
    assert str(refused.value) == library
    with pytest.raises(SkimError) as said, typed("task"):
        Longer(**options)
    assert str(said.value) == command_line


def test_lists_and_mappings_of_files_are_taken_at_any_depth() -> None:
    given = OmegaConf.create({"files": {"train": "a.csv"}, "pair": [[1, 2], [3, 4]]})
    made = Longer(**given, share=1)
    assert (made.files, made.pair, made.share) == ({"train": "a.csv"}, ((1, 2), (3, 4)), 1.0)
    with pytest.raises(OptionError, match=r"^Longer\(pair="):
        Longer(pair=[[1, 2.5]])


def test_options_are_checked_without_making_what_they_are_for() -> None:
    assert check_options(Longer, {"length": 5, "pair": [[1, 2]], "else": 1}) == {
        "length": 5,
        "pair": ((1, 2),),
        "else": 1,
    }
    with pytest.raises(OptionError, match="length"):
        check_options(Longer, {"length": 2})


def test_fields_of_a_parent_in_another_file_are_declared_in_that_ones_words() -> None:
    """``Fraction`` and the like need not be imported where the subclass stands."""
    namespace: dict[str, Any] = {"Reading": Reading, "dataclass": dataclass, "__name__": "skim.errors"}
    exec("@dataclass(kw_only=True, frozen=True)\nclass Elsewhere(Reading):\n    more: int = 1\n", namespace)
    assert set(declared(namespace["Elsewhere"])) == {"length", "files", "pair", "bad", "more"}


class Parent:
    """Has an option.

    Args:
        target: relative FLOPs, of
            two lines; ``None`` leaves it.
    """

    @checked
    def __init__(self, target: Share | None = None, flag=True) -> None:
        self.target, self.flag = target, flag


class Child(Parent):
    """Has another.

    Args:
        target: see :class:`Parent`.
        layers: of :class:`~a.b.Thing`, each ``True`` or False.

    Attributes:
        flag: not an option's text.
    """

    @checked
    def __init__(self, layers: tuple[Count, ...] = (), **more: Any) -> None:
        super().__init__(**more)


def test_meaning_stands_once_and_is_inherited() -> None:
    assert list(arguments(Child)) == ["target", "flag", "layers"]
    assert meaning(Child, "target") == "relative FLOPs, of two lines; ``None`` leaves it."
    assert comment(Child, "target") == "relative FLOPs, of two lines; null leaves it [a number, above 0 and at most 1]"
    assert comment(Child, "layers") == "of Thing, each true or false [a list of whole numbers, at least 1]"
    assert unexplained(Child) == ["flag"]
    assert comment(Longer, "length") == "tokens per sequence; null is not for this one [a whole number, at least 3]"
    assert comment(Longer, "bad") == "a bad row: error or skip"
    assert unexplained(Longer) == ["pair"]
    with pytest.raises(KeyError):
        meaning(Child, "flag")


def test_options_are_typed_where_they_stand() -> None:
    error = OptionError(skim.Transkimmer, "is not layers=3 of target=1; see atarget=2.", {"layers": 3})
    assert error.typed("method") == "method.layers=3 is not method.layers=3 of method.target=1; see atarget=2."
    assert error.typed("method.parts.0").startswith("method.parts.0.layers=3 ")
    assert error.typed("") == "layers=3 is not layers=3 of target=1; see atarget=2."
