"""The learning rate that a range test suggests, for ``train.lr_find``: Lightning's Tuner on a copy of the model."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.tuner.tuning import Tuner
from pytorch_lightning.utilities.seed import isolate_rng

from skim.errors import SkimError
from skim.files import replacing
from skim.lightning.assembly import module_of
from skim.lightning.build import Parts
from skim.lightning.check import method_of
from skim.lightning.stages import stages_of

STEPS = 100
LOW, HIGH = 1e-7, 1e-1
PICTURE = "lr_find.png"  # in a run's folder


@dataclass(frozen=True)
class RangeTest:
    """Outcome of raising the learning rate step by step, in equal factors.

    Attributes:
        rate: where the smoothed loss falls most steeply.
        finder: Lightning's, with all rates and losses.
        note: what was found, and at which rate the run trains.
    """

    rate: float
    finder: Any
    note: str

    def draw(self, folder: Path) -> None:
        """Draw loss against rate, the suggestion as a dot."""
        figure = self.finder.plot(suggest=True)
        with replacing(folder / PICTURE) as part:
            figure.savefig(part, dpi=120, bbox_inches="tight")


def tuned(cfg: DictConfig, parts: Parts, processes: int) -> tuple[DictConfig, RangeTest | None]:
    """Run the test that ``train.lr_find`` asks for; with ``use``, its rate goes into the config and the stages.

    Args:
        cfg: of the run; one that goes on with another has been tested before.
        parts: of the run.
        processes: of the training.

    Raises:
        SkimError: there are several processes, or no rate was found.
    """
    if cfg.train.lr_find is None or cfg.resume is not None:
        return cfg, None
    if processes > 1:
        raise SkimError(
            f"train.lr_find={cfg.train.lr_find} tests on one device, and this run has {processes}.\n"
            "Find the rate with hardware.devices=1, at the same task.batch_size, and set train.lr."
        )
    finder = range_test(cfg, parts)
    rate, use = finder.suggestion(), cfg.train.lr_find == "use"
    if rate is None:
        raise SkimError(
            "train.lr_find: the losses of its steps suggest no learning rate.\nLeave it away and set train.lr."
        )
    rate = float(f"{rate:.3g}")
    note = f"train.lr_find: {rate:g} suggested, {'in place of' if use else 'trained at'} train.lr={cfg.train.lr:g}"
    if use:
        cfg = cast(DictConfig, OmegaConf.merge(cfg, {"train": {"lr": rate}}))
        parts.stages = stages_of(cfg, method_of(cfg))
    return cfg, RangeTest(rate, finder, note)


def range_test(cfg: DictConfig, parts: Parts) -> Any:
    """Raise the rate of backbone and head from 1e-7 to 0.1 in 100 steps, of the method's first stage.

    The method's own parameters, which have a rate of their own, stay as they are, and there is no teacher. Model and
    random numbers are left as they were; the same command finds the same rate. Returns Lightning's finder.
    """
    alone = {"method_lr": 0.0, "distill": 0.0, "distill_hidden": 0.0, "ema": None, "method_after": 0.0, "calibrate": 0}
    trained = cast(DictConfig, OmegaConf.merge(cfg, {"train": alone}))
    first = replace(parts.stages[0], method_lr=0.0, members={})
    with isolate_rng(), tempfile.TemporaryDirectory() as folder:
        pl.seed_everything(cfg.seed, verbose=False)
        model, companion = copy.deepcopy((parts.model, parts.companion))  # in one, for what they share
        module = module_of(trained, replace(parts, model=model, companion=companion, stages=[first], teacher=None))
        module.method.requires_grad_(False)
        if first.name:
            module.method.enter(first.name)
        module.train()  # the callbacks that would see to both are put aside by the Tuner
        trainer = pl.Trainer(
            default_root_dir=folder,
            accelerator=cfg.hardware.accelerator,
            devices=cfg.hardware.devices,
            precision=cfg.hardware.precision,
            max_steps=STEPS,
            accumulate_grad_batches=cfg.train.accumulate,
            gradient_clip_val=cfg.train.clip,
            val_check_interval=STEPS * cfg.train.accumulate + 1,  # never
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        bounds: Any = {"min_lr": LOW, "max_lr": HIGH, "num_training": STEPS}
        return Tuner(trainer).lr_find(module, datamodule=parts.task, update_attr=False, **bounds)
