"""The public names: for people who type ``skim.`` and wait, for type checkers, and the same in all places."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import skim
from skim.analysis import redundancy
from skim.methods import METHODS, method_class

ROOT = Path(skim.__file__).parent


def imported(package: ModuleType) -> dict[str, str]:
    """What type checkers see: by name the module that it comes from."""
    tree = ast.parse(Path(package.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    return {name.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}


@pytest.mark.parametrize("package", [skim, redundancy])
def test_run_time_and_type_checkers_find_the_same_names(package: ModuleType) -> None:
    assert imported(package) == package._PUBLIC
    assert set(package.__all__) - {"__version__"} == {*package._PUBLIC}
    assert set(package.__all__) <= set(dir(package))
    assert all(getattr(package, name) is not None for name in package.__all__)


def test_every_method_is_public() -> None:
    assert {method_class(name) for name in METHODS} <= {getattr(skim, name) for name in skim.__all__}


def test_they_are_listed_before_they_are_loaded() -> None:
    code = (
        "import skim, skim.analysis.redundancy, sys; print(set(skim.__all__) <= set(dir(skim)), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "py.typed").is_file()
    assert 'skim = ["py.typed"]' in (ROOT.parent / "pyproject.toml").read_text()
