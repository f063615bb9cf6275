"""Who may import whom: the contracts of pyproject.toml, and that none of skim's rooms is left out of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = ROOT / "pyproject.toml"


def test_every_contract_is_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Rooms in layers, no circles, the library without Lightning, the core without Hydra, methods by name alone."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("importlinter.cli._configure_logging", lambda verbose: None)  # it disables all other logs
    broken = lint_imports(config_filename=str(PYPROJECT), no_cache=True, no_logo=True)
    assert not broken, capsys.readouterr().out


def test_every_room_has_its_layer() -> None:
    layers = re.search(r"^layers = \[\n(.*?)^\]", PYPROJECT.read_text(), re.DOTALL | re.MULTILINE)[1]
    here = {path.stem for path in (ROOT / "skim").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert set(re.findall(r"skim\.(\w+)", layers)) == here - {"__init__"}
