"""From a composed config to the parts of a run: task, tokenizer, compressed model."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from omegaconf import DictConfig
from torch import nn

from skim import hub
from skim.backbones import families
from skim.calibration import Batches
from skim.checkpoint import restore
from skim.compression import compress
from skim.engine.walk import walk_of
from skim.errors import SkimError
from skim.lightning.check import check, method_of
from skim.lightning.distill import check_states, teaches
from skim.lightning.optim import freeze
from skim.lightning.stages import stages_of
from skim.lightning.start import (
    Continued,
    backbone_config,
    continue_method,
    dense_folder,
    fewer_layers,
    load_backbone,
    untrained,
)
from skim.methods import Method
from skim.options.check import typed
from skim.options.targets import instantiated
from skim.published import ltp as published
from skim.published.files import unpickled
from skim.resume import recorded
from skim.stages import Stage
from tasks.base import Task

NOISE = (
    ".*does not have many workers.*",
    ".*isinstance.treespec.*",
    ".*LeafSpec.*",
    ".*Experiment logs directory.*",  # it holds config.yaml, which the CSV logger leaves alone
    ".*smaller than the logging interval.*",
    ".*your dataloader is not resumable.*",  # the task is told where to go on
    ".*Checkpoint directory .* exists and is not empty.*",  # of a run that goes on in its own folder
    ".*dirpath has changed.*",  # a resumed run has a folder of its own
    r".*self\.log\('(val|test)/.*sync_dist=True.*",  # torchmetrics has synchronised these: all ranks log the same
)

COMPANION = "companion.safetensors"  # in a run's model/: what was trained beside the backbone


@dataclass
class Parts:
    """Task, tokenizer and model of a run, as a config builds them."""

    task: Task
    tokenizer: Any
    model: nn.Module
    stages: list[Stage]
    teacher: nn.Module | None = None
    companion: nn.Module | None = None  # what the task trains beside the model
    notes: tuple[str, ...] = ()  # on what the model starts from

    def sampled(self, batch_size: int, samples: int) -> Batches:
        """Batches of validation rows as the model sees them, for measurements."""
        batches = self.task.sample_batches(batch_size, samples)
        return batches if self.companion is None else Handed(batches, self.task, self.companion)


class Handed(Sequence[Any]):
    """Batches as a companion hands them on: it does so anew each time, for it learns in the meantime.

    Args:
        batches: of the task.
        task: whose the companion is.
        companion: see :meth:`tasks.base.Task.companion`.
    """

    def __init__(self, batches: Batches, task: Task, companion: nn.Module) -> None:
        self.batches, self.task, self.companion = batches, task, companion

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Handed(self.batches[place], self.task, self.companion)
        device, training = next(self.companion.parameters()).device, self.companion.training
        self.companion.eval()
        try:
            with torch.no_grad():
                batch = {name: tensor.to(device) for name, tensor in self.batches[place].items()}
                return self.task.corrupt(batch, self.companion)[0]
        finally:
            self.companion.train(training)


def build(cfg: DictConfig, purpose: str = "fit") -> Parts:
    """The task with its data loaded, the tokenizer, and the compressed model (and its teacher, if one is asked for).

    Args:
        cfg: composed from ``conf/train.yaml``.
        purpose: what for, in Lightning's words: ``fit``, ``validate`` or ``predict``.
    """
    quiet()
    check(cfg)
    method = method_of(cfg)
    stages = stages_of(cfg, method)
    task: Task = instantiated(cfg.task, "task", seed=cfg.seed, num_workers=cfg.hardware.num_workers)
    start = dense_folder(cfg) if cfg.init_from else None
    source = start or (
        hub.model_path(cfg.backbone.hub_id, f"backbone={cfg.backbone.name}") if cfg.backbone.hub_id else None
    )
    if source is not None:
        tokenizer = hub.tokenizer_of(source, published.model_config(source))
    else:
        tokenizer = task.own_tokenizer()
    if tokenizer is None:
        raise SkimError(
            f"backbone={cfg.backbone.name} has no tokenizer of its own, and task={task.name} brings none.\n"
            "Use a pretrained backbone (backbone=minilm), or task=builtin."
        )
    config = backbone_config(cfg, tokenizer, source)
    family = families().get(config.model_type)
    longest = family.longest_input(config) if family is not None else None
    if longest is not None:  # some tokenizers say 1e30; what is longer than this is truncated and counted by the task
        tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    task.setup_tokenizer(tokenizer)
    task.setup(purpose)
    for name, value in task.model_kwargs().items():
        setattr(config, name, value)
    plain = load_backbone(task, config, source)
    task.check_model(plain)
    teacher = None
    check_teacher(cfg, method)
    if teaches(cfg.train) and cfg.train.distill_from == "init":
        if start is None:
            raise SkimError(
                "train.distill needs a teacher: set init_from=<folder of a dense run>, train.distill_from=self, or "
                "train.distill=0 (and train.distill_hidden=0)."
            )
        if (start.parent / "config.yaml").is_file() and recorded(start.parent).task.name != cfg.task.name:
            raise SkimError(
                f"train.distill: the teacher, init_from={cfg.init_from}, was trained on "
                f"task={recorded(start.parent).task.name}, this run is on task={cfg.task.name}."
            )
        teacher = compress(copy.deepcopy(plain), fewer_layers(start)).eval()
    with typed("method"):
        method.read(tokenizer)
        model = compress(plain, method, cfg.execution)
    # a head that reads the first position must find a token there, whatever the tokenizer's config says
    tokenizer.padding_side = "left" if walk_of(model).head.place == "last" else "right"
    if purpose == "fit":
        with typed("method"):
            method.check_fit()
        if (cfg.train.distill_hidden or 0.0) > 0:
            check_states(model, method)
        if cfg.train.freeze is not None:
            freeze(model, cfg.train.freeze)
    continued = Continued()
    notes: tuple[str, ...] = ()
    if purpose == "fit" and start is not None:
        continued = continue_method(method, start)
        notes = untrained(method, start)
    if purpose == "fit" and not cfg.resume:
        check_begin(method, stages, continued)
    companion = task.companion(model)
    if companion is not None and start is not None and (start / COMPANION).is_file():
        restore(companion, unpickled(start / COMPANION), start / COMPANION)
    return Parts(task, tokenizer, model, stages, teacher, companion, (*notes, *continued.notes))


def check_begin(method: Method, stages: Sequence[Stage], continued: Continued) -> None:
    """Refuse a method, or a chain's member, whose first stage is left out and that has not been trained in it."""
    for label, part in method.by_label.items():
        own = [stage.name for stage in stages if stage.name in part.stages]
        if own and own[0] != part.stages[0] and label not in continued.labels:
            raise SkimError(
                f"Stage {own[0]} of method={part.name} starts from what stage {part.stages[0]} has learned.\n"
                f"Set init_from=<a run of method={part.name}>, or train both stages: method={part.name}."
            )


def check_teacher(cfg: DictConfig, method: Method) -> None:
    """Refuse a teacher that would teach itself."""
    if teaches(cfg.train) and cfg.train.distill_from == "self" and method.name == "dense":
        raise SkimError(
            "train.distill_from=self: the dense model is its own uncompressed self, and learns nothing from it.\n"
            "Set init_from=<folder of another dense run> and train.distill_from=init, or train.distill=0 (and "
            "train.distill_hidden=0)."
        )


def quiet() -> None:
    """Silence what is neither a result nor an error; warnings that a user can act on stay."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)  # a profile is a result
    for noise in NOISE:
        warnings.filterwarnings("ignore", noise)
