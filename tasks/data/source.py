"""Sources of a task's rows: a user's files, splits of a data set, built-in data, or a share of the training rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytorch_lightning as pl

from skim import hub
from skim.errors import SkimError, unknown
from skim.options.declared import check_fields
from skim.options.kinds import Between
from tasks.data import builtin
from tasks.data.cache import problems
from tasks.data.columns import Name, Rejects
from tasks.data.files import read

if TYPE_CHECKING:
    from datasets import Dataset

PARTS = ("train", "validation", "test")
HOLDOUT = "holdout"  # as the name of a split: the rows that are held out
BUILTIN = "builtin"  # owner of the data sets that need no download


@dataclass(kw_only=True, eq=False, repr=False)
class Source(pl.LightningDataModule):
    """Rows of a task's parts, train, validation and test, as written. The fields are YAML keys of ``conf/task``.

    Raises:
        SkimError: options that cannot be; from the methods, data that are missing or unreadable.
    """

    name: str
    """name of the task: that of its file in conf/task"""
    hub_id: str | None = None
    """data set on the hub or in the mirror; null for own files alone"""
    config: str = "default"
    """configuration of the data set"""
    train_split: str = "train"
    """split to train on"""
    eval_split: str | None = None
    """split to evaluate on, during and after training; null is the task's own: validation (MNLI: validation_matched)"""
    test_split: str | None = None
    """split that evaluate.py what=predict reads; null is the task's own: test; holdout: the rows kept from training"""
    files: dict[str, str | int | Path | None] = field(default_factory=dict)
    """own files instead of the hub's splits: csv, tsv (quotes nothing), json (a list of objects), jsonl (an object per
    line), all of which may be gzipped, such as train.csv.gz, or parquet"""
    file_columns: list[Name] | None = None
    """names of the columns of csv and tsv files that have no header line, such as [label,text]; null: the first line is
    one"""
    on_bad_row: Literal["error", "skip"] = "error"
    """a row that cannot be used (no text, an unknown label, ...): error stops, skip leaves it out and counts it"""
    holdout: Between | None = None
    """share of the training rows, and of each of their classes, kept from training and evaluated on; a validation file
    or eval_split takes precedence"""

    def __post_init__(self) -> None:
        super().__init__()
        self.contents: dict[str, str] = {}  # of the user's own files by their part: a hash
        for key in self.files if isinstance(self.files, Mapping) else ():
            if key not in PARTS:
                raise unknown("key of task.files", key, PARTS)
        check_fields(self)

    def split_of(self, part: str) -> str:
        """Name the data set's split for train, validation or test."""
        return {"train": self.train_split, "validation": self.eval_split, "test": self.test_split}[part] or part

    def splits(self) -> list[str]:
        """List the data set's splits that training and evaluation read; none for own files and built-in data."""
        if self.hub_id is None or self._builtin is not None:
            return []
        cut = self.holdout is not None and self.eval_split in (None, HOLDOUT)
        return [self.split_of(part) for part in (("train",) if cut else ("train", "validation"))]

    def source(self, part: str) -> tuple[Dataset, str]:
        """Load all rows of a part; returns also where they are from, for errors."""
        split = self.split_of(part)
        # a part's own file comes before the split that stands in for it; that of validation is validation_matched's too
        file = self.files.get(part) or self.files.get(split.partition("_")[0])
        if file is not None:
            rows = self.read(str(file))
            self.contents[part] = rows._fingerprint[:16]
            return rows, str(file)
        if self._builtin is not None:
            return builtin.rows(self._builtin, split), f"{self.hub_id} {split}"
        if self.hub_id is None:
            kept = part == "test" and self._cuts and self.files.get("train") is not None
            raise SkimError(
                f"task={self.name} has no {part} data: give it a file, task.files.{part}=<csv, json, ...>."
                + ("\nOr predict the rows that were held out from training: split=holdout." if kept else "")
            )
        return hub.dataset(self.hub_id, self.config, split, f"task={self.name}"), f"{self.hub_id}/{self.config} {split}"

    def read(self, file: str) -> Dataset:
        """Read all rows of a user's file."""
        return read(file, self.file_columns)

    def checkable(self, part: str) -> tuple[Dataset, Rejects]:
        """Load all readable rows of a part, and make the rejects that its bad rows go to."""
        rows, where = self.source(part)
        if len(rows) == 0:
            raise SkimError(f"{where} has no rows.")
        rejects = Rejects(where, self.on_bad_row == "skip", problems(rows))
        return rejects.readable(rows), rejects

    def own_tokenizer(self) -> Any:
        """Make a tokenizer for backbones that have none; ``None`` where the task brings none."""
        return None if self._builtin is None else builtin.tokenizer_of(builtin.vocabulary(self._builtin))

    @property
    def _builtin(self) -> str | None:
        """The kind of built-in data that ``hub_id=builtin/<kind>`` names."""
        owner, _, kind = (self.hub_id or "").partition("/")
        return kind if owner == BUILTIN else None

    @property
    def _cuts(self) -> bool:
        """Tell whether rows are held out from the training rows: there is no file of others to evaluate on."""
        return self.holdout is not None and self.files.get("validation") is None

    def _is_held_out(self, part: str) -> bool:
        """Tell whether a part is the held-out rows; a split of a data set that is named is that split."""
        named = {"validation": self.eval_split, "test": self.test_split}.get(part)
        if named == HOLDOUT and not self._cuts:
            file = self.files.get("validation")
            why = "task.holdout is null" if self.holdout is None else f"it is evaluated on task.files.validation={file}"
            raise SkimError(f"split=holdout: task={self.name} holds no rows out, as {why}.\nUse split=validation.")
        if part == "train" or not self._cuts:
            return False
        own = named == "validation" and self.hub_id is None  # files without one for validation have no other such rows
        return named == HOLDOUT or own or (part == "validation" and named is None)
