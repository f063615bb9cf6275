"""One process against two with the same global batch: every method, kinds of task, uneven batches.

``python -m tests.ranks`` runs the whole recipe and prints the table of differences; ``tests/test_ddp.py`` asserts those
of training and evaluation alone.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from skim.lightning import recipe
from skim.lightning.assembly import module_of, trainer_of
from skim.lightning.build import build
from skim.lightning.landing import evaluated
from tests.runs import composed, on_two_ranks, watched_by

COMMON = [
    "backbone=tiny",
    "backbone.overrides.num_hidden_layers=3",
    "backbone.overrides.hidden_size=32",
    "backbone.overrides.intermediate_size=64",
    "backbone.overrides.num_attention_heads=2",
    "backbone.overrides.hidden_dropout_prob=0",
    "backbone.overrides.attention_probs_dropout_prob=0",
    "hardware.threads=1",
    "benchmark.enabled=false",
    "callbacks.progress=false",
    "callbacks.log_every=1",
    "task.global_batch=true",
    "task.batch_size=9",  # which two do not share evenly
    "task.eval_batch_size=15",
    "task.max_eval_samples=37",
    "train.calibrate=32",
    "train.max_steps=4",
    "train.lr=2e-4",
]
ROWS = ["task=builtin", "task.train_rows=43"]
RUNS: dict[str, list[str]] = {
    "dense": [*ROWS, "method=dense"],
    "dense, accumulated": [*ROWS, "method=dense", "train.accumulate=2", "train.max_steps=3"],
    "transkimmer, taught states": [
        *(*ROWS, "method=transkimmer", "method.target=0.6", "method.margin=1"),
        *("train.distill_hidden=1", "train.distill_from=self"),
    ],
    "ltp, soft and hard": [*ROWS, "method=ltp", "method.target=0.7"],
    "act": [*ROWS, "method=act", "method.target=0.7"],
    "funnel": [*ROWS, "method=funnel"],
    "early_exit": [*ROWS, "method=early_exit", "method.halting=pondernet"],
    "layer_drop": [*ROWS, "method=layer_drop", "method.layers=[2]"],
    "topk, any budget": [*ROWS, "method=topk", "method.start=1", "method.target=[0.8,1.0]"],
    "a chain, distilled": [
        *(*ROWS, "method=chain", "method.methods=[{method: funnel},{method: transkimmer, target: 0.6}]"),
        *("train.distill=0.5", "train.distill_from=self"),
    ],
    "question answering": ["task=builtin_spans", "method=transkimmer", "task.max_train_samples=43"],
    "tagging": ["task=builtin_tags", "method=dense", "task.max_train_samples=43"],
    "class weights": [*ROWS, "method=dense", "task.class_weights=[1,3]"],
    "ELECTRA": [
        *("task=electra", "task.hub_id=builtin/text", "task.config=default", "method=dense", "task.max_length=64"),
        *("backbone.overrides.model_type=electra", "task.max_train_samples=43", "task.generator_size=0.5"),
    ],
    "a stream": [
        *("task=builtin_text", "method=transkimmer", "task.streaming=true", "task.shuffle_buffer=50"),
        *("train.eval_every=4",),
    ],
}


class Losses(pl.Callback):
    """The loss of every batch, penalties included, and how many sequences each had."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rows: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)
        self.rows.append(len(batch["input_ids"]))


def config(name: str, hardware: str) -> Any:
    """The config of a run."""
    return composed(*RUNS[name][:1], *COMMON, *RUNS[name][1:], f"hardware={hardware}")


def whole(name: str, folder: Path, hardware: str) -> dict[str, Any]:
    """What ``train.py`` makes of a run: the losses of its steps, its results, and the weights that it ends with."""
    watch = Losses()
    results = watched_by(watch, config(name, hardware), folder).results
    values = {**results.metrics, "relative_flops": results.relative_flops}
    values |= {f"keep_ratio/layer_{i}": ratio for i, ratio in enumerate(results.keep_ratio)}
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {"losses": watch.losses, "rows": watch.rows, "values": values, "weights": weights}


def trained(name: str, folder: Path, hardware: str) -> dict[str, Any]:
    """The same of a training and an evaluation alone, which cost a fifth of it."""
    watch = Losses()
    cfg, _ = recipe.settled(config(name, hardware), folder)
    cfg.logger = {}
    pl.seed_everything(cfg.seed, verbose=False)
    parts = build(cfg)
    trainer = trainer_of(cfg, [watch], epochs=1)
    module = module_of(cfg, parts)
    recipe.fit(trainer, module, parts, cfg)
    values = evaluated(trainer, module, datamodule=parts.task)
    weights = {n: tensor.detach().clone() for n, tensor in module.state_dict().items()}
    return {"losses": watch.losses, "rows": watch.rows, "values": values, "weights": weights}


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """The largest difference of losses and of values, relative to 1 or the number if more; weights' mean one."""

    def apart(some: list[float], others: list[float]) -> float:
        assert len(some) == len(others)
        return max(abs(a - b) / max(abs(a), 1.0) for a, b in zip(some, others, strict=True))

    values, others = one["values"], other["values"]
    assert set(values) == set(others)
    spent = [name for name in values if "flops" in name or "keep" in name]
    # the mean: where a gradient is nothing but rounding, as of a bias before a softmax, Adam makes whole steps by it
    pairs = [(one["weights"][name], other["weights"][name]) for name in one["weights"]]
    weights = float(torch.cat([(a - b).abs().flatten().double() for a, b in pairs]).mean())
    return {
        "losses": apart(one["losses"], other["losses"]),
        "metrics": apart(*([some[n] for n in values if n not in spent] for some in (values, others))),
        "FLOPs and kept": apart(*([some[n] for n in spent] for some in (values, others))),
        "weights": weights,
    }


def rank(folder: str, rank: str) -> None:
    """Every run by the whole recipe in one of two processes, which pays for its imports and joins the other once."""
    found = {name: whole(name, Path(folder) / name, "ddp_cpu") for name in RUNS}
    torch.save(found, Path(folder) / f"rank{rank}.pt")


def main() -> None:
    """Print how far two processes are from one."""
    folder = Path(tempfile.mkdtemp())
    two, _ = on_two_ranks("import sys; from tests.ranks import rank; rank(*sys.argv[1:])", folder)
    for i, name in enumerate(RUNS):
        one = whole(name, folder / "one" / name, "cpu")
        found = differences(one, two[name])
        if i == 0:
            print(f"{'run':<24}{'steps':>6}" + "".join(f"{what:>16}" for what in found))
        print(f"{name:<24}{len(one['losses']):>6}" + "".join(f"{value:>16.1e}" for value in found.values()))


if __name__ == "__main__":
    sys.exit(main())
