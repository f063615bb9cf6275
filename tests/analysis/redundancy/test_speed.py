"""The table of costs: every step runs on a small shape, and stands beside the published number of its shape."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from skim.analysis.redundancy import speed
from skim.analysis.redundancy.speed import PUBLISHED, STEPS, Cost, Published, Shape, cells, extraction, measured

TINY = Shape(240, 13, 4)


@pytest.mark.parametrize("step", STEPS)
def test_every_step_runs(step: str, tmp_path: Path) -> None:
    file = speed.write_activations(tmp_path / "x.npy", TINY)
    assert np.load(file, mmap_mode="r").shape == (240, 52)
    cost = measured(step, file, TINY)
    assert cost.cpu_seconds > 0
    assert cost.peak_gib > 0.05


def test_published_numbers_are_of_steps_that_there_are() -> None:
    assert all(set(numbers) <= set(STEPS) for numbers in PUBLISHED.values())


def test_a_row_of_the_table() -> None:
    assert list(cells("x", Cost(2.0, 0.5), Published(60.0, 3.06))) == ["x", "2.00", "0.50", "60.0", "3.06", "30"]
    assert list(cells("x", Cost(2.0, 0.5), None)) == ["x", "2.00", "0.50"]


def test_extraction_stands_beside_a_plain_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    monkeypatch.setitem(speed.MODELS, "minilm", {**layers, "intermediate_size": 32})
    found = extraction("minilm", texts=120, repeats=1)
    assert found["ratio"] == pytest.approx(found["seconds"] / found["plain"])
    assert found["ms"] == pytest.approx(1e3 * (found["seconds"] - found["plain"]) / 108)


def test_the_command_prints_and_writes_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(speed.SHAPES, "small", TINY)
    monkeypatch.setattr(speed, "in_process", lambda function, *arguments: function(*arguments))
    step = "order of neurons, 45 classes"
    assert speed.main(["--small", "--steps", step, "--json", str(tmp_path / "costs.json")]) == 0
    assert step in capsys.readouterr().out
    assert set(json.loads((tmp_path / "costs.json").read_text())[step]) == {"cpu_seconds", "peak_gib"}
