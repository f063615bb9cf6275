"""Decoding against all spans there are; scores against torchmetrics and a plain version of the official evaluation."""

from __future__ import annotations

import json
import math
import random
import string
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torchmetrics.functional.text import squad

from tasks.metrics.spans import best_spans, null_scores, ranked
from tasks.metrics.squad import Answers, best_threshold, score, words

TEXTS = ["the", "a", "cat", "Cat!", "sat", "on", "an", "old", "mat.", "mat", "", " ", "The-cat", "cats"]


def contexts(rng: torch.Generator, batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Characters of tokens, (B, N), of a context somewhere in each row; the first row has none."""
    begins, ends = torch.full((2, batch, length), -1)
    for row in range(1, batch):
        first = int(torch.randint(1, length // 2, (), generator=rng))
        last = int(torch.randint(first + 1, length + 1, (), generator=rng))
        begins[row, first:last] = 5 * torch.arange(last - first)
        ends[row, first:last] = begins[row, first:last] + 4
    return begins, ends


@pytest.mark.parametrize("longest", [1, 4, 50])
@pytest.mark.parametrize("count", [1, 5, 40])
def test_the_best_spans_are_the_best_of_all_spans(longest: int, count: int) -> None:
    rng = torch.Generator().manual_seed(longest + count)
    start, end = torch.randn(2, 8, 12, generator=rng)
    begins, ends = contexts(rng, 8, 12)
    start[begins < 0] += 100  # what is outside the context scores highest, and is not chosen
    found = best_spans(start, end, begins, ends, longest, count)
    assert found.scores.shape == (8, count)
    for row in range(8):
        spans = [
            ((start[row, i] + end[row, j]).item(), begins[row, i].item(), ends[row, j].item())
            for i in range(12)
            for j in range(i, min(i + longest, 12))
            if begins[row, i] >= 0 and begins[row, j] >= 0
        ]
        wanted = (sorted(spans, reverse=True) + [(-math.inf, -1, -1)] * count)[:count]
        told = list(zip(*(values[row].tolist() for values in found), strict=True))
        assert told == [(begin, end, score) for score, begin, end in wanted]


def test_half_precision_is_summed_in_full() -> None:
    """Sums of two logits that bfloat16 would round to the same."""
    start = torch.tensor([[64.0, 64.0]], dtype=torch.bfloat16)
    end = torch.tensor([[0.25, 0.125]], dtype=torch.bfloat16)
    begins, ends = torch.tensor([[0, 2]]), torch.tensor([[1, 3]])
    assert best_spans(start, end, begins, ends, 1).scores.item() == 64.25


def test_the_null_score_is_that_of_cls_wherever_it_stands() -> None:
    start, end = torch.arange(6.0).view(2, 3), 10 * torch.arange(6.0).view(2, 3)
    assert null_scores(start, end, torch.tensor([0, 2])).tolist() == [0.0, 55.0]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("The  Cat, an ANIMAL.", "cat animal"),
        ("a.b.c", "abc"),  # punctuation goes before articles
        ("another theme", "another theme"),
        ("«the» cat", "« » cat"),  # ASCII's punctuation only, as in the official script
        ("The a an!", ""),
        ("U.S. $3,000", "us 3000"),
    ],
)
def test_what_of_a_text_is_compared(text: str, left: str) -> None:
    assert words(text) == left.split()


def plainly(said: str, gold: str) -> tuple[float, float]:
    """Exact match and F1 of two texts, from the definition, letter by letter and word by word."""
    kept = []
    for text in (said, gold):
        letters = "".join(letter for letter in text.lower() if letter not in string.punctuation)
        kept.append([word for word in letters.split() if word not in ("a", "an", "the")])
    told, right = kept
    if not told or not right:
        return float(told == right), float(told == right)
    left, common = list(right), 0
    for word in told:
        if word in left:
            left.remove(word)
            common += 1
    if not common:
        return 0.0, 0.0
    precision, recall = common / len(told), common / len(right)
    return float(told == right), 2 * precision * recall / (precision + recall)


def drawn() -> tuple[list[str], list[list[str]]]:
    """Random answers, and gold ones."""
    rng = random.Random(0)
    said = [" ".join(rng.choices(TEXTS, k=rng.randint(0, 4))) for _ in range(400)]
    return said, [[" ".join(rng.choices(TEXTS, k=rng.randint(0, 4))) for _ in range(rng.randint(1, 4))] for _ in said]


def test_scores_are_those_of_the_definition() -> None:
    said, golds = drawn()
    for one, right in zip(said, golds, strict=True):
        wanted = [max(values) for values in zip(*(plainly(one, gold) for gold in right), strict=True)]
        assert score(one, right) == pytest.approx(tuple(wanted), abs=1e-12)


def test_scores_are_those_of_torchmetrics() -> None:
    said, golds = drawn()
    for one, right in zip(said, golds, strict=True):
        answers = {"answers": {"answer_start": [0] * len(right), "text": right}, "id": "1"}
        wanted = squad([{"prediction_text": one, "id": "1"}], [answers])
        em, f1 = score(one, right)
        assert 100 * em == wanted["exact_match"].item()
        assert 100 * f1 == pytest.approx(wanted["f1"].item(), abs=1e-4)  # theirs is of 32 bits


@pytest.mark.parametrize(
    ("said", "golds", "em", "f1"),
    [
        ("", [], 1, 1),
        ("cat", [], 0, 0),
        ("", ["cat"], 0, 0),
        ("", ["the", "!"], 1, 1),  # of these golds nothing is left
        ("the", ["a"], 1, 1),
        ("", ["the", "cat"], 0, 0),  # there is an answer
        ("old cat", ["the cat", "mat"], 0, 2 / 3),
        ("cat cat", ["cat"], 0, 2 / 3),  # a word counts as often as it stands in both
    ],
)
def test_scores_where_there_may_be_no_answer(said: str, golds: list[str], em: float, f1: float) -> None:
    assert score(said, golds, no_answers=True) == (em, pytest.approx(f1, abs=1e-12))


def test_the_best_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = int(rng.integers(1, 12))
        odds = rng.integers(-3, 4, count).astype(float)  # with ties
        silent = rng.integers(0, 2, count).astype(float)
        answered = rng.random(count) * (1 - silent)
        threshold, best = best_threshold(odds, answered, silent)
        at = {t: np.where(odds > t, silent, answered).mean() for t in (*odds, odds.min() - 1, threshold)}
        assert best == pytest.approx(max(at.values()), abs=1e-12)
        assert at[threshold] == pytest.approx(best, abs=1e-12)


# ---- the metric ----

WINDOWS = 3


def questions(count: int, seed: int = 0) -> Dataset:
    """Random contexts, and golds of which a third are none and some are of articles only."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        context = " ".join(rng.choice([text for text in TEXTS if text.strip()]) for _ in range(10))
        some = [" ".join(context.split()[i : i + 2]) for i in rng.sample(range(9), rng.randint(1, 3))]
        golds = rng.choice([some, some, [], ["the"]])
        rows.append({"context": context, "golds": golds})
    return Dataset.from_list(rows)


def windows(rows: Dataset, seed: int = 0) -> dict[str, torch.Tensor]:
    """Logits and batch of three windows of each question: [CLS], four words of the context and a pad."""
    rng = torch.Generator().manual_seed(seed)
    batch: dict[str, Any] = {"start": torch.randn(len(rows) * WINDOWS, 6, generator=rng) * 2}
    batch["end"] = torch.randn(len(rows) * WINDOWS, 6, generator=rng) * 2
    batch["row"] = torch.arange(len(rows) * WINDOWS)
    batch["cls"] = torch.zeros(len(rows) * WINDOWS, dtype=torch.long)
    begins, ends = torch.full((2, len(rows) * WINDOWS, 6), -1)
    for row, (context, golds) in enumerate(zip(rows["context"], rows["golds"], strict=True)):
        # a model that knows something of what has an answer
        batch["start"][WINDOWS * row : WINDOWS * row + WINDOWS, 0] += 0 if any(map(words, golds)) else 7
        places = np.cumsum([0, *(len(word) + 1 for word in context.split(" "))])
        for window in range(WINDOWS):
            some = slice(3 * window, 3 * window + 4)
            begins[WINDOWS * row + window, 1:5] = torch.tensor(places[:-1][some])
            ends[WINDOWS * row + window, 1:5] = torch.tensor(places[1:][some] - 1)
    return {**batch, "begins": begins, "ends": ends}


def official(rows: Dataset, batch: dict[str, torch.Tensor], fixed: float | None) -> dict[str, float]:
    """The evaluation of SQuAD 2.0, question by question, from its definition."""
    said, odds = [], []
    for number, context in enumerate(rows["context"]):
        best, null, text = -math.inf, math.inf, ""
        for w in range(WINDOWS * number, WINDOWS * number + WINDOWS):
            null = min(null, (batch["start"][w, 0] + batch["end"][w, 0]).item())
            for i in range(1, 5):
                for j in range(i, min(i + 2, 5)):
                    value = (batch["start"][w, i] + batch["end"][w, j]).item()
                    if value > best:
                        best, text = value, context[batch["begins"][w, i] : batch["ends"][w, j]]
        said.append(text)
        odds.append(null - best)

    def mean(threshold: float, which: int, has: bool | None = None) -> float:
        told = [text if odd <= threshold else "" for text, odd in zip(said, odds, strict=True)]
        some = [
            score(text, golds, True)[which]
            for text, golds in zip(told, rows["golds"], strict=True)
            if has is None or has == any(words(gold) for gold in golds)
        ]
        return sum(some) / len(some)

    thresholds = [-math.inf, *odds]
    searched = max(thresholds, key=lambda t: mean(t, 1))
    threshold = searched if fixed is None else fixed
    return {
        "em": mean(threshold, 0),
        "f1": mean(threshold, 1),
        "answerable_em": mean(threshold, 0, True),
        "answerable_f1": mean(threshold, 1, True),
        "unanswerable_accuracy": mean(threshold, 0, False),
        "best_em": max(mean(t, 0) for t in thresholds),
        "best_f1": mean(searched, 1),
    }


def scored(rows: Dataset, batch: dict[str, torch.Tensor], *parts: list[int], **options: Any) -> dict[str, float]:
    """What the metric says, fed part by part, each by a rank of its own."""
    numbers = np.repeat(np.arange(len(rows)), WINDOWS)
    metric = Answers(lambda: (rows, numbers), longest=2, **options)
    for part in parts:
        other = Answers(lambda: (rows, numbers), longest=2, **options)
        some = {name: tensor[part] for name, tensor in batch.items()}
        other.update(some["start"], some["end"], some)
        metric.merge_state(other)
    metric._update_count = len(parts)
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize("fixed", [None, 0.0, -1.5])
def test_no_answer_scores_are_the_official_ones(fixed: float | None) -> None:
    rows = questions(40)
    batch = windows(rows)
    found = scored(rows, batch, list(range(40 * WINDOWS)), no_answers=True, threshold=fixed)
    threshold = found.pop("threshold")
    assert found == pytest.approx(official(rows, batch, fixed), abs=1e-9)
    assert 0 < found["answerable_f1"] < 1  # or nothing was compared
    assert 0 < found["unanswerable_accuracy"] < 1
    assert fixed is None or threshold == fixed
    # the threshold that was found does what it is said to do
    again = scored(rows, batch, list(range(40 * WINDOWS)), no_answers=True, threshold=threshold)
    assert again["f1"] == pytest.approx(found["f1"], abs=1e-9)


def test_without_no_answers_the_best_window_answers() -> None:
    rows = questions(30).filter(lambda row: len(row["golds"]) > 0)
    batch = windows(rows)
    order = torch.randperm(len(rows) * WINDOWS, generator=torch.Generator().manual_seed(1)).tolist()
    found = scored(rows, batch, order[:7], order[7:40], order[40:])  # ranks see windows in any order
    texts = []
    for number, context in enumerate(rows["context"]):
        these = slice(WINDOWS * number, WINDOWS * number + WINDOWS)
        best = best_spans(*(batch[name][these] for name in ("start", "end", "begins", "ends")), longest=2)
        w = best.scores[:, 0].argmax()
        texts.append(context[best.begins[w, 0] : best.ends[w, 0]])
    wanted = np.mean([score(text, golds) for text, golds in zip(texts, rows["golds"], strict=True)], axis=0)
    assert set(found) == {"em", "f1"}
    assert [found["em"], found["f1"]] == pytest.approx(wanted.tolist(), abs=1e-9)


def test_only_questions_that_were_seen_count() -> None:
    rows = questions(10)
    batch = windows(rows)
    some = scored(rows, batch, list(range(4 * WINDOWS, 7 * WINDOWS)), no_answers=True)
    alone = rows.select(range(4, 7))
    cut = {name: tensor[4 * WINDOWS : 7 * WINDOWS] for name, tensor in batch.items()}
    cut["row"] = cut["row"] - 4 * WINDOWS
    assert some == pytest.approx(scored(alone, cut, list(range(3 * WINDOWS)), no_answers=True), nan_ok=True)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_seen_is_no_score() -> None:
    assert all(math.isnan(value) for value in scored(questions(2), {}).values())


def test_ranked_answers() -> None:
    context = "an old cat"
    spans = [(3, 6, 1.0), (7, 10, 2.0), (3, 6, 3.0), (3, 10, 0.0)]  # one of them from two windows
    found = ranked(context, spans, count=2, null=2.5)
    assert [(a["text"], a["score"], a["start"]) for a in found] == [("old", 3.0, 3), ("", 2.5, None), ("cat", 2.0, 7)]
    assert sum(a["probability"] for a in found) == pytest.approx(1)
    assert found[0]["probability"] / found[2]["probability"] == pytest.approx(math.e)
    assert [a["text"] for a in ranked(context, spans, count=9)] == ["old", "cat", "old cat"]
    assert ranked(context, [], count=9) == []
    assert json.dumps(found)
