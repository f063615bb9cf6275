"""Law 1: a method told to drop nothing gives the plain Hugging Face model's outputs."""

from __future__ import annotations

import copy

import pytest
import torch

import skim
from tests.families import FAMILIES
from tests.laws.cases import Case
from tests.ragged import assert_same, logits_of


@pytest.mark.where(lambda case: case.row.drop_nothing is not None, heads=FAMILIES)
def test_1_identity(case: Case, device: str) -> None:
    """In every execution: the same type, keys, loss, logits and hidden states, and nobody left."""
    compressed = case.compressed(device)
    batch = case.labelled(case.some(case.batch(device)))  # transformers has no states of an empty text
    mask = batch["attention_mask"]
    case.row.drop_nothing(compressed.method)
    plainly = skim.decompress(copy.deepcopy(compressed))
    with torch.no_grad():
        wanted = plainly(**batch, output_hidden_states=True)
        for execution in case.executions:
            with skim.execution(compressed, execution):
                found = compressed(**batch, output_hidden_states=True)
            assert compressed.trace.execution == execution
            assert (compressed.trace.keep_ratio() == 1).all()
            assert type(found) is type(wanted)
            assert set(found) == set(wanted) - {"mems"}
            if case.head != "answers":  # transformers' span loss has the pads in its denominator
                assert_same(found.loss, wanted.loss, what=f"{execution} loss")
            for name, value in logits_of(wanted).items():
                assert_same(found[name], value, mask, what=f"{execution} {name}")
            for i, (one, other) in enumerate(zip(found.hidden_states, wanted.hidden_states, strict=True)):
                assert_same(one, other, mask, what=f"{execution} hidden_states[{i}]")
            if case.method == "dense":
                assert compressed.trace.relative_flops() == 1.0
