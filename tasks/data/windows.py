"""Windows of texts with a question before each: tokens, their characters, and where an answer begins and ends."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from tasks.data.batches import Rows

POSITIONS = ("start_positions", "end_positions", "cls")  # of tokens: padding on the left shifts them


class Windows(Rows):
    """Rows whose positions of tokens are shifted by padding on the left."""

    def __getitem__(self, rows: list[int]) -> dict[str, Tensor]:
        batch = super().__getitem__(rows)
        if self.left:
            pads = (batch["attention_mask"] == 0).sum(1)
            batch |= {name: batch[name] + pads for name in POSITIONS if name in batch}
        return batch


def shortened(tokenizer: Any, questions: list[str], longest: int) -> tuple[list[str], np.ndarray]:
    """Cut questions to a number of tokens; returns them, and which were longer, (Q,) bool."""
    questions, cut = list(questions), np.zeros(len(questions), bool)
    long = [row for row, text in enumerate(questions) if len(text.encode()) > longest]
    if long:
        encoded = tokenizer([questions[row] for row in long], add_special_tokens=False, verbose=False)
        for row, tokens in zip(long, encoded.encodings, strict=True):
            if len(tokens) > longest:
                questions[row] = questions[row][: tokens.offsets[longest - 1][1]]
                cut[row] = True
    return questions, cut


def windows(
    tokenizer: Any,
    questions: list[str],
    contexts: list[str],
    length: int,
    stride: int,
    spans: tuple[list[int], list[int]] | None = None,
) -> tuple[dict[str, list], np.ndarray]:
    """Tokenise questions with their texts, a text that is too long in windows that overlap.

    Args:
        tokenizer: of the backbone.
        questions: Q of them.
        contexts: their texts.
        length: tokens of a window, at most.
        stride: tokens that a window shares with the next.
        spans: first character of each question's answer and the one behind its last, -1 where there is none; ``None``
            makes no positions.

    Returns:
        The columns of W windows, those of a question side by side: the tokenizer's, ``begins`` and ``ends`` (the
        characters of each token, -1 outside the text), ``cls`` (where [CLS] stands), ``first`` (whether it is its
        question's first window), ``start_positions`` and ``end_positions`` (those of [CLS] in windows without the whole
        answer); and the number of each window's question, (W,).
    """
    encoded = tokenizer(
        questions,
        contexts,
        truncation="only_second",
        max_length=length,
        stride=stride,
        return_overflowing_tokens=True,
        return_attention_mask=False,
    )
    question = np.asarray(encoded.pop("overflow_to_sample_mapping"))
    # T tokens of all windows in one line; bounds are where a window's begin
    ids = np.concatenate([np.asarray(window, np.int64) for window in encoded["input_ids"]])
    offsets = np.concatenate([np.asarray(window.offsets, np.int32) for window in encoded.encodings])  # (T, 2)
    text = np.concatenate([np.asarray(window.sequence_ids, float) for window in encoded.encodings])
    bounds = np.cumsum([0, *map(len, encoded["input_ids"])])[:-1]
    inside = text == 1
    begins, ends = np.where(inside, offsets.T, np.int32(-1))
    cls = _first(np.isnan(text) & (ids == tokenizer.cls_token_id), bounds)
    columns = {
        **encoded,
        "begins": np.split(begins, bounds[1:]),
        "ends": np.split(ends, bounds[1:]),
        "cls": cls.tolist(),
        "first": (np.diff(question, prepend=-1) > 0).tolist(),
    }
    if spans is not None:
        begin, end = (np.asarray(characters)[question] for characters in spans)
        found = _tokens_of(begins, ends, bounds, begin, end)
        whole = (begin >= 0) & (found[0] <= found[1])
        # a part of an answer is none: it must begin and end in the window
        whole &= np.minimum.reduceat(np.where(inside, begins, np.iinfo(np.int32).max), bounds) <= begin
        whole &= np.maximum.reduceat(ends, bounds) >= end
        for name, token in zip(POSITIONS, found, strict=False):
            columns[name] = np.where(whole, token, cls).tolist()
    return columns, question


def _first(mask: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Find the first place in each window, counted from its first token, where a mask is true.

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
    """Find the first and the last token that share a character with a span, counted from each window's first.

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
