"""One or two texts per row, and a class, labels or a number to predict: sentiment, topics, entailment, similarity."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from skim.errors import SkimError, unknown
from skim.options.kinds import NotNegative
from tasks.base import Task, evenly
from tasks.data.columns import Name, Rejects, as_names, check_texts, kept
from tasks.data.label_sets import infer_set_names, label_sets
from tasks.data.labels import infer_label_names, is_labeled, known_labels, label_ids, numbers, settings_of
from tasks.heads import HEADS
from tasks.losses import Loss

if TYPE_CHECKING:
    from datasets import Dataset


RARE = 10  # rows of a class in a part, below which a note says that its scores are of few
SHOWN = 5  # labels that a note names


Kind: TypeAlias = Literal["classification", "multi_label", "regression"]  # of head


@dataclass(kw_only=True, eq=False, repr=False)
class Text(Task):
    """A class, labels or a number for a text or a pair of texts.

    Labels may be names, ids where no name is a number, or a parquet file's class labels; for several of them see
    :mod:`tasks.data.label_sets`. A split whose labels are all -1, the hub's way of saying that they are withheld, can
    be predicted and nothing else.
    """

    head: Kind = "classification"
    """classification (one class), multi_label (any number of labels) or regression (a number)"""
    text_columns: Annotated[list[str], Field(max_length=2)] = field(default_factory=lambda: ["text"])
    """one column, or two for a pair of texts"""
    label_column: Name | list[Name] = "label"
    """column of the labels: names, numbers from 0 or from 1, or numbers to predict; spaces around them do not count.
    Of multi_label: lists, texts with a separator, or a list of columns of 0 and 1, one for each label:
    [toxic,insult]"""
    label_separator: str = "|"
    """multi_label: separator of the labels in a text; an empty text has none of them"""
    label_names: list[Name] | None = None
    """classes, in the order of their ids; null takes them from the training rows (names by the alphabet). A label is
    looked up here first; a number that stands for no name is an id only if no name is a number"""
    metric_names: list[str] | None = None
    """classification: accuracy, f1, matthews; multi_label: micro_f1, macro_f1, subset_accuracy (all of a text's labels
    right); regression: pearson, spearman; the first one selects checkpoints; null is accuracy, all of multi_label, or
    pearson"""
    positive: Name | None = None
    """the class whose precision and recall make f1, by its name; null: the second of two classes, the mean over more"""
    class_weights: Literal["balanced"] | list[NotNegative] | None = None
    """weights of the classes in the training loss, for unbalanced data: balanced (rows / (classes * rows of the
    class)), or a number for each in the order of label_names; null: all alike. Of multi_label, that of a label's
    positive rows, balanced: other rows / positive rows"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._head = HEADS[self.head](self.positive, self.class_weights)
        if len(self.text_columns) not in (1, 2) or len({*self.text_columns}) < len(self.text_columns):
            raise SkimError(f"task.text_columns={self.text_columns}: name one column, or two for pairs of texts.")
        self._metrics = list(self.metric_names or self._head.standard)
        for name in self._metrics:
            if name not in self._head.known:
                raise unknown(f"metric of a {self.head}", name, self._head.known)
        if self.label_names is not None:
            self.label_names = as_names(self.label_names)
        if not isinstance(self.label_column, str):
            self._take_columns(as_names(self.label_column, "task.label_column"))
        if self.head == "regression":
            self.label_names = []
        elif self.label_names is not None and len(self.label_names) < 2:
            raise SkimError(f"task.label_names={self.label_names}: name two or more labels.")

    def _take_columns(self, columns: list[str]) -> None:
        """Take columns of 0 and 1 as labels of the same names."""
        if self.head != "multi_label":
            raise SkimError(
                f"task.label_column={columns}: task.head={self.head} has one column of labels; columns of 0 and 1 are "
                "for task.head=multi_label."
            )
        if self.label_names is not None and {*self.label_names} != {*columns}:
            raise SkimError(
                f"task.label_names={self.label_names} are not the labels that task.label_column={columns} names.\n"
                "Leave task.label_names out."
            )
        self.label_names = self.label_names or columns
        self.label_column = self.label_names

    @property
    def monitor(self) -> str:
        return self._metrics[0]

    @property
    def num_labels(self) -> int:
        if self.label_names is None:
            raise RuntimeError("the labels come from the training rows: call setup before num_labels")
        return len(self.label_names) or 1

    def auto_class(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def model_kwargs(self) -> dict[str, Any]:
        named = settings_of(self.label_names) if self.label_names else {"num_labels": self.num_labels}
        return {**named, "problem_type": self._head.problem_type}

    @property
    def _names(self) -> list[str]:
        assert self.label_names is not None
        return self.label_names

    def metrics(self) -> MetricCollection:
        known = self._head.metrics(self._names)
        return MetricCollection({name: known[name]() for name in self._metrics})

    def predict(self, logits: Tensor) -> Tensor:
        """Choose class ids (B,), numbers (B,) or 1 for each label (B, num_labels), from logits (B, num_labels)."""
        return self._head.predict(logits)

    def update(self, metrics: Any, output: Any, batch: dict[str, Tensor]) -> None:
        labels = batch["labels"]
        metrics.update(self.predict(output.logits), labels.long() if self.head == "multi_label" else labels)

    def scored(self, output: Any, batch: dict[str, Tensor]) -> Tensor | None:
        return self._head.scored(output.logits, batch["labels"])

    def counts(self) -> Metric | None:
        return self._head.counts(self._names)

    def table(self, counts: Tensor) -> dict[str, Any] | None:
        return self._head.table(counts, self._names)

    def blind(self) -> Tensor:
        if self.head != "multi_label":
            return torch.eye(self.num_labels)
        # the most frequent label, the two most frequent, ...: the best that one set can do
        labels = torch.as_tensor(np.asarray(self._rows["validation"].with_format("numpy")["labels"][:]))
        answers = torch.zeros(self.num_labels, self.num_labels)
        answers[:, labels.sum(0).argsort(descending=True)] = torch.ones_like(answers).tril()
        return answers

    def labelled(self, batch: dict[str, Tensor]) -> int:
        return len(batch["labels"]) if "labels" in batch else 0

    def training_loss(self, smoothing: float = 0.0) -> Loss | None:
        labels = _labels_of(self._raw["train"])
        assert labels is not None
        return self._head.loss(labels, self._names, smoothing)

    def distance(self, output: Any, taught: Any, batch: dict[str, Tensor], temperature: float) -> Tensor:
        return self._head.distance(output.logits, taught.logits, temperature)

    def predictions(self, output: Any, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Return ``prediction`` and more, by head: see :mod:`tasks.heads`."""
        return self._head.predictions(output.logits, self._names)

    def named(self, label: Any) -> Any:
        return self._head.named(label, self._names)

    def strata(self, rows: Dataset) -> np.ndarray | None:
        labels = _labels_of(rows)
        return None if labels is None else self._head.strata(labels)

    def notes(self, part: str) -> list[str]:
        """Note labels that no row of the part has, or fewer than ``RARE``."""
        labels = _labels_of(self._raw[part])
        rows = None if labels is None else self._head.rows_of(labels, self._names)
        if labels is None or rows is None:
            return []
        bound = 1 if part == "train" else RARE
        few = [f"{count} of '{name}'" for name, count in zip(self._names, rows.tolist(), strict=True) if count < bound]
        if not few:
            return []
        shown = ", ".join(few[:SHOWN]) + (f", and few of {len(few) - SHOWN} more" if len(few) > SHOWN else "")
        effect = "nothing is learned of them" if part == "train" else "scores on so few rows say little"
        return [f"{self.split_of(part)}: its {len(labels):,} rows hold {shown}: {effect}."]

    def example_texts(self, count: int) -> list[Any]:
        chosen = evenly(count, self._raw["validation"])
        columns = self._texts(chosen)
        return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))

    def check(self, rows: Dataset, part: str, rejects: Rejects) -> Dataset:
        """Return the columns of the texts, and ``labels`` where there are any."""
        for name in self.text_columns:
            check_texts(rows, name, rejects)
        texts = rows.select_columns(self.text_columns).rename_columns({name: kept(name) for name in self.text_columns})
        if self.label_names is None:
            if part != "test" or self.label_column in rows.column_names:
                train, bad = (rows, rejects) if part == "train" else self.checkable("train")
                self.label_names = self._infer(train, bad)
        labels = known_labels(part, rejects, lambda to: self._labels(rows, part, to))
        return texts if labels is None else texts.add_column("labels", labels)

    def _infer(self, rows: Dataset, rejects: Rejects) -> list[str]:
        """Find the labels that training rows have."""
        assert isinstance(self.label_column, str)  # columns are named by the user
        if self.head == "multi_label":
            return infer_set_names(rows, self.label_column, self.label_separator, rejects)
        return infer_label_names(rows, self.label_column, rejects)

    def _labels(self, rows: Dataset, part: str, rejects: Rejects) -> Any:
        needed = part != "test"
        if self.head == "multi_label":
            return label_sets(rows, self.label_column, self.label_separator, self.label_names, rejects, needed)
        assert isinstance(self.label_column, str)
        if not is_labeled(rows, self.label_column, rejects, needed):
            return None
        if self.label_names:
            return label_ids(rows, self.label_column, self.label_names, rejects)
        return numbers(rows, self.label_column, rejects)

    def encode(self, rows: dict[str, list]) -> dict[str, list]:
        length = self.report["max_length"]
        encoded = self.tokenizer(*self._texts(rows), truncation=True, max_length=length, return_attention_mask=False)
        columns = {**encoded, "truncated": [bool(one.overflowing) for one in encoded.encodings]}
        return {**columns, "labels": rows["labels"]} if "labels" in rows else columns

    def count(self, rows: dict[str, list]) -> list[int]:
        encoded = self.tokenizer(*self._texts(rows), truncation=False, return_attention_mask=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def _texts(self, rows: dict[str, list]) -> list[list[str]]:
        """Make the tokenizer's arguments: texts, or the first and the second of pairs."""
        return [rows[kept(name)] for name in self.text_columns]

    def encoding(self) -> list[Any]:
        return [type(self).__name__, self.text_columns]


def _labels_of(rows: Dataset) -> np.ndarray | None:
    """Read the labels of checked rows, (rows,) or (rows, C); ``None`` if they have none."""
    return np.asarray(rows.with_format("numpy")["labels"][:]) if "labels" in rows.column_names else None
