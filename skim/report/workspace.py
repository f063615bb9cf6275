"""A project's dashboard on Weights & Biases, made by code: ``python -m skim.report wandb-workspace --project skim``.

What its panels show is what ``logger=wandb`` writes, see :mod:`skim.lightning.loggers.told`. It needs the package
``wandb-workspaces``, of the extra ``wandb``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from skim.errors import SkimError, first_line, message
from skim.files import write_json

BASELINES = ("packed_dense", "padded_hf")
COLUMNS = ("method.name", "method.target", "train.lr", "train.method_lr", "seed")  # of options; parallel coordinates


def workspace(entity: str, project: str, name: str, group: str | None, metric: str, batch_sizes: Sequence[int]) -> Any:
    """Make the dashboard: quality against cost, layers, the options side by side, sentences, time.

    Args:
        entity: user or team.
        project: of the runs.
        name: of the dashboard.
        group: of runs, such as a sweep's folder; ``None`` shows all.
        metric: number of the runs' summaries that counts.
        batch_sizes: at which latency was measured.

    Raises:
        SkimError: the package that makes it is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise SkimError(
            "python -m skim.report wandb-workspace needs wandb-workspaces, which is not installed.\n"
            'Install it: pip install "skim[wandb]"'
        ) from error
    quality = wr.SummaryMetric(metric)
    cost = wr.SummaryMetric("val/relative_flops")
    fronts = [wr.ScatterPlot(title=f"{metric} against relative FLOPs", x=cost, y=quality)]
    for size in batch_sizes:
        time = wr.SummaryMetric(f"latency/batch_{size}/ms")
        fronts.append(wr.ScatterPlot(title=f"{metric} against milliseconds, batch {size}", x=time, y=quality))
        for baseline in BASELINES:
            speedup = wr.SummaryMetric(f"latency/batch_{size}/speedup_over_{baseline}")
            title = f"{metric} against speedup over {baseline}, batch {size}"
            fronts.append(wr.ScatterPlot(title=title, x=speedup, y=quality))

    class Option(wr.ParallelCoordinatesPlotColumn):
        """The axis of an option. The package takes dots for levels of a nested config, and ours is flat."""

        def _to_model(self) -> Any:
            model = super()._to_model()
            model.accessor = f"config:{self.metric.name}.value"
            return model

    axes = [
        *(Option(metric=wr.Config(option), display_name=option) for option in COLUMNS),
        wr.ParallelCoordinatesPlotColumn(metric=cost, display_name="relative FLOPs"),
        wr.ParallelCoordinatesPlotColumn(metric=quality, display_name=metric),
    ]
    sections: dict[str, Any] = {
        "Quality against cost": fronts,
        "Options": [wr.ParallelCoordinatesPlot(title="options, cost and quality", columns=axes)],
        "Keep ratio": [
            curve("keep ratio by layer, evaluation", r"^val/keep_ratio/layer_\d+$"),
            curve("keep ratio", r"^(train/keep|val/keep_ratio)$"),
            curve("relative FLOPs", r"^(train/flops|val/relative_flops|train/method/goal)$"),
        ],
        "Method": [
            curve("thresholds", r"^train/method/.*threshold/layer_\d+$"),
            curve("temperature, shift", r"^train/method/.*(temperature|shift)$"),
            curve("weights of penalties", r"^train/.*_weight$"),
        ],
        "Training": [
            curve("loss", r"^(train|val)/loss$"),
            curve("learning rates", r"^train/(method_)?lr"),
            curve("norms of gradients", r"^train/(method_)?grad_norm"),
        ],
        "Sentences and time": [
            wr.WeavePanelSummaryTable(table_name="sentences"),
            wr.WeavePanelSummaryTable(table_name="latency"),
        ],
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(name=title, panels=panels, is_open=True, layout_settings=ws.SectionLayoutSettings(columns=3))
            for title, panels in sections.items()
        ],
        runset_settings=ws.RunsetSettings(filters="" if group is None else f"Metric('group') == {group!r}"),
    )


def curve(title: str, names: str) -> Any:
    """A panel of all curves whose names match, over optimizer steps."""
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(title=title, x="trainer/global_step", metric_regex=names)


def spec(made: Any) -> dict[str, Any]:
    """Write a dashboard as W&B saves it, in JSON's types."""
    found: dict[str, Any] = json.loads(made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    return found


def saved(made: Any) -> str:
    """Save a dashboard on W&B; returns its address.

    Raises:
        SkimError: without an API key, or where W&B cannot be reached.
    """
    import requests
    import wandb

    try:
        if not made.entity:
            made.entity = wandb.Api().default_entity
        made.save()
    except (wandb.errors.Error, requests.RequestException, ValueError) as error:
        raise SkimError(
            f"W&B cannot be used: {first_line(error)}.\n"
            "Log in (wandb login), or write the dashboard to a file: --json <file>"
        ) from error
    return str(made.url)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m skim.report wandb-workspace", description=__doc__)
    parser.add_argument("--project", default="skim", help="of the runs (skim)")
    parser.add_argument("--entity", help="user or team; your default if not given")
    parser.add_argument("--name", default="skim", help="of the dashboard (skim)")
    parser.add_argument("--group", help="runs of one group, such as the folder of a sweep; all if not given")
    parser.add_argument("--metric", default="metric", help="that counts, in runs' summaries; metric is each task's own")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32], help="of benchmark.batch_sizes (1 32)")
    parser.add_argument("--json", type=Path, help="write what W&B would save to this file, and save nothing")
    asked = parser.parse_args(arguments)
    try:
        made = workspace(asked.entity or "", asked.project, asked.name, asked.group, asked.metric, asked.batch_sizes)
        if asked.json is None:
            said = saved(made)
        else:
            write_json(asked.json, spec(made))
            said = str(asked.json)
    except SkimError as error:
        print(f"error: {message(error)}", file=sys.stderr)
        return 2
    Console().print(Text(said), soft_wrap=True)
    return 0
