"""Weights & Biases, only loaded when ``logger=wandb`` asks for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from pytorch_lightning.loggers import WandbLogger

from skim.methods import method_name
from skim.report.runs import speedups
from skim.results import Results


class Dashboard(WandbLogger):
    """One W&B run per job, tagged by task, method and backbone.

    Offline unless an API key is known: a run must not stop to ask for an account.

    Args:
        project: on the dashboard.
        entity: user or team; ``None``: the user's default.
        group: of runs that are shown together; ``None``: those of the sweep that this job is of, or of the task.
        offline: write locally only; ``None``: unless an API key is known.
        save_dir: where to.
        task: its name.
        method: its class, by a dotted name.
        backbone: its name.
        seed: of the run.
    """

    def __init__(
        self,
        project: str,
        entity: str | None,
        group: str | None,
        offline: bool | None,
        save_dir: str,
        task: str,
        method: str,
        backbone: str,
        seed: int,
    ) -> None:
        import wandb

        if offline is None and "WANDB_MODE" not in os.environ:
            offline = not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key)
        wandb.finish()  # a job of a sweep must not write into the run of the job before it
        name = method_name(method)
        super().__init__(
            project=project,
            entity=entity,
            group=group or sweep() or task,
            tags=[task, name, backbone],
            name=f"{task}-{name}-{backbone}-{seed}",
            save_dir=save_dir,
            # not the logger's own `offline`: it sets a variable that wandb has read by now, and the next job inherits
            mode="offline" if offline else None,
        )

    def conclude(self, results: Results) -> None:
        """End the job's run, as failed if the job has: its summary is what ``results.json`` says."""
        import wandb

        if wandb.run is None:  # another rank's affair, or the job came to an end before it began
            return
        wandb.run.summary.update(summary(results))
        wandb.finish(exit_code=0 if results.status == "done" else 1)


def sweep() -> str | None:
    """The name of the folder of the sweep that this job is of, if it is of one."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).name


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
