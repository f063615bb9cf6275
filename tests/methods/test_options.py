"""Options are checked by their declarations: every method's, a user's own, in Python and on the command line."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import skim
from skim.engine.pooling import POOLINGS
from skim.errors import SkimError
from skim.methods import METHODS, Method, method_class
from skim.methods.funnel import Funnel
from skim.methods.ltp import LTP
from skim.methods.options import OptionError, arguments, declared
from skim.methods.pruning import SCORE_NORMS, ScoreNorm
from skim.methods.transkimmer import Transkimmer
from skim.options.declared import valid
from skim.options.words import described

OPTIONS = [(name, option) for name in METHODS for option in arguments(method_class(name))]
TEXTS = st.text(max_size=5).map(lambda text: f"{text}?")  # in no closed list
NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.integers()


def schema_of(name: str, option: str) -> dict[str, Any]:
    """What the option may be, but for ``None``, as a JSON schema."""
    schema = declared(method_class(name))[option].json_schema()
    kinds = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    assert len(kinds) == 1
    return kinds[0]


def beyond(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Numbers out of an option's bounds."""
    found = []
    if "minimum" in schema:
        found.append(st.floats(max_value=schema["minimum"], exclude_max=True))
    if "exclusiveMinimum" in schema:
        found.append(st.floats(max_value=schema["exclusiveMinimum"]))
    if "maximum" in schema:
        found.append(st.floats(min_value=schema["maximum"], exclude_min=True))
    if "exclusiveMaximum" in schema:
        found.append(st.floats(min_value=schema["exclusiveMaximum"]))
    return st.one_of(st.just(math.nan), st.just(math.inf), st.just(-math.inf), *found)


def wrong(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that an option of this kind may not have: of other types, and out of bounds."""
    things = TEXTS | st.binary(max_size=2) | st.just({"a": 1})
    if schema["type"] == "array":
        return things | NUMBERS | st.booleans() | st.lists(wrong(schema["items"]), min_size=1, max_size=2)
    things |= st.just([1]) | st.just(("cls",))
    if schema["type"] == "boolean":
        return things | NUMBERS
    if schema["type"] == "string":
        assert "enum" in schema, "an option that is a text is one of a closed list"
        return things | NUMBERS | st.booleans()
    outside = beyond(schema)
    if schema["type"] == "integer":
        outside = outside.map(lambda x: math.floor(x) if math.isfinite(x) else x) | st.floats(0.1, 0.9).map(
            lambda x: 2 + x
        )
        outside = outside.filter(
            lambda x: not (isinstance(x, int) and x >= schema["minimum"]) or x > schema.get("maximum", x)
        )
    return things | st.booleans() | outside


@pytest.mark.parametrize(("name", "option"), OPTIONS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_value_of_another_kind_or_out_of_bounds_is_refused(name: str, option: str, data: st.DataObject) -> None:
    value = data.draw(wrong(schema_of(name, option)))
    kind = method_class(name)
    with pytest.raises(OptionError) as refused:
        kind(**{option: value})
    assert list(refused.value.given) == [option]
    said, typed = str(refused.value), refused.value.typed("method")
    assert said.startswith(f"{kind.__name__}({option}=")
    assert typed.startswith(f"method.{option}=")
    for words in (said, typed):
        assert f" must be {described(schema_of(name, option))}." in words
        assert words.count("\n") == 0


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_is_declared_and_its_default_is_one(name: str, option: str) -> None:
    kind = method_class(name)
    adapter = declared(kind)[option]
    default = arguments(kind)[option].default
    assert valid(kind, option, default, adapter) == default


def test_closed_lists_are_those_of_what_they_choose_from() -> None:
    assert get_args(ScoreNorm) == tuple(SCORE_NORMS)
    assert tuple(schema_of("funnel", "pooling")["enum"]) == POOLINGS


def test_what_passes() -> None:
    method = Transkimmer(target=1, layers=[0, 2], protect=["cls", "sep"], warmup=0)
    assert (method.target, method.layers, method.protect) == (1.0, (0, 2), ("cls", "sep"))
    assert Funnel(blocks=[2, 1]).blocks == (2, 1)


@pytest.mark.parametrize(
    ("make", "said", "typed"),
    [
        (
            lambda: Transkimmer(target="0.5"),
            "Transkimmer(target='0.5'): must be a number, above 0 and at most 1.",
            "method.target='0.5' must be a number, above 0 and at most 1.",
        ),
        (
            lambda: Transkimmer(target="0.5x"),
            "Transkimmer(target='0.5x'): must be a number, above 0 and at most 1.",
            "method.target=0.5x must be a number, above 0 and at most 1.",
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
            "Transkimmer(taget=1): is no option of Transkimmer. Did you mean 'target'?\nOptions: preset, target, ",
            "method.taget=1 is no option of Transkimmer. Did you mean 'target'?\nOptions: preset, target, ",
        ),
        (
            lambda: LTP(preset="paper", target=0.5),
            "Use preset=default, or a coefficient without a target.",
            "Use method.preset=default, or a coefficient without a target.",
        ),
        (lambda: skim.Dense(foo=True), "It has none.", "method.foo=true is no option of Dense.\nIt has none."),
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
