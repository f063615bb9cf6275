"""AdapLeR: contributions, soft removal, saliency, and what the paper computes by them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

import skim
from skim.errors import SkimError
from skim.methods.adapler import AdapLeR, contributions, divergence, softly
from skim.saliency import saliency
from tests.families import batch_of, enliven, labels_of, plain
from tests.ragged import assert_same
from tests.runs import small, watched_by


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw predictors that tell of some tokens more than of others."""
    enliven(model.method, seed)
    for net in model.method.predictors:
        net[2].weight.data *= 3
    model.method.eta.data.copy_(torch.linspace(0.5, 0.9, len(model.method.eta)))
    return model


def reference(model: nn.Module, ids: Tensor) -> tuple[Tensor, list[int]]:
    """BERT over one unpadded text ``(N,)`` by the equations: layer by layer, tokens below the threshold go."""
    base, method = model.bert, model.method
    last, places, counts = base.embeddings(input_ids=ids[None])[0].clone(), list(range(len(ids))), []
    for i, layer in enumerate(base.encoder.layer):
        states = last[places]
        told = method.predictors[i](states)[:, 0].softmax(0)
        delta = method.eta[i] / len(places)
        places = [n for k, n in enumerate(places) if n == 0 or told[k] >= delta]
        counts.append(len(places))
        states, part = last[places], layer.attention.self
        q, k, v = (
            linear(states).unflatten(1, (model.config.num_attention_heads, -1)).transpose(0, 1)
            for linear in (part.query, part.key, part.value)
        )
        context = ((q @ k.transpose(1, 2)) / q.shape[-1] ** 0.5).softmax(-1) @ v
        attended = layer.attention.output(context.transpose(0, 1).flatten(1), states)
        last[places] = layer.output(layer.intermediate(attended), attended)
    return last, counts


@torch.no_grad()
def test_it_is_what_the_paper_says() -> None:
    ids = batch_of("bert", (13,))["input_ids"][0]
    model = lively(skim.compress(plain("bert", "tokens"), AdapLeR())).eval()
    wanted, counts = reference(model, ids)
    assert 13 > counts[0] > counts[-1] > 1
    for execution in ("masked", "packed", "narrowed"):
        with skim.execution(model, execution):
            assert_same(model.bert(input_ids=ids[None]).last_hidden_state[0], wanted, what=execution)
        assert model.trace.counts()[:, 0].tolist() == counts


def test_contributions_are_of_the_rows_alone() -> None:
    """Whatever stands behind them in a rectangle, and however low their logits are."""
    logits, there = (
        torch.tensor([[-300.0, -301.0, 0.0], [2.0, 1.0, 5.0]]),
        torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.5, 0.0]]),
    )
    (told,) = contributions(logits, there)
    weighed = there[1, :2] * logits[1, :2].exp()
    torch.testing.assert_close(told[0, :2], logits[0, :2].softmax(0))
    torch.testing.assert_close(told[1, :2], weighed / weighed.sum())
    assert (told[:, 2] == 0).all()


def test_soft_removal_is_the_equation_and_hardens() -> None:
    told, delta, slope, beta = torch.tensor([0.02, 0.1, 0.199, 0.3, 0.9]), torch.tensor(0.2), 5.0, 0.1
    below = slope * (told - delta) / delta - beta / slope
    above = (told - 1) * (beta / slope) / (1 - delta)
    wanted = torch.where(told < delta, below, above).exp()
    torch.testing.assert_close(softly(told, delta, slope), wanted)
    assert softly(told, delta, 1e5).round().tolist() == [0, 0, 0, 1, 1]
    assert (softly(told, delta, slope).diff() > 0).all()
    method = AdapLeR(slope=10, slope_end=1000)
    slopes = []
    for method.progress in (0.0, 0.5, 1.0):
        slopes.append(method.steepness())
    assert slopes == pytest.approx([10, 100, 1000])


def test_saliency_is_gradient_times_input_of_the_dense_model() -> None:
    batch = batch_of("bert")
    labelled = batch | labels_of("classification", batch)
    model = plain("bert", "classification").eval()
    seen: list[Tensor] = []
    hook = model.bert.embeddings.register_forward_hook(lambda _, __, out: seen.append(out))
    loss = model(**labelled).loss
    (gradient,) = torch.autograd.grad(loss, seen[0])
    hook.remove()
    real = batch["attention_mask"].bool()
    size = (gradient * seen[0]).norm(dim=-1) * real
    compressed = lively(skim.compress(model, AdapLeR())).train()
    found = saliency(compressed, labelled)
    torch.testing.assert_close(found, size / size.sum(1, keepdim=True))
    assert (found[~real] == 0).all()
    assert compressed.training
    assert all(parameter.grad is None for parameter in compressed.parameters())
    with pytest.raises(SkimError, match="needs labels"):
        saliency(compressed, batch)


def test_predictors_learn_saliency_of_the_tokens_that_are_left() -> None:
    """The divergence is that of a loop over sequences, in every layer; it reaches every predictor, and a chain's."""
    batch = batch_of("bert")
    wanted = torch.rand(batch["attention_mask"].shape) * batch["attention_mask"]
    wanted = wanted / wanted.sum(1, keepdim=True)
    made = plain("bert", "classification")
    model = lively(skim.compress(copy.deepcopy(made), AdapLeR(slope=1e6, slope_end=1e6))).train()
    model(**batch)
    trace = model.trace
    assert "saliency" not in model.method.terms(trace)
    trace.saliency = wanted
    value, weight = model.method.terms(trace)["saliency"]
    terms = []
    for rows, told in trace.carry:
        alive = rows.weights > 0.5
        for b in range(len(wanted)):
            p, q = wanted[b, alive[b]], told[b, alive[b]]
            p, q = p / p.sum(), q / q.sum()
            terms.append((p * (p / q).log()).sum())
    assert (trace.counts()[-1] < trace.lengths).any()
    weights = torch.arange(len(trace.carry), 0.0, -1)  # the first layers decide for all that follow
    torch.testing.assert_close(value, torch.stack(terms).view(len(weights), -1).mean(1) @ weights / weights.sum())
    assert weight == 0.1
    value.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.method.predictors.parameters())
    chained = skim.compress(made, skim.Chain([AdapLeR(), skim.TopK(start=1)])).train()
    chained(**batch)
    chained.trace.saliency = wanted
    assert chained.method.reads_saliency
    assert chained.method.terms(chained.trace)["adapler/saliency"][0] > 0
    assert not AdapLeR(saliency=0).reads_saliency


def test_training_measures_saliency_and_learns_from_it(tmp_path: Path) -> None:
    """By the real entry: predictors come to tell what the dense model finds salient."""

    told: list[float] = []

    class Noted(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
            told.append(divergence(module.trace).item())

    size = ["task.max_train_samples=128", "task.max_eval_samples=32", "train.max_steps=8", "train.calibrate=0"]
    method = ["method=adapler", "method.saliency=3", "train.method_lr=0.02"]
    watched_by(Noted(), small(*method, *size), tmp_path / "run")
    assert sum(told[-3:]) < 0.9 * sum(told[:3])
