"""``python -m skim.report wandb-workspace``: the dashboard that W&B would save, panel by panel."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from skim.lightning.loggers import told
from skim.report.__main__ import main
from skim.results import Results

pytest.importorskip("wandb_workspaces")
CURVES = [
    *("train/loss", "val/loss", "train/lr", "train/method_lr/ltp", "train/grad_norm", "train/flops", "train/keep"),
    *("val/keep_ratio", "val/keep_ratio/layer_3", "val/relative_flops", "train/relative_flops_weight"),
    *("train/method/temperature", "train/method/shift", "train/method/goal", "train/method/threshold/layer_11"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What W&B would save, with its panels under their kind."""
    file = tmp_path_factory.mktemp("workspace") / "view.json"
    arguments = [
        "wandb-workspace",
        "--project",
        "mine",
        "--group",
        "tuesday",
        "--batch-sizes",
        "32",
        "--json",
        str(file),
    ]
    assert main(arguments) == 0
    spec = json.loads(file.read_text())
    panels: dict[str, list[Any]] = {}
    for section in spec["section"]["panelBankConfig"]["sections"]:
        for panel in section["panels"]:
            panels.setdefault(panel["viewType"], []).append(panel["config"])
    return {"spec": spec, **panels}


def test_quality_stands_against_cost_and_time_that_runs_report(saved: dict[str, Any]) -> None:
    timing = {name: {"median_ms": 2.0} for name in ("packed", "packed_dense", "padded_hf")}
    results = Results(
        "t", "ltp", "tiny", 1, 0.5, "", {}, monitor="accuracy", metrics={"accuracy": 0.9}, keep_ratio=[1.0]
    )
    results.latency = {"32": timing}
    known = {f"summary:{name}" for name in told.numbers(results)}
    axes = {(panel["xAxis"], panel["yAxis"]) for panel in saved["Scatter Plot"]}
    assert {y for _, y in axes} == {"summary:metric"}
    assert {x for x, _ in axes} == {
        "summary:val/relative_flops",
        "summary:latency/batch_32/ms",
        *(f"summary:latency/batch_32/speedup_over_{name}" for name in ("packed_dense", "padded_hf")),
    }
    assert {one for pair in axes for one in pair} <= known


def test_options_have_an_axis_each_as_they_are_logged(saved: dict[str, Any]) -> None:
    (plot,) = saved["Parallel Coordinates Plot"]
    logged = told.flat({"method": {"_target_": "skim.methods.ltp.LTP", "target": 0.5}, "train": {"lr": 1}, "seed": 1})
    accessors = [column["accessor"] for column in plot["columns"]]
    assert {f"config:{name}.value" for name in logged if "_target_" not in name} <= set(accessors)
    assert accessors[-2:] == ["summary:val/relative_flops", "summary:metric"]


def test_every_curve_has_one_panel(saved: dict[str, Any]) -> None:
    names = [re.compile(panel["metricRegex"]) for panel in saved["Run History Line Plot"]]
    assert all(panel["xAxis"] == "trainer/global_step" for panel in saved["Run History Line Plot"])
    assert {curve: sum(bool(name.search(curve)) for name in names) for curve in CURVES} == dict.fromkeys(CURVES, 1)


def test_sentences_and_latency_are_tables_of_one_group(saved: dict[str, Any]) -> None:
    shown = json.dumps(saved["Weave"])
    assert '"sentences"' in shown
    assert '"latency"' in shown
    (runs,) = saved["spec"]["section"]["runSets"]
    (one,) = runs["filters"]["filters"]
    assert (one["key"], one["op"], one["value"]) == ({"section": "run", "name": "group"}, "=", "tuesday")


def test_without_the_package_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert main(["wandb-workspace"]) == 2
    assert 'pip install "skim[wandb]"' in " ".join(capsys.readouterr().err.split())


def test_without_a_key_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb")

    def api() -> None:
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "Api", api)
    assert main(["wandb-workspace"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "W&B cannot be used: No API key configured. Log in (wandb login), or write the dashboard" in said


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "view.json"
    file.mkdir()
    assert main(["wandb-workspace", "--json", str(file)]) == 2
    assert f"error: {file} cannot be written: " in " ".join(capsys.readouterr().err.split())
