"""Shapes of what a compressed model is called with: as transformers takes them, or refused with both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import skim
from tests.families import batch_of, labels_of, plain
from tests.ragged import assert_same


@pytest.mark.parametrize("name", ["attention_mask", "token_type_ids", "position_ids"])
def test_shapes_broadcast_as_in_transformers(name: str) -> None:
    batch = batch_of("bert", (9, 9, 9))
    value = {"attention_mask": batch["attention_mask"], "token_type_ids": batch["token_type_ids"]}.get(name)
    value = torch.arange(9).flip(0).expand(3, 9) if value is None else value
    model = skim.compress(plain("bert"), "dense")
    with torch.no_grad():
        wanted = model(**(batch | {name: value})).logits
        assert_same(model(**(batch | {name: value[:1]})).logits, wanted)
        assert model(**(batch | {name: value[:, :1]})).logits.shape == (3, 3)


@pytest.mark.parametrize("name", ["attention_mask", "token_type_ids", "position_ids"])
@pytest.mark.parametrize("shape", [(2, 13), (4, 9), (4, 20), (5, 13), (13,), (4, 13, 1)])
def test_shapes_of_other_batches_are_refused_with_both(name: str, shape: tuple[int, ...]) -> None:
    for family in ("bert", "mpnet") if name != "token_type_ids" else ("bert", "xlnet"):
        model = skim.compress(plain(family), "dense")
        with pytest.raises(skim.SkimError) as error:
            model(**{**batch_of(family), name: torch.ones(shape, dtype=torch.long)})
        assert name in str(error.value)
        assert str(shape) in str(error.value)
        assert "(4, 13)" in str(error.value)


@pytest.mark.parametrize("shape", [(2, 0), (0, 5), (5,), (2, 3, 4)])
def test_ids_that_are_no_batch_are_refused(shape: tuple[int, ...]) -> None:
    model = skim.compress(plain("bert"), "dense")
    with pytest.raises(skim.SkimError, match="input_ids has shape"):
        model(input_ids=torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize(
    ("head", "labels"),
    [
        ("classification", {"labels": torch.zeros(1, dtype=torch.long)}),
        ("regression", {"labels": torch.zeros(3)}),
        ("tokens", {"labels": torch.zeros(4, 12, dtype=torch.long)}),
        ("tokens", {"labels": torch.zeros(1, 13, dtype=torch.long)}),
        ("answers", {"start_positions": torch.zeros(2, dtype=torch.long), "end_positions": torch.ones(2).long()}),
    ],
)
def test_labels_of_another_batch_are_refused(head: str, labels: dict[str, Tensor]) -> None:
    model = skim.compress(plain("bert", head), "dense")
    name, value = next(iter(labels.items()))
    with pytest.raises(skim.SkimError, match=name) as error:
        model(**batch_of("bert"), **labels)
    assert str(tuple(value.shape)) in str(error.value)
    assert "(4, 13)" in str(error.value)
    assert torch.isfinite(model(**batch_of("bert"), **labels_of(head, batch_of("bert"))).loss)
