"""Law 8: a method really learns, and what it reports is what runs, on the task whose salient tokens are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import skim
from skim.engine.inputs import inputs_of
from skim.lightning.build import Parts
from skim.lightning.looks import load
from skim.lightning.recipe import train
from skim.methods import Method
from tests.runs import composed, looking, typed

DEMO = [
    "experiment=demo",
    "backbone.overrides.intermediate_size=128",  # learns the task as the demo's does, in half the time
    "hardware=cpu",
    "hardware.threads=1",
    "benchmark.enabled=false",
    "task.max_eval_samples=400",
    "train.calibrate=128",
]


class Random(Method):
    """Keeps [CLS] and a random share of the tokens, layer by layer as much as somebody else did."""

    name = "random"

    def __init__(self, keep: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.keep = keep

    def before_layer(self, i, tokens):
        alive = self.keep[i] / (self.keep[i - 1] if i else 1.0)
        return tokens.retire(torch.rand(tokens.hidden.shape[:-1]) < alive)


class RandomInside(Random):
    """The same between attention and feed-forward, where LTP and top-k decide."""

    name = "random_inside"

    def before_layer(self, i, tokens):
        return tokens

    def after_attention(self, i, tokens, received):
        return super().before_layer(i, tokens)


class RandomHalts(Random):
    """The same after a layer, where ACT decides: whoever leaves is still looked at."""

    name = "random_halts"

    def __init__(self, keep: tuple[float, ...] = ()) -> None:
        super().__init__(keep)
        self.protect = ()

    def before_layer(self, i, tokens):
        return tokens

    def after_layer(self, i, before, tokens):
        if i == len(self.keep) - 1:
            return tokens
        return tokens.halt(torch.rand(tokens.hidden.shape[:-1]) < self.keep[i + 1] / self.keep[i])


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
        "train.epochs=2",
        f"init_from={dense}",
    ]
    return train(composed(*DEMO, *overrides), dense.parent / "transkimmer", "")


# what is learned of a trained model's attention: with a small learning rate it stays what it is
PRUNERS = {
    "ltp": [
        "method=ltp",
        "method.final_token_threshold=0.02",
        "method.stages.soft.lr=1e-4",
        "task.max_train_samples=1500",
    ],
    "topk": ["method=topk", "method.start=1", "task.max_train_samples=1000"],
}


@pytest.fixture(scope="module", params=PRUNERS)
def pruned(dense: Path, request: pytest.FixtureRequest):
    """LTP, through both stages, and top-k; all but an epoch or two of their time is the dense training."""
    overrides = [*PRUNERS[request.param], "method.target=0.5", "train.epochs=1", f"init_from={dense}"]
    return train(composed(*DEMO, *overrides), dense.parent / request.param, "")


def accuracy(model: nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    right = count = 0
    with torch.no_grad():
        for batch in batches:
            logits = model(**inputs_of(batch)).logits
            right += int((logits.argmax(-1) == batch["labels"]).sum())
            count += len(logits)
    return right / count


def kept(parts: Parts) -> tuple[list[float], list[float]]:
    """Shares of the salient tokens, and of all, that enter each layer's feed-forward."""
    salient, alive, all_salient, real = torch.zeros(4), torch.zeros(4), 0, 0
    for batch in parts.task.sample_batches(32, 200):
        with torch.no_grad():
            parts.model(**inputs_of(batch))
        here = parts.model.trace.alive()
        alive, real = alive + here.sum((1, 2)), real + int(parts.model.trace.lengths.sum())
        salient = salient + (here & batch["salient"]).sum((1, 2))
        all_salient += int(batch["salient"].sum())
    return (salient / all_salient).tolist(), (alive / real).tolist()


def test_it_keeps_what_matters_at_the_budget_that_was_asked_for(skimmed) -> None:
    results = skimmed.results
    assert results.metrics["accuracy"] >= 0.95
    assert results.relative_flops == pytest.approx(0.4, abs=0.03)
    salient, alive = kept(load(looking(skimmed.folder)).parts)
    assert salient[1] >= 0.9  # tokens have met each other once: what stays now is what is needed
    assert sum(salient) >= 1.5 * sum(alive)  # in which layer the others leave is up to the run


def test_dropping_as_much_at_random_fails(skimmed) -> None:
    """The bar above means something: the same model with the same number of tokens, chosen blindly, misses it."""
    parts = load(looking(skimmed.folder)).parts
    model = skim.decompress(parts.model)
    skim.compress(model, Random(tuple(skimmed.results.keep_ratio))).eval()
    torch.manual_seed(0)
    assert accuracy(model, parts.task.sample_batches(32, 200)) < 0.85


def test_attention_tells_what_matters_and_chance_does_not(pruned) -> None:
    """Decided by the attention received, the same number of tokens is enough; by chance it is not."""
    results = pruned.results
    assert results.metrics["accuracy"] >= 0.95
    assert results.relative_flops == pytest.approx(0.5, abs=0.03)
    assert results.masked_metrics["accuracy"] == results.metrics["accuracy"]
    parts = load(looking(pruned.folder)).parts
    salient, alive = kept(parts)
    print(f"{results.method}: of the salient tokens {salient} stay, of all {alive}")
    assert alive[1] <= 0.6, "what it keeps of everything says nothing"
    assert salient[1] >= 0.9
    assert salient[1] >= 1.5 * alive[1]
    model = skim.decompress(parts.model)
    skim.compress(model, RandomInside(tuple(alive))).eval()
    torch.manual_seed(0)
    blind = accuracy(model, parts.task.sample_batches(32, 200))
    print(f"by chance: {blind}")
    assert blind < 0.85


@pytest.mark.slow
def test_a_chain_learns_and_lands_on_its_total(dense: Path) -> None:
    """Three layers of four, and in them a share of the tokens; as many of them by chance are not enough."""
    overrides = ["method=[layer_drop,ltp]", "method.layer_drop.layers=3", "method.ltp.target=0.45", "train.epochs=1"]
    overrides += ["method.ltp.final_token_threshold=0.02", "method.ltp.stages.soft.lr=1e-4"]
    cfg = typed(*DEMO, *overrides, "task.max_train_samples=600", f"init_from={dense}")
    done = train(cfg, dense.parent / "chain", "")
    results = done.results
    assert results.metrics["accuracy"] >= 0.95
    assert results.masked_metrics["accuracy"] == results.metrics["accuracy"]
    assert results.relative_flops == pytest.approx(0.45, abs=0.03)
    assert results.keep_ratio[3] == 0
    parts = load(looking(done.folder)).parts
    salient, alive = kept(parts)
    print(f"chain: of the salient tokens {salient} stay, of all {alive}")
    assert salient[1] >= 1.5 * alive[1]
    model = skim.decompress(parts.model)
    skim.compress(model, [skim.LayerDrop(3), RandomInside(tuple(alive[:3]))]).eval()
    torch.manual_seed(0)
    assert accuracy(model, parts.task.sample_batches(32, 200)) < 0.85


def test_tokens_that_matter_halt_later(dense: Path) -> None:
    """Halted tokens are still looked at, so the answer is easy to keep; who goes on is what halting has to learn."""
    overrides = ["method=act", "method.target=0.6", "train.method_lr=1e-2", "train.epochs=1", f"init_from={dense}"]
    overrides.append("train.calibrate=512")  # texts differ more in when they halt than in what they drop
    done = train(composed(*DEMO, *overrides, "task.max_train_samples=2000"), dense.parent / "act", "")
    results = done.results
    assert results.metrics["accuracy"] >= 0.95
    assert results.masked_metrics["accuracy"] == results.metrics["accuracy"]
    assert results.relative_flops == pytest.approx(0.6, abs=0.03)
    parts = load(looking(done.folder)).parts
    salient, alive = kept(parts)
    print(f"act: of the salient tokens {salient} go on, of all {alive}")
    assert salient[2] >= 4 * alive[2] > 0
    model = skim.decompress(parts.model)
    skim.compress(model, RandomHalts(tuple(results.keep_ratio))).eval()
    torch.manual_seed(0)
    by_chance, as_many = kept(parts)
    assert as_many[2] == pytest.approx(alive[2], abs=0.02)
    assert by_chance[2] < 2 * as_many[2]


def test_merging_keeps_what_dropping_as_much_loses(dense: Path) -> None:
    overrides = ["method=funnel", "method.blocks=[1,1,2]", "train.epochs=1", f"init_from={dense}"]
    done = train(composed(*DEMO, *overrides, "task.max_train_samples=1500"), dense.parent / "funnel", "")
    results = done.results
    assert results.metrics["accuracy"] >= 0.92
    assert results.masked_metrics["accuracy"] == results.metrics["accuracy"]
    assert 0.5 < results.relative_flops < 0.6
    parts = load(looking(done.folder)).parts
    batches = parts.task.sample_batches(32, 200)
    model = skim.decompress(parts.model)
    skim.compress(model, Random(tuple(results.keep_ratio))).eval()
    torch.manual_seed(0)
    assert accuracy(model, batches) < 0.85


@pytest.mark.slow
def test_the_default_has_no_leak_and_the_published_mask_has_one(dense: Path, skimmed) -> None:
    """After the softmax, retired tokens still speak through the denominator: it can look right and keep nothing."""
    masked, packed = skimmed.results.masked_metrics["accuracy"], skimmed.results.metrics["accuracy"]
    assert masked - packed == 0.0
    overrides = ["method=transkimmer", "method.preset=paper", "method.coefficient=2", "method.margin=2"]
    folder = dense.parent / "paper"
    overrides += [f"init_from={dense}", "method.eval_noise=false", "train.calibrate=0", "train.epochs=1"]
    cfg = composed(*DEMO, *overrides)
    looks = train(cfg, folder, "").results.metrics["accuracy"]
    parts = load(looking(folder)).parts
    batches = parts.task.sample_batches(32, 400)
    method = skim.Transkimmer(margin=2.0)
    state = parts.model.method.state_dict()
    model = skim.compress(skim.decompress(parts.model), method).eval()
    method.load_state_dict(state)
    runs = accuracy(model, batches)
    print(f"after the softmax: looks {looks:.3f}, runs {runs:.3f}; inside: {masked:.3f}, {packed:.3f}")
    assert looks - runs > 0.1
