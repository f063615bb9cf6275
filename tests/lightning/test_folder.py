"""A run's folder: how loggers learn of its end, and what a run that goes on keeps of its log."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger

from skim.lightning.folder import concluded, continue_log
from skim.results import Results
from skim.resume import LAST


class Told:
    """A logger that notes what it is told, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.ends = error, []

    def log_sentences(self, texts: Any, step: int) -> None: ...

    def conclude(self, results: Results) -> None:
        self.ends.append(results.status)
        if self.error is not None:
            raise self.error


def test_a_logger_that_fails_at_the_end_changes_neither_the_end_nor_other_loggers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loggers = [Told(ConnectionError("the server is gone")), Told()]
    trainer = SimpleNamespace(loggers=loggers, is_global_zero=True)
    results = Results("t", "dense", "tiny", 1, None, "", {})
    with pytest.raises(RuntimeError, match="out of luck"), concluded(tmp_path, results, None, trainer, 0.0):
        raise RuntimeError("out of luck")
    assert [logger.ends for logger in loggers] == [["failed"], ["failed"]]
    assert "Told was not told how the run has ended: the server is gone." in capsys.readouterr().err
    assert "RuntimeError: out of luck" in json.loads((tmp_path / "results.json").read_text())["notes"]


def test_half_a_line_of_the_log_is_left_out_when_a_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / LAST).parent.mkdir()
    torch.save({"global_step": 20}, tmp_path / LAST)
    logger = CSVLogger(tmp_path.parent, name=tmp_path.name, version="")
    (tmp_path / "metrics.csv").write_text("train/loss,step\n0.5,9\n0.4,19\n0.3,29\n0.25,1")  # of 139, say
    continue_log(tmp_path, SimpleNamespace(resume=str(tmp_path / LAST)), [logger])
    with (tmp_path / "metrics.csv").open() as file:
        assert [(row["step"], row["train/loss"]) for row in csv.DictReader(file)] == [("9", "0.5"), ("19", "0.4")]
