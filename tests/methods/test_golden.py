"""Law 7: numbers that the published Transkimmer produced are reproduced (see tests/golden/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import skim
from skim.engine.tokens import Occupancy
from skim.methods.transkimmer import Transkimmer, from_published, padded_skim_loss
from tests.ragged import assert_same

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("eval_argmax", "eval_noise", "train_noise")


class Replayed(Transkimmer):
    """Transkimmer with the noise of a recording instead of its own; [CLS], which was never decided on, gets none."""

    def replay(self, outputs: dict[str, Tensor]) -> None:
        recorded = [outputs.get(f"gumbel_noise.{i}") for i in range(3)]
        self.recorded = iter([None if noise is None else F.pad(noise, (0, 0, 1, 0)) for noise in recorded])

    def noise(self, i: int, occupancy: Occupancy) -> Tensor | None:
        return next(self.recorded)


def tensors(file: str, prefix: str) -> dict[str, Tensor]:
    found = load_file(GOLDEN / f"{file}.safetensors")
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


@pytest.fixture
def published() -> nn.Module:
    """The tiny published model, before skim: its backbone loads into plain transformers as it is."""
    config = BertConfig(**json.loads((GOLDEN / "transkimmer_bert.json").read_text()))
    model = BertForSequenceClassification(config)
    weights = tensors("transkimmer_bert", "weights.")
    report = model.load_state_dict(weights, strict=False)
    assert not report.missing_keys
    assert all("skim_predictors" in name or "position_ids" in name for name in report.unexpected_keys)
    return model


def compressed(published: nn.Module, **options) -> nn.Module:
    model = skim.compress(published, Replayed(**options))
    weights = from_published(tensors("transkimmer_bert", "weights."))
    report = model.method.load_state_dict(weights, strict=False)
    assert report.missing_keys == ["shift"]
    assert not report.unexpected_keys
    return model


def run(model: nn.Module, outputs: dict[str, Tensor], training: bool, rows: slice = slice(None)) -> tuple:
    """One forward on the golden inputs: the head's output and the last states."""
    model.train(training).method.replay(outputs)
    inputs = {name: value[rows] for name, value in tensors("transkimmer_bert", "inputs.").items()}
    output = model(**inputs, output_hidden_states=True)
    return output, output.hidden_states[-1]


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, wanted.view(found.shape), atol=tolerance, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_paper_preset_reproduces_the_published_code(published: nn.Module, case: str) -> None:
    model = compressed(published, preset="paper")
    wanted = tensors("transkimmer_bert", f"outputs.{case}.")
    output, last = run(model, wanted, training=case == "train_noise")
    close(output.logits, wanted["logits"], 1e-4)
    close(output.loss, wanted["task_loss"], 1e-4)
    close(last, wanted["last_hidden_state"], 1e-4)  # on pads, too: this preset decides on them
    trace, method = model.trace, model.method
    for i, layer in enumerate(trace.layers):
        assert torch.equal(layer.kept(), wanted[f"skim_mask.{i}"])
    close(method.penalties(trace)["skim_loss"], wanted["skim_loss"], 1e-6)
    close(output.loss + method.loss(trace), wanted["loss"], 1e-4)


@pytest.mark.parametrize("case", ["train_noise", "train_argmax"])
def test_paper_preset_reproduces_the_published_gradients(published: nn.Module, case: str) -> None:
    model = compressed(published, preset="paper")
    recorded = tensors("transkimmer_bert", "outputs.train_noise.") if case == "train_noise" else {}
    output, _ = run(model, recorded, training=True)
    (output.loss + model.method.loss(model.trace)).backward()
    assert_gradients(model, tensors("transkimmer_bert", f"grads.{case}."))


@pytest.mark.parametrize("case", CASES)
def test_default_preset_agrees_with_the_authors_later_branch(published: nn.Module, case: str) -> None:
    """The branch adds 1e-6 inside its softmax, hence the tolerance; its evaluation, too, has recorded noise."""
    model = compressed(published)
    wanted = tensors("transkimmer_bert_maskedsoftmax", f"outputs.{case}.")
    noise = wanted if "gumbel_noise.0" in wanted else {}
    with skim.execution(model, "masked"):
        output, last = run(model, noise, training=case == "train_noise")
    real = model.trace.sequences.real
    close(output.logits, wanted["logits"], 1e-3)
    close(last[real], wanted["last_hidden_state"][real], 1e-3)
    for i, layer in enumerate(model.trace.layers):
        assert torch.equal(layer.kept() * real, wanted[f"skim_mask.{i}"] * real)


def test_default_preset_agrees_with_the_branch_gradients(published: nn.Module) -> None:
    """Under the branch's own loss: pads decided on and counted."""
    model = compressed(published)
    wanted = tensors("transkimmer_bert_maskedsoftmax", "outputs.train_noise.")
    output, _ = run(model, wanted, training=True)
    loss = output.loss + 0.5 * padded_skim_loss(model.trace)
    close(loss, wanted["loss"], 1e-3)
    loss.backward()
    assert_gradients(model, tensors("transkimmer_bert_maskedsoftmax", "grads.train_noise."))


@pytest.mark.parametrize("row", range(3))
def test_packed_inference_agrees_with_the_branch_cutting_tokens_away(published: nn.Module, row: int) -> None:
    """One sequence at a time, without padding: the branch really removes tokens there, and so does packed execution."""
    model = compressed(published)
    wanted = tensors("transkimmer_bert_maskedsoftmax", f"outputs.single{row}.")
    length = wanted["last_hidden_state"].shape[1]
    with torch.no_grad():
        output, last = run(model, {}, training=False, rows=slice(row, row + 1))
    assert model.trace.execution == "packed"
    close(output.logits, wanted["logits"], 1e-3)
    close(last[:, :length], wanted["last_hidden_state"], 1e-3)
    arrived = [layer.charges[0].occupancy.counts().item() for layer in model.trace.layers]
    assert arrived == [wanted[f"skim_mask.{i}"].shape[1] for i in range(3)]
    assert arrived[-1] < length


def assert_gradients(model: nn.Module, wanted: dict[str, Tensor]) -> None:
    """1e-3 relative, with a floor of 1e-3 of the largest gradient: gradients of key biases are rounding noise."""
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    theirs = {f"method.{name}": value for name, value in from_published(wanted).items()}
    theirs |= {name: value for name, value in wanted.items() if "skim_predictors" not in name}
    floor = 1e-3 * max(value.abs().max().item() for value in theirs.values())
    assert set(theirs) == set(found)
    for name, value in theirs.items():
        scale = max(value.abs().max().item(), floor)
        assert_same(found[name] / scale, value / scale, tolerance=1e-3, what=name)
