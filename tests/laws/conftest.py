"""Hands each law its cases: ``case`` is a method on a family, ``device`` one that is there.

Those of the wide selection that are not in the sample are slow, and those that a law calls ``dear``.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import takes_slow
from tests.laws.cases import of_law


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes a ``case`` those of the selection, or those that its mark ``where`` tells."""
    if "case" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("where")
    tells = (lambda case: True) if mark is None else mark.args[0]
    options = {} if mark is None else dict(mark.kwargs)
    dear = options.pop("dear", lambda case: False)
    selection = metafunc.config.getoption("laws")
    some = of_law(selection, tells, **options)
    slow = []
    if selection == "default":
        slow = [case for case in some if dear(case)]
        if takes_slow(metafunc.config):
            slow += [case for case in of_law("wide", tells, **options) if case not in some]
    quick: list[Any] = [case for case in some if case not in slow]
    metafunc.parametrize("case", quick + [pytest.param(case, marks=pytest.mark.slow) for case in slow], ids=str)
