"""Weights & Biases, only loaded when ``logger=wandb`` asks for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from skim.errors import first_line
from skim.lightning.loggers.lasting import Lasting
from skim.lightning.loggers.told import numbers, sentences, sweep, times
from skim.methods import method_name
from skim.options.declared import checked
from skim.report.heatmap import SkimmedText, page
from skim.results import Results

Artifacts = Literal["none", "model", "all"]


class Dashboard(Lasting, WandbLogger):
    """One W&B run per job, tagged by task, method and backbone.

    Offline unless an API key is known: a run must not stop to ask for an account. Nor does it stop where W&B cannot be
    reached or does not take the key; then it goes on offline, and says so.

    Args:
        project: on the dashboard.
        entity: user or team; ``None``: the user's default.
        group: of runs that are shown together; ``None``: those of the sweep that this job is of, or of the task.
        job_type: what kind of job this is, to filter by.
        tags: besides task, method and backbone.
        offline: write locally only; ``None``: unless an API key is known.
        timeout: seconds to wait for W&B before the run goes on offline.
        artifacts: files that W&B keeps of a finished run: ``none``, its ``model``, or ``all``, checkpoints too.
        save_dir: the run's folder.
        task: its name.
        method: its class, by a dotted name.
        backbone: its name.
        seed: of the run.
    """

    @checked
    def __init__(
        self,
        project: str,
        entity: str | None,
        group: str | None,
        job_type: str | None,
        tags: list[str],
        offline: bool | None,
        timeout: float,
        artifacts: Artifacts,
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
            job_type=job_type,
            tags=list(dict.fromkeys([task, name, backbone, *tags])),
            name=f"{task}-{name}-{backbone}-{seed}",
            save_dir=save_dir,
            settings=wandb.Settings(init_timeout=timeout),
            # not the logger's own `offline`: it sets a variable that wandb has read by now, and the next job inherits
            mode="offline" if offline else None,
        )
        self.artifacts = artifacts

    @property
    def experiment(self) -> Any:
        """The run of wandb, begun when it is first asked for."""
        import wandb

        try:
            return super().experiment
        except wandb.errors.Error as error:
            folder = self.save_dir
            print(
                f"W&B cannot be used: {first_line(error)}.\n"
                f"The run goes on offline; `wandb sync {folder}/wandb/offline-run-*` uploads it later.",
                file=sys.stderr,
            )
            self._wandb_init["mode"] = "offline"
            return super().experiment

    @rank_zero_only
    def log_sentences(self, texts: Sequence[SkimmedText], step: int) -> None:
        """Write a table of sentences, one below the other, each with a shaded picture of itself."""
        import wandb

        columns, rows = sentences(texts)
        shaded = [wandb.Html(page([text], "Skimmed text"), inject=False) for text in texts]
        data = [[*row, picture] for row, picture in zip(rows, shaded, strict=True)]
        self.sent(lambda: self.log_table("sentences", [*columns, "shades"], data, step=step))

    @rank_zero_only
    def conclude(self, results: Results) -> None:
        """End the job's run, as failed if the job has: its summary is what ``results.json`` says."""
        import wandb

        if wandb.run is None:  # the job came to an end before it began
            return
        columns, rows = times(results)
        if rows:
            self.log_table("latency", columns, rows)
        said = {"status": results.status, "notes": "\n".join(results.notes), "exported": results.exported}
        wandb.run.summary.update({**numbers(results), **said})
        try:
            if results.status == "done":
                self.keep(Path(str(self.save_dir)))
        finally:
            wandb.finish(exit_code=0 if results.status == "done" else 1)

    def keep(self, folder: Path) -> None:
        """Hand the files of a finished run over to W&B, as versions of an artifact that is named after the run."""
        import wandb

        kinds = {"none": (), "model": ("model",), "all": ("model", "checkpoints")}[self.artifacts]
        for kind in kinds:
            artifact = wandb.Artifact(f"{self._wandb_init['name']}-{kind}", type=kind)
            artifact.add_dir(str(folder / kind), policy="immutable")  # nobody writes there any more: no copy is needed
            self.experiment.log_artifact(artifact)
