"""Noise that belongs to a token, and shares of totals over processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from skim.engine.masked import MaskedOccupancy
from skim.engine.noise import belonging, exponential, uniform
from skim.engine.ranks import joined, mean, share, weighed
from skim.engine.tokens import Sequences


def rows(*lengths: int, width: int, left: bool = False) -> MaskedOccupancy:
    """Padded rows of sequences of these lengths."""
    place = torch.arange(width)
    real = torch.stack([place >= width - n if left else place < n for n in lengths])
    sequences = Sequences(real, torch.zeros_like(real))
    return MaskedOccupancy(sequences.position, real, sequences)


def noise(of: MaskedOccupancy, numbers: list[int], *step: int, layer: int = 0) -> Tensor:
    with belonging(torch.tensor(numbers), *step):
        return exponential(of, layer, 2)


def test_noise_belongs_to_the_token_and_not_to_its_place_in_a_batch() -> None:
    whole = noise(rows(5, 3, 4, width=5), [7, 8, 9], 1, 0, 2)
    assert torch.equal(noise(rows(3, 4, width=4), [8, 9], 1, 0, 2), whole[1:, :4])
    padded = noise(rows(3, 4, width=6, left=True), [8, 9], 1, 0, 2)
    assert torch.equal(padded[0, 3:], whole[1, :3])
    assert torch.equal(padded[1, 2:], whole[2, :4])


def test_options_of_a_question_have_noise_of_their_own() -> None:
    found = noise(rows(4, 4, 4, 4, width=4), [7, 8], 1, 0, 2)
    assert len({float(value) for value in found.flatten()}) == found.numel()


def test_noise_differs_by_step_and_layer_and_has_the_distribution_that_it_should() -> None:
    of, numbers = rows(*[100] * 200, width=100), list(range(200))
    first = noise(of, numbers, 1, 0, 2)
    for other in (noise(of, numbers, 1, 0, 3), noise(of, numbers, 1, 1, 2), noise(of, numbers, 1, 0, 2, layer=1)):
        pair = torch.stack([first.flatten(), other.flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.02
    assert abs(float(torch.corrcoef(first.view(-1, 2).T)[0, 1])) < 0.02  # of keep and skim
    assert (first > 0).all()
    for quantile in (0.1, 0.5, 0.9, 0.99):
        below = (first < -torch.tensor(1 - quantile).log()).float().mean()
        assert abs(float(below) - quantile) < 0.01


def test_noise_of_the_step_is_the_same_on_all_processes_and_another_in_each_step_and_lot() -> None:
    cpu = torch.device("cpu")

    def of_step(*step: int, lot: int = 0, rows: Tensor | None = None) -> Tensor:
        with belonging(rows, *step):
            return uniform(5000, lot, cpu)

    found = of_step(1, 0, 2)
    assert torch.equal(of_step(1, 0, 2, rows=torch.tensor([7, 8])), found)
    for other in (of_step(1, 0, 3), of_step(1, 0, 2, lot=1)):
        assert abs(float(torch.corrcoef(torch.stack([found, other]))[0, 1])) < 0.05
    assert 0 < found.min() < 0.01
    assert 0.99 < found.max() < 1
    assert abs(float(found.mean()) - 0.5) < 0.02
    torch.manual_seed(0)
    assert not torch.equal(uniform(3, 0, cpu), uniform(3, 0, cpu))  # outside of a step torch draws


def test_one_process_asks_for_no_counts_and_divides_as_ever() -> None:
    with joined():
        assert float(share(torch.tensor([1.0, 2.0]).sum(), torch.tensor(4))) == 0.75
        assert float(share(torch.tensor(0.0), torch.tensor(0))) == 1.0
        assert float(mean(torch.tensor([1.0, 2.0]))) == 1.5
        assert float(weighed(torch.tensor(2.0), lambda: 1 // 0)) == 2.0


def test_a_process_without_labels_leaves_the_mean_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own mean is NaN. Class weights are things too, and may sum to less than 1."""
    told = {name: (lambda *_: True) for name in ("is_available", "is_initialized")}
    for name, answer in {**told, "get_world_size": lambda *_: 2}.items():
        monkeypatch.setattr(dist, name, answer)
    other = torch.tensor([0.5 * 0.25, 0.25], dtype=torch.float64)  # a mean of 0.5, of things that weigh 0.25
    monkeypatch.setattr(dist, "all_reduce", lambda total: total.add_(other))
    logits = torch.randn(2, 3, requires_grad=True)
    with joined():
        nothing = weighed(torch.nn.functional.cross_entropy(logits, torch.tensor([-100, -100])), lambda: 0)
        assert float(weighed(torch.tensor(1.0), lambda: torch.tensor(0.25))) == 0.75
    assert float(nothing.detach()) == 0.5
    nothing.backward()
    assert torch.equal(logits.grad, torch.zeros(2, 3))
