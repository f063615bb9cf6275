"""Law 7 for ACT: numbers that the published code produced are reproduced (see tests/golden/README.md)."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AlbertConfig, AlbertModel

import skim
from skim.engine.tokens import TokenBatch
from skim.methods.act import ACT, Halting, from_published

GOLDEN = Path(__file__).parents[1] / "golden"
TOLD = json.loads((GOLDEN / "act.json").read_text())
cases = pytest.mark.parametrize("case", TOLD["cases"])
executions = pytest.mark.parametrize("execution", ["auto", "masked", "packed"])


class Watched(ACT):
    """Notes how far every token has come after each layer that ran."""

    notes: list[Halting]

    def after_layer(self, i: int, before: TokenBatch, tokens: TokenBatch) -> TokenBatch:
        tokens = super().after_layer(i, before, tokens)
        self.notes.append(tokens.carry)
        return tokens


@functools.cache
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "act.safetensors")


def tensors(prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in golden().items() if key.startswith(prefix)}


def published(case: str) -> AlbertModel:
    """The tiny published model under skim; its backbone is a plain AlbertModel."""
    model = AlbertModel(AlbertConfig(**{key: value for key, value in TOLD["config"].items() if key != "act_epsilon"}))
    backbone, unit = from_published(tensors(f"{case}.weights."))
    model.load_state_dict(backbone)
    skim.compress(model.eval(), Watched(preset="tiny", epsilon=TOLD["config"]["act_epsilon"], tau=TOLD["tau"]))
    report = model.method.load_state_dict(unit, strict=False)
    assert not report.unexpected_keys
    assert report.missing_keys == ["shift"]
    model.method.notes = []
    return model


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, wanted.to(found), atol=tolerance, rtol=0)


@cases
@executions
@pytest.mark.parametrize("gradients", [False, True])
def test_forward(case: str, execution: str, gradients: bool) -> None:
    """States, updates and remainders of every token, after every step and at the end, and the ponder cost."""
    model, inputs, wanted = published(case), tensors("inputs."), tensors(f"{case}.outputs.")
    real = inputs["attention_mask"].bool()
    with torch.set_grad_enabled(gradients), skim.execution(model, execution):
        output = model(**inputs, output_hidden_states=True)
    trace, method = model.trace, model.method
    assert trace.execution == ("packed" if execution == "auto" else execution)
    close(output.last_hidden_state[real], wanted["last_hidden_state"][real], 1e-5)
    assert torch.equal(trace.carry.updates, wanted["n_updates"])
    assert torch.equal(trace.layers_survived(), wanted["n_updates"].long())
    close(trace.carry.remainders, wanted["remainders"], 1e-5)
    close(trace.carry.ponder().sum(1), wanted["ponder_per_sequence"], 1e-4)
    close(method.penalties(trace)["ponder"], wanted["ponder_cost"], 1e-4)
    assert method.weights() == {"ponder": TOLD["tau"]}
    steps = len(wanted["steps/n_updates"])
    assert len(method.notes) >= steps
    for i in range(steps):
        assert torch.equal(method.notes[i].updates, wanted["steps/n_updates"][i] * real)
        close(method.notes[i].remainders, wanted["steps/remainders"][i] * real, 1e-5)
        close(method.notes[i].probability, wanted["steps/halting_probability"][i] * real, 1e-5)
        if case == "main":
            close(output.hidden_states[i + 1][real], wanted["steps/state"][i][real], 1e-5)
    running = wanted["n_updates"] > torch.arange(len(trace.layers))[:, None, None]  # (L, B, N)
    assert torch.equal(trace.counts().long(), running.sum(2))


@cases
@executions
def test_gradients(case: str, execution: str) -> None:
    """Of the ponder cost alone, and of a loss with it; where nobody is between two steps, the cost has none."""
    model, inputs, wanted = published(case).train(), tensors("inputs."), tensors(f"{case}.outputs.")
    real = inputs["attention_mask"].bool()
    with skim.execution(model, execution):
        output = model(**inputs)
    task = output.last_hidden_state.pow(2).mean(-1)[real].mean()
    ponder = model.method.penalties(model.trace)["ponder"]
    total = task + model.method.loss(model.trace)
    close(task, wanted["task_loss"], 1e-5)
    close(total, wanted["total_loss"], 1e-5)
    parameters = dict(model.named_parameters())
    for name, loss in {"grad_ponder": ponder, "grad_total": total}.items():
        model.zero_grad()
        loss.backward(retain_graph=True)
        found = {key: parameter.grad for key, parameter in parameters.items() if parameter.grad is not None}
        backbone, unit = from_published(tensors(f"{case}.{name}."))
        theirs = backbone | {f"method.{key}": value for key, value in unit.items()}
        if case in ("main", "default_init"):
            assert len(theirs) > 20
            for key, parameter in parameters.items():
                close(found.get(key, torch.zeros_like(parameter)), theirs.get(key, torch.zeros_like(parameter)), 1e-4)
        elif name == "grad_ponder":
            assert all(not value.any() for value in found.values())


def test_the_cases_differ_as_they_should() -> None:
    """Or the tests above would see less than they say: a spread of steps, one step, all steps."""
    updates = {case: tensors(f"{case}.outputs.")["n_updates"] for case in TOLD["cases"]}
    real = tensors("inputs.")["attention_mask"].bool()
    assert set(updates["main"][real].tolist()) == set(range(1, 7))
    assert set(updates["default_init"][real].tolist()) == {2, 3}
    assert set(updates["one_step"][real].tolist()) == {1}
    assert set(updates["never"][real].tolist()) == {6}


def test_names_of_a_model_with_a_head() -> None:
    """``albert.`` stays before each name of the backbone, and the halting unit is found behind it."""
    state = {f"albert.{key}": value for key, value in tensors("main.weights.").items()}
    state["albert.embeddings.position_ids"] = torch.arange(32)
    state["classifier.weight"] = torch.zeros(2, 32)
    backbone, unit = from_published(state)
    bare, same = from_published(tensors("main.weights."))
    assert set(backbone) == {f"albert.{key}" for key in bare} | {"classifier.weight"}
    assert set(unit) == set(same) == {"units.0.weight", "units.0.bias"}
    assert all(torch.equal(unit[key], same[key]) for key in unit)
