"""Spans of a text from start and end logits: the best ones, and the score of no answer.

Decoding is exact: of all spans of at most so many tokens the one with the highest sum of logits, on the device of the
logits. The published scripts consider the 20 best starts and ends only, which nearly always comes to the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

INFINITY = float("inf")
LOWEST = -1e9  # the best span's score where there is none: finite, for files


class Spans(NamedTuple):
    """Best spans of each sequence, the best first; all (B, K)."""

    begins: Tensor  # character at which it begins; -1 where there is no further span
    ends: Tensor  # character before which it ends; -1 likewise
    scores: Tensor  # start logit + end logit; -inf likewise


def best_spans(
    start_logits: Tensor, end_logits: Tensor, begins: Tensor, ends: Tensor, longest: int, count: int = 1
) -> Spans:
    """Find the spans of context tokens with the highest sums of logits.

    Args:
        start_logits: (B, N).
        end_logits: (B, N).
        begins: (B, N), first character of each token; -1 for what is not of the context, such as padding.
        ends: (B, N), the character after its last; likewise.
        longest: tokens of a span, at most: L.
        count: spans of each sequence: K.
    """
    outside = begins < 0
    start, end = (logits.float().masked_fill(outside, -INFINITY) for logits in (start_logits, end_logits))
    longest = min(longest, start.shape[1])
    padded = F.pad(end, (0, longest - 1), value=-INFINITY)
    # the best spans begin at the tokens whose own best span is best: of N x L spans only K x L are compared
    reached = F.max_pool1d(padded, longest, stride=1)
    _, first = (start + reached).topk(min(count, start.shape[1]), 1)
    last = first[..., None] + torch.arange(longest, device=first.device)  # (B, K, L)
    scores = start.gather(1, first)[..., None] + padded.gather(1, last.flatten(1)).view_as(last)
    top, places = scores.flatten(1).topk(min(count, scores[0].numel()), 1)
    first = first.gather(1, places // longest)
    last = last.flatten(1).gather(1, places).clamp(max=start.shape[1] - 1)  # beyond the end all scores are -inf
    none = top == -INFINITY
    found = (begins.gather(1, first).masked_fill(none, -1), ends.gather(1, last).masked_fill(none, -1), top)
    missing = (0, count - top.shape[1])
    return Spans(*(F.pad(x, missing, value=v) for x, v in zip(found, (-1, -1, -INFINITY), strict=True)))


def null_scores(start_logits: Tensor, end_logits: Tensor, cls: Tensor) -> Tensor:
    """Sum the logits at [CLS], (B,): the score of no answer. ``cls`` (B,) is its position."""
    start, end = (logits.float().gather(1, cls[:, None])[:, 0] for logits in (start_logits, end_logits))
    return start + end


def ranked(
    context: str, spans: Sequence[tuple[int, int, float]], count: int, null: float | None = None
) -> list[dict[str, Any]]:
    """Rank the different spans of all windows of a question, the best first.

    Args:
        context: the text.
        spans: begin, end, score; those of windows that overlap may come twice.
        count: spans, at most.
        null: score of no answer, which is listed too, without ``start`` and ``end``; ``None`` does not list it.

    Returns:
        ``text``, ``probability`` (of the softmax over what is listed), ``score``, ``start`` and ``end``.
    """
    highest: dict[tuple[int, int], float] = {}
    for begin, end, score in spans:
        highest[begin, end] = max(score, highest.get((begin, end), -INFINITY))
    best = sorted(highest.items(), key=lambda span: -span[1])[:count]
    found: list[dict[str, Any]] = [
        {"text": context[begin:end].strip(), "score": score, "start": begin, "end": end} for (begin, end), score in best
    ]
    if null is not None:
        found.append({"text": "", "score": null, "start": None, "end": None})
        found.sort(key=lambda answer: -answer["score"])
    odds = np.exp([answer["score"] - found[0]["score"] for answer in found]) if found else np.ones(0)
    return [{**answer, "probability": p} for answer, p in zip(found, (odds / odds.sum()).tolist(), strict=True)]
