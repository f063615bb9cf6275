"""Length drop: lengths that training draws, the path of those in evaluation, and every token's state at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import skim
from skim.calibration import spend
from skim.engine.noise import belonging
from skim.errors import SkimError
from skim.methods import Spec
from skim.methods.length_drop import KNOTS, LengthDrop, constant, drawn
from tests.families import batch_of, plain
from tests.ragged import assert_same, entering

FOUND = ([1.0, 1.0, 0.25, 0.25], [1.0, 0.75, 0.75, 0.5])  # means of 0.625 and 0.75


def built(layers: int = 4, **options: Any) -> LengthDrop:
    method = LengthDrop(**options)
    method.build(Spec(layers=layers, width=8))
    return method


def at(method: LengthDrop, shift: float) -> list[float]:
    method.shift.fill_(shift)
    return method.lengths().tolist()


# the draw


def test_a_layer_draws_between_the_published_ends_and_evenly() -> None:
    """l_{i+1} is uniform in [(1 - p) l_i, l_i]: half of that interval on average, whatever came before."""
    smallest = constant(torch.tensor([0.8]), 6)[0].double()
    some = torch.stack([drawn(smallest, torch.rand(6).double()) for _ in range(4000)])
    share = some / torch.cat([torch.ones(4000, 1), some[:, :-1]], 1)
    assert share.min() >= 0.8 - 1e-9
    assert share.max() <= 1
    place = (share - 0.8) / 0.2
    assert (place.mean(0) - 0.5).abs().max() < 0.02
    assert (place.var(0) - 1 / 12).abs().max() < 0.01
    assert (torch.corrcoef(place.T) - torch.eye(6)).abs().max() < 0.06
    assert_same(drawn(smallest, torch.zeros(6).double()), smallest)
    assert_same(drawn(smallest, torch.ones(6).double()), torch.ones(6).double())


def test_a_configuration_that_was_found_has_ratios_of_its_own() -> None:
    smallest = torch.tensor([1.0, 0.5, 0.5, 0.0, 0.0])
    some = torch.stack([drawn(smallest, torch.rand(5)) for _ in range(200)])
    assert (some[:, 0] == 1).all()
    assert ((some >= smallest) & (some.diff(dim=1, prepend=torch.ones(200, 1)) <= 0)).all()
    assert (some[:, 2] == some[:, 1]).all()
    assert some[:, 3].std() > 0.1


@pytest.fixture(scope="module")
def model() -> Any:
    return skim.compress(plain("bert", "tokens", num_hidden_layers=4), LengthDrop(drop=0.3)).train()


def counts(model: Any, batch: dict[str, Tensor], *step: int) -> tuple[Tensor, Tensor]:
    """Tokens that enter each feed-forward, (L, B), and the lengths that were drawn."""
    with belonging(None, *step):
        model(**batch)
    return torch.stack([layer.feeding.counts() for layer in model.trace.layers]), model.trace.carry.flatten()


def test_a_step_draws_once_and_every_sequence_keeps_its_share(model: Any) -> None:
    batch = batch_of("bert", (40, 23, 1))
    left, lengths = counts(model, batch, 1, 0, 7)
    assert model.trace.execution == "packed"
    wanted = (lengths[:, None] * model.trace.lengths.double()).round().clamp_min(1)  # [CLS] stays
    assert left.tolist() == wanted.tolist()
    again, others = counts(model, batch_of("bert", (12, 30)), 1, 0, 7)
    assert torch.equal(lengths, others)  # on another rank, or in a run that goes on
    assert again[:, 1].tolist() == (lengths * 30).round().tolist()
    assert not torch.equal(lengths, counts(model, batch, 1, 0, 8)[1])


def test_drawn_lengths_are_the_same_in_every_execution(model: Any) -> None:
    model.apply(lambda module: setattr(module, "p", 0.0) if isinstance(module, torch.nn.Dropout) else None)
    batch, found = batch_of("bert", (17, 9, 5)), []
    for execution in ("masked", "packed", "narrowed"):
        with torch.no_grad(), skim.execution(model, execution), belonging(None, 1):
            logits = model(**batch).logits
        found.append((logits, entering(model.trace)))
    for logits, entered in found[1:]:
        assert_same(logits, found[0][0], batch["attention_mask"])
        assert torch.equal(entered, found[0][1])
    assert (found[0][1].diff(dim=0) < 0).any()


def test_of_a_range_the_budgets_between_draw_lengths_of_any_kind() -> None:
    """As the paper's sandwich: the smallest and the largest are what they are, those between random."""
    model = skim.compress(plain("bert", num_hidden_layers=4), LengthDrop(target=(0.3, 0.9))).train()
    method, batch = model.method, batch_of("bert", (40, 23))
    method.table.shifts.copy_(torch.linspace(-0.4, 0.3, len(method.table.shifts)))
    low = method.lengths(method.table.shifts[0])
    found = []
    for budget in (0.3, 0.9, 0.5, 0.6):
        method.meet(budget)
        found.append(counts(model, batch, 1, 0, 7)[1])
    assert torch.equal(found[0], low)
    assert torch.equal(found[1], method.lengths(method.table.shifts[-1]))
    assert not torch.equal(found[2], found[3])
    for lengths in found[2:]:
        assert (lengths > low).all()
        assert not torch.allclose(lengths, method.lengths(), atol=1e-3)


# the path


def test_lengths_are_the_constant_ratio_and_a_shift_moves_their_mean() -> None:
    method = built(6, drop=0.15)
    assert at(method, 0.0) == pytest.approx([0.85**i for i in range(1, 7)], abs=1e-6)
    for shift in (-0.3, -0.1, 0.05, 0.3):
        lengths = at(method, shift)
        assert sum(lengths) / 6 == pytest.approx(method.middle + shift, abs=1e-6)
        assert sorted(lengths, reverse=True) == lengths
    assert at(method, 1e4) == pytest.approx([1.0] * 6, abs=1e-6)
    assert at(method, -1e4) == [0.0] * 6


def test_a_path_goes_through_what_was_found_and_between_in_proportion() -> None:
    method = built()
    method.take(FOUND[::-1])
    for lengths in FOUND:
        assert at(method, sum(lengths) / 4 - method.middle) == pytest.approx(lengths, abs=1e-6)
    assert at(method, 0.6875 - method.middle) == pytest.approx([1.0, 0.875, 0.5, 0.375], abs=1e-6)
    assert at(method, 0.3125 - method.middle) == pytest.approx([0.5, 0.5, 0.125, 0.125], abs=1e-6)  # below the first
    assert at(method, 0.875 - method.middle) == pytest.approx([1.0, 0.875, 0.875, 0.75], abs=1e-6)  # above the last
    method.set_to(FOUND[0])
    assert method.lengths().tolist() == pytest.approx(FOUND[0], abs=1e-6)


@pytest.mark.parametrize(
    "found",
    [[], [[1.0, 0.5]], [[1.0, 0.5, 0.6, 0.5]], [[1.1, 0.5, 0.5, 0.5]], [[1.0] * 4] * (KNOTS - 1)],
)
def test_what_is_no_configuration_is_refused(found: list[list[float]]) -> None:
    with pytest.raises(SkimError, match=r"4 shares, one for each layer.* 1 to 40"):
        built().take(found)


def test_a_layer_that_nobody_leaves_pays_for_no_scores() -> None:
    model = skim.compress(plain("bert", num_hidden_layers=4), LengthDrop()).eval()
    model.method.set_to(FOUND[0])
    with torch.no_grad():
        model(**batch_of("bert", (20, 8)))
    assert [layer.sums_cost > 0 for layer in model.trace.layers] == [False, False, True, False]
    assert model.trace.layers[-1].feeding.counts().tolist() == [5, 2]


def test_it_lands_on_a_target_and_is_loaded_with_its_path(tmp_path: Path) -> None:
    model = skim.compress(plain("bert", num_hidden_layers=4), LengthDrop(target=0.5)).eval()
    model.method.take(FOUND)
    batches = [batch_of("bert", (64, 50)), batch_of("bert", (60, 33))]
    assert skim.calibrate(model, batches) == pytest.approx(0.5, abs=0.02)
    skim.save_pretrained(model, tmp_path)
    loaded = skim.from_pretrained(tmp_path)
    assert torch.equal(loaded.method.lengths(), model.method.lengths())
    assert spend(loaded, batches) == spend(model, batches)


def test_every_token_has_a_state_in_the_end() -> None:
    """The one that it left with: each changes with the token's own embedding, though most are gone by then."""
    model = skim.compress(plain("bert", "tokens", num_hidden_layers=4), LengthDrop(drop=0.5)).eval()
    batch = batch_of("bert", (16,))
    with torch.no_grad():
        states = model.base_model(**batch).last_hidden_state[0]
        gone = ~model.trace.layers[-1].feeding.alive()[0]
        shallow = model.base_model(**batch, output_hidden_states=True).hidden_states
    assert int(gone.sum()) == 15
    assert (states.norm(dim=-1) > 0.1).all()
    first = ~model.trace.layers[0].feeding.alive()[0]  # left in the first layer, and unchanged since
    assert 0 < int(first.sum()) < 15
    assert_same(states[first], shallow[1][0, first])
    assert not torch.allclose(states[gone & ~first], shallow[1][0, gone & ~first])
