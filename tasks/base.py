"""What every task shares: where rows come from, tokenising once, and loaders of length-grouped batches."""

from __future__ import annotations

import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric, MetricCollection

from skim import hub
from skim.errors import SkimError, unknown
from tasks.data import grammar, holdout
from tasks.data.batches import LengthBatches, Rows
from tasks.data.columns import Rejects
from tasks.data.files import problems, read
from tasks.losses import Loss

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

STAGES = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("test",)}
SUBSET_SEED = 0  # of holdout and subsamples: not the run's seed, so that runs of all seeds see the same rows
HOLDOUT = "holdout"  # as the name of a split: the rows that are held out
BUILTIN = "builtin"  # owner of the data sets that need no download
ON_BAD_ROW = ("error", "skip")
ENCODING = 1  # counted up whenever the same rows and tokenizer shall give other columns; old caches are then left alone


@dataclass(kw_only=True, eq=False, repr=False)
class Task(pl.LightningDataModule, ABC):
    """Data, what the head needs, and metrics. The fields are the YAML keys of ``conf/task``.

    Use: ``task.setup_tokenizer(tokenizer)``, ``task.setup("fit")``, then the loaders. A batch is a dict of tensors:
    ``input_ids``, ``attention_mask`` and, where the tokenizer makes them, ``token_type_ids``, all (B, N) and padded to
    the longest of the batch; ``row`` (B,), numbers of tokenised rows; and labels, under the names that the model's
    forward gives them, where the split has labels. What the forward does not name is not handed to it.

    Attributes:
        monitor: the metric that selects the best checkpoint; higher is better.
        label_names: by label id; empty for a regression. Known after ``setup`` where they come from the data.
        single_texts: whether the head takes one text, or pair of texts, by itself.
        draws: whether a row's batch depends on the epoch as well, see :class:`tasks.data.batches.LengthBatches`.
        numbers: by part, those of its rows in the file or split, from 1: some may have been left out.
        report: counts by part: ``rows``, ``left_out`` (by length), ``truncated``, ``skipped`` (bad rows),
            ``from_cache``; and ``max_length`` as it took effect.

    Raises:
        SkimError: from ``setup``, for data that cannot be had or used; names file or split, row and column.
    """

    name: str  # the file in conf/task
    hub_id: str | None = None  # data set on the hub or in the mirror
    config: str = "default"  # its configuration
    train_split: str = "train"
    eval_split: str | None = None  # evaluated during and after training; null is the task's own, mostly validation
    # for Trainer.test and Trainer.predict; null is the task's own, mostly test; holdout: the rows kept from training
    test_split: str | None = None
    # own files instead of the hub's splits: train, validation, test -> csv, tsv, json, jsonl or parquet
    files: dict[str, str | None] = field(default_factory=dict)
    # names of the columns of csv and tsv files that have no header line; null: their first line is the header
    file_columns: list[str] | None = None
    # a row that cannot be used: error, or skip (counted and told)
    on_bad_row: str = "error"
    # share of the training rows, and of each of their classes, kept from training and evaluated on, unless there is a
    # validation file or an eval_split
    holdout: float | None = None
    batch_size: int = 32  # sequences per training batch and process
    eval_batch_size: int = 32  # sequences per evaluation batch and process
    max_length: int = 128  # tokens per sequence, special ones included; longer texts are truncated and counted
    # rows of fewer or more tokens are left out of every part, training and evaluation alike, and counted; tokens as the
    # backbone's tokenizer makes them, special ones included, before truncation to max_length
    length_min: int | None = None
    length_max: int | None = None
    max_train_samples: int | None = None  # train on a random subset of that many rows, the same for every seed
    max_eval_samples: int | None = None  # evaluate on a random subset of that many rows, the same for every seed
    num_workers: int = 0  # processes that assemble batches; 0 is fast enough for texts
    seed: int = 1  # of the order of the training rows

    label_names: list[str] | None = field(init=False, default=None)
    single_texts: ClassVar[bool] = True
    draws: ClassVar[bool] = False  # whether a row changes from epoch to epoch: masks
    no_columns: ClassVar[tuple[str, ...]] = ("length", "truncated")  # of tokenised rows, that stay out of batches
    fills: ClassVar[dict[str, int]] = {}  # by column of lists that is the task's own: its padding, if not 0

    def __post_init__(self) -> None:
        super().__init__()
        for key in self.files:
            if key not in ("train", "validation", "test"):
                raise unknown("key of task.files", key, ("train", "validation", "test"))
        if self.holdout is not None and not 0 < self.holdout < 1:
            raise SkimError(f"task.holdout={self.holdout} is a share of the training rows: above 0 and below 1.")
        for key, bound in self._bounds().items():
            if bound < 1:
                raise SkimError(f"{key}={bound} is a number of tokens: at least 1, or null for no bound.")
        if self.length_min is not None and self.length_max is not None and self.length_min > self.length_max:
            raise SkimError(
                f"task.length_min={self.length_min} is above task.length_max={self.length_max}: no text is both.\n"
                "Lower the first, raise the second, or set one of them to null."
            )
        if self.on_bad_row not in ON_BAD_ROW:
            raise unknown("task.on_bad_row", self.on_bad_row, ON_BAD_ROW)
        self.tokenizer: Any = None
        self.report: dict[str, Any] = {"rows": {}, "left_out": {}, "truncated": {}, "skipped": {}, "from_cache": {}}
        self._resume: tuple[int, int] | None = None  # epoch and batch at which training goes on
        self.numbers: dict[str, np.ndarray] = {}
        self._raw: dict[str, Dataset] = {}
        self._rows: dict[str, Dataset] = {}

    # ---- what a kind of task decides ----

    @property
    @abstractmethod
    def monitor(self) -> str:
        """Name of the metric that selects the best checkpoint; higher is better."""

    @property
    @abstractmethod
    def num_labels(self) -> int:
        """Width of the head's output."""

    @abstractmethod
    def auto_class(self) -> Any:
        """The ``transformers.AutoModelFor...`` with the right head."""

    @abstractmethod
    def model_kwargs(self) -> dict[str, Any]:
        """What the model's config must know of the task."""

    @abstractmethod
    def metrics(self) -> Metric | MetricCollection:
        """Fresh metrics for :meth:`update`; ``compute`` gives a dict of scalars by name."""

    @abstractmethod
    def update(self, metrics: Any, output: Any, batch: dict[str, Tensor]) -> None:
        """Add one batch to :meth:`metrics`.

        Args:
            metrics: what :meth:`metrics` made.
            output: the model's.
            batch: with labels.
        """

    def blind(self) -> Tensor | None:
        """Logits (A, C) of the answers that can be given without reading; ``None`` where they are not that few."""
        return None

    def chance(self) -> float | None:
        """The most that the metric that counts comes to for one answer to all evaluation rows; ``None``: not known."""
        answers, rows = self.blind(), self._rows["validation"]
        if answers is None or "labels" not in rows.column_names:
            return None
        labels = torch.as_tensor(np.asarray(rows.with_format("numpy")["labels"][:]))
        scores = []
        for answer in answers:
            metrics = self.metrics()
            self.update(metrics, SimpleNamespace(logits=answer.expand(len(labels), -1)), {"labels": labels})
            scores.append(float(metrics.compute()[self.monitor]))
        return max(scores)

    @abstractmethod
    def labelled(self, batch: dict[str, Tensor]) -> int:
        """How many labels the mean loss of a batch is over; 0 if it has none."""

    @abstractmethod
    def distance(self, output: Any, taught: Any, batch: dict[str, Tensor], temperature: float) -> Tensor:
        """From a model's output to its teacher's: mostly :func:`softened_divergence` of their logits, a scalar.

        Args:
            output: the student's.
            taught: the teacher's.
            batch: what both have seen.
            temperature: softens both.
        """

    @abstractmethod
    def predictions(self, output: Any, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """What the model says, for people: one dict of JSON's types for each sequence of the batch."""

    def named(self, label: Any) -> Any:
        """A label for people: its name, or the number of a regression."""
        return self.label_names[label] if self.label_names else label

    def write_predictions(self, found: list[dict[str, Any]], folder: Path) -> list[Path]:
        """Write what the model says of the test part; returns the files.

        By default ``predictions.jsonl``: ``row`` (its number in the file or split, from 1), the columns that are used,
        ``label`` where it is known, and the prediction.

        Args:
            found: :meth:`predictions` of each tokenised row, in their order.
            folder: the run's.
        """
        lines = []
        for number, row, said in zip(self.numbers["test"].tolist(), self._raw["test"], found, strict=True):
            if "labels" in row:
                row["label"] = self.named(row.pop("labels"))
            lines.append({"row": number, **row, **said})
        return [write_lines(folder / "predictions.jsonl", lines)]

    def strata(self, rows: Dataset) -> np.ndarray | None:
        """Groups of checked rows, (rows,), from 0, of which ``holdout`` keeps the shares; ``None`` for none."""
        return None

    def notes(self, part: str) -> list[str]:
        """Notes on a loaded part for readers of its metrics: classes without rows, or with few."""
        return []

    def counts(self) -> Metric | None:
        """A fresh metric for :meth:`update` beside :meth:`metrics`, whose value :meth:`table` takes."""
        return None

    def table(self, counts: Tensor) -> dict[str, Any] | None:
        """Lay out :meth:`counts` class by class, in JSON's types; see :meth:`tasks.heads.Head.table`."""
        return None

    def training_loss(self, smoothing: float = 0.0) -> Loss | None:
        """Make the loss that replaces the model's own in training; ``None`` where that one will do.

        Args:
            smoothing: of labels, from 0 to below 1.

        Raises:
            SkimError: smoothing of what are no labels of a sequence, token or option.
        """
        if smoothing:
            raise SkimError(
                f"train.label_smoothing={smoothing} is for classes of texts, of words and of options, and not for "
                f"task={self.name}. Set it to 0."
            )
        return None

    def others(self) -> dict[str, Task]:
        """This task on other evaluation splits that are reported beside its own, by what goes behind metrics' names."""
        return {}

    def check_model(self, model: nn.Module) -> None:
        """Refuse, by a SkimError, a plain model whose head is not of the kind that the task needs."""

    def companion(self, model: nn.Module) -> nn.Module | None:
        """What is trained beside a compressed model, such as ELECTRA's generator; made once, saved in checkpoints."""
        return None

    def corrupt(self, batch: dict[str, Tensor], companion: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
        """What the companion makes of a batch before the model sees it, and the loss that it adds."""
        raise NotImplementedError

    @abstractmethod
    def check(self, rows: Dataset, part: str, rejects: Rejects) -> Dataset:
        """The columns that ``encode`` uses, as many rows as before; bad ones are named to ``rejects``.

        Args:
            rows: as loaded.
            part: train, validation or test.
            rejects: raises for the first bad row, or notes it to be left out.
        """

    @abstractmethod
    def encode(self, rows: dict[str, list]) -> dict[str, list]:
        """Tokenise some rows into the columns of a batch, plus ``truncated`` (bool) for each sequence.

        And ``length``, if a row's tokens are not as many as its ``input_ids``.
        """

    @abstractmethod
    def count(self, rows: dict[str, list]) -> list[int]:
        """Tokens of some rows, special ones included, as many as there would be without ``max_length``."""

    @abstractmethod
    def example_texts(self, count: int) -> list[Any]:
        """Some validation rows, spread evenly: texts, or pairs of texts, as the tokenizer takes them."""

    @abstractmethod
    def encoding(self) -> list[Any]:
        """What ``encode`` and ``count`` depend on, besides rows, tokenizer and ``max_length``; keys the cache."""

    @property
    def training_rows(self) -> int | None:
        """Tokenised rows of the training part; ``None`` where they are not loaded, or stream."""
        return len(self._rows["train"]) if "train" in self._rows else None

    @property
    def endless(self) -> bool:
        """Whether the training data are a stream without an end: then steps are counted, and no epochs."""
        return False

    # ---- loading ----

    def own_tokenizer(self) -> Any:
        """For backbones without a tokenizer of their own; ``None`` where the task brings none."""
        return None if self._builtin is None else grammar.tokenizer_of(grammar.vocabulary(self._builtin))

    @property
    def _builtin(self) -> str | None:
        """The kind of built-in data that ``hub_id=builtin/<kind>`` names."""
        owner, _, kind = (self.hub_id or "").partition("/")
        return kind if owner == BUILTIN else None

    def setup_tokenizer(self, tokenizer: Any) -> None:
        """Give the backbone's tokenizer; before ``setup``."""
        if not tokenizer.is_fast:
            raise SkimError(f"{type(tokenizer).__name__} has no fast version in transformers; choose another backbone.")
        self.tokenizer = tokenizer
        self.report["max_length"] = min(self.max_length, tokenizer.model_max_length)
        self._rows.clear()

    def setup(self, stage: str | None = None) -> None:
        """Load, check and tokenise what the stage needs: the first time, or from the cache; once per task."""
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs it also raises, and we say it better
        for part in STAGES[stage or "fit"]:
            if part not in self._rows:
                self._raw[part] = self._select(part)
                self._rows[part] = self._tokenise(part)
                for note in self.notes(part):
                    log.warning("%s", note)

    def split_of(self, part: str) -> str:
        """The data set's name for train, validation or test."""
        return {"train": self.train_split, "validation": self.eval_split, "test": self.test_split}[part] or part

    def splits(self) -> list[str]:
        """The data set's splits that training and evaluation read; none for own files and built-in data."""
        if self.hub_id is None or self._builtin is not None:
            return []
        cut = self.holdout is not None and self.eval_split in (None, HOLDOUT)
        return [self.split_of(part) for part in (("train",) if cut else ("train", "validation"))]

    def source(self, part: str) -> tuple[Dataset, str]:
        """All rows of a part, and where they are from, for errors."""
        split = self.split_of(part)
        # a part's own file comes before the split that stands in for it; that of validation is validation_matched's too
        file = self.files.get(part) or self.files.get(split.partition("_")[0])
        if file is not None:
            return self.read(str(file)), str(file)
        if self._builtin is not None:
            return grammar.rows(self._builtin, split), f"{self.hub_id} {split}"
        if self.hub_id is None:
            kept = part == "test" and self._cuts and self.files.get("train") is not None
            raise SkimError(
                f"task={self.name} has no {part} data: give it a file, task.files.{part}=<csv, json, ...>."
                + ("\nOr predict the rows that were held out from training: split=holdout." if kept else "")
            )
        return hub.dataset(self.hub_id, self.config, split, f"task={self.name}"), f"{self.hub_id}/{self.config} {split}"

    def read(self, file: str) -> Dataset:
        """All rows of a user's file."""
        return read(file, self.file_columns)

    def checkable(self, part: str) -> tuple[Dataset, Rejects]:
        """All readable rows of a part, and what bad ones go to."""
        rows, where = self.source(part)
        if len(rows) == 0:
            raise SkimError(f"{where} has no rows.")
        rejects = Rejects(where, self.on_bad_row == "skip", problems(rows))
        return rejects.readable(rows), rejects

    def _select(self, part: str) -> Dataset:
        """The checked rows of a part that this run uses."""
        held_out = self._is_held_out(part)
        rows, rejects = self.checkable("train" if held_out else part)
        where = rejects.where
        # rows that are held out are what training was evaluated on, whoever looks at them again
        rows = self.check(rows, "validation" if held_out else part, rejects)
        numbers = rejects.numbers(len(rows))
        rows = rejects.without(rows)
        told = held_out and "train" in self.report["skipped"]  # they are the same rows
        self.report["skipped"][part] = 0 if told else len(rejects)
        if len(rejects) and not told:
            log.warning("%s: %d bad rows were skipped, the first: %s", part, len(rejects), rejects.first)
        chosen = np.arange(len(rows))
        rng = np.random.default_rng(SUBSET_SEED)
        if held_out or (self._cuts and part == "train"):
            assert self.holdout is not None
            kept = holdout.held_out(len(rows), self.holdout, rng, self.strata(rows))
            if not 0 < len(kept) < len(rows):
                raise SkimError(f"{where}: task.holdout={self.holdout} of {len(rows)} rows leaves a part without any.")
            chosen = kept if held_out else np.setdiff1d(chosen, kept)
        # after the holdout, so that bounds move no row to its other part; before the subsample, which is of what fits
        chosen = self._of_length(rows, chosen, part, where)
        limit = self.max_train_samples if part == "train" else self.max_eval_samples
        if limit is not None and limit < len(chosen):
            chosen = rng.choice(chosen, limit, replace=False)
        chosen = np.sort(chosen)
        self.numbers[part] = numbers[chosen]
        return rows if len(chosen) == len(rows) else rows.select(chosen)

    @property
    def _cuts(self) -> bool:
        """Tell whether rows are held out from the training rows: there is no file of others to evaluate on."""
        return self.holdout is not None and self.files.get("validation") is None

    def _is_held_out(self, part: str) -> bool:
        """Tell whether a part is the held-out rows; whoever names a split of a data set means that split."""
        named = {"validation": self.eval_split, "test": self.test_split}.get(part)
        if named == HOLDOUT and not self._cuts:
            file = self.files.get("validation")
            why = "task.holdout is null" if self.holdout is None else f"it is evaluated on task.files.validation={file}"
            raise SkimError(f"split=holdout: task={self.name} holds no rows out, as {why}.\nUse split=validation.")
        if part == "train" or not self._cuts:
            return False
        own = named == "validation" and self.hub_id is None  # files without one for validation have no other such rows
        return named == HOLDOUT or own or (part == "validation" and named is None)

    def _bounds(self) -> dict[str, int]:
        """The bounds on a row's tokens that are set, by what the user calls them."""
        bounds = {"task.length_min": self.length_min, "task.length_max": self.length_max}
        return {key: bound for key, bound in bounds.items() if bound is not None}

    def _of_length(self, rows: Dataset, chosen: np.ndarray, part: str, where: str) -> np.ndarray:
        """Those of the chosen row numbers whose rows have as many tokens as the bounds allow, in the same order."""
        self.report["left_out"][part] = 0
        bounds = self._bounds()
        if not bounds:
            return chosen
        table, _ = self._mapped(rows, self._count, ["count", self.encoding()])
        lengths = lengths_of(table)[chosen]
        fits = (lengths >= (self.length_min or 0)) & (lengths <= (self.length_max or np.inf))
        shown = ", ".join(f"{key}={bound}" for key, bound in bounds.items())
        if not fits.any():
            raise SkimError(
                f"{where}: {shown} leaves no rows; its texts have {lengths.min()} to {lengths.max()} tokens.\n"
                f"Change {' or '.join(bounds)}, or set it to null."
            )
        left_out = self.report["left_out"][part] = int((~fits).sum())
        if left_out:
            log.warning("%s: %d of %d texts were left out (%s)", part, left_out, len(chosen), shown)
        return chosen[fits]

    def _tokenise(self, part: str) -> Dataset:
        """Tokenise a part, or take it from the cache; what was truncated is counted and told."""
        key = [self.report["max_length"], self.encoding()]
        begin = time.perf_counter()
        table, from_cache = self._mapped(self._raw[part], self._encode, key)
        self.report["rows"][part], self.report["from_cache"][part] = len(table), from_cache
        if rank_zero_only.rank == 0:
            how = "from the cache" if from_cache else "tokenised"
            log.info("%s: %s rows %s in %.1f s", part, f"{len(table):,}", how, time.perf_counter() - begin)
        truncated = self.report["truncated"][part] = int(np.sum(table.with_format("numpy")["truncated"][:]))
        if truncated:
            limit = self.report["max_length"]
            log.warning("%s: %d of %d texts were truncated to %d tokens", part, truncated, len(table), limit)
        return table

    def _mapped(
        self, rows: Dataset, function: Callable[[dict[str, list]], dict[str, list]], key: list[Any]
    ) -> tuple[Dataset, bool]:
        """What the tokenizer makes of rows, on disk: later runs and other ranks map the same file into memory.

        Args:
            rows: the rows.
            function: from some rows' columns to the new ones, with ``self.tokenizer``.
            key: what the function depends on besides rows and tokenizer.

        Returns:
            The new columns, and whether they come from an earlier run.
        """
        from datasets import config
        from datasets.fingerprint import Hasher
        from filelock import FileLock

        backend = self.tokenizer.backend_tokenizer
        # calls leave their truncation and padding behind in the tokenizer; they are not part of what it is
        backend.no_truncation()
        backend.no_padding()
        tokenizer = [backend.to_str(), self.tokenizer.model_input_names, self.tokenizer.truncation_side]
        fingerprint = Hasher.hash([ENCODING, rows._fingerprint, tokenizer, *key])
        file = Path(config.HF_DATASETS_CACHE) / "skim" / f"{fingerprint}.arrow"
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):  # ranks that start together: one tokenises, the others wait and read
            from_cache = file.is_file()
            table = rows.map(
                function,
                batched=True,
                remove_columns=rows.column_names,
                new_fingerprint=fingerprint,
                cache_file_name=str(file),
            )
        return table, from_cache

    def _count(self, rows: dict[str, list]) -> dict[str, list]:
        return {"length": self.count(rows)}

    def _encode(self, rows: dict[str, list]) -> dict[str, list]:
        columns = self.encode(rows)
        return {"length": [len(ids) for ids in columns["input_ids"]], **columns}

    # ---- loaders ----

    def resume_at(self, epoch: int, batch: int) -> None:
        """Let the next training loader begin there, in the middle of an epoch."""
        self._resume = (epoch, batch)

    def _assembled(self, table: Dataset) -> Rows:
        tokenizer = self.tokenizer
        fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id, **self.fills}
        return Rows(table, fill, left=tokenizer.padding_side == "left", hidden=self.no_columns)

    def _loader(self, part: str, batch_size: int, shuffle: bool = False, by_length: bool = True) -> DataLoader:
        table = self._rows[part]
        lengths = lengths_of(table) if by_length else np.zeros(len(table))
        sampler = LengthBatches(lengths, batch_size, shuffle, self.seed, name=part, draws=self.draws)
        if shuffle:
            sampler.resumed, self._resume = self._resume, None
        return DataLoader(
            self._assembled(table),
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader("validation", self.eval_batch_size)

    def test_dataloader(self) -> DataLoader:
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader:
        """The test part in the order of its rows; with several ranks, batches are dealt out in turn."""
        return self._loader("test", self.eval_batch_size, by_length=False)

    def sample_batches(self, batch_size: int, samples: int) -> list[dict[str, Tensor]]:
        """Batches of the first ``samples`` validation rows, grouped by length, the longest first: for measurements."""
        table = self._rows["validation"]
        table = table.select(range(min(samples, len(table))))
        rows, batches = (
            self._assembled(table),
            LengthBatches(lengths_of(table), batch_size, False, rank=0, world_size=1),
        )
        return [rows[batch] for batch in batches]


def softened_divergence(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """KL divergence of the softened distributions, times T squared; mean over all but the last dimension.

    Args:
        logits: ``(..., C)``.
        target: ``(..., C)``, the teacher's.
        temperature: T, see Hinton et al. 2015 (arXiv 1503.02531), section 2.
    """
    log_p, log_q = ((x.flatten(0, -2) / temperature).log_softmax(-1) for x in (logits, target))
    return F.kl_div(log_p, log_q, log_target=True, reduction="batchmean") * temperature * temperature


def write_lines(file: Path, lines: Iterable[dict[str, Any]]) -> Path:
    """Write one JSON object per line; returns the file."""
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return file


def evenly(count: int, rows: Dataset) -> dict[str, list]:
    """So many rows, spread evenly."""
    count = min(count, len(rows))
    return rows[[i * len(rows) // count for i in range(count)]]


def lengths_of(table: Dataset) -> np.ndarray:
    """Tokens of each row of a tokenised table."""
    return np.asarray(table.with_format("numpy")["length"][:])
