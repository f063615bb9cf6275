"""Law 2 on drawn batches: pads on either side, holes, rows of nothing and single tokens, every method and family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.families import PAD, batch_of
from tests.laws.cases import Case, cases, drawn, reads
from tests.laws.test_2_executions import assert_agree, run
from tests.ragged import is_steady, ran

LONGEST = 12
Drawn = tuple[int, int, int]  # of a row: tokens, pads before them, and a bit for each token that is a hole

ROWS = st.lists(
    st.tuples(st.integers(0, LONGEST), st.integers(0, 3), st.integers(0, 2**LONGEST - 1)), min_size=1, max_size=4
).filter(lambda rows: any(length for length, _, _ in rows))  # a batch of nothing runs masked


def batch(case: Case, rows: Sequence[Drawn], words: int) -> dict[str, Tensor]:
    """Make inputs ``(B, N)``; a token stands where the head reads, in each row that has any."""
    lengths = tuple(length for length, _, _ in rows)
    full = batch_of(case.family, lengths, seed=words)
    width = max(lengths) + 3
    made = {name: torch.full((len(rows), width), PAD if name == "input_ids" else 0) for name in full}
    place = reads(case.family, case.head)
    for row, (length, before, holes) in enumerate(rows):
        first = {"first": 0, "last": width - length}.get(place or "", min(before, width - length))
        for name, value in full.items():
            made[name][row, first : first + length] = value[row][full["attention_mask"][row].bool()]
        for k in range(1, length - 1):  # the ends stay, where heads read
            if holes >> k & 1:
                made["attention_mask"][row, first + k] = 0
    return made


def drawn_of(case: Case, count: int, seen: Counter[str]) -> None:
    """Draw so many batches for a case; count what came up."""
    options: Any = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

    @seed(case.seed)
    @settings(max_examples=count, **options)
    @given(ROWS, st.integers(0, 999))
    def agree(rows: list[Drawn], words: int) -> None:
        model, inputs = drawn(case), batch(case, rows, words)
        outputs, traces = run(case, model, inputs)
        alive = traces["masked"].alive()
        seen["drawn"] += 1
        seen["with tokens gone"] += bool((alive.sum(0) < len(alive) * inputs["attention_mask"]).any())
        if any(not torch.equal(trace.alive(), alive) for trace in traces.values()):
            ran(model, inputs)
            if not is_steady(model, inputs):
                seen["with a decision that hangs on rounding"] += 1
                return
        assert_agree(case, outputs, traces, inputs["attention_mask"])

    agree()


def fuzzed(selection: str, count: int) -> None:
    """Draw so many cases of a selection, of each pair as many; print what came up."""
    some, seen = cases(selection), Counter[str]()
    for case in some:
        drawn_of(case, -(-count // len(some)), seen)
    print(f"law 2: {dict(seen)}, of {len(some)} pairs, each with a seed of its name")
    assert seen["drawn"] >= count
    assert seen["with tokens gone"] > count / 3
    assert seen["with a decision that hangs on rounding"] < count / 50


def test_2_in_five_hundred_drawn_cases() -> None:
    fuzzed("default", 500)


@pytest.mark.slow
def test_2_in_ten_thousand_drawn_cases(share: float) -> None:
    fuzzed("wide", round(10_000 * share))
