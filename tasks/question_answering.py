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
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from skim.errors import SkimError
from skim.files import read_json, write_text
from skim.options.kinds import Count, Number
from tasks.base import Task, evenly
from tasks.data.batches import Rows
from tasks.data.columns import Rejects
from tasks.data.files import read
from tasks.data.questions import Questions
from tasks.data.squad import READER
from tasks.data.windows import Windows, shortened, windows
from tasks.losses import softened_divergence
from tasks.metrics.spans import LOWEST, best_spans, null_scores, ranked
from tasks.metrics.squad import Answers

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

NEVER = -1e4  # logit of a place that cannot be; finite, so that nothing times its probability is nothing


@dataclass(kw_only=True, eq=False, repr=False)
class QuestionAnswering(Task):
    """Question about a text, answered by a span of the text.

    Answers are SQuAD's ``{text: [...], answer_start: [...]}``, or texts that occur in the context. Batches are of
    windows; beside the usual columns they hold ``begins`` and ``ends`` (B, N), the characters of each token of the
    context, -1 elsewhere, ``cls`` (B,), where [CLS] stands, and, where there are answers, ``start_positions`` and
    ``end_positions`` (B,), those of [CLS] in windows without the answer. ``report`` also has ``windows``; its ``rows``
    are questions, and those are ``truncated`` whose question was.

    The loss is that of ``transformers``, whose softmax runs over padding too: it depends a little on what other windows
    are in a batch. Scores and answers do not.
    """

    question_column: str = "question"
    """column of the questions"""
    context_column: str = "context"
    """column of the texts"""
    answers_column: str = "answers"
    """column of the answers: {text: [...], answer_start: [...]} with characters from 0, or texts, which must occur"""
    id_column: str | None = None
    """column of the ids, for files of predictions; null is id if there is such a column, else the row's number, from
    1"""
    max_length: Annotated[int, Field(ge=3)] = 384
    """tokens of a window: question, text and special tokens; longer texts are cut into windows, and nothing is lost"""
    stride: Number = 128
    """tokens that a window shares with the next one; fewer than a question of max_question_length leaves of a window"""
    max_question_length: Count = 64
    """tokens of a question, at most half of a window; longer ones are cut, and counted as truncated"""
    max_answer_length: Count = 30
    """tokens of an answer that is found, at most"""
    n_best: Count = 20
    """answers of each question in nbest_predictions.json"""
    no_answers: bool = False
    """true: some questions have no answer, as in SQuAD 2.0; false: that is an error"""
    no_answer_threshold: float | None = None
    """with no_answers, give none where the score of no answer (the two logits at [CLS]) is above that of the best
    answer by more than this; null searches the threshold of the best F1 on the evaluation split, and predict takes the
    run's"""

    no_columns: ClassVar[tuple[str, ...]] = (*Task.no_columns, "first", "cut")

    def __post_init__(self) -> None:
        super().__post_init__()
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
        """Return ``id``, ``question``, ``context``; with answers ``golds``, and ``begin`` and ``end`` of the first."""
        columns = (self.question_column, self.context_column, self.answers_column, self.id_column)
        # predictions go by the ids of the test part, and its answers are for scores alone
        return Questions(*columns, self.no_answers).check(rows, rejects, test=part == "test")

    def encode(self, rows: dict[str, list]) -> dict[str, list]:
        questions, cut = shortened(self.tokenizer, rows["question"], self._question_length)
        spans = (rows["begin"], rows["end"]) if "begin" in rows else None
        length = self.report["max_length"]
        columns, question = windows(self.tokenizer, questions, rows["context"], length, self.stride, spans)
        return {
            **columns,
            "cut": (np.asarray(columns["first"]) & cut[question]).tolist(),
            "truncated": [False] * len(question),  # the next window has the rest
        }

    def count(self, rows: dict[str, list]) -> list[int]:
        questions, _ = shortened(self.tokenizer, rows["question"], self._question_length)
        encoded = self.tokenizer(
            questions, rows["context"], truncation=False, return_attention_mask=False, verbose=False
        )
        return [len(ids) for ids in encoded["input_ids"]]

    def encoding(self) -> list[Any]:
        return [type(self).__name__, self.stride, self._question_length]

    def _tokenise(self, part: str) -> Dataset:
        """Tokenise a part; counts questions and windows apart, and the questions that were cut."""
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
        """Return the questions that are being evaluated, and the number of each tokenised row's."""
        part = "test" if self.trainer is not None and self.trainer.testing else "validation"
        return self._raw[part], self._asked(part)

    def _asked(self, part: str) -> np.ndarray:
        """Number the question of each tokenised row."""
        return np.cumsum(self._rows[part].with_format("numpy")["first"][:]) - 1

    def update(self, metrics: Any, output: Any, batch: dict[str, Tensor]) -> None:
        metrics.update(output.start_logits, output.end_logits, batch)

    def labelled(self, batch: dict[str, Tensor]) -> int:
        return len(batch["start_positions"]) if "start_positions" in batch else 0

    def loss_of(self, output: Any, batch: dict[str, Tensor]) -> Tensor:
        """Return the cross entropy of starts and of ends; in the model's own, padding is among the answers."""
        pads = batch["attention_mask"] == 0
        found = {"start_positions": output.start_logits, "end_positions": output.end_logits}
        losses = [F.cross_entropy(one.float().masked_fill(pads, NEVER), batch[name]) for name, one in found.items()]
        return torch.stack(losses).mean()

    def distance(self, output: Any, taught: Any, batch: dict[str, Tensor], temperature: float) -> Tensor:
        """Average the divergences of starts and of ends; padding has no part in them."""
        pads = batch["attention_mask"] == 0

        def away(one: Tensor, other: Tensor) -> Tensor:
            one, other = (logits.float().masked_fill(pads, NEVER) for logits in (one, other))
            return softened_divergence(one, other, temperature)

        return (away(output.start_logits, taught.start_logits) + away(output.end_logits, taught.end_logits)) / 2

    def predictions(self, output: Any, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Return for each window ``null``, the score of no answer, and ``spans``, the best ones: begin, end, score."""
        starts, ends = output.start_logits, output.end_logits
        best = best_spans(starts, ends, batch["begins"], batch["ends"], self.max_answer_length, self.n_best)
        nulls = null_scores(starts, ends, batch["cls"]).tolist()
        lists = zip(nulls, *(values.tolist() for values in best), strict=True)
        return [
            {"null": null, "spans": [span for span in zip(*spans, strict=True) if span[0] >= 0]}
            for null, *spans in lists
        ]

    def write_predictions(self, found: list[dict[str, Any]], folder: Path) -> list[Path]:
        """Write SQuAD's files: an answer by id, the best ones by id, and with ``no_answers`` the odds of none by id."""
        questions = self._raw["test"]
        windows: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for number, window in zip(self._asked("test").tolist(), found, strict=True):
            windows[number].append(window)
        threshold = self._threshold(folder) if self.no_answers else None
        contents: dict[str, dict[str, Any]] = {"predictions": {}, "nbest_predictions": {}, "null_odds": {}}
        for number, (name, context) in enumerate(zip(questions["id"], questions["context"], strict=True)):
            null = min(window["null"] for window in windows[number])
            spans = [span for window in windows[number] for span in window["spans"]]
            best = ranked(context, spans, self.n_best, null if self.no_answers else None)
            answers = [answer for answer in best if answer["start"] is not None]
            odds = null - (answers[0]["score"] if answers else LOWEST)
            silent = not answers or (threshold is not None and odds > threshold)
            contents["predictions"][name] = "" if silent else answers[0]["text"]
            contents["nbest_predictions"][name] = best
            contents["null_odds"][name] = odds
        files = []
        for kind, content in contents.items():
            if kind != "null_odds" or self.no_answers:
                files.append(folder / f"{kind}.json")
                write_text(files[-1], json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        return files

    def _threshold(self, folder: Path) -> float:
        """Return the fixed threshold, or the one that the run found on its evaluation split, or 0."""
        if self.no_answer_threshold is not None:
            return self.no_answer_threshold
        file = folder / "results.json"
        found = (read_json(file).get("metrics") or {}).get("threshold") if file.is_file() else None
        if found is None:
            log.warning("%s has no threshold: no answer is given where its score is the highest", file)
        return found or 0.0
