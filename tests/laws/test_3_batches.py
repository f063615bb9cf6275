"""Law 3: a sequence's output depends on no batch mate, no order and no amount of padding."""

from __future__ import annotations

import pytest
import torch

import skim
from tests.families import rows_of
from tests.laws.cases import Case
from tests.ragged import assert_same, entering, logits_of


@pytest.mark.where(lambda case: case.row.invariant)
def test_3_batch_invariance(case: Case, device: str) -> None:
    """Alone, padded, in another order, with other mates: the same answer, decisions and FLOPs."""
    compressed, batch = case.compressed(device), case.batch(device)
    there = batch["attention_mask"].bool().any(1).nonzero().flatten().tolist()
    views = {
        "order, mates and padding": ([there[2], there[0], there[3]], 5),
        "alone": ([there[1]], None),
        "alone, padded": ([there[3]], 2),
    }
    for execution in case.executions:
        with torch.no_grad(), skim.execution(compressed, execution):
            wanted = logits_of(compressed(**batch))
            counts, flops = entering(compressed.trace), compressed.trace.flops()
            for view, (rows, pads) in views.items():
                other = rows_of(case.family, batch, rows, pads)
                found = logits_of(compressed(**other))
                assert torch.equal(entering(compressed.trace), counts[:, rows]), f"{execution} {view}"
                assert_same(compressed.trace.flops(), flops[rows], what=f"{execution} {view} flops")
                mask, here = batch["attention_mask"][rows].bool(), other["attention_mask"].bool()
                for name, value in wanted.items():
                    one, two = found[name], value[rows]
                    if value.shape[:2] == batch["attention_mask"].shape:
                        one, two = one[here], two[mask]
                    assert_same(one, two, what=f"{execution} {view} {name}")
