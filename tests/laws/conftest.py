"""Hands each law its cases: ``case`` is a method on a family, ``device`` one that is there.

Those of the wide selection that are not in the sample are slow.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import takes_slow
from tests.laws.cases import cases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes a ``case`` those of the selection, or those that its mark ``where`` tells."""
    if "case" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("where")
    tells = (lambda case: True) if mark is None else mark.args[0]
    options = {} if mark is None else mark.kwargs
    selection = metafunc.config.getoption("laws")
    some: list[Any] = [case for case in cases(selection, **options) if tells(case)]
    if selection == "default" and takes_slow(metafunc.config):
        others = [case for case in cases("wide", **options) if tells(case) and case not in some]
        some += [pytest.param(case, marks=pytest.mark.slow) for case in others]
    metafunc.parametrize("case", some, ids=str)
