"""One or two texts per row, and a class or a number to predict: sentiment, paraphrase, entailment, similarity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from skim.errors import SkimError, unknown
from tasks.base import Task, evenly, softened_divergence
from tasks.columns import Rejects, as_list, as_names, check_texts, kept
from tasks.labels import infer_label_names, is_labeled, known_labels, label_ids, numbers, settings_of
from tasks.metrics import OfClasses, OfNumbers, accuracy, f1, matthews, pearson, spearman

if TYPE_CHECKING:
    from datasets import Dataset


# by head: metric name -> from the number of labels to a fresh metric; the first one is the default
METRICS: dict[str, dict[str, Callable[[int], Metric]]] = {
    "classification": {
        "accuracy": lambda labels: OfClasses(labels, accuracy),
        "f1": lambda labels: OfClasses(labels, f1),
        "matthews": lambda labels: OfClasses(labels, matthews),
    },
    "regression": {"pearson": lambda _: OfNumbers(pearson), "spearman": lambda _: OfNumbers(spearman)},
}


@dataclass(kw_only=True, eq=False, repr=False)
class Text(Task):
    """Classification of, or a number for, a text or a pair of texts.

    Labels may be names, ids where no name is a number, or a parquet file's class labels. A split whose labels are all
    -1, the hub's way of saying that they are withheld, can be predicted and nothing else.
    """

    head: str = "classification"  # or regression
    text_columns: list[str] = field(default_factory=lambda: ["text"])  # one, or two for a pair
    label_column: str = "label"
    label_names: list[str] | None = None  # in the order of their ids; null takes them from the training rows
    metric_names: list[str] | None = None  # the first selects the best checkpoint; null: the head's first in METRICS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head not in METRICS:
            raise unknown("task.head", self.head, METRICS)
        self.text_columns = as_list(self.text_columns, "task.text_columns")  # a plain list: it is part of a cache's key
        if len(self.text_columns) not in (1, 2) or len({*self.text_columns}) < len(self.text_columns):
            raise SkimError(f"task.text_columns={self.text_columns}: name one column, or two for pairs of texts.")
        self._metrics = as_list(self.metric_names or list(METRICS[self.head])[:1], "task.metric_names")
        for name in self._metrics:
            if name not in METRICS[self.head]:
                raise unknown(f"metric of a {self.head}", name, METRICS[self.head])
        if self.head == "regression":
            self.label_names = []
        elif self.label_names is not None:
            self.label_names = as_names(self.label_names)
            if len(self.label_names) < 2:
                raise SkimError(f"task.label_names={self.label_names}: name two or more labels.")

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
        kind = "regression" if self.head == "regression" else "single_label_classification"
        named = settings_of(self.label_names) if self.label_names else {"num_labels": self.num_labels}
        return {**named, "problem_type": kind}

    def metrics(self) -> MetricCollection:
        return MetricCollection({name: METRICS[self.head][name](self.num_labels) for name in self._metrics})

    def predict(self, logits: Tensor) -> Tensor:
        """Class ids, or numbers, (B,), from logits (B, num_labels)."""
        return logits.squeeze(-1).float() if self.head == "regression" else logits.argmax(-1)

    def update(self, metrics: Any, output: Any, batch: dict[str, Tensor]) -> None:
        metrics.update(self.predict(output.logits), batch["labels"])

    def labelled(self, batch: dict[str, Tensor]) -> int:
        return len(batch["labels"]) if "labels" in batch else 0

    def distance(self, output: Any, taught: Any, batch: dict[str, Tensor], temperature: float) -> Tensor:
        if self.head == "regression":
            return F.mse_loss(output.logits, taught.logits)
        return softened_divergence(output.logits, taught.logits, temperature)

    def predictions(self, output: Any, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """``prediction``: a number, or a label's name and ``probability``, that of the softmax."""
        found = self.predict(output.logits).tolist()
        if self.head == "regression":
            return [{"prediction": number} for number in found]
        assert self.label_names is not None
        probabilities = output.logits.float().softmax(-1).amax(-1).tolist()
        return [
            {"prediction": self.label_names[label], "probability": probability}
            for label, probability in zip(found, probabilities, strict=True)
        ]

    def example_texts(self, count: int) -> list[Any]:
        chosen = evenly(count, self._raw["validation"])
        columns = self._texts(chosen)
        return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))

    def check(self, rows: Dataset, part: str, rejects: Rejects) -> Dataset:
        """The columns of the texts, and ``labels`` where there are any."""
        for name in self.text_columns:
            check_texts(rows, name, rejects)
        texts = rows.select_columns(self.text_columns).rename_columns({name: kept(name) for name in self.text_columns})
        if self.head == "classification" and self.label_names is None:
            if part != "test" or self.label_column in rows.column_names:
                train, bad = (rows, rejects) if part == "train" else self.checkable("train")
                self.label_names = infer_label_names(train, self.label_column, bad)
        labels = known_labels(part, rejects, lambda to: self._labels(rows, part, to))
        return texts if labels is None else texts.add_column("labels", labels)

    def _labels(self, rows: Dataset, part: str, rejects: Rejects) -> np.ndarray | None:
        if not is_labeled(rows, self.label_column, rejects, needed=part != "test"):
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
        """The tokenizer's arguments: texts, or the first and the second of pairs."""
        return [rows[kept(name)] for name in self.text_columns]

    def encoding(self) -> list[Any]:
        return [type(self).__name__, self.text_columns]
