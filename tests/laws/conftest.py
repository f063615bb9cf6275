"""Hands each law its cases: ``case`` is a method on a family, ``device`` one that is there."""

from __future__ import annotations

import pytest

from tests.laws.cases import Case, cases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes a ``case`` those of the selection, or those that its mark ``where`` tells."""
    if "case" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("where")
    tells = (lambda case: True) if mark is None else mark.args[0]
    options = {} if mark is None else mark.kwargs
    some: list[Case] = [case for case in cases(metafunc.config.getoption("laws"), **options) if tells(case)]
    metafunc.parametrize("case", some, ids=str)
