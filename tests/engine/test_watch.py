"""A training in which nobody steps the method is told so, once; one that does is left alone."""

from __future__ import annotations

import warnings

import pytest
import torch

import skim
from tests.families import batch_of, labels_of, plain

BATCH = batch_of("bert") | labels_of("classification", batch_of("bert"))


def loop(model: torch.nn.Module, updates: int, accumulate: int = 1, steps_method: bool = False) -> list[str]:
    """Train, and return what was warned of."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.train()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for done in range(updates):
            for _ in range(accumulate):
                loss = model(**BATCH).loss
                if not steps_method:
                    loss.backward()
            if steps_method:  # once in an accumulated step
                model.method.step(done / updates, model.trace)
                (loss + model.method.loss(model.trace)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return [str(warning.message) for warning in caught if "nobody steps" in str(warning.message)]


@pytest.mark.parametrize("name", ["transkimmer", "ltp", "act", "early_exit"])
def test_a_method_that_nobody_steps_is_missed_once(name: str) -> None:
    model = skim.compress(plain("bert"), name)
    assert loop(model, updates=3) == []  # three forwards have seen two updates
    (told,) = loop(model, updates=5)
    assert name in told
    assert "method.loss(model.trace)" in told
    assert "SkimCallback" in told
    assert loop(model, updates=5) == []


def test_a_target_that_nobody_steers_to_is_missed_though_nothing_is_learned() -> None:
    (told,) = loop(skim.compress(plain("bert"), skim.Manual(target=0.6)), updates=6)
    assert "no target is steered to" in " ".join(told.split())


@pytest.mark.parametrize("name", ["transkimmer", "ltp", "act", "early_exit"])
def test_a_loop_that_steps_it_is_left_alone(name: str) -> None:
    model = skim.compress(plain("bert"), name)
    assert loop(model, updates=6, accumulate=8, steps_method=True) == []


def test_nothing_is_missed_where_there_is_nothing_to_step() -> None:
    for method in (skim.Dense(), skim.TopK(start=1)):
        assert loop(skim.compress(plain("bert"), method), updates=6) == []
    hard = skim.compress(plain("bert"), "ltp")
    hard.method.enter("hard")
    assert loop(hard, updates=6) == []
    model = skim.compress(plain("bert"), "transkimmer")
    with skim.uncompressed(model):  # its turn has not come
        assert loop(model, updates=6) == []
    assert loop(model, updates=3, steps_method=True) == []


def test_forwards_without_an_update_are_not_a_training() -> None:
    model = skim.compress(plain("bert"), "transkimmer")
    assert loop(model, updates=1, accumulate=50) == []
    model.eval()
    with torch.no_grad():
        for _ in range(9):
            model(**BATCH)
            model.classifier.weight.add_(0.1)
