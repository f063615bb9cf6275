"""Dense training beside transformers' own Trainer with length grouping: samples per second in turns, and the losses.

$ python -m tests.race sst2 --samples 640
$ python -m tests.race newsgroups --samples 320 --max-length 256 --bf16
$ python -m tests.race sst2 --samples 640 --bare                    # beside a bare PyTorch loop over the same batches

Both train the same pretrained encoder with a new head for one epoch on the same rows, by fused AdamW at the same rate,
and only ``train.py``'s own path stands for skim: recipe, callbacks, log and all. What is timed is the steps, with their
batches, from the first to the last; medians of the turns. Before that, both train on the same batches from the same
weights without dropout, which shows that they compute the same.

With ``--bare`` the other side is a loop of a dozen lines over the very batches that skim trains on, from its own
loader, with its optimizer, schedule and clipping: what is left is what the framework costs. One such loop trains
transformers' own model, padded; another the packed model that skim trains, so that no difference is one of the forward.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytorch_lightning as pl
import torch
import transformers
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from skim import hub
from skim.benchmark import plain_twin
from skim.compression import accepted
from skim.lightning.build import build, quiet
from tests.baseline import MODEL, TASKS, encoded, subsample
from tests.runs import composed, watched_by

Ran: TypeAlias = tuple[tuple[float, float], list[Any]]  # seconds, by the wall's clock and the CPU's, and losses
Racer: TypeAlias = Callable[[int], Ran]
EXACT = 20  # steps on the same batches
BATCH = 32


def clocks() -> tuple[float, float]:
    """Read the wall's clock and that of this process's CPU, in seconds."""
    return time.perf_counter(), time.process_time()


def since(begun: tuple[float, float]) -> tuple[float, float]:
    """Tell the seconds that both clocks have moved on."""
    wall, cpu = clocks()
    return wall - begun[0], cpu - begun[1]


class Watched(pl.Callback):
    """Seconds and losses of skim's steps; also the weights that they start from and their batches, if asked for.

    Args:
        keep: weights and batches.
    """

    def __init__(self, keep: bool = False) -> None:
        self.keep, self.losses, self.batches = keep, [], []  # type: ignore[var-annotated]
        self.model: nn.Module | None = None
        self.begun = self.seconds = (0.0, 0.0)

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        if self.keep:
            self.model = plain_twin(copy.deepcopy(module.model))

    def on_train_epoch_start(self, *_: Any) -> None:
        self.begun = clocks()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.seconds = since(self.begun)
        self.losses.append(outputs["loss"].detach())
        if self.keep:
            self.batches.append(accepted(module.model, batch))


class Clocked(transformers.TrainerCallback):
    """Seconds of the Trainer's steps."""

    def __init__(self) -> None:
        self.begun = self.seconds = (0.0, 0.0)

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.begun = clocks()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds = since(self.begun)


class Peer(transformers.Trainer):
    """The Trainer, which keeps its losses."""

    batches: Sequence[Any] | None = None  # in place of its own

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: list[torch.Tensor] = []

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss)
        return loss

    def get_train_dataloader(self) -> DataLoader:
        return super().get_train_dataloader() if self.batches is None else DataLoader(self.batches, batch_size=None)


def by_skim(options: argparse.Namespace, seed: int, *changes: str, keep: bool = False) -> Watched:
    """Train by the recipe of ``train.py``."""
    watched = Watched(keep)
    with tempfile.TemporaryDirectory() as folder:
        watched_by(watched, config_of(options, seed, *changes), Path(folder) / "run")
    return watched


def config_of(options: argparse.Namespace, seed: int, *changes: str) -> DictConfig:
    """Compose what ``train.py`` would run."""
    given = [
        *(f"task={options.task}", "method=dense", "backbone=minilm", f"seed={seed}", f"train.lr={options.lr}"),
        *(f"task.batch_size={BATCH}", f"task.max_length={options.max_length}", "task.max_eval_samples=32"),
        *(f"task.max_train_samples={options.samples}", f"hardware.threads={options.threads}", "hardware=cpu"),
        *("benchmark.enabled=false", "train.calibrate=0"),
    ]
    return composed(*given, *changes)


def by_hand(options: argparse.Namespace, seed: int, packed: bool, *changes: str) -> Ran:
    """Train by a loop of PyTorch's, with skim's loader, defaults and no framework.

    Args:
        options: of the command.
        seed: of the run.
        packed: skim's model; else transformers' own, padded.
        changes: of the config.
    """
    cfg = config_of(options, seed, *changes)
    pl.seed_everything(seed, verbose=False)
    parts = build(cfg)
    model = (parts.model if packed else plain_twin(parts.model)).train()
    loader, kinds = parts.task.train_dataloader(), (lambda p: p.dim() > 1, lambda p: p.dim() <= 1)
    some, others = ([p for p in model.parameters() if kind(p)] for kind in kinds)
    groups = [{"params": some, "weight_decay": cfg.train.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = AdamW(groups, lr=cfg.train.lr, fused=True)
    steps, rise = len(loader), -(-len(loader) * cfg.train.warmup // 1)
    schedule = LambdaLR(optimizer, lambda n: (n + 1) / rise if n < rise else (steps - n) / (steps - rise))
    losses, names = [], set(inspect.signature(type(model).forward).parameters)
    begun = clocks()
    for batch in loader:
        loss = model(**{name: tensor for name, tensor in batch.items() if name in names}).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), cfg.train.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return since(begun), losses


def by_trainer(
    model: nn.Module, rows: Any, tokenizer: Any, seed: int, rate: float, warmup: float = 0.1, **more: Any
) -> Peer:
    """Make transformers' Trainer, to train by skim's defaults."""
    steps = -(-len(rows) // BATCH)
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            learning_rate=rate,
            per_device_train_batch_size=BATCH,
            weight_decay=0.01,
            warmup_steps=round(warmup * steps),
            seed=seed,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            **more,
        )
    collate = transformers.DataCollatorWithPadding(tokenizer)
    return Peer(model, settings, collate, rows, processing_class=tokenizer, callbacks=[Clocked()])


def together(options: argparse.Namespace, tokenizer: Any, *changes: str) -> list[tuple[float, float]]:
    """Train both on the same batches, from the same weights and without dropout; their losses, step by step."""
    some = argparse.Namespace(**{**vars(options), "samples": EXACT * BATCH})
    none = [f"++backbone.overrides.{name}_dropout_prob=0.0" for name in ("hidden", "attention_probs")]
    ours = by_skim(some, 1, "train.warmup=0", *none, *changes, keep=True)
    assert ours.model is not None
    theirs = by_trainer(ours.model, [0] * EXACT * BATCH, tokenizer, 1, options.lr, warmup=0.0)
    theirs.batches = ours.batches
    theirs.train()
    return [(float(one), float(other)) for one, other in zip(ours.losses, theirs.losses, strict=True)]


def racers(options: argparse.Namespace, tokenizer: Any) -> dict[str, Racer]:
    """List who takes part, the one to be compared with first: each, told a seed, returns its seconds and its losses."""

    def skim(seed: int, *changes: str) -> Ran:
        watched = by_skim(options, seed, *changes)
        return watched.seconds, watched.losses

    if options.bare:
        loops = {"bare loop, transformers": False, "bare loop, packed": True}
        return {**{name: partial(by_hand, options, packed=packed) for name, packed in loops.items()}, "skim": skim}
    data = TASKS[options.task]
    whole = hub.dataset(data.hub_id, data.config, "train")
    count, table = int(max(whole[data.label])) + 1, subsample(whole, options.samples)
    encode = partial(encoded, tokenizer, data=data, length=options.max_length)
    rows = table.map(lambda some: encode(some), batched=True, remove_columns=table.column_names)

    def trainer(seed: int, **more: Any) -> Ran:
        transformers.set_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(hub.model_path(MODEL), num_labels=count)
        peer = by_trainer(model, rows, tokenizer, seed, options.lr, **more)
        peer.train()
        return next(one for one in peer.callback_handler.callbacks if isinstance(one, Clocked)).seconds, peer.losses

    who: dict[str, Racer] = {"Trainer": trainer, "skim": skim}
    if options.tokens:
        who[f"skim, {options.tokens} tokens"] = lambda s: skim(s, f"task.tokens_per_batch={options.tokens}")
    if options.bf16:
        who["Trainer, bf16"] = lambda seed: trainer(seed, bf16=True)
        who["skim, bf16"] = lambda seed: skim(seed, "hardware.precision=bf16-mixed")
    return who


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Run the race and print its table; returns samples per second by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("sst2", "newsgroups"))
    parser.add_argument("--samples", type=int, default=640, help="rows of an epoch")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, help="also by a budget of tokens per batch")
    parser.add_argument("--bf16", action="store_true", help="also in bf16-mixed")
    parser.add_argument("--bare", action="store_true", help="beside bare loops over the same batches, not the Trainer")
    options = parser.parse_args(arguments)
    quiet()
    torch.set_num_threads(options.threads)
    console = Console()
    tokenizer = transformers.AutoTokenizer.from_pretrained(hub.model_path(MODEL))
    if not options.bare:
        with redirect_stdout(io.StringIO()):
            pairs = together(options, tokenizer)
        apart = max(abs(one - other) for one, other in pairs)
        console.print(f"{EXACT} steps on the same batches without dropout: losses differ by {apart:.1e} at most")
    who = racers(options, tokenizer)
    ran: dict[str, list[Ran]] = {name: [] for name in who}
    for turn in range(options.turns):
        for name in [*who][turn % len(who) :] + [*who][: turn % len(who)]:
            with redirect_stdout(io.StringIO()):
                ran[name].append(who[name](turn + 1))
    wall, cpu = (
        {name: statistics.median(options.samples / one[0][clock] for one in some) for name, some in ran.items()}
        for clock in (0, 1)
    )
    shown = Table(title=f"{options.task}, {options.samples} rows, {options.turns} turns, threads: {options.threads}")
    with_whom = next(iter(ran))
    beside = f"/ {with_whom.partition(',')[0]}"
    for head in ("", "samples/s", beside, "per CPU s", beside, "loss"):
        shown.add_column(head, justify="right" if head else "left")
    for name, some in ran.items():
        loss = statistics.fmean(float(loss) for one in some for loss in one[1])
        rates = [text for rate in (wall, cpu) for text in (f"{rate[name]:.1f}", f"{rate[name] / rate[with_whom]:.3f}")]
        shown.add_row(name, *rates, f"{loss:.3f}")
    console.print(shown)
    return wall


if __name__ == "__main__":
    main()
