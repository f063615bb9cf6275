"""A tag for each word: parts of speech, names, phrases, and any other kind."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from skim.errors import SkimError
from skim.files import write_text
from tasks.base import Task, evenly, write_lines
from tasks.data import conll
from tasks.data.columns import Name, Rejects, as_names, check_column, column_of
from tasks.data.files import read
from tasks.data.labels import known_labels, settings_of
from tasks.data.lists import check_words, infer_tags, lists_of, parts_of, tag_ids
from tasks.data.words import first_tokens, space_words, spread, tokenised
from tasks.losses import CrossEntropy, Loss, softened_divergence
from tasks.metrics.chunks import TagScores, is_chunked

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import Array

log = logging.getLogger(__name__)

METRICS = ("f1", "precision", "recall", "accuracy")  # the first three are of chunks
WORDS, TAGS, COLUMNS = "task.token_column=<column>", "task.tag_column=<column>", "task.columns=[<word>,<tag>]"
IGNORED = -100  # label that the models' loss passes over; in gold, a place without a word


@dataclass(kw_only=True, eq=False, repr=False)
class Tagging(Task):
    """Token classification: a word's tag is predicted at its first token.

    Rows hold a list of words and a list of tags: names, ids, or a parquet file's class labels. In csv and tsv files a
    cell holds them with spaces in between; files of columns (``.txt``, ``.conll``, ``.conllu``, ...) have a word and
    its tags per line. Words that the tokenizer makes no token of, such as a lone zero-width space, are read as its
    unknown token. Words beyond ``max_length`` are cut off: they are not learned, and in evaluation they count as
    wrongly tagged, in no chunk.

    A batch also has ``word`` (B, N): number of the word of which this is the first token, else -1; ``words`` (B,): how
    many there are, those cut off included; and, with labels, ``gold`` (B, W): the label ids of all words.
    """

    token_column: str = "tokens"
    """column of the words"""
    tag_column: str = "tags"
    """column of the tags: names, or ids from 0"""
    label_names: list[Name] | None = None
    """labels, in the order of their ids; null takes them from the training rows: names with O first, then by the
    alphabet"""
    metric_names: list[Literal["f1", "precision", "recall", "accuracy"]] | None = None
    """f1, precision, recall (of chunks), accuracy (of words); the first one selects checkpoints; null: all that the
    tags allow"""
    untagged: list[Name | None] = field(default_factory=list)
    """tags of words that have none, neither learned nor counted; null in the list stands for a missing one"""
    on_unknown_tag: Literal["error", "wrong"] = "error"
    """a tag that is not among the labels: error, or wrong, which counts the word as wrongly tagged (not of chunks)"""
    columns: list[int] | None = None
    """column of the word and column of the tag in files of columns, from 1, or from the last with -1; null is [1,-1],
    and [2,4] (form and universal part of speech) of a .conllu file"""

    no_columns: ClassVar[tuple[str, ...]] = (*Task.no_columns, "cut")
    fills: ClassVar[dict[str, int]] = {"labels": IGNORED, "word": -1, "gold": IGNORED}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.columns is not None:
            conll.columns_of(self.columns)
        if self.label_names is not None:
            self._take(as_names(self.label_names))

    def _take(self, label_names: list[str]) -> None:
        """Take the labels, which must go with the metrics."""
        self.label_names = label_names
        chunked = is_chunked(label_names)
        wrong = [name for name in self.metric_names or () if name != "accuracy" and not chunked]
        if wrong:
            raise SkimError(
                f"task.metric_names: {wrong[0]} is of chunks; the tags mark none: {', '.join(label_names[:5])}, ...\n"
                "Chunks are marked as B-NP, I-NP, O; other tags have metric_names=[accuracy]."
            )
        if chunked and self.on_unknown_tag == "wrong":
            raise SkimError("task.on_unknown_tag=wrong is of words; these tags mark chunks: list task.label_names.")
        self._metrics = list(self.metric_names or (METRICS if chunked else ("accuracy",)))

    @property
    def monitor(self) -> str:
        self._labels()
        return self._metrics[0]

    @property
    def num_labels(self) -> int:
        return len(self._labels())

    def _labels(self) -> list[str]:
        if self.label_names is None:
            raise RuntimeError("the labels come from the training rows: call setup first")
        return self.label_names

    def auto_class(self) -> Any:
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification

    def model_kwargs(self) -> dict[str, Any]:
        return settings_of(self._labels())

    def setup_tokenizer(self, tokenizer: Any) -> None:
        super().setup_tokenizer(tokenizer)
        space_words(tokenizer)

    # ---- metrics and predictions ----

    def metrics(self) -> TagScores:
        return TagScores(self._labels(), self._metrics)

    def update(self, metrics: Any, output: Any, batch: dict[str, Tensor]) -> None:
        metrics.update(self.predict(output.logits, batch), self.labels_of(batch))

    def scored(self, output: Any, batch: dict[str, Tensor]) -> Tensor | None:
        gold = self.labels_of(batch)
        if gold is None:
            return None
        tagged = gold >= 0
        right = (self.predict(output.logits, batch) == gold) & tagged
        return right.sum(1) / tagged.sum(1)

    def predict(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Choose label ids of the words, (B, W), -1 for those that were cut off, from logits (B, N, num_labels)."""
        row, place = (batch["word"] >= 0).nonzero(as_tuple=True)
        tags = batch["word"].new_full((len(logits), int(batch["words"].max())), -1)
        tags[row, batch["word"][row, place]] = logits[row, place].argmax(-1)
        return tags

    def labels_of(self, batch: dict[str, Tensor]) -> Tensor | None:
        """Return the label ids of all words, (B, W): -1 without a tag, :attr:`num_labels` of a tag that is unknown."""
        gold = batch.get("gold")
        if gold is None:
            return None
        laid = gold.new_full((len(gold), int(batch["words"].max())), IGNORED)
        # words in the same places, whichever side the tokenizer pads
        laid[laid.new_ones(laid.shape).cumsum(1) <= batch["words"][:, None]] = gold[gold != IGNORED]
        return laid

    def words_of(self, batch: dict[str, Tensor]) -> Tensor:
        special = self.tokenizer.num_special_tokens_to_add()
        return spread(batch["word"], batch["attention_mask"].bool(), special)

    def labelled(self, batch: dict[str, Tensor]) -> int:
        return int((batch["labels"] != IGNORED).sum()) if "labels" in batch else 0

    def training_loss(self, smoothing: float = 0.0) -> Loss | None:
        return CrossEntropy(smoothing=smoothing) if smoothing else None

    def distance(self, output: Any, taught: Any, batch: dict[str, Tensor], temperature: float) -> Tensor:
        here = batch["labels"] != IGNORED
        return softened_divergence(output.logits[here], taught.logits[here], temperature)

    def predictions(self, output: Any, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Return ``tags``: a name for each word, ``None`` for those that were cut off."""
        names = self._labels()
        found = zip(self.predict(output.logits, batch).tolist(), batch["words"].tolist(), strict=True)
        return [{"tags": [names[tag] if tag >= 0 else None for tag in tags[:words]]} for tags, words in found]

    def write_predictions(self, found: list[dict[str, Any]], folder: Path) -> list[Path]:
        """Write ``predictions.jsonl`` (``row``, ``tokens``, ``tags``, known ``gold``), and columns of word and tag.

        In the columns of ``predictions.txt``, words that were cut off have the tag ``-``.
        """
        rows, names = self._raw["test"], self._labels()
        lines: list[dict[str, Any]] = []
        for number, words, predicted in zip(self.numbers["test"].tolist(), rows["tokens"], found, strict=True):
            lines.append({"row": number, "tokens": parts_of(words), **predicted})
        if "gold" in rows.column_names:
            for line, gold in zip(lines, rows["gold"], strict=True):
                line["gold"] = [names[tag] if 0 <= tag < len(names) else None for tag in gold]
        columns = folder / "predictions.txt"
        pairs = (zip(line["tokens"], line["tags"], strict=True) for line in lines)
        texts = ("".join(f"{word}\t{tag or '-'}\n" for word, tag in sentence) for sentence in pairs)
        write_text(columns, "\n".join(texts))
        return [write_lines(folder / "predictions.jsonl", lines), columns]

    def example_texts(self, count: int) -> list[Any]:
        return [" ".join(parts_of(row)) for row in evenly(count, self._raw["validation"])["tokens"]]

    # ---- rows ----

    def read(self, file: str) -> Dataset:
        return read(file, self.file_columns, conll.reader(self.columns, self.token_column, self.tag_column))

    def check(self, rows: Dataset, part: str, rejects: Rejects) -> Dataset:
        """Return columns ``tokens`` and, where there are tags, ``gold``."""
        from datasets.fingerprint import Hasher

        check_column(rows, self.token_column, "column of words", WORDS, rejects.where)
        words = check_words(rows, self.token_column, rejects)
        texts = rows.select_columns([self.token_column]).rename_columns({self.token_column: "tokens"})
        if self.label_names is None and (part != "test" or self.tag_column in rows.column_names):
            train, where = (rows, rejects.where) if part == "train" else self.source("train")
            check_column(train, self.tag_column, "column of tags", TAGS, where)
            self._take(infer_tags(train, self.tag_column, self.untagged, where))
        other = None if self.on_unknown_tag == "error" else len(self._labels())

        def read(to: Rejects) -> Array | None:
            if part == "test" and self._is_unlabelled(rows, to.where):
                return None
            check_column(rows, self.tag_column, "column of tags", TAGS, to.where)
            return tag_ids(rows, self.tag_column, words, self._labels(), self.untagged, other, to)

        ids = known_labels(part, rejects, read)
        if ids is None:
            return texts
        key = [rows._fingerprint, self.token_column, self.tag_column, self._labels(), self.untagged, other]
        return texts.add_column("gold", ids, new_fingerprint=Hasher.hash(key))

    def _is_unlabelled(self, rows: Dataset, where: str) -> bool:
        """Tell whether no word has a tag, as in a file of words alone."""
        if self.tag_column not in rows.column_names:
            return True
        column = column_of(rows, self.tag_column)
        if column.null_count == len(column):
            return True
        tags = lists_of(rows, self.tag_column, where).values
        return tags.null_count == len(tags)

    def encode(self, rows: dict[str, list]) -> dict[str, list]:
        words = [parts_of(row) for row in rows["tokens"]]
        encoded = tokenised(self.tokenizer, words, truncation=True, max_length=self.report["max_length"])
        counts = np.asarray([len(some) for some in words])
        cuts = np.cumsum([len(ids) for ids in encoded["input_ids"]])[:-1]
        sentence, word = first_tokens(encoded)
        columns: dict[str, list] = {
            **encoded,
            "word": np.split(word, cuts),
            "words": counts.tolist(),
            "truncated": [bool(one.overflowing) for one in encoded.encodings],
            "cut": (counts - np.bincount(sentence[word >= 0], minlength=len(counts))).tolist(),
        }
        if "gold" in rows:
            starts = np.cumsum(counts) - counts
            gold = np.concatenate(rows["gold"])[starts[sentence] + np.maximum(word, 0)]
            known = (word >= 0) & (gold >= 0) & (gold < self.num_labels)
            columns |= {"labels": np.split(np.where(known, gold, IGNORED), cuts), "gold": rows["gold"]}
        return columns

    def count(self, rows: dict[str, list]) -> list[int]:
        words = [parts_of(row) for row in rows["tokens"]]
        return [len(ids) for ids in tokenised(self.tokenizer, words, truncation=False, verbose=False)["input_ids"]]

    def encoding(self) -> list[Any]:
        return [type(self).__name__]

    def _tokenise(self, part: str) -> Dataset:
        table = super()._tokenise(part)
        cut = int(np.sum(table.with_format("numpy")["cut"][:]))
        if cut:
            log.warning("%s: %d words were cut off: they are not learned, and count as wrongly tagged", part, cut)
        return table
