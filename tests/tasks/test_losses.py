"""Weighed classes and smoothed labels: what is trained on, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from skim.errors import SkimError
from skim.lightning import recipe
from skim.lightning.module import SkimModule
from tasks.losses import BinaryCrossEntropy, CrossEntropy
from tasks.text import Text
from tests.runs import composed, small

LABELS = [0, 2, 2, 1, 2, 2, 0, 2]


def ready(folder: Path, tokenizer: Any, **settings: Any) -> Text:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"text": "a film", "label": label}) for label in LABELS))
    task = Text(name="text", files={"train": str(file), "validation": str(file)}, **settings)
    task.setup_tokenizer(tokenizer)
    task.setup("fit")
    return task


def batch_of(labels: Any, logits: Tensor) -> tuple[Any, dict[str, Tensor]]:
    return SimpleNamespace(logits=logits), {"labels": torch.tensor(labels)}


def test_balanced_weights_are_those_of_scikit_learn(tmp_path: Path, tokenizer: Any) -> None:
    loss = ready(tmp_path, tokenizer, class_weights="balanced").training_loss()
    assert isinstance(loss, CrossEntropy)
    expected = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=LABELS)).float()
    torch.testing.assert_close(loss.weights, expected)
    output, batch = batch_of(LABELS, torch.randn(8, 3))
    torch.testing.assert_close(loss(output, batch), F.cross_entropy(output.logits, batch["labels"], expected))


def test_weights_can_be_given_and_labels_smoothed(tmp_path: Path, tokenizer: Any) -> None:
    loss = ready(tmp_path, tokenizer, class_weights=[1, 5, 0.5]).training_loss(0.2)
    output, batch = batch_of(LABELS, torch.randn(8, 3))
    expected = F.cross_entropy(output.logits, batch["labels"], torch.tensor([1, 5, 0.5]), label_smoothing=0.2)
    torch.testing.assert_close(loss(output, batch), expected)
    assert ready(tmp_path, tokenizer).training_loss() is None, "the model's own loss will do"


def test_a_positive_class_may_be_a_number(tmp_path: Path, tokenizer: Any) -> None:
    """F1 is of that class, whatever the others; without one it is the mean over three."""
    found, wanted = torch.tensor([0, 0, 2, 1]), torch.tensor([0, 1, 2, 2])
    for positive, score in ((None, (2 / 3 + 0 + 2 / 3) / 3), (0, 2 / 3), (1, 0.0), ("2", 2 / 3)):
        task = ready(tmp_path, tokenizer, positive=positive, metric_names=["f1"])
        metrics = task.metrics()
        metrics.update(found, wanted)
        assert metrics.compute()["f1"].item() == pytest.approx(score)


def test_a_class_without_rows_weighs_nothing(tmp_path: Path, tokenizer: Any) -> None:
    task = ready(tmp_path, tokenizer, class_weights="balanced", label_names=["0", "1", "2", "3"])
    assert task.training_loss().weights[3] == 0


def test_labels_of_several_words_and_of_none_are_smoothed_alike() -> None:
    output, batch = batch_of([[1, -100], [0, 2]], torch.randn(2, 2, 3))
    expected = F.cross_entropy(output.logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.3)
    torch.testing.assert_close(CrossEntropy(smoothing=0.3)(output, batch), expected)


def test_binary_cross_entropy_weighs_positive_rows() -> None:
    output, batch = batch_of([[1.0, 0.0], [0.0, 1.0]], torch.tensor([[0.3, -2.0], [1.0, 0.5]]))
    log_p, log_q = F.logsigmoid(output.logits), F.logsigmoid(-output.logits)
    y, weights = 0.9 * batch["labels"] + 0.05, torch.tensor([1.0, 3.0])
    expected = -(weights * y * log_p + (1 - y) * log_q).mean()
    torch.testing.assert_close(BinaryCrossEntropy(weights, 0.1)(output, batch), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weights": "balance"}, "class_weights='balance'.*Did you mean 'balanced'"),
        ({"class_weights": [1, -1, 1]}, "list of numbers, at least 0"),
        ({"class_weights": [1, float("nan"), 1]}, "list of numbers, at least 0"),
        ({"class_weights": [1, 2]}, "2 numbers for 3 labels: 0, 1, 2"),
        ({"head": "regression", "class_weights": "balanced"}, "task.head=regression has no classes"),
        ({"head": "regression", "positive": "1"}, "task.head=regression has no classes"),
        ({"positive": "4", "metric_names": ["f1"]}, "Unknown label in task.positive '4'"),
    ],
)
def test_wrong_weights(tmp_path: Path, tokenizer: Any, settings: dict[str, Any], message: str) -> None:
    def use() -> None:
        task = ready(tmp_path, tokenizer, **settings)
        task.training_loss()
        task.metrics()

    with pytest.raises(SkimError, match=message):
        use()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["method=early_exit", "task.class_weights=balanced"], "method=early_exit sums the losses of all its exits"),
        (["method=early_exit", "train.label_smoothing=0.1"], "method=early_exit sums the losses of all its exits"),
        (["task=builtin_spans", "method=dense", "train.label_smoothing=0.1"], "and not for task=builtin_spans"),
        (["train.label_smoothing=1"], "train.label_smoothing=1 must be a number, at least 0 and below 1"),
        (["train.label_smoothing=-0.1"], "train.label_smoothing=-0.1 must be a number"),
    ],
)
def test_what_cannot_be_is_refused_before_training(tmp_path: Path, changes: list[str], message: str) -> None:
    with pytest.raises(SkimError, match=message):
        recipe.train(small(*changes), tmp_path / "run", "")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["builtin", "builtin_tags", "builtin_choices"])
def test_a_run_trains_on_the_smoothed_loss(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first step's loss is the smoothed one of the model's logits, which the model's own is not."""
    seen: list[tuple[float, float, float]] = []
    usual = SkimModule.training_step

    def step(module: SkimModule, batch: dict[str, Tensor], number: int) -> Tensor:
        outputs: list[Any] = []
        hook = module.model.register_forward_hook(lambda *given: outputs.append(given[2]))
        loss = usual(module, batch, number)
        hook.remove()
        logits, labels = outputs[0].logits.flatten(0, -2), batch["labels"].flatten()
        wanted = F.cross_entropy(logits, labels, label_smoothing=0.5)
        seen.append((loss.item(), wanted.item(), outputs[0].loss.item()))
        return loss

    monkeypatch.setattr(SkimModule, "training_step", step)
    cfg = composed(
        *("backbone=tiny", f"task={kind}", "hardware=cpu", "hardware.threads=1", "benchmark.enabled=false"),
        *("method=dense", "train.label_smoothing=0.5", "train.max_steps=1"),
        *("task.max_train_samples=64", "task.max_eval_samples=16"),
    )
    recipe.train(cfg, tmp_path, "")
    ((loss, wanted, own),) = seen
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert abs(loss - own) > 1e-4
