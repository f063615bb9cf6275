"""SQuAD's metrics: exact match and F1 of answers, and the threshold above which no answer is given.

They are defined in Rajpurkar et al. 2016 (arXiv 1606.05250), section 6.1; no-answer thresholds in Rajpurkar et al. 2018
(arXiv 1806.03822), section 5. All are shares, 0 to 1, and not per cent.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from tasks.metrics.spans import INFINITY, LOWEST, best_spans, null_scores

if TYPE_CHECKING:
    from datasets import Dataset

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """Split a text into the words to be compared: without case, punctuation and articles."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of words; 1 if both are empty."""
    if not predicted or not gold:
        return float(predicted == gold)
    common = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * common / (len(predicted) + len(gold))


def score(answer: str, golds: Sequence[str], no_answers: bool = False) -> tuple[float, float]:
    """Exact match and F1 with the gold answer that is nearest.

    Args:
        answer: the prediction; empty for none.
        golds: the right answers.
        no_answers: SQuAD 2.0: golds without words to compare do not count; where there are no others, no answer is
            right.
    """
    right = [words(gold) for gold in golds]
    if no_answers:
        right = [gold for gold in right if gold] or [[]]
    found = words(answer)
    return max(float(found == gold) for gold in right), max(f1(found, gold) for gold in right)


def best_threshold(odds: np.ndarray, answered: np.ndarray, unanswered: np.ndarray) -> tuple[float, float]:
    """Find the threshold on the odds, above which no answer is given, of the highest mean score; and that mean.

    Halfway between two questions' odds, so that rounding changes no answer.

    Args:
        odds: (Q,), score of no answer minus that of the best one.
        answered: (Q,), score of each question if it is answered.
        unanswered: (Q,), score if no answer is given.
    """
    order = np.argsort(odds)
    odds = odds[order]
    totals = unanswered.sum() + np.concatenate([[0.0], np.cumsum((answered - unanswered)[order])])
    totals[1:-1][odds[1:] == odds[:-1]] = -INFINITY  # no threshold is between equal odds
    most = int(totals.argmax())  # so many questions are answered
    edges = np.concatenate([[odds[0] - 2], odds, [odds[-1] + 2]])
    return float(edges[most] / 2 + edges[most + 1] / 2), float(totals[most] / len(odds))


class Answers(Metric):
    """Exact match and F1 of the best answer over all windows of each question.

    Keeps one span per window, not its logits. With ``no_answers``, a question's null score is the lowest of its
    windows, and where it is above the best span's score by more than the threshold, no answer is given.

    Args:
        source: gives questions, with ``context`` and ``golds``, and the number of the question of each tokenised row.
        longest: tokens of an answer, at most.
        no_answers: whether there are questions without an answer.
        threshold: on the null odds, in logits; ``None`` searches the one of the best F1.
    """

    full_state_update = False
    row: list[Tensor]
    begin: list[Tensor]
    end: list[Tensor]
    logit: list[Tensor]
    null: list[Tensor]

    def __init__(
        self,
        source: Callable[[], tuple[Dataset, np.ndarray]],
        longest: int,
        no_answers: bool = False,
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        self.source, self.longest, self.no_answers, self.threshold = source, longest, no_answers, threshold
        for name in ("row", "begin", "end", "logit", "null"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, start_logits: Tensor, end_logits: Tensor, batch: dict[str, Tensor]) -> None:
        """Add a batch of windows.

        Args:
            start_logits: (B, N).
            end_logits: (B, N).
            batch: with ``row`` and ``cls`` (B,), ``begins`` and ``ends`` (B, N).
        """
        best = best_spans(start_logits, end_logits, batch["begins"], batch["ends"], self.longest)
        self.row.append(batch["row"])
        self.begin.append(best.begins[:, 0])
        self.end.append(best.ends[:, 0])
        self.logit.append(best.scores[:, 0])
        self.null.append(null_scores(start_logits, end_logits, batch["cls"]))

    def compute(self) -> dict[str, Tensor]:
        """Compute ``em`` and ``f1``, shares from 0 to 1.

        With ``no_answers`` at ``threshold``; also ``answerable_em``, ``answerable_f1`` and ``unanswerable_accuracy`` of
        the questions with and without an answer (``nan`` where there are none), and ``best_em`` and ``best_f1``, each
        at its own best threshold.
        """
        if not len(self.row):  # a list of tensors, or where ranks have been joined one
            return {"em": torch.tensor(torch.nan), "f1": torch.tensor(torch.nan)}
        rows, begin, end, logit, null = (
            dim_zero_cat(state).cpu().numpy() for state in (self.row, self.begin, self.end, self.logit, self.null)
        )
        questions, numbers = self.source()
        order = np.lexsort((rows, -logit, numbers[rows]))  # by question, its best window first
        asked, at = np.unique(numbers[rows][order], return_index=True)
        best = order[at]
        chosen = questions[asked.tolist()]
        golds = chosen["golds"]
        best_texts = [
            text[first:last].strip() if first >= 0 else ""
            for text, first, last in zip(chosen["context"], begin[best], end[best], strict=True)
        ]
        scores = [score(one, right, self.no_answers) for one, right in zip(best_texts, golds, strict=True)]
        em, f1 = np.array(scores).T
        values = {"em": em.mean(), "f1": f1.mean()}
        if self.no_answers:
            odds = np.minimum.reduceat(null[order], at).astype(float) - np.maximum(logit[best].astype(float), LOWEST)
            silent = np.array([score("", right, True)[0] for right in golds])
            values = self._thresholded(odds, em, f1, silent)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    def _thresholded(self, odds: np.ndarray, em: np.ndarray, f1: np.ndarray, silent: np.ndarray) -> dict[str, Any]:
        """Compute all scores with a threshold; ``silent`` (Q,) is 1 where no answer is right."""
        best_em, (searched, best_f1) = best_threshold(odds, em, silent)[1], best_threshold(odds, f1, silent)
        threshold = searched if self.threshold is None else self.threshold
        em, f1 = (np.where(odds > threshold, silent, one) for one in (em, f1))
        has = silent == 0

        def mean(values: np.ndarray) -> float:
            return float(values.mean()) if len(values) else float("nan")

        return {
            "em": em.mean(),
            "f1": f1.mean(),
            "threshold": threshold,
            "answerable_em": mean(em[has]),
            "answerable_f1": mean(f1[has]),
            "unanswerable_accuracy": mean(em[~has]),
            "best_em": best_em,
            "best_f1": best_f1,
        }
