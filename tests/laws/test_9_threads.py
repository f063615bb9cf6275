"""Law 9: a forward in evaluation writes nothing that another forward can see, but ``model.trace`` of its own thread."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.families import any_mask
from tests.laws.cases import Case, reads


def seen(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Run a forward; what it gives, and what its trace says of it."""
    with torch.inference_mode():
        logits = model(**batch).logits
    return logits, model.trace.flops()


def written(model: nn.Module) -> dict[str, Any]:
    """Collect everything that hangs on a model's modules, its walk and its config, by the identity of the values."""
    parts: dict[str, Any] = {name: vars(module) for name, module in model.named_modules()}
    parts |= {"walk": vars(model.skim_walk), "head": vars(model.skim_walk.head), "config": vars(model.config)}
    return {
        f"{name}.{attribute}": {key: id(item) for key, item in value.items()} if isinstance(value, dict) else id(value)
        for name, attributes in parts.items()
        for attribute, value in attributes.items()
    }


@pytest.fixture(autouse=True)
def _switching_often() -> Iterator[None]:
    """Threads that change places in every few operations, or a race would show once in a thousand runs."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.where(lambda case: True, once=True)
def test_9_nothing_shared_is_written(case: Case) -> None:
    """Four threads on one model give the answers, and read the traces, that a single thread gives and reads."""
    model, head_reads = case.compressed(), reads(case.family, case.head)
    batches = [any_mask(case.family, case.seed + i, head_reads, rows=1 + i % 3) for i in range(4)]
    before = written(model)
    wanted = [seen(model, batch) for batch in batches]
    assert written(model) == before
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda i: seen(model, batches[i % 4]), range(8)))
    for i, (logits, flops) in enumerate(found):
        assert torch.equal(logits.nan_to_num(), wanted[i % 4][0].nan_to_num()), i
        assert torch.equal(flops, wanted[i % 4][1]), i
    assert written(model) == before
