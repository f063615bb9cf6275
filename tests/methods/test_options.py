"""Options are checked by their declarations: every method's, a user's own, in Python and on the command line."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest

import skim
from skim.engine.pooling import POOLINGS
from skim.errors import SkimError
from skim.methods import Method
from skim.methods.funnel import Funnel
from skim.methods.ltp import LTP
from skim.methods.options import OptionError, declared
from skim.methods.pruning import SCORE_NORMS, ScoreNorm
from skim.methods.transkimmer import Transkimmer
from skim.options.words import enumerated


def test_closed_lists_are_those_of_what_they_choose_from() -> None:
    assert get_args(ScoreNorm) == tuple(SCORE_NORMS)
    assert tuple(enumerated(declared(Funnel)["pooling"].json_schema())) == POOLINGS


def test_what_passes() -> None:
    method = Transkimmer(target=1, layers=[0, 2], protect=["cls", "sep"], warmup=0)
    assert (method.target, method.layers, method.protect) == (1.0, (0, 2), ("cls", "sep"))
    assert Funnel(blocks=[2, 1]).blocks == (2, 1)


@pytest.mark.parametrize(
    ("make", "said", "typed"),
    [
        (
            lambda: Transkimmer(target="0.5"),
            "Transkimmer(target='0.5'): must be a number, above 0 and at most 1 or a list of",
            "method.target='0.5' must be a number, above 0 and at most 1 or a list of",
        ),
        (
            lambda: Transkimmer(target="0.5x"),
            "Transkimmer(target='0.5x'): must be a number, above 0 and at most 1 or a list of",
            "method.target=0.5x must be a number, above 0 and at most 1 or a list of",
        ),
        (
            lambda: Transkimmer(layers=3),
            "Transkimmer(layers=3): must be a list of whole numbers, at least 0.",
            "method.layers=3 must be a list of whole numbers, at least 0.",
        ),
        (
            lambda: LTP(score_norm="lenght"),
            "LTP(score_norm='lenght'): must be one of fixed, length, alive, padded. Did you mean 'length'?",
            "method.score_norm=lenght must be one of fixed, length, alive, padded. Did you mean 'length'?",
        ),
        (
            lambda: Transkimmer(taget=1),
            "Transkimmer(taget=1): is not an option of Transkimmer. Did you mean 'target'?\nOptions: preset, target, ",
            "method.taget=1 is not an option of Transkimmer. Did you mean 'target'?\nOptions: preset, target, ",
        ),
        (
            lambda: LTP(preset="paper", target=0.5),
            "Use preset=default, or a coefficient without a target.",
            "Use method.preset=default, or a coefficient without a target.",
        ),
        (lambda: skim.Dense(foo=True), "It has none.", "method.foo=true is not an option of Dense.\nIt has none."),
        (
            lambda: Transkimmer("paper", 0.5, *range(12)),
            "Transkimmer: too many positional arguments.",
            "Transkimmer too",
        ),
    ],
)
def test_the_words(make: Any, said: str, typed: str) -> None:
    with pytest.raises(OptionError) as refused:
        make()
    assert said in str(refused.value)
    assert typed in refused.value.typed("method")


# --- methods of a user's own ------------------------------------------------------------------------------------------


class Loose(Method):
    """Without annotations: whatever it is given."""

    def __init__(self, start=0.5, **more):
        super().__init__(**more)
        self.start = start


class Declared(Transkimmer):
    """With annotations of its own, and the rest handed on."""

    name = "declared"

    def __init__(self, positions: int = 8, thing: Nowhere | None = None, **more: Any) -> None:  # noqa: F821
        super().__init__(**more)
        self.positions, self.thing = positions, thing


def test_a_method_without_annotations_works_unchanged() -> None:
    method = Loose(start="0.5")
    assert (method.name, method.start, method.protect) == ("loose", "0.5", ("cls",))
    assert method.options() == {"start": "0.5", "protect": ("cls",)}
    assert Loose(start=math.nan).start is math.nan


@pytest.mark.parametrize("options", [{"positions": 1.5}, {"margin": math.nan}, {"protect": "cls"}, {"foo": 1}])
def test_annotations_are_checks_for_free(options: dict[str, Any]) -> None:
    name = next(iter(options))
    with pytest.raises(SkimError, match=rf"^Declared\({name}="):
        Declared(**options)
    assert Declared(thing=object(), target=0.5).options()["target"] == 0.5
    with pytest.raises(SkimError, match=r"^Loose\(protect='cls'\): must be a list of any of cls, sep\."):
        Loose(protect="cls")
