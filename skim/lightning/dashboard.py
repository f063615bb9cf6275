"""Weights & Biases, only loaded when ``logger=wandb`` asks for it."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import WandbLogger

from skim.methods import method_name


def wandb_logger(cfg: DictConfig, folder: Path) -> WandbLogger:
    """One W&B run per job, with the composed config, tagged by task, method and backbone.

    Offline unless an API key is known: a run must not stop to ask for an account.
    """
    import wandb

    settings = cfg.logger.wandb
    offline = settings.offline
    if offline is None and "WANDB_MODE" not in os.environ:
        known = os.environ.get("WANDB_API_KEY") or wandb.api.api_key
        offline = not known
    wandb.finish()  # a job of a sweep must not write into the run of the job before it
    method = method_name(cfg.method._target_)
    return WandbLogger(
        project=settings.project,
        entity=settings.entity,
        group=settings.group or cfg.task.name,
        tags=[cfg.task.name, method, cfg.backbone.name],
        name=f"{cfg.task.name}-{method}-{cfg.backbone.name}-{cfg.seed}",
        save_dir=str(folder),
        # not the logger's own `offline`: it sets a variable that wandb has read by now, and that the next job inherits
        mode="offline" if offline else None,
        config=OmegaConf.to_container(cfg, resolve=True),
    )
