"""Sums of an evaluation by the length of the inputs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, tensor
from transformers.modeling_outputs import MaskedLMOutput

from skim.lightning.scores import BUCKETS, ByLength
from tasks.heads import HEADS
from tasks.pretraining import MaskedLanguage


def traced(lengths: Tensor, share: float = 0.5) -> Any:
    """A trace of sequences of these lengths, each at this share of its dense FLOPs."""
    return SimpleNamespace(lengths=lengths, flops=lambda: share * 10.0 * lengths, dense_flops=10.0 * lengths)


def test_inputs_are_grouped_by_length_into_about_equal_parts() -> None:
    lengths = torch.arange(1, 101)
    found = ByLength()
    for some in lengths.split(30):
        found.update(traced(some), (some > 60).float())
    groups = found.compute()
    assert len(groups) == BUCKETS
    assert [(group["from"], group["to"]) for group in groups] == [(1, 20), (21, 40), (41, 60), (61, 80), (81, 100)]
    assert [(group["rows"], group["score"]) for group in groups] == [(20, 0), (20, 0), (20, 0), (20, 1), (20, 1)]
    assert groups[0]["tokens"] == 10.5
    assert all(group["relative_flops"] == pytest.approx(0.5) for group in groups)


def test_inputs_of_one_length_stay_together_and_unlabelled_ones_count_for_nothing() -> None:
    found = ByLength(longest=8)
    lengths, scores = tensor([3, 3, 3, 5, 9, 4]), tensor([1.0, 0.0, 1.0, 1.0, 1.0, torch.nan])
    found.update(traced(lengths), scores)
    groups = found.compute()
    assert [(one["from"], one["to"], one["rows"]) for one in groups] == [(3, 3, 3), (5, 5, 1), (8, 8, 1)]
    assert groups[0]["score"] == pytest.approx(2 / 3)
    found.reset()
    assert not found.sums.any()


def test_several_sequences_of_one_input_count_as_one() -> None:
    found = ByLength()
    found.update(traced(tensor([3, 4, 5, 6])), tensor([1.0, 0.0]))  # two questions of two options each
    assert [(one["tokens"], one["score"]) for one in found.compute()] == [(7, 1), (11, 0)]


def test_ranks_add_up() -> None:
    lengths, scores = torch.arange(1, 21), torch.rand(20)
    whole, *ranks = (ByLength() for _ in range(3))
    whole.update(traced(lengths), scores)
    for rank, some in zip(ranks, (slice(0, 13), slice(13, 20)), strict=True):
        rank.update(traced(lengths[some]), scores[some])
    ranks[0].sums += ranks[1].sums
    assert ranks[0].compute() == whole.compute()


def test_a_head_scores_rows_as_its_metric_does() -> None:
    torch.manual_seed(0)
    logits, names = torch.randn(50, 3), ["a", "b", "c"]
    for head, metric, labels in (
        ("classification", "accuracy", torch.randint(3, (50,))),
        ("multi_label", "subset_accuracy", torch.where(torch.rand(50, 1) < 0.5, logits > 0, logits < 0).long()),
    ):
        kind = HEADS[head]()
        counted = kind.metrics(names)[metric]()
        counted.update(kind.predict(logits), labels)
        scores = kind.scored(logits, labels)
        assert scores is not None
        assert 0 < scores.mean() < 1
        assert scores.mean() == pytest.approx(float(counted.compute()))
    assert HEADS["regression"]().scored(logits[:, :1], torch.randn(50)) is None


def test_guessed_tokens_are_scored_by_sequence() -> None:
    labels = tensor([[-100, 1, 2], [0, -100, -100], [-100, -100, -100]])
    guesses = tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    output = MaskedLMOutput(logits=torch.nn.functional.one_hot(guesses, 3).float())
    scores = MaskedLanguage.scored(object.__new__(MaskedLanguage), output, {"labels": labels})
    assert scores.tolist()[:2] == [0.5, 1.0]
    assert scores[2].isnan()
