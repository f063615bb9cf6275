"""A task: data, what the head needs, and metrics. What a new kind of task implements stands here, top to bottom."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from skim.errors import SkimError
from skim.files import write_text
from tasks.data.parts import Parts
from tasks.losses import Loss

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(kw_only=True, eq=False, repr=False)
class Task(Parts):
    """Data, what the head needs, and metrics. The fields are the YAML keys of ``conf/task``.

    A new kind of task implements, of its rows (:class:`tasks.data.parts.Parts` declares them)::

        check(rows, part, rejects)   the columns that encode uses; bad rows go to rejects
        encode(rows)                 tokens of some rows: the columns of a batch
        count(rows)                  tokens of some rows, without truncation
        encoding()                   the options that encode and count depend on
        example_texts(count)         some texts as the tokenizer takes them

    and of its head the abstract methods below. The others have defaults that do for most.

    Attributes:
        monitor: the metric that selects the best checkpoint; higher is better.
        label_names: by label id; empty for a regression. Known after ``setup`` where they come from the data.
        single_texts: whether the head takes one text, or pair of texts, by itself.
    """

    label_names: list[str] | None = field(init=False, default=None)
    single_texts: ClassVar[bool] = True

    # ---- the head ----

    @property
    @abstractmethod
    def num_labels(self) -> int:
        """Width of the head's output."""

    @abstractmethod
    def auto_class(self) -> Any:
        """Return the ``transformers.AutoModelFor...`` with the right head."""

    @abstractmethod
    def model_kwargs(self) -> dict[str, Any]:
        """Return the settings of the model's config that follow from the task."""

    def check_model(self, model: nn.Module) -> None:
        """Refuse, by a SkimError, a plain model whose head is not of the kind that the task needs."""

    # ---- metrics ----

    @property
    @abstractmethod
    def monitor(self) -> str:
        """Name of the metric that selects the best checkpoint; higher is better."""

    @abstractmethod
    def metrics(self) -> Metric | MetricCollection:
        """Make fresh metrics for :meth:`update`; ``compute`` gives a dict of scalars by name."""

    @abstractmethod
    def update(self, metrics: Any, output: Any, batch: dict[str, Tensor]) -> None:
        """Add one batch to :meth:`metrics`.

        Args:
            metrics: made by :meth:`metrics`.
            output: the model's.
            batch: with labels.
        """

    def scored(self, output: Any, batch: dict[str, Tensor]) -> Tensor | None:
        """Score each sequence of a batch with labels, (B,), 0 to 1: the share that is right, nan without a label.

        ``None`` in tasks whose score is of all rows together. A number for several sequences, such as the options of
        one question, is of all of them.
        """
        return None

    def counts(self) -> Metric | None:
        """Make a fresh metric for :meth:`update` beside :meth:`metrics`, whose value :meth:`table` takes."""
        return None

    def table(self, counts: Tensor) -> dict[str, Any] | None:
        """Lay out :meth:`counts` class by class, in JSON's types; see :meth:`tasks.heads.base.Head.table`."""
        return None

    def blind(self) -> Tensor | None:
        """Logits (A, C) of the answers that can be given without reading; ``None`` where they are not that few."""
        return None

    def chance(self) -> float | None:
        """Compute the best score of one answer to all evaluation rows, by ``monitor``; ``None``: not known."""
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

    def others(self) -> dict[str, Task]:
        """Return this task on further evaluation splits, reported beside its own, by the suffix of their metrics."""
        return {}

    # ---- labels, and the tokens that they are of ----

    def labels_of(self, batch: dict[str, Tensor]) -> Tensor | None:
        """Return one label per sequence, (B,), or per word, (B, W), negative without one; ``None`` in other tasks."""
        labels = batch.get("labels")
        return labels if labels is not None and labels.dim() == 1 else None

    def words_of(self, batch: dict[str, Tensor]) -> Tensor | None:
        """Number the word that each token is of, (B, N), -1 for tokens of none; ``None``: labels are of sequences."""
        return None

    # ---- losses ----

    @abstractmethod
    def labelled(self, batch: dict[str, Tensor]) -> int:
        """Count the labels that the mean loss of a batch is over; 0 if it has none."""

    def loss_of(self, output: Any, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean loss of a batch with labels, a scalar: the model's own, unless padding is in that."""
        return output.loss

    @abstractmethod
    def distance(self, output: Any, taught: Any, batch: dict[str, Tensor], temperature: float) -> Tensor:
        """Measure how far an output is from the teacher's: mostly :func:`tasks.losses.softened_divergence`, a scalar.

        Args:
            output: the student's.
            taught: the teacher's.
            batch: that both have seen.
            temperature: softens both.
        """

    def training_loss(self, smoothing: float = 0.0) -> Loss | None:
        """Make the loss that replaces the model's own in training; ``None`` where that one will do.

        Args:
            smoothing: of labels, from 0 to below 1.

        Raises:
            SkimError: smoothing of labels that are not classes of a sequence, token or option.
        """
        if smoothing:
            raise SkimError(
                f"train.label_smoothing={smoothing} is for classes of texts, of words and of options, and not for "
                f"task={self.name}. Set it to 0."
            )
        return None

    def companion(self, model: nn.Module) -> nn.Module | None:
        """Make a module that is trained beside a compressed model, such as ELECTRA's generator; once, saved with it."""
        return None

    def corrupt(self, batch: dict[str, Tensor], companion: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
        """Change a batch by the companion before the model sees it; returns it and the loss that is added."""
        raise NotImplementedError

    @property
    def endless(self) -> bool:
        """True if the training data are a stream without an end: then steps are counted, and no epochs."""
        return False

    # ---- predictions ----

    @abstractmethod
    def predictions(self, output: Any, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Turn a model's output into answers to be read: one dict of JSON's types for each sequence of the batch."""

    def named(self, label: Any) -> Any:
        """Return a label to be read: its name, or the number of a regression."""
        return self.label_names[label] if self.label_names else label

    def write_predictions(self, found: list[dict[str, Any]], folder: Path) -> list[Path]:
        """Write the predictions of the test part; returns the files.

        By default ``predictions.jsonl``: ``row`` (its number in the file or split, from 1), the columns that are used,
        ``label`` where it is known, and the prediction.

        Args:
            found: :meth:`predictions` of each tokenised row, in their order.
            folder: the run's.
        """
        lines = []
        for number, row, predicted in zip(self.numbers["test"].tolist(), self._raw["test"], found, strict=True):
            if "labels" in row:
                row["label"] = self.named(row.pop("labels"))
            lines.append({"row": number, **row, **predicted})
        return [write_lines(folder / "predictions.jsonl", lines)]


def write_lines(file: Path, lines: Iterable[dict[str, Any]]) -> Path:
    """Write one JSON object per line; returns the file."""
    write_text(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return file


def evenly(count: int, rows: Dataset) -> dict[str, list]:
    """Pick so many rows, spread evenly."""
    count = min(count, len(rows))
    return rows[[i * len(rows) // count for i in range(count)]]
