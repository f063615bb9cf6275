"""Law 7 for LTP and top-k: numbers that the published code produced are reproduced (see tests/golden/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaForSequenceClassification

import skim
from skim.flops import FORMULAS
from skim.methods.ltp import LTP, from_published
from skim.methods.topk import TopK

GOLDEN = Path(__file__).parents[1] / "golden"


class Watched:
    """Notes the scores by which a method decided, and who was left in each layer."""

    def score(self, received: Tensor, occupancy) -> Tensor:
        score = super().score(received, occupancy)  # type: ignore[misc]
        self.scores.append(score.detach())  # type: ignore[attr-defined]
        return score


class WatchedLTP(Watched, LTP):
    scores: list[Tensor]


class WatchedTopK(Watched, TopK):
    scores: list[Tensor]


def tensors(name: str, prefix: str) -> dict[str, Tensor]:
    found = load_file(GOLDEN / f"ltp_{name}.safetensors")
    return {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}


def published(name: str, **options) -> nn.Module:
    """The tiny published model under skim: its backbone loads into plain transformers as it is."""
    told = json.loads((GOLDEN / f"ltp_{name}.json").read_text())
    config = RobertaConfig(**{key: value for key, value in told.items() if key != "model_type"})
    model = RobertaForSequenceClassification(config)
    weights = tensors(name, "weights.")
    report = model.load_state_dict(weights, strict=False)
    assert not report.missing_keys
    assert all("pruner" in key or "position_ids" in key for key in report.unexpected_keys)
    if name == "topk":
        method = WatchedTopK(token_keep_rate=told["token_keep_rate"], **options)
    else:
        options = {"temperature": told.get("temperature", 1e-3), **options}
        method = WatchedLTP(final_token_threshold=told["final_token_threshold"], coefficient=0.1, **options)
    skim.compress(model, method)
    if name != "topk":
        report = method.load_state_dict(from_published(weights), strict=False)
        assert set(report.missing_keys) == {"base", "shift"}
        torch.testing.assert_close(method.delta.detach(), torch.tensor(told["keep_threshold_delta"]))
    method.scores = []
    return model


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, wanted.view(found.shape).to(found), atol=tolerance, rtol=0)


@pytest.mark.parametrize("execution", ["auto", "masked", "packed", "narrowed"])
@pytest.mark.parametrize("name", ["hard", "topk"])
def test_hard_decisions(name: str, execution: str) -> None:
    """Logits, scores, survivors, lengths and MACs, as published and with the tokens really gone."""
    model, wanted = published(name, preset="paper").eval(), tensors(name, "outputs.")
    with torch.no_grad(), skim.execution(model, execution):
        output = model(**tensors(name, "inputs."), output_hidden_states=True)
    trace, method = model.trace, model.method
    assert trace.execution == ("masked" if execution == "auto" else execution)
    close(output.logits, wanted["logits"], 1e-5)
    close(output.loss, wanted["loss"], 1e-5)
    layers = len(trace.layers)
    scored = [i for i in range(layers) if method.wants_received(i)]
    assert len(method.scores) == len(scored)
    for i, layer in enumerate(trace.layers):
        before, after = wanted[f"alive_before.{i}"].bool(), wanted[f"alive_after.{i}"].bool()
        assert torch.equal(layer.attending.alive(), before)
        assert torch.equal(layer.feeding.alive(), after)
        if i in scored and trace.execution == "masked":
            norm = trace.sequences.real.shape[1] if name == "topk" else 1  # published: a sum over heads and queries
            heads = model.config.num_attention_heads if name == "topk" else 1
            theirs = wanted[f"scores_sum.{i}" if name == "topk" else f"scores.{i}"]
            close(method.scores[scored.index(i)] * norm * heads, theirs, 1e-6 * norm)
        if trace.execution == "masked":
            close(output.hidden_states[i + 1][after], wanted[f"hidden_states.{i + 1}"][after], 1e-5)
    if name == "hard":
        for i in scored:
            close(method.thresholds()[i], wanted[f"threshold.{i}"], 1e-7)
    assert torch.equal(trace.counts().long(), wanted["attention_sentence_lengths"])
    feeding = torch.stack([layer.feeding.counts() for layer in trace.layers]).long()
    assert torch.equal(feeding, wanted["ffn_sentence_lengths"])
    formula = FORMULAS["ltp"](model.config)
    assert torch.equal(trace.flops(formula), 2 * wanted["macs"].double())
    assert torch.equal(trace.dense(formula), 2 * wanted["baseline_macs"].double())
    close(trace.relative_flops(formula), wanted["relative_flops"], 1e-12)
    close(trace.flops(formula).mean() / 1e9, wanted["gflops"], 1e-12)
    close(trace.dense(formula).mean() / 1e9, wanted["baseline_gflops"], 1e-12)


def test_soft_step() -> None:
    """Scores, masks, both losses and every gradient of a soft training step; dropout is 0 in that model."""
    model, wanted = published("soft", preset="paper").train(), tensors("soft", "outputs.")
    output = model(**tensors("soft", "inputs."), output_hidden_states=True)
    trace, method = model.trace, model.method
    close(output.logits, wanted["logits"], 1e-5)
    close(output.loss, wanted["loss_task"], 1e-6)
    for i, score in enumerate(method.scores, start=1):
        close(score, wanted[f"scores.{i}"], 1e-6)
        close(trace.layers[i].feeding.faded, wanted[f"soft_mask.{i}"], 1e-5)
    for i in range(4):
        real = trace.sequences.real
        close(output.hidden_states[i][real], wanted[f"hidden_states.{i}"][real], 1e-5)
    close(method.penalties(trace)["kept"], wanted["loss_regularizer"], 1e-6)
    loss = output.loss + method.loss(trace)
    close(loss, wanted["loss_total"], 1e-6)
    loss.backward()
    theirs = tensors("soft", "grads.")
    thresholds = {key for key in theirs if "pruner" in key}
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert set(theirs) - thresholds == set(found) - {"method.delta"}
    for key in set(theirs) - thresholds:
        close(found[key], theirs[key], 1e-5)
    for key in thresholds:
        i = int(key.split(".layer.")[1].split(".")[0])
        close(found["method.delta"][i], theirs[key], 1e-5)
    assert found["method.delta"][0] == 0  # published: a threshold of exactly zero neither decides nor learns
    assert len(thresholds) == 2
