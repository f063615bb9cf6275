"""Law 8: it really learns, and what it reports is what runs. On the built-in task, whose salient tokens are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import skim
from skim.lightning.evaluation import load
from skim.lightning.recipe import train
from skim.methods import Method
from tests.runs import composed

DEMO = ["experiment=demo", "hardware=cpu", "hardware.threads=1", "benchmark.enabled=false", "task.max_eval_samples=400"]


class Random(Method):
    """Keeps [CLS] and a random share of the tokens, layer by layer as much as somebody else did."""

    name = "random"

    def __init__(self, keep: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.keep = keep

    def before_layer(self, i, tokens):
        alive = self.keep[i] / (self.keep[i - 1] if i else 1.0)
        return tokens.retire(torch.rand(tokens.hidden.shape[:-1]) < alive)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learning") / "dense"
    train(composed(*DEMO, "method=dense"), folder, "")
    return folder


@pytest.fixture(scope="module")
def skimmed(dense: Path):
    overrides = [
        "method=transkimmer",
        "method.target=0.4",
        "method.bottleneck=32",
        "train.method_lr=3e-3",
        f"init_from={dense}",
    ]
    return train(composed(*DEMO, *overrides), dense.parent / "transkimmer", "")


def accuracy(model: nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    right = count = 0
    with torch.no_grad():
        for batch in batches:
            logits = model(**{k: v for k, v in batch.items() if k not in ("labels", "salient")}).logits
            right += int((logits.argmax(-1) == batch["labels"]).sum())
            count += len(logits)
    return right / count


def test_it_keeps_what_matters_at_the_budget_that_was_asked_for(skimmed) -> None:
    results = skimmed.results
    assert results.metrics["accuracy"] >= 0.95
    assert results.relative_flops == pytest.approx(0.4, abs=0.03)
    parts = load(composed(f"ckpt={skimmed.folder}", "device=cpu", config="evaluate")).parts
    alive = salient = kept = real = torch.zeros(())
    for batch in parts.task.sample_batches(32, 200):
        with torch.no_grad():
            parts.model(**{k: v for k, v in batch.items() if k not in ("labels", "salient")})
        here = parts.model.trace.alive()[1]  # tokens have met each other once: what stays now is what is needed
        alive, real = alive + here.sum(), real + parts.model.trace.lengths.sum()
        kept, salient = kept + (here & batch["salient"]).sum(), salient + batch["salient"].sum()
    assert kept / salient >= 0.9
    assert kept / salient >= 1.5 * alive / real


def test_dropping_as_much_at_random_fails(skimmed) -> None:
    """The bar above means something: the same model with the same number of tokens, chosen blindly, misses it."""
    parts = load(composed(f"ckpt={skimmed.folder}", "device=cpu", config="evaluate")).parts
    model = skim.decompress(parts.model)
    skim.compress(model, Random(tuple(skimmed.results.keep_ratio))).eval()
    torch.manual_seed(0)
    assert accuracy(model, parts.task.sample_batches(32, 200)) < 0.85


def test_the_default_has_no_leak_and_the_published_mask_has_one(dense: Path, skimmed) -> None:
    """After the softmax, retired tokens still speak through the denominator: it can look right and keep nothing."""
    masked, packed = skimmed.results.masked_metrics["accuracy"], skimmed.results.metrics["accuracy"]
    assert masked - packed == 0.0
    overrides = ["method=transkimmer", "method.preset=paper", "method.coefficient=2", "method.margin=2"]
    folder = dense.parent / "paper"
    cfg = composed(*DEMO, *overrides, f"init_from={dense}", "method.eval_noise=false", "train.calibrate=0")
    looks = train(cfg, folder, "").results.metrics["accuracy"]
    parts = load(composed(f"ckpt={folder}", "device=cpu", config="evaluate")).parts
    batches = parts.task.sample_batches(32, 400)
    method = skim.Transkimmer(margin=2.0)
    state = parts.model.method.state_dict()
    model = skim.compress(skim.decompress(parts.model), method).eval()
    method.load_state_dict(state)
    runs = accuracy(model, batches)
    print(f"after the softmax: looks {looks:.3f}, runs {runs:.3f}; inside: {masked:.3f}, {packed:.3f}")
    assert looks - runs > 0.1
