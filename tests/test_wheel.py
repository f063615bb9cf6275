"""The wheel: everything that a user needs is in it, and nothing of the tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Files of a wheel built from a copy of the sources, as a build leaves its own in the folder."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("skim", "tasks", "conf", "tests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "train.py", "evaluate.py"):
        shutil.copy(ROOT / file, source)
    (source / "conf" / "local").mkdir(exist_ok=True)
    (source / "conf" / "local" / "mine.yaml").touch()
    done = subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "absent from the `packages`" not in done.stderr
    (wheel,) = out.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_the_library_the_tasks_and_the_config(names: set[str]) -> None:
    expected = {"skim/py.typed"}
    for folder in ("skim", "tasks"):
        expected |= {str(file.relative_to(ROOT)) for file in (ROOT / folder).rglob("*.py")}
    expected |= {str(file.relative_to(ROOT)) for file in (ROOT / "skim" / "report" / "templates").iterdir()}
    here = (file.relative_to(ROOT) for file in (ROOT / "conf").rglob("*.yaml"))
    expected |= {f"skim/{file}" for file in here if file.parts[1] != "local"}
    assert {name for name in names if ".dist-info/" not in name} == expected
