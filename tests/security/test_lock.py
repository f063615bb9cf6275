"""The lock file holds what the project needs, and hashes of all of it."""

from __future__ import annotations

import re
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.runs import ROOT

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
PINNED = re.compile(r"^([\w.\-]+)==([\w.+!]+)(.*)$")


def test_every_dependency_is_pinned_within_its_bounds_with_the_hashes_of_its_files() -> None:
    """A dependency that is added or bounded otherwise needs `make lock`."""
    found: dict[str, list[str]] = {}
    hashes: dict[str, int] = {}
    name = ""
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if match := PINNED.match(line):
            name = str(canonicalize_name(match[1]))
            found.setdefault(name, []).append(match[2])
        elif line.strip().startswith("--hash=sha256:"):
            hashes[name] = hashes.get(name, 0) + 1
        else:
            assert line.lstrip().startswith("#"), f"no package, hash or comment: {line}"
    assert sys.version_info >= (3, 11)
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for one in map(Requirement, needed):
        versions = found[str(canonicalize_name(one.name))]
        assert all(one.specifier.contains(version) for version in versions), f"{one}: {versions}"
    assert set(hashes) == set(found)
    assert len(found) > 60
