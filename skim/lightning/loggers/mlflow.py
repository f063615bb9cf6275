"""MLflow: ``logger=mlflow``, into a server's or a file's database."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from pytorch_lightning.loggers import MLFlowLogger
from pytorch_lightning.utilities import rank_zero_only

from skim.errors import SkimError, first_line
from skim.lightning.loggers.lasting import Lasting
from skim.lightning.loggers.told import markdown, numbers, require, sweep, times
from skim.methods import method_name
from skim.options.declared import checked
from skim.report.heatmap import SkimmedText, page
from skim.results import Results

LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}  # MLflow's own hold a run up
STATUS = {"done": "FINISHED", "failed": "FAILED", "preempted": "KILLED"}


class MLflow(Lasting, MLFlowLogger):
    """One MLflow run per job, tagged by task, method, backbone and sweep.

    Args:
        experiment: name of the experiment that runs belong to.
        tracking_uri: of a server or a database; ``None``: ``MLFLOW_TRACKING_URI``, or a file beside all runs.
        tags: besides task, method and backbone.
        artifacts: files that MLflow keeps of a finished run: ``none``, its ``model``, or ``all``, checkpoints too.
        runs: the folder of all runs, for that file.
        save_dir: the run's folder.
        task: its name.
        method: its class, by a dotted name.
        backbone: its name.
        seed: of the run.
    """

    @checked
    def __init__(
        self,
        experiment: str,
        tracking_uri: str | None,
        tags: list[str],
        artifacts: Literal["none", "model", "all"],
        runs: str,
        save_dir: str,
        task: str,
        method: str,
        backbone: str,
        seed: int,
    ) -> None:
        require("mlflow", "mlflow", "mlflow")
        home, name = Path(runs).absolute(), method_name(method)
        for limit, value in LIMITS.items():
            os.environ.setdefault(limit, value)
        uri, location = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"), None
        if uri is None:
            require("sqlalchemy", "mlflow", "mlflow")
            home.mkdir(parents=True, exist_ok=True)
            uri, location = f"sqlite:///{home / 'mlflow.db'}", (home / "mlartifacts").as_uri()
        group = {} if sweep() is None else {"group": sweep()}
        told = {**dict.fromkeys(tags, "true"), "task": task, "method": name, "backbone": backbone, **group}
        self.lock = home / "mlflow.lock" if location else None
        self.folder, self.artifacts = Path(save_dir), artifacts
        super().__init__(experiment, f"{task}-{name}-{backbone}-{seed}", uri, tags=told, artifact_location=location)

    @property
    def experiment(self) -> Any:
        """The client of MLflow, with a run begun when it is first asked for.

        Raises:
            SkimError: the server or database cannot be used.
        """
        if self._initialized:
            return super().experiment
        from mlflow.exceptions import MlflowException

        try:
            if self.lock is None:
                return super().experiment
            with FileLock(self.lock):  # jobs that start side by side would all make the experiment
                return super().experiment
        except MlflowException as error:
            raise SkimError(f"logger.mlflow cannot use {self._tracking_uri}: {first_line(error)}.") from error

    @rank_zero_only
    def log_sentences(self, texts: Sequence[SkimmedText], step: int) -> None:
        """Keep a page of shaded sentences among the run's artifacts."""
        file = f"sentences/step-{step:07}.html"
        self.sent(lambda: self.experiment.log_text(self.run_id, page(texts, f"Step {step}"), file))

    @rank_zero_only
    def conclude(self, results: Results) -> None:
        """End the job's run, as failed if the job has: the last value of each metric is what ``results.json`` says."""
        if not self._initialized:
            return
        self.until = 0.0  # it is asked once more, whatever was before
        self.log_metrics(numbers(results), results.steps)
        self.experiment.set_tag(self.run_id, "mlflow.note.content", "\n\n".join(results.notes))
        columns, rows = times(results)
        if rows:
            self.experiment.log_text(self.run_id, markdown(columns, rows), "latency.md")
        kept = {"none": (), "model": ("model",), "all": ("model", "checkpoints")}[self.artifacts]
        for kind in kept if results.status == "done" else ():
            self.experiment.log_artifacts(self.run_id, str(self.folder / kind), kind)
        self.experiment.set_terminated(self.run_id, STATUS[results.status])
