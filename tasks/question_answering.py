"""Questions whose answer is a part of a text, or that have none: SQuAD 1.1 and 2.0, and own files.

A text that is too long is cut into windows that overlap, each of them with the question before it. Nothing is lost:
the answer of a question is the best one of all its windows.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from skim.errors import SkimError
from tasks.base import Task, evenly, softened_divergence
from tasks.data.answers import COUNTED, READER, Given, given, golds, places
from tasks.data.batches import Rows
from tasks.data.cells import Problem
from tasks.data.columns import Rejects, check_column, check_texts, column_of
from tasks.data.files import Parsed, cached, problems, read
from tasks.metrics.spans import LOWEST, Answers, best_spans, null_scores, ranked

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

POSITIONS = ("start_positions", "end_positions", "cls")  # of tokens: they move with the padding
PLACING = 1  # counted up whenever the same rows shall give another table of questions; old caches are then left alone
NEVER = -1e4  # logit of what cannot be; finite, so that nothing times its probability is nothing


@dataclass(kw_only=True, eq=False, repr=False)
class QuestionAnswering(Task):
    """A question, a text, and the span of the text that answers it.

    Answers are SQuAD's ``{text: [...], answer_start: [...]}``, or texts that occur in the context. Batches are of
    windows; beside the usual columns they hold ``begins`` and ``ends`` (B, N), the characters of each token of the
    context, -1 elsewhere, ``cls`` (B,), where [CLS] stands, and, where there are answers, ``start_positions`` and
    ``end_positions`` (B,), those of [CLS] in windows without the answer. ``report`` also has ``windows``; its ``rows``
    are questions, and those are ``truncated`` whose question was.

    The loss is that of ``transformers``, whose softmax runs over padding too: it depends a little on what other windows
    are in a batch. Scores and answers do not.
    """

    question_column: str = "question"
    context_column: str = "context"
    answers_column: str = "answers"
    id_column: str | None = None  # null: id if there is one, else the row's number
    max_length: int = 384  # tokens of a window, the question and special ones included
    # tokens that a window shares with the next; fewer than the longest question leaves of a window
    stride: int = 128
    max_question_length: int = 64  # tokens of a question, longer ones are cut; at most half a window
    max_answer_length: int = 30  # tokens of an answer that is found
    n_best: int = 20  # answers of each question that predictions list
    no_answers: bool = False  # whether some questions have no answer, as in SQuAD 2.0
    # say nothing where no answer scores higher than the best one by more than this many logits; null searches the
    # threshold of the best F1 on the evaluation split
    no_answer_threshold: float | None = None

    no_columns: ClassVar[tuple[str, ...]] = (*Task.no_columns, "first", "cut")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low in (("stride", 0), ("max_question_length", 1), ("max_answer_length", 1), ("n_best", 1)):
            if getattr(self, name) < low:
                raise SkimError(f"task.{name}={getattr(self, name)} must be a whole number, at least {low}.")
        if self.no_answer_threshold is not None and not self.no_answers:
            raise SkimError("task.no_answer_threshold is for questions without an answer: set task.no_answers=true.")
        self.report["windows"] = {}

    @property
    def monitor(self) -> str:
        return "f1"

    @property
    def num_labels(self) -> int:
        return 2

    def auto_class(self) -> Any:
        from transformers import AutoModelForQuestionAnswering

        return AutoModelForQuestionAnswering

    def model_kwargs(self) -> dict[str, Any]:
        return {"num_labels": 2}

    # ---- data ----

    def setup_tokenizer(self, tokenizer: Any) -> None:
        super().setup_tokenizer(tokenizer)
        if tokenizer.cls_token_id is None:
            raise SkimError(f"{type(tokenizer).__name__} has no [CLS], which stands for no answer; choose another one.")
        length = self.report["max_length"]
        self._question_length = min(self.max_question_length, length // 2)
        room = length - tokenizer.num_special_tokens_to_add(pair=True) - self._question_length
        if room < 1:
            raise SkimError(f"task.max_length={self.max_length}: windows of {length} tokens leave no room for a text.")
        if self.stride >= room:  # the next window would begin where this one does
            raise SkimError(
                f"task.stride={self.stride} tokens cannot be shared by windows of {length} tokens, of which a question "
                f"takes up to {self._question_length}: at most {room - 1}.\n"
                f"Set task.stride={room // 2}, or change task.max_length={self.max_length} or "
                f"task.max_question_length={self.max_question_length}."
            )

    def read(self, file: str) -> Dataset:
        return read(file, self.file_columns, READER)

    def check(self, rows: Dataset, part: str, rejects: Rejects) -> Dataset:
        """Columns ``id``, ``question``, ``context``; with answers ``golds``, and ``begin`` and ``end`` of the first.

        What is found is cached beside what is wrong: to find answers in a hundred thousand texts takes a while.
        """
        from datasets.fingerprint import Hasher

        test = part == "test"  # its answers are only for scores, and predictions go by their ids
        columns = [self.question_column, self.context_column, self.answers_column, self.id_column]
        numbers, unread = rejects.numbers(len(rows)), rejects.unread(self.answers_column, len(rows))
        key = Hasher.hash([PLACING, rows._fingerprint, columns, self.no_answers, test])
        table = cached(key, lambda: self._checked(rows, test, numbers, unread, Noted(rejects.where)))
        unusable = []
        for row, column, why, advice in problems(table):
            assert column is not None
            if test and column == self.answers_column:
                unusable.append((row, column, why))
            else:
                rejects.add(row, column, why, advice)
        if unusable:
            row, column, why = unusable[0]
            log.warning(
                "%s, row %d, column '%s': %s. So no answers of this part are read: it can be predicted, and not be "
                "measured.",
                *(rejects.where, numbers[row], column, why),
            )
        return table

    def _checked(self, rows: Dataset, test: bool, numbers: np.ndarray, unread: list[Problem], noted: Noted) -> Parsed:
        """What :meth:`check` returns, and what is wrong.

        Args:
            rows: the split.
            test: whether it is to be predicted, with or without answers.
            numbers: of the rows in the file or split, from 1.
            unread: answers that are null because they could not be read, not because there are none.
            noted: what is wrong goes there.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        found: dict[str, Any] = {}
        for what, name in (("question", self.question_column), ("context", self.context_column)):
            check_texts(rows, name, noted, f"task.{what}_column=<column>")
            texts = column_of(rows, name)
            if noted.problems:  # bytes that are no text are none for Arrow's functions
                known = np.isin(np.arange(len(rows)), [problem.row for problem in noted.problems])
                texts = pc.if_else(pa.array(known), None, texts)
            for row in np.flatnonzero(pc.or_(pc.utf8_is_space(texts), pc.equal(texts, "")).fill_null(False)).tolist():
                noted.add(row, name, "there is no text")
            found[what] = texts
        found["id"] = self._ids(rows, test, numbers, noted)
        if not test or self.answers_column in rows.column_names:
            check_column(rows, self.answers_column, "answers column", "task.answers_column=<column>", noted.where)
            where = f"{noted.where}, column '{self.answers_column}'"
            answers = given(column_of(rows, self.answers_column), where)
            told = golds(answers)
            noted.problems += unread
            if not test or len(told.values):  # else they are withheld
                placed = self._placed(found["context"], answers, noted)
                wrong = any(problem.column == self.answers_column for problem in noted.problems)
                if not (test and wrong):
                    found |= {"golds": told, "begin": placed[:, 0], "end": placed[:, 1]}
        return pa.table(found), noted.problems

    def _ids(self, rows: Dataset, test: bool, numbers: np.ndarray, noted: Noted) -> list[str]:
        """As they are written, or the numbers of rows; every row of the test part needs one of its own."""
        ids = list(map(str, numbers.tolist()))
        if self.id_column is None and "id" not in rows.column_names:
            return ids
        name = self.id_column or "id"
        check_column(rows, name, "column of ids", "task.id_column=<column>", noted.where)
        seen: set[str] = set()
        for row, value in enumerate(column_of(rows, name).to_pylist()):
            if value is not None and str(value).strip():
                ids[row] = str(value)
                if test and ids[row] in seen:
                    noted.add(row, name, f"{ids[row]!r} is the id of an earlier row too")
                seen.add(ids[row])
            elif test:
                noted.add(row, name, "there is no id")
        return ids

    def _placed(self, contexts: Any, answers: Given, noted: Noted) -> np.ndarray:
        """First and last character (exclusive) of each row's first answer, (rows, 2); -1 without, and for bad rows."""
        found = np.full((len(contexts), 2), -1)
        for row, where in enumerate(places(contexts, answers)):
            if isinstance(where, str):
                noted.add(row, self.answers_column, where, COUNTED)
            elif where[0] < 0 and not self.no_answers:
                advice = "For questions without one: task.no_answers=true."
                noted.add(row, self.answers_column, "there is no answer", advice)
            else:
                found[row] = where
        return found

    def encode(self, rows: dict[str, list]) -> dict[str, list]:
        questions, cut = self._questions(rows["question"])
        encoded = self.tokenizer(
            questions,
            rows["context"],
            truncation="only_second",
            max_length=self.report["max_length"],
            stride=self.stride,
            return_overflowing_tokens=True,
            return_attention_mask=False,
        )
        row = np.asarray(encoded.pop("overflow_to_sample_mapping"))
        first = np.diff(row, prepend=-1) > 0
        # all tokens of all windows in one line; bounds are where a window's begin
        ids = np.concatenate([np.asarray(window, np.int64) for window in encoded["input_ids"]])
        offsets = np.concatenate([np.asarray(window.offsets, np.int32) for window in encoded.encodings])
        text = np.concatenate([np.asarray(window.sequence_ids, float) for window in encoded.encodings])
        bounds = np.cumsum([0, *map(len, encoded["input_ids"])])[:-1]
        inside = text == 1
        begins, ends = np.where(inside, offsets.T, np.int32(-1))
        cls = _first(np.isnan(text) & (ids == self.tokenizer.cls_token_id), bounds)
        columns = {
            **encoded,
            "begins": np.split(begins, bounds[1:]),
            "ends": np.split(ends, bounds[1:]),
            "cls": cls.tolist(),
            "first": first.tolist(),
            "cut": (first & np.asarray(cut)[row]).tolist(),
            "truncated": [False] * len(row),  # the next window has the rest
        }
        if "begin" in rows:
            begin, end = (np.asarray(rows[name])[row] for name in ("begin", "end"))
            found = _tokens_of(begins, ends, bounds, begin, end)
            whole = (begin >= 0) & (found[0] <= found[1])
            # a part of an answer is none: it must begin and end in the window
            whole &= np.minimum.reduceat(np.where(inside, begins, np.iinfo(np.int32).max), bounds) <= begin
            whole &= np.maximum.reduceat(ends, bounds) >= end
            for name, token in zip(POSITIONS, found, strict=False):
                columns[name] = np.where(whole, token, cls).tolist()
        return columns

    def count(self, rows: dict[str, list]) -> list[int]:
        questions, _ = self._questions(rows["question"])
        encoded = self.tokenizer(
            questions, rows["context"], truncation=False, return_attention_mask=False, verbose=False
        )
        return [len(ids) for ids in encoded["input_ids"]]

    def _questions(self, texts: list[str]) -> tuple[list[str], list[bool]]:
        """Questions of at most so many tokens, and which of them were longer."""
        texts, cut = list(texts), [False] * len(texts)
        long = [row for row, text in enumerate(texts) if len(text.encode()) > self._question_length]
        if long:
            encoded = self.tokenizer([texts[row] for row in long], add_special_tokens=False, verbose=False)
            for row, tokens in zip(long, encoded.encodings, strict=True):
                if len(tokens) > self._question_length:
                    texts[row] = texts[row][: tokens.offsets[self._question_length - 1][1]]
                    cut[row] = True
        return texts, cut

    def encoding(self) -> list[Any]:
        return [type(self).__name__, self.stride, self._question_length]

    def _tokenise(self, part: str) -> Dataset:
        """Also counts questions and windows apart, and says which questions were cut."""
        table = super()._tokenise(part)
        asked = self.report["rows"][part] = len(self._raw[part])
        self.report["windows"][part] = len(table)
        cut = self.report["truncated"][part] = int(np.sum(table.with_format("numpy")["cut"][:]))
        if cut:
            log.warning("%s: %d of %d questions were cut to %d tokens", part, cut, asked, self._question_length)
        return table

    def _assembled(self, table: Dataset) -> Rows:
        tokenizer = self.tokenizer
        fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        fill |= {"begins": -1, "ends": -1}
        return Windows(table, fill, left=tokenizer.padding_side == "left", hidden=self.no_columns)

    def example_texts(self, count: int) -> list[Any]:
        chosen = evenly(count, self._raw["validation"])
        return list(zip(chosen["question"], chosen["context"], strict=True))

    # ---- the head's output ----

    def metrics(self) -> Answers:
        return Answers(self._evaluated, self.max_answer_length, self.no_answers, self.no_answer_threshold)

    def _evaluated(self) -> tuple[Dataset, np.ndarray]:
        """The questions that are being evaluated, and which of them each tokenised row is of."""
        part = "test" if self.trainer is not None and self.trainer.testing else "validation"
        return self._raw[part], self._asked(part)

    def _asked(self, part: str) -> np.ndarray:
        """Number of the question of each tokenised row."""
        return np.cumsum(self._rows[part].with_format("numpy")["first"][:]) - 1

    def update(self, metrics: Any, output: Any, batch: dict[str, Tensor]) -> None:
        metrics.update(output.start_logits, output.end_logits, batch)

    def labelled(self, batch: dict[str, Tensor]) -> int:
        return len(batch["start_positions"]) if "start_positions" in batch else 0

    def distance(self, output: Any, taught: Any, batch: dict[str, Tensor], temperature: float) -> Tensor:
        """Mean of that of the starts and that of the ends; padding has no part in it."""
        pads = batch["attention_mask"] == 0

        def away(one: Tensor, other: Tensor) -> Tensor:
            one, other = (logits.float().masked_fill(pads, NEVER) for logits in (one, other))
            return softened_divergence(one, other, temperature)

        return (away(output.start_logits, taught.start_logits) + away(output.end_logits, taught.end_logits)) / 2

    def predictions(self, output: Any, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Of each window: ``null``, the score of no answer, and ``spans``, the best ones: begin, end, score."""
        starts, ends = output.start_logits, output.end_logits
        best = best_spans(starts, ends, batch["begins"], batch["ends"], self.max_answer_length, self.n_best)
        nulls = null_scores(starts, ends, batch["cls"]).tolist()
        lists = zip(nulls, *(values.tolist() for values in best), strict=True)
        return [
            {"null": null, "spans": [span for span in zip(*spans, strict=True) if span[0] >= 0]}
            for null, *spans in lists
        ]

    def write_predictions(self, found: list[dict[str, Any]], folder: Path) -> list[Path]:
        """SQuAD's files: an answer by id, the best ones by id, and with ``no_answers`` the odds of none by id."""
        questions = self._raw["test"]
        windows: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for number, window in zip(self._asked("test").tolist(), found, strict=True):
            windows[number].append(window)
        threshold = self._threshold(folder) if self.no_answers else None
        said: dict[str, dict[str, Any]] = {"predictions": {}, "nbest_predictions": {}, "null_odds": {}}
        for number, (name, context) in enumerate(zip(questions["id"], questions["context"], strict=True)):
            null = min(window["null"] for window in windows[number])
            spans = [span for window in windows[number] for span in window["spans"]]
            best = ranked(context, spans, self.n_best, null if self.no_answers else None)
            answers = [answer for answer in best if answer["start"] is not None]
            odds = null - (answers[0]["score"] if answers else LOWEST)
            silent = not answers or (threshold is not None and odds > threshold)
            said["predictions"][name] = "" if silent else answers[0]["text"]
            said["nbest_predictions"][name] = best
            said["null_odds"][name] = odds
        files = []
        for what, content in said.items():
            if what != "null_odds" or self.no_answers:
                files.append(folder / f"{what}.json")
                files[-1].write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return files

    def _threshold(self, folder: Path) -> float:
        """Fixed, or the one that the run found on its evaluation split, or 0."""
        if self.no_answer_threshold is not None:
            return self.no_answer_threshold
        file = folder / "results.json"
        found = json.loads(file.read_text()).get("metrics", {}).get("threshold") if file.is_file() else None
        if found is None:
            log.warning("%s has no threshold: no answer is given where its score is the highest", file)
        return found or 0.0


class Noted(Rejects):
    """Keeps what is wrong, whatever is to be done about it."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.problems: list[Problem] = []

    def add(self, row: int, column: str, why: str, advice: str = "") -> None:
        self.problems.append(Problem(row, column, why, advice))


class Windows(Rows):
    """Rows in which positions of tokens move with padding on the left."""

    def __getitem__(self, rows: list[int]) -> dict[str, Tensor]:
        batch = super().__getitem__(rows)
        if self.left:
            pads = (batch["attention_mask"] == 0).sum(1)
            batch |= {name: batch[name] + pads for name in POSITIONS if name in batch}
        return batch


def _first(mask: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The first place in each window, counted from its first token, where a mask is true.

    Args:
        mask: (T,), the windows one after the other; true at least once in each.
        bounds: (W,), where each begins.
    """
    places = np.flatnonzero(mask)
    _, first = np.unique(np.searchsorted(bounds, places, side="right"), return_index=True)
    return places[first] - bounds


def _tokens_of(
    begins: np.ndarray, ends: np.ndarray, bounds: np.ndarray, begin: np.ndarray, end: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last token that share a character with a span, counted from each window's first token.

    Args:
        begins: (T,), first character of each token, the windows one after the other; -1 outside the context.
        ends: (T,), the character after its last; likewise.
        bounds: (W,), where each window begins.
        begin: (W,), the span's first character.
        end: (W,), the character after its last.
    """
    sizes = np.diff(np.append(bounds, len(begins)))
    inside = begins >= 0
    before = inside & (ends <= np.repeat(begin, sizes))
    reached = inside & (begins < np.repeat(end, sizes))
    # tokens of a context stand side by side; a window without any has its first where it does not matter
    first = np.minimum.reduceat(np.where(inside, np.arange(len(begins)), len(begins)), bounds) - bounds
    passed, taken = (np.add.reduceat(mask.astype(np.int64), bounds) for mask in (before, reached))
    return first + passed, first + taken - 1
