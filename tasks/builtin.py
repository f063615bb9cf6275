"""The built-in classification: an opinion among plain statements. No download, and a known truth.

One clause of each text is an opinion; its adjective and the negation before it decide the label, and nothing else does.
The adjective alone does not, as many opinions are negated. So a method that drops tokens without looking loses what it
needs, and one that looks can drop nearly all. A tiny transformer learns it perfectly in three passes over 4,000 texts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from skim.errors import SkimError, unknown
from skim.options.kinds import Count
from tasks.data.builtin import SIZES, tokenizer_of
from tasks.data.columns import Rejects
from tasks.data.grammar import examples
from tasks.text import Text

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(kw_only=True, eq=False, repr=False)
class Builtin(Text):
    """Classification of texts from the grammar. Batches also hold ``salient`` (B, N), bool: what decides."""

    name: str = "builtin"
    train_rows: Count = 4000
    """texts to train on"""
    eval_rows: Count = 1000
    """texts to evaluate on, and as many to test on"""
    label_names: list[str] | None = field(init=False)

    def __post_init__(self) -> None:
        self.label_names = ["negative", "positive"]
        super().__post_init__()
        if given := {part: file for part, file in self.files.items() if file is not None}:
            part, file = next(iter(given.items()))
            raise SkimError(
                f"task={self.name} makes its own texts, and reads none of task.files.{part}={file}.\n"
                "A task that reads files of texts and labels: task=text."
            )

    def source(self, part: str) -> tuple[Dataset, str]:
        from datasets import Dataset

        split = self.split_of(part)
        if split not in SIZES:
            raise unknown("built-in split", split, SIZES)
        count = self.train_rows if split == "train" else self.eval_rows
        return Dataset.from_list(examples(count, split)), f"built-in {split}"

    def check(self, rows: Dataset, part: str, rejects: Rejects) -> Dataset:
        return rows

    def encode(self, rows: dict[str, list]) -> dict[str, list]:
        columns = super().encode(rows)
        length = self.report["max_length"]
        offsets = self.tokenizer(rows["text"], truncation=True, max_length=length, return_offsets_mapping=True)
        spans = zip(offsets["offset_mapping"], rows["salient"], strict=True)
        # special tokens have the empty span (0, 0), which overlaps nothing
        salient = [[any(a < end and start < b for a, b in words) for start, end in tokens] for tokens, words in spans]
        return {**columns, "salient": salient}

    def own_tokenizer(self) -> Any:
        return tokenizer_of({word for row in examples(2000, "train") for word in row["text"].split()})
