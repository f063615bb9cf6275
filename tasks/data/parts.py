"""Parts of a task's data, train, validation and test: rows checked, chosen, tokenised once, and loaded in batches.

The rows of a part (:mod:`tasks.data.source`) are checked (:meth:`Parts.check`), chosen (holdout, bounds on length,
subsample), and tokenised (:meth:`Parts.encode`) into a table on disk; loaders take batches of similar length from it.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

from skim.errors import SkimError
from skim.options.kinds import Count, Number
from skim.signals import deaf
from tasks.data.batches import LengthBatches, Rows, TokenBatches, check_budget, lengths_of
from tasks.data.cache import mapped
from tasks.data.columns import Rejects
from tasks.data.selection import bounds, fitting, held_out
from tasks.data.source import Source

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

STAGES = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("test",)}
SUBSET_SEED = 0  # of holdout and subsamples: not the run's seed, so that runs of all seeds see the same rows


@dataclass(kw_only=True, eq=False, repr=False)
class Parts(Source, ABC):
    """Data of a task, from rows to batches. The fields are YAML keys of ``conf/task`` that all tasks share.

    Use: ``setup_tokenizer(tokenizer)``, ``setup("fit")``, then the loaders. A batch is a dict of tensors:
    ``input_ids``, ``attention_mask`` and, where the tokenizer makes them, ``token_type_ids``, all (B, N) and padded to
    the longest of the batch; ``row`` (B,), numbers of tokenised rows; and labels, under the names that the model's
    forward gives them, where the split has labels. A model gets those entries that its forward names.

    Attributes:
        draws: whether a row's batch depends on the epoch as well, see :class:`tasks.data.batches.LengthBatches`.
        numbers: by part, those of its rows in the file or split, from 1: some may have been left out.
        report: counts by part: ``rows``, ``left_out`` (by length), ``truncated``, ``skipped`` (bad rows),
            ``from_cache``; and ``max_length`` as it took effect.

    Raises:
        SkimError: from ``setup``, for data that are missing or cannot be used; names file or split, row and column.
    """

    batch_size: Count = 32
    """sequences per training batch and process"""
    eval_batch_size: Count = 32
    """sequences per evaluation batch and process"""
    tokens_per_batch: Count | None = None
    """tokens per batch and process, pads included, in training and in evaluation: a batch has as many rows of similar
    length as fit; takes precedence over batch_size and eval_batch_size; null is off"""
    global_batch: bool = False
    """these three are of all processes together, which share them out: a step is the same on any number of devices;
    false: of each, so that a step has batch_size x devices x nodes sequences (x train.accumulate, in either case)"""
    match_lengths: bool = False
    """draw the training rows of each epoch so that they are as long as those of the evaluation (labels are not read),
    as many as before: some come more than once, some not at all"""
    max_length: Annotated[int, Field(ge=3)] = 128
    """tokens per sequence, special ones included; longer texts are truncated, and counted"""
    length_min: Count | None = None
    """leave out rows of fewer tokens, in training and in evaluation, and count them; tokens as the backbone's tokenizer
    makes them, special ones included, before truncation; null sets no bound"""
    length_max: Count | None = None
    """leave out rows of more tokens, likewise; null sets no bound"""
    max_train_samples: Count | None = None
    """train on a random subset of that many rows, the same for every seed; null is all"""
    max_eval_samples: Count | None = None
    """evaluate on a random subset of that many rows, the same for every seed; null is all"""
    num_workers: Number = 0
    """processes that assemble batches; 0 is fast enough for texts"""
    seed: Number = 1
    """of the order of the training rows"""

    draws: ClassVar[bool] = False  # whether a row changes from epoch to epoch: masks
    no_columns: ClassVar[tuple[str, ...]] = ("length", "truncated")  # of tokenised rows, that stay out of batches
    fills: ClassVar[dict[str, int]] = {}  # by column of lists that is the task's own: its padding, if not 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length_min is not None and self.length_max is not None and self.length_min > self.length_max:
            raise SkimError(
                f"task.length_min={self.length_min} is above task.length_max={self.length_max}: no text is both.\n"
                "Lower the first, raise the second, or set one of them to null."
            )
        self.tokenizer: Any = None
        self.report: dict[str, Any] = {"rows": {}, "left_out": {}, "truncated": {}, "skipped": {}, "from_cache": {}}
        self._resume: tuple[int, int] | None = None  # epoch and batch at which training goes on
        self.numbers: dict[str, np.ndarray] = {}
        self._raw: dict[str, Dataset] = {}  # checked rows by part
        self._rows: dict[str, Dataset] = {}  # tokenised rows by part

    # ---- a kind of task implements these ----

    @abstractmethod
    def check(self, rows: Dataset, part: str, rejects: Rejects) -> Dataset:
        """Return the columns that ``encode`` uses, as many rows as before; name the bad ones to ``rejects``.

        Args:
            rows: as loaded.
            part: train, validation or test.
            rejects: raises for the first bad row, or notes it to be left out.
        """

    @abstractmethod
    def encode(self, rows: dict[str, list]) -> dict[str, list]:
        """Tokenise some checked rows into the columns of a batch, plus ``truncated`` (bool) for each sequence.

        And ``length``, if a row's tokens are not as many as its ``input_ids``.
        """

    @abstractmethod
    def count(self, rows: dict[str, list]) -> list[int]:
        """Count the tokens of some checked rows, special ones included, without truncation to ``max_length``."""

    @abstractmethod
    def encoding(self) -> list[Any]:
        """List what ``encode`` and ``count`` depend on besides rows, tokenizer and ``max_length``: the cache's key."""

    @abstractmethod
    def example_texts(self, count: int) -> list[Any]:
        """Pick some validation rows, spread evenly: texts, or pairs of texts, as the tokenizer takes them."""

    def strata(self, rows: Dataset) -> np.ndarray | None:
        """Group checked rows, (rows,) from 0, so that ``holdout`` keeps each group's share; ``None`` for no groups."""
        return None

    def notes(self, part: str) -> list[str]:
        """Note on a loaded part whatever readers of its metrics should know: classes without rows, or with few."""
        return []

    # ---- loading ----

    def setup_tokenizer(self, tokenizer: Any) -> None:
        """Take the backbone's tokenizer; before ``setup``."""
        if not tokenizer.is_fast:
            raise SkimError(f"{type(tokenizer).__name__} has no fast version in transformers; choose another backbone.")
        self.tokenizer = tokenizer
        self.report["max_length"] = min(self.max_length, tokenizer.model_max_length)
        self._rows.clear()

    def setup(self, stage: str | None = None) -> None:
        """Load, check and tokenise the parts that the stage needs: the first time, or from the cache; once per task."""
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs again, in worse words, what it raises
        for part in STAGES[stage or "fit"]:
            if part not in self._rows:
                self._raw[part] = self._select(part)
                self._rows[part] = self._tokenise(part)
                for note in self.notes(part):
                    log.warning("%s", note)

    def _select(self, part: str) -> Dataset:
        """Check the rows of a part and choose those that this run uses."""
        kept = self._is_held_out(part)
        rows, rejects = self.checkable("train" if kept else part)
        # held-out rows are checked as validation rows, whatever part they stand in for
        rows = self.check(rows, "validation" if kept else part, rejects)
        numbers = rejects.numbers(len(rows))
        rows = rejects.without(rows)
        counted = kept and "train" in self.report["skipped"]  # they are the same rows
        self.report["skipped"][part] = 0 if counted else len(rejects)
        if len(rejects) and not counted:
            log.warning("%s: %d bad rows were skipped, the first: %s", part, len(rejects), rejects.first)
        chosen = np.arange(len(rows))
        rng = np.random.default_rng(SUBSET_SEED)
        if kept or (self._cuts and part == "train"):
            assert self.holdout is not None
            out = held_out(len(rows), self.holdout, rng, self.strata(rows))
            if not 0 < len(out) < len(rows):
                raise SkimError(
                    f"{rejects.where}: task.holdout={self.holdout} of {len(rows)} rows leaves a part without any."
                )
            chosen = out if kept else np.setdiff1d(chosen, out)
        # after the holdout, so that bounds move no row to its other part; before the subsample, which is of what fits
        chosen = self._of_length(rows, chosen, part, rejects.where)
        limit = self.max_train_samples if part == "train" else self.max_eval_samples
        if limit is not None and limit < len(chosen):
            chosen = rng.choice(chosen, limit, replace=False)
        chosen = np.sort(chosen)
        self.numbers[part] = numbers[chosen]
        return rows if len(chosen) == len(rows) else rows.select(chosen)

    def _of_length(self, rows: Dataset, chosen: np.ndarray, part: str, where: str) -> np.ndarray:
        """Keep those of the chosen row numbers whose rows have as many tokens as the bounds allow, in their order."""
        self.report["left_out"][part] = 0
        if self.length_min is None and self.length_max is None:
            return chosen
        table, _ = mapped(rows, self._count, self.tokenizer, ["count", self.encoding()])
        fits = fitting(lengths_of(table)[chosen], self.length_min, self.length_max, where)
        left_out = self.report["left_out"][part] = int((~fits).sum())
        if left_out:
            shown = bounds(self.length_min, self.length_max)
            log.warning("%s: %d of %d texts were left out (%s)", part, left_out, len(chosen), shown)
        return chosen[fits]

    def _tokenise(self, part: str) -> Dataset:
        """Tokenise a part, or take it from the cache; texts that are truncated are counted and reported."""
        key = [self.report["max_length"], self.encoding()]
        begin = time.perf_counter()
        table, from_cache = mapped(self._raw[part], self._encode, self.tokenizer, key)
        self.report["rows"][part], self.report["from_cache"][part] = len(table), from_cache
        if rank_zero_only.rank == 0:
            how = "from the cache" if from_cache else "tokenised"
            log.info("%s: %s rows %s in %.1f s", part, f"{len(table):,}", how, time.perf_counter() - begin)
        truncated = self.report["truncated"][part] = int(np.sum(table.with_format("numpy")["truncated"][:]))
        if truncated:
            limit = self.report["max_length"]
            log.warning("%s: %d of %d texts were truncated to %d tokens", part, truncated, len(table), limit)
        if self.tokens_per_batch is not None:
            check_budget(self._tokens_of(table), self.tokens_per_batch, part)
        return table

    def _count(self, rows: dict[str, list]) -> dict[str, list]:
        return {"length": self.count(rows)}

    def _encode(self, rows: dict[str, list]) -> dict[str, list]:
        columns = self.encode(rows)
        return {"length": [len(ids) for ids in columns["input_ids"]], **columns}

    # ---- loaders ----

    @property
    def training_rows(self) -> int | None:
        """Tokenised rows of the training part; ``None`` where they are not loaded, or stream."""
        return len(self._rows["train"]) if "train" in self._rows else None

    def resume_at(self, epoch: int, batch: int) -> None:
        """Let the next training loader begin there, in the middle of an epoch."""
        self._resume = (epoch, batch)

    def _assembled(self, table: Dataset) -> Rows:
        """Make padded batches of a tokenised table's rows."""
        tokenizer = self.tokenizer
        fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id, **self.fills}
        return Rows(table, fill, left=tokenizer.padding_side == "left", hidden=self.no_columns)

    def _sampler(self, part: str, batch_size: int, shuffle: bool, by_length: bool) -> LengthBatches:
        table = self._rows[part]
        lengths = self._tokens_of(table)
        options: dict[str, Any] = {"seed": self.seed, "name": part, "draws": self.draws, "whole": self.global_batch}
        if self.match_lengths and part == "train":
            options["like"] = self._tokens_of(self._rows["validation"])
        if self.tokens_per_batch is None:
            return LengthBatches(lengths if by_length else np.zeros(len(table)), batch_size, shuffle, **options)
        if by_length:
            return TokenBatches(lengths, self.tokens_per_batch, shuffle, **options)
        # in the order of the rows, any of a batch may be the longest
        return LengthBatches(np.zeros(len(table)), self.tokens_per_batch // int(lengths.max()), shuffle, **options)

    def _tokens_of(self, table: Dataset) -> np.ndarray:
        """Count the tokens that each row of a tokenised table takes in a batch, (rows,)."""
        return lengths_of(table)

    def _loader(self, part: str, batch_size: int, shuffle: bool = False, by_length: bool = True) -> DataLoader:
        table = self._rows[part]
        sampler = self._sampler(part, batch_size, shuffle, by_length)
        if shuffle:
            sampler.resumed, self._resume = self._resume, None
        return DataLoader(
            self._assembled(table),
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=deaf,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader("validation", self.eval_batch_size)

    def test_dataloader(self) -> DataLoader:
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader:
        """Load the test part in the order of its rows; with several ranks, batches are dealt out in turn."""
        return self._loader("test", self.eval_batch_size, by_length=False)

    def tokenised(self, part: str) -> tuple[Rows, np.ndarray]:
        """Return the tokenised rows of a loaded part, of which lists of row numbers make batches, and their lengths."""
        table = self._rows[part]
        return self._assembled(table), lengths_of(table)

    def sample_batches(self, batch_size: int, samples: int) -> list[dict[str, Tensor]]:
        """Make batches of the first ``samples`` validation rows to measure on: grouped by length, the longest first."""
        table = self._rows["validation"]
        table = table.select(range(min(samples, len(table))))
        rows = self._assembled(table)
        return [rows[batch] for batch in LengthBatches(lengths_of(table), batch_size, False, rank=0, world_size=1)]
