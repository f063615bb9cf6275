"""Law 5: FLOPs are true. The formula equals torch's counter on what really ran.

On the CPU: a GPU may spend more on attention than the tokens need, and gains by it.
"""

from __future__ import annotations

import pytest
import torch

import skim
from skim.methods.early_exit import EarlyExit
from tests.families import FAMILIES, batch_of, plain
from tests.laws.cases import THREE, Case
from tests.ragged import Scripted, assert_flops, assert_same


def test_5_flops_are_true(case: Case) -> None:
    """Scores, predictors, halting units and readings of the head included.

    On the ragged packed batch; one sequence at a time where a rectangle, or a head that reads all tokens, has filler.
    """
    compressed, batch = case.compressed(), case.batch()
    spent = []
    for execution in case.executions[1:]:
        whole = execution == "packed" and not (case.row.reads_head and compressed.skim_walk.head.per_token)
        for some in [batch] if whole else alone(case, batch):
            with skim.execution(compressed, execution):
                assert_flops(compressed, some)
            assert compressed.trace.execution == execution
            spent.append(compressed.trace.relative_flops().item())
            if case.method == "dense":
                assert (compressed.trace.flops() == compressed.trace.dense_flops).all()
    assert case.method == "dense" or min(spent) < 1


def alone(case: Case, batch: dict) -> list[dict]:
    """Single sequences of real tokens only, long enough that some are left: torch counts no product with one row."""
    found = []
    for row in (batch["attention_mask"].sum(1) >= 7).nonzero().flatten().tolist():
        there = batch["attention_mask"][row].bool()
        found.append({name: value[row : row + 1, there] for name, value in batch.items()})
    return found


@pytest.mark.parametrize("types", [True, False])
@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_5_flops_of_short_inputs_with_and_without_segments(length: int, types: bool) -> None:
    """XLNet looks at segments only if it is given some, and a product over one row counts, or does not, like any."""
    for family in FAMILIES:
        batch = batch_of(family, (length,))
        if not types:
            batch.pop("token_type_ids", None)
        elif "token_type_ids" not in batch:
            continue
        compressed = skim.compress(plain(family), "dense")
        assert_flops(compressed, batch)


def test_5_flops_of_a_head_that_maps_every_token_leave_pads_out() -> None:
    """EuroBERT's head on a padded batch, asked behind every layer, computes what each sequence alone would."""
    batch = batch_of("eurobert")
    compressed = skim.compress(plain("eurobert"), EarlyExit("entropy", threshold=1e-6)).eval()
    assert compressed.skim_walk.head.token_flops
    assert_flops(compressed, batch)
    together = compressed.trace.flops()
    for i in range(4):
        length = int(batch["attention_mask"][i].sum())
        assert_flops(compressed, {name: value[i : i + 1, :length] for name, value in batch.items()})
        assert_same(compressed.trace.flops(), together[i : i + 1])


@pytest.mark.parametrize("family", THREE)
def test_5_between_the_halves(family: str) -> None:
    """Tokens that leave after attention are in its FLOPs and not in the feed-forward's."""
    batch = batch_of(family)
    batch = batch if FAMILIES[family].packs else {name: value[:1] for name, value in batch.items()}
    script = torch.rand(4, *batch["input_ids"].shape) < 0.8
    compressed = skim.compress(plain(family, "tokens"), Scripted(script, ("cls",), between=True))
    assert_flops(compressed, batch)
    first, lengths = compressed.trace.layers[0], compressed.trace.lengths
    assert torch.equal(first.attending.counts(), lengths)
    assert (first.feeding.counts() < lengths).any()
    assert compressed.trace.relative_flops() < 1
