"""``metrics.csv``: losses and metrics by step, in a file that a run which goes on adds to."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.core.saving import save_hparams_to_yaml
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment

from skim.files import accepted, replacing


class Curves(CSVLogger):
    """Lightning's CSV logger; it goes on with the rows that it finds, and a kill at any moment leaves whole rows."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = Rows(self.log_dir)
        return self._experiment


class Rows(ExperimentWriter):
    """Writer of one file.

    Args:
        log_dir: its folder.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def _check_log_dir_exists(self) -> None:
        """Leave a file alone that is there; Lightning's would be removed."""

    def log_hparams(self, params: dict[str, Any]) -> None:
        self.hparams.update(params)
        with replacing(Path(self.log_dir) / self.NAME_HPARAMS_FILE) as part:
            save_hparams_to_yaml(str(part), self.hparams)

    def save(self) -> None:
        """Add the rows that have come, all of them or none."""
        path = Path(self.metrics_file_path)
        size = path.stat().st_size if path.is_file() else None
        with accepted(path):
            try:
                super().save()
            except OSError:
                if size is None:
                    path.unlink(missing_ok=True)
                else:
                    os.truncate(path, size)
                raise

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        write_rows(path, rows_of(path), fieldnames)


def rows_of(path: Path) -> list[dict[str, str]]:
    """Read the whole rows of a file, without what is empty in them; a run that was killed may end in half a row."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        lines = (line for line in file if line.endswith("\n"))
        return [{name: value for name, value in row.items() if name and value} for row in csv.DictReader(lines)]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> None:
    """Write a file at once; without rows and names there is none.

    Args:
        path: of the file.
        rows: by the names of their columns.
        names: of all columns; those of the rows, if there are none.
    """
    names = names or sorted({name for row in rows for name in row})
    if not names:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=names)
        writer.writeheader()
        writer.writerows(rows)
