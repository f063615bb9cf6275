"""A text, a question about it, and options of which one is right: RACE, and files of one's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection

from skim.errors import SkimError
from tasks.base import Task, evenly
from tasks.data.choices import LETTERS, OPTIONS, check_options, option_of, put
from tasks.data.columns import Rejects, check_texts, kept
from tasks.data.labels import is_labeled, known_labels, label_texts, shown_label
from tasks.losses import CrossEntropy, Loss, softened_divergence

if TYPE_CHECKING:
    from datasets import Dataset

TEXT = "task.text_column=<column>"
QUESTION = "task.question_column=<column>"
ANSWER = "task.label_column=<column>"


@dataclass(kw_only=True, eq=False, repr=False)
class MultipleChoice(Task):
    """Choice of the right one of C options: the model scores each by itself, and the highest score is its answer.

    Each option is a sequence of its own: the text, and the question with the option in its blank (``_``), or behind it.
    Batches are (B, C, N) and labels (B,), so ``batch_size`` rows are C times as many sequences to the backbone and to
    the method, and what is reported *per sequence*, such as GFLOPs, is per option. What is longer than ``max_length``
    loses the end of its text; only where question and option fill it by themselves are they shortened too.

    Answers may be letters from A, the text of an option, or numbers from 0: in this order. So where options are numbers
    themselves, the answer 2 is the option whose text is 2, and a number that is the text of none is an error.
    """

    text_column: str = "article"
    """column of the texts that questions are about"""
    question_column: str | None = "question"
    """column of the questions, with _ where an option is put in, or behind which it stands; null: the options go on
    where the text ends"""
    options_column: str = "options"
    """column of the options: lists of texts, as many in each row"""
    option_columns: list[str] = field(default_factory=list)
    """instead of the former, a column for each option, for csv files: [a,b,c,d]"""
    label_column: str = "answer"
    """column of the right options: letters from A, the option's text, or numbers from 0; where options
    are numbers, a number is an option's text"""

    single_texts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.option_columns) == 1:
            raise SkimError(f"task.option_columns={self.option_columns}: there is nothing to choose; name two or more.")

    @property
    def monitor(self) -> str:
        return "accuracy"

    @property
    def num_labels(self) -> int:
        return 1  # a score for each option

    def auto_class(self) -> Any:
        from transformers import AutoModelForMultipleChoice

        return AutoModelForMultipleChoice

    def model_kwargs(self) -> dict[str, Any]:
        return {}

    def metrics(self) -> MetricCollection:
        return MetricCollection({"accuracy": MeanMetric()})

    def update(self, metrics: Any, output: Any, batch: dict[str, Tensor]) -> None:
        metrics.update(self.scored(output, batch))

    def scored(self, output: Any, batch: dict[str, Tensor]) -> Tensor:
        return (output.logits.argmax(-1) == batch["labels"]).float()

    def blind(self) -> Tensor:
        return torch.eye(len(self._rows["validation"][0]["input_ids"]))  # always the first option, the second, ...

    def labelled(self, batch: dict[str, Tensor]) -> int:
        return len(batch["labels"]) if "labels" in batch else 0

    def training_loss(self, smoothing: float = 0.0) -> Loss | None:
        return CrossEntropy(smoothing=smoothing) if smoothing else None

    def distance(self, output: Any, taught: Any, batch: dict[str, Tensor], temperature: float) -> Tensor:
        return softened_divergence(output.logits, taught.logits, temperature)

    def predictions(self, output: Any, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Return ``prediction`` (an option's letter, behind the 26th its number from 0) and its ``probability``.

        And ``probabilities`` of all options, of the softmax.
        """
        return [
            {
                "prediction": self.named(max(range(len(shares)), key=shares.__getitem__)),
                "probability": max(shares),
                "probabilities": {self.named(option): share for option, share in enumerate(shares)},
            }
            for shares in output.logits.float().softmax(-1).tolist()
        ]

    def named(self, label: Any) -> str:
        return LETTERS[label] if label < len(LETTERS) else str(label)

    # ---- rows ----

    def check(self, rows: Dataset, part: str, rejects: Rejects) -> Dataset:
        """Return the columns of texts and options, and ``labels`` where there are any."""
        check_texts(rows, self.text_column, rejects, TEXT)
        columns = [self.text_column]
        if self.question_column is not None:
            check_texts(rows, self.question_column, rejects, QUESTION)
            columns.append(self.question_column)
        if self.option_columns:
            for name in self.option_columns:
                check_texts(rows, name, rejects, OPTIONS)
            count = len(self.option_columns)
        else:
            count = check_options(rows, self.options_column, rejects)
        columns += self.option_columns or [self.options_column]
        known = rows.select_columns(columns).rename_columns({name: kept(name) for name in columns})

        def read(to: Rejects) -> np.ndarray | None:
            labelled = is_labeled(rows, self.label_column, to, needed=part != "test", option=ANSWER)
            return self._answers(rows, known, count, to) if labelled else None

        labels = known_labels(part, rejects, read)
        return known if labels is None else known.add_column("labels", labels)

    def _answers(self, rows: Dataset, known: Dataset, count: int, rejects: Rejects) -> np.ndarray:
        """Find the numbers of the right options, (rows,) int64; 0 for a bad row.

        Args:
            rows: with answers.
            known: the same with options that were checked.
            count: of options.
            rejects: takes rows whose answer is none of their options.
        """
        texts, codes = label_texts(rows, self.label_column)
        # letters first: in the key of an exam, "A" is the first option, whatever the texts of the options
        letters = dict(zip(LETTERS, range(count), strict=False))
        found = np.asarray([-1 if text is None else letters.get(text, -1) for text in texts], dtype=np.int64)[codes]
        others = [int(row) for row in np.flatnonzero(found < 0) if row not in rejects.bad]
        options = self._options(known.select(others)[:]) if others else []
        for row, some in zip(others, options, strict=True):
            answer = texts[codes[row]]
            if answer is None:  # bad already
                continue
            place = option_of(answer, [option.strip() for option in some])
            if place is None:
                why = f"{shown_label(answer)} is none of the {count} options"
                letter = f"A to {LETTERS[count - 1]}, " if count <= len(LETTERS) else ""
                advice = f"Answers: {letter}an option's text, or 0 to {count - 1} if no option is a number."
                rejects.add(row, self.label_column, why, advice)
            found[row] = place or 0
        return np.maximum(found, 0)

    def _options(self, rows: dict[str, list]) -> list[list[str]]:
        """List the texts of each row's options."""
        if self.option_columns:
            return [list(texts) for texts in zip(*(rows[kept(name)] for name in self.option_columns), strict=True)]
        return rows[kept(self.options_column)]

    def _pairs(self, rows: dict[str, list]) -> tuple[list[str], list[str], int]:
        """Make the tokenizer's arguments, an entry for each option of each row, and count the options of a row."""
        texts, options = rows[kept(self.text_column)], self._options(rows)
        questions = rows[kept(self.question_column)] if self.question_column is not None else [None] * len(texts)
        first = [text for text, some in zip(texts, options, strict=True) for _ in some]
        second = [put(asked, one) for asked, some in zip(questions, options, strict=True) for one in some]
        return first, second, len(options[0])

    # ---- tokens ----

    def encode(self, rows: dict[str, list]) -> dict[str, list]:
        first, second, count = self._pairs(rows)
        length = self.report["max_length"]
        room = length - self.tokenizer.num_special_tokens_to_add(pair=True)
        alone = self.tokenizer(second, add_special_tokens=False, return_attention_mask=False, verbose=False)
        # the tokenizer refuses to cut a text that would have to vanish
        full = [len(ids) >= room for ids in alone["input_ids"]]
        columns: dict[str, list] = {}
        for strategy, some in (
            ("only_first", np.flatnonzero(~np.array(full))),
            ("longest_first", np.flatnonzero(full)),
        ):
            if not len(some):
                continue
            texts, asked = [first[i] for i in some], [second[i] for i in some]
            encoded = self.tokenizer(texts, asked, truncation=strategy, max_length=length, return_attention_mask=False)
            for name, column in {**encoded, "truncated": [bool(one.overflowing) for one in encoded.encodings]}.items():
                whole = columns.setdefault(name, [None] * len(first))
                for i, value in zip(some, column, strict=True):
                    whole[i] = value
        by_row = {
            name: [column[i : i + count] for i in range(0, len(first), count)] for name, column in columns.items()
        }
        by_row["length"] = [max(len(ids) for ids in options) for options in by_row["input_ids"]]
        by_row["truncated"] = [any(options) for options in by_row["truncated"]]
        return {**by_row, "labels": rows["labels"]} if "labels" in rows else by_row

    def count(self, rows: dict[str, list]) -> list[int]:
        """Count the tokens of the longest option of some rows."""
        first, second, count = self._pairs(rows)
        ids = self.tokenizer(first, second, return_attention_mask=False, verbose=False)["input_ids"]
        return [max(map(len, ids[i : i + count])) for i in range(0, len(ids), count)]

    def _tokens_of(self, table: Dataset) -> np.ndarray:
        return super()._tokens_of(table) * len(table[0]["input_ids"])  # of all options

    def encoding(self) -> list[Any]:
        options = self.option_columns or [self.options_column]
        return [type(self).__name__, self.text_column, self.question_column, options]

    def example_texts(self, count: int) -> list[Any]:
        """Pick pairs: the text, and its question with the first option."""
        first, second, options = self._pairs(evenly(count, self._raw["validation"]))
        return list(zip(first[::options], second[::options], strict=True))
