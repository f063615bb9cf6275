"""Law 9: a forward in evaluation writes nothing that another forward can see, but ``model.trace`` of its own thread."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import skim
from skim.methods import Method
from skim.methods.act import ACT
from skim.methods.dense import Dense
from skim.methods.early_exit import EarlyExit
from skim.methods.funnel import Funnel
from skim.methods.transkimmer import Transkimmer
from tests.families import FAMILIES, batch_of, enliven, has, plain
from tests.ragged import PRUNERS

METHODS: dict[str, Callable[[], Method]] = {
    "dense": Dense,
    "transkimmer": lambda: Transkimmer(margin=0.0),
    "ltp": PRUNERS["ltp"],
    "ltp_manual": PRUNERS["ltp_manual"],
    "ltp_relative": PRUNERS["ltp_relative"],
    "ltp_rising": PRUNERS["ltp_rising"],
    "topk": PRUNERS["topk"],
    "act": lambda: ACT(temperature=0.5),
    "funnel": Funnel,
    "early_exit_patience": lambda: EarlyExit("patience", patience=1),
    "early_exit_entropy": lambda: EarlyExit("entropy", threshold=0.9),
    "early_exit_pondernet": lambda: EarlyExit("pondernet", prior=0.4),
}
LENGTHS = [(13, 9), (5, 12), (7,), (3, 8, 10)]  # of the batch of each thread


def compressed(family: str, name: str) -> nn.Module:
    head = "classification" if has(family, "classification") else "tokens"
    model = skim.compress(plain(family, head), METHODS[name]())
    enliven(model.method, 0)
    return model.eval()


def cases() -> list[tuple[str, str]]:
    """Every method on every family that it serves."""
    apart = {family: skim.compress(plain(family), "dense").skim_walk.backbone.looks_apart for family in FAMILIES}
    return [(family, name) for family in FAMILIES for name in METHODS if apart[family] or name != "act"]


def seen(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What a forward gives, and what its trace says of it."""
    with torch.inference_mode():
        logits = model(**batch).logits
    return logits, model.trace.flops()


def written(model: nn.Module) -> dict[str, Any]:
    """Everything that hangs on a model's modules, its walk and its config, by the identity of the values."""
    parts: dict[str, Any] = {name: vars(module) for name, module in model.named_modules()}
    parts |= {"walk": vars(model.skim_walk), "head": vars(model.skim_walk.head), "config": vars(model.config)}
    return {
        f"{name}.{attribute}": {key: id(item) for key, item in value.items()} if isinstance(value, dict) else id(value)
        for name, attributes in parts.items()
        for attribute, value in attributes.items()
    }


@pytest.fixture(autouse=True)
def _switching_often() -> Any:
    """Threads that change places in every few operations, or a race would show once in a thousand runs."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize(("family", "name"), cases())
def test_9_nothing_shared_is_written(family: str, name: str) -> None:
    """Four threads on one model give the answers, and read the traces, that a single thread gives and reads."""
    model = compressed(family, name)
    batches = [batch_of(family, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]
    before = written(model)
    wanted = [seen(model, batch) for batch in batches]
    assert written(model) == before
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda i: seen(model, batches[i % 4]), range(8)))
    for i, (logits, flops) in enumerate(found):
        assert torch.equal(logits, wanted[i % 4][0]), i
        assert torch.equal(flops, wanted[i % 4][1]), i
    assert written(model) == before
