"""Weights & Biases, only loaded when ``logger=wandb`` asks for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import WandbLogger

from skim.methods import method_name
from skim.report.runs import speedups
from skim.results import Results


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
        group=settings.group or sweep() or cfg.task.name,
        tags=[cfg.task.name, method, cfg.backbone.name],
        name=f"{cfg.task.name}-{method}-{cfg.backbone.name}-{cfg.seed}",
        save_dir=str(folder),
        # not the logger's own `offline`: it sets a variable that wandb has read by now, and that the next job inherits
        mode="offline" if offline else None,
        config=OmegaConf.to_container(cfg, resolve=True),
    )


def sweep() -> str | None:
    """The name of the folder of the sweep that this job is of, if it is of one."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).name


def conclude(results: Results) -> None:
    """End the job's W&B run, as failed if the job has: its summary is what ``results.json`` says."""
    import wandb

    if wandb.run is None:  # another rank's affair, or the job came to an end before it began
        return
    wandb.run.summary.update(summary(results))
    wandb.finish(exit_code=0 if results.status == "done" else 1)


def summary(results: Results) -> dict[str, Any]:
    """Final numbers of a run, under the names of its curves where it has some."""
    found: dict[str, Any] = {"status": results.status, "notes": "\n".join(results.notes), "steps": results.steps}
    found["wall_seconds"] = results.wall_seconds
    if results.metrics:
        spent = {name: getattr(results, name) for name in ("relative_flops", "gflops", "baseline_gflops")}
        layers = {f"keep_ratio/layer_{i}": ratio for i, ratio in enumerate(results.keep_ratio)}
        spent["keep_ratio"] = sum(results.keep_ratio) / len(results.keep_ratio)
        found |= {f"val/{name}": value for name, value in {**results.metrics, **spent, **layers}.items()}
        found["exported"] = results.exported
    found |= {f"masked/{name}": value for name, value in (results.masked_metrics or {}).items()}
    for batch, timings in (results.latency or {}).items():
        found |= {f"latency/batch_{batch}/{name}_ms": ms["median_ms"] for name, ms in timings.items()}
    for (size, baseline), ratio in speedups(results.to_dict()).items():
        found[f"latency/batch_{size}/speedup_over_{baseline}"] = ratio
    return found
