"""Layers that do not run: which, what is left, and what it costs."""

import copy

import pytest
import torch

import skim
from skim.errors import SkimError
from tests.families import LAYERS, batch_of, plain
from tests.ragged import assert_flops, assert_same


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {0, 1}),
        ({"layers": 1}, {0}),
        ({"layers": 3}, {0, 1, 2}),
        ({"layers": [0, 2]}, {0, 2}),
        ({"every": 2}, {0, 2}),
        ({"every": 1}, {0, 1, 2}),
    ],
)
@pytest.mark.parametrize("family", ["bert", "deberta-v3"])
def test_it_is_the_backbone_without_those_layers(family: str, options: dict, kept: set) -> None:
    """The plain model with the other layers taken out of its list gives the same outputs, for that share of FLOPs."""
    batch = batch_of(family)
    model = skim.compress(copy.deepcopy(plain(family)), skim.LayerDrop(**options)).eval()
    assert LAYERS == 3
    with torch.no_grad():
        found = model(**batch, output_hidden_states=True)
    trace = model.trace
    assert [i for i, layer in enumerate(trace.layers) if layer.ran] == sorted(kept)
    assert trace.keep_ratio().tolist() == [float(i in kept) for i in range(3)]
    assert float(trace.relative_flops()) == pytest.approx(len(kept) / 3, abs=1e-6)
    states = found.hidden_states
    for i in set(range(3)) - kept:
        assert_same(states[i + 1], states[i], batch["attention_mask"])
    shallow = copy.deepcopy(plain(family))
    layers = shallow.base_model.encoder.layer
    shallow.base_model.encoder.layer = torch.nn.ModuleList(layers[i] for i in sorted(kept))
    with torch.no_grad():
        wanted = shallow(**batch).logits
    assert_same(found.logits, wanted)


def test_flops_are_true() -> None:
    model = skim.compress(copy.deepcopy(plain("bert")), skim.LayerDrop(every=2)).eval()
    assert_flops(model, batch_of("bert"))


def test_layers_that_are_not_there_are_refused() -> None:
    for layers in (4, [0, 3]):
        with pytest.raises(SkimError, match="asks for more than the 3 layers"):
            skim.compress(copy.deepcopy(plain("bert")), skim.LayerDrop(layers))
    with pytest.raises(SkimError, match="name the same thing twice"):
        skim.LayerDrop(2, every=2)
    for order in ([2, 0], [0, 0]):
        with pytest.raises(SkimError, match="another order than they run in, or twice"):
            skim.LayerDrop(order)
    for wrong in (0, -1, [], [-1], "two", 1.5, True):
        with pytest.raises(SkimError, match=r"LayerDrop\(layers="):
            skim.LayerDrop(wrong)
