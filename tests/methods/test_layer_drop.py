"""Layers that do not run: which, what is left, and what it costs."""

import copy
from pathlib import Path

import pytest
import torch

import skim
from skim.errors import SkimError
from tests.families import LAYERS, batch_of, plain
from tests.methods.test_suggestion import REPORT, written
from tests.ragged import assert_flops, assert_same


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {0, 1}),
        ({"layers": 1}, {0}),
        ({"layers": 3}, {0, 1, 2}),
        ({"layers": [0, 2]}, {0, 2}),
        ({"layers": [1, 2]}, {1, 2}),
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
    for several in (
        {"layers": 2, "every": 2},
        {"every": 2, "report": "run"},
        {"layers": [0], "report": "x.json"},
    ):
        with pytest.raises(SkimError, match="name the same thing in several ways"):
            skim.LayerDrop(**several)
    for order in ([2, 0], [0, 0]):
        with pytest.raises(SkimError, match="another order than they run in, or twice"):
            skim.LayerDrop(order)
    for wrong in (0, -1, [], [-1], "two", 1.5, True):
        with pytest.raises(SkimError, match=r"LayerDrop\(layers="):
            skim.LayerDrop(wrong)


def test_a_model_is_saved_with_the_layers_that_its_report_named(tmp_path: Path) -> None:
    file, batch = written(tmp_path / "report.json", REPORT), batch_of("bert")
    method = skim.LayerDrop(report=file)
    assert (method.layers, method.report, method.measured_on) == ((0, 1), None, "tiny")
    assert method.settled() == {"layers": [0, 1], "report": None}
    model = skim.compress(copy.deepcopy(plain("bert")), method).eval()
    skim.save_pretrained(model, tmp_path / "model")
    file.unlink()
    again = skim.from_pretrained(tmp_path / "model")
    assert again.method.options() == {"layers": (0, 1), "every": None, "report": None, "delta": 1.0, "depths": None}
    assert again.method.settled() == {}
    with torch.no_grad():
        assert_same(again(**batch).logits, model(**batch).logits)


def test_a_report_of_another_backbone_is_refused(tmp_path: Path) -> None:
    for other in ({"total": 6}, {"width": 64}):
        file = written(tmp_path / "report.json", {**REPORT, "layers": {**REPORT["layers"], **other}})
        with pytest.raises(SkimError, match=r"from a report of tiny, with . layers of width .*has 3 of width 32"):
            skim.compress(copy.deepcopy(plain("bert")), skim.LayerDrop(report=file))


def test_a_chain_reads_the_report_of_its_member(tmp_path: Path) -> None:
    file = written(tmp_path / "report.json", REPORT)
    chain = skim.Chain([{"method": "layer_drop", "report": str(file), "delta": 5.0}, "topk"])
    assert chain.measured_on == "tiny"
    assert chain.settled()["methods"][0] == {
        "method": "layer_drop",
        "layers": (0,),
        "every": None,
        "report": None,
        "delta": 5.0,
        "depths": None,
    }
    assert skim.Chain(["layer_drop", "topk"]).settled() == {}
