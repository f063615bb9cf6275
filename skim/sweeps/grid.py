"""Grids of jobs, for Hydra: as its own sweeper runs them, in a folder that a sweep can go on in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from rich.console import Console

from skim.errors import SkimError
from skim.options.tree import leaves
from skim.signals import Stopped
from skim.sweeps.folder import Asked, Job, Sweep
from skim.sweeps.job import Recorded
from skim.sweeps.launch import launch
from skim.sweeps.plan import Plan
from skim.sweeps.summary import print_summary


class Grid(BasicSweeper):
    """The union of grids, without the jobs of it that a folder has the results of.

    Args:
        plan: what the command asks for.
        command: as typed.
        max_batch_size: jobs that are launched at a time.
        params: overrides that a config file wants swept over.
    """

    def __init__(
        self, plan: Plan, command: str, max_batch_size: int | None = None, params: dict[str, str] | None = None
    ) -> None:
        super().__init__(max_batch_size, params)
        self.plan, self.command = plan, command

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        recorded = Recorded.here(task_function)
        super().setup(hydra_context=hydra_context, task_function=recorded, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Run what has not finished, and print all.

        Raises:
            SkimError: a job failed, or the folder is another sweep's.
        """
        assert self.config is not None
        assert self.launcher is not None
        folder = Path(self.config.hydra.sweep.dir)
        sweep = Sweep(folder)
        console = Console()
        with sweep.claimed(self.command, self.plan.typed, self.plan.resumed):
            asked = [Asked(tuple(one), self.composed(one)) for grid in self.plan.grids for one in self.combined(grid)]
            jobs = sweep.enlist(asked, swept=differing([one.config for one in asked]))
            try:
                launch(self.launcher, self.config.hydra.launcher, jobs, console, self.max_batch_size)
            except (KeyboardInterrupt, SystemExit, Stopped):
                console.print(f"The sweep was interrupted; sweep.resume={folder} goes on with it.", soft_wrap=True)
                raise
            jobs = [Job.at(job.folder) for job in jobs]
        print_summary(jobs, sweep, console)
        if left := [job for job in jobs if job.state != "done"]:
            have, them = ("has", "it") if len(left) == 1 else ("have", "them")
            raise SkimError(
                f"{len(left)} of {len(jobs)} jobs {have} not finished.\nsweep.resume={folder} tries {them} again."
            )

    def combined(self, grid: Sequence[str]) -> list[list[str]]:
        """List the overrides of each job of a grid."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = [o for o in parser.parse_overrides([*self._parse_config(), *grid]) if not o.is_hydra_override()]
        return [job for batch in self.split_arguments(overrides, None) for job in batch]

    def composed(self, overrides: Sequence[str]) -> DictConfig:
        """Compose the whole configuration of a job, as its launcher will."""
        assert self.hydra_context is not None
        assert self.config is not None
        return self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))


def differing(configs: Sequence[dict[str, Any]]) -> set[str]:
    """Find the options in which configurations differ."""
    flat = [dict(leaves(config)) for config in configs]
    keys = {key for one in flat for key in one}
    return {key for key in keys if any(one.get(key) != flat[0].get(key) for one in flat)}
