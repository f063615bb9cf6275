"""Files of a report of many runs; what a browser makes of the page is in :mod:`tests.report.test_browser`."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from skim.report.__main__ import around, main
from skim.report.found import Found, collect
from skim.report.heatmap import SkimmedText, write_texts
from skim.report.history import history
from skim.report.overview import compared, content, table, write_overview
from skim.report.pareto import front
from skim.report.runs import aggregate
from tests.report.results import dense, results

EVIL = "<script>document.title = 'run'</script>"


def written(folder: Path, run: dict[str, Any], page: bool = True) -> Path:
    """A run's folder, with a page unless it has none."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(run))
    if page:
        (folder / "report.html").write_text("<title>a run</title>")
    return folder


def some(root: Path) -> Path:
    """Runs of two tasks: dense, dropped layers and Transkimmer at two targets, one with two seeds; and a broken one."""
    written(root / "dense", dense(parameters=22_000_000))
    for layers in (2, 4):
        config = {"method": {"layers": layers}}
        run = dense(
            method="layer_drop", config=config, relative_flops=layers / 6, metrics={"accuracy": 0.805 + layers * 0.0175}
        )
        written(root / f"drop-{layers}", run, page=False)
    for seed, accuracy in ((1, 0.87), (2, 0.89)):
        bucket = {"from": 3, "to": 9, "rows": 40, "tokens": 6.5, "score": accuracy, "relative_flops": 0.4}
        more = {"by_length": [bucket, bucket | {"from": 10, "to": 30}], "parameters": 23_000_000}
        run = results(seed=seed, metrics={"accuracy": accuracy}, command=f"python train.py seed={seed} {EVIL}", **more)
        folder = written(root / f"tk 50%-{seed}", run)
        write_texts(folder, [SkimmedText(["[CLS]", EVIL, "fun", "##ny"], [3, 3, 1, 0], [4, 2, 2], EVIL)])
        lines = [f"{step},{1 / (step + 1)},{accuracy if step % 9 == 0 else ''},1" for step in range(100)]
        (folder / "metrics.csv").write_text("\n".join(["step,train/loss,val/accuracy,x", *lines, "100,0.5"]))
    written(root / "other", results(task=EVIL, target=0.3, metrics={"accuracy": 0.7}))
    written(root / "other-dense", dense(task=EVIL))
    (written(root / "half", results()) / "results.json").write_text('{"schema": 1,')
    written(root / "failed", results(status="failed", metrics={}, notes=["out of memory"]))
    return root


def test_the_command_writes_page_tables_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(some(tmp_path / "runs")), "--out", str(tmp_path / "out")]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"report.html", "report.md", "report.csv", "curve-sst2.png", "curve-sst2.svg"} <= names
    assert "half-written" in capsys.readouterr().out
    with (tmp_path / "out" / "report.csv").open() as file:
        rows = {(row["task"], row["setting"]): row for row in csv.DictReader(file)}
    assert len(rows) == 6
    row = rows["sst2", "transkimmer 0.5"]
    assert (row["seeds"], row["metric"], float(row["value"])) == ("1 2", "accuracy", pytest.approx(0.88))
    assert float(row["value std"]) == pytest.approx(0.02 / 2**0.5)
    assert float(row["time / padded, batch 32"]) == pytest.approx(1 / 3)
    assert float(row["parameters"]) == 23e6
    assert row["folders"] == "../runs/tk 50%-2 ../runs/tk 50%-1", "the best first"
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| **transkimmer 0.5** | minilm | 1 2 | 0.8800±.0141 | 0.480" in text
    assert "| layer_drop, layers=4 | minilm | 1 | 0.8750 | 0.667" in text, "worse than Transkimmer for more"
    assert "failed: out of memory" in text
    assert "<script" not in text


def test_the_page_needs_nothing_and_links_to_the_pages_of_runs(tmp_path: Path) -> None:
    page, *_ = write_overview(collect([some(tmp_path / "runs")]), tmp_path)
    whole = page.read_text(encoding="utf-8")
    own = re.sub(r'<script type="module">.*?</script>', "", whole, flags=re.DOTALL)
    assert not re.search(r"https?://|@import|url\(|<link|\bsrc=", own)
    assert EVIL not in whole
    assert 'href="runs/tk%2050%25-2/report.html"' in own
    assert "drop-2/report.html" not in own, "it has no page"


def test_settings_of_dropped_layers_are_a_line(tmp_path: Path) -> None:
    settings = aggregate(collect([some(tmp_path)]).runs)
    assert {s.name: s.line for s in settings if s.method == "layer_drop"} == {
        "layer_drop, layers=4": "",
        "layer_drop, layers=2": "",
    }
    apart = [results(config={"method": {"bottleneck": n}}) for n in (1, 2)]
    assert {s.line for s in aggregate(apart)} == {"bottleneck=1", "bottleneck=2"}, "with a target, that is the budget"


def test_five_hundred_runs_fit_a_page(tmp_path: Path) -> None:
    runs = []
    for number in range(500):
        target = 0.2 + number // 2 / 400
        run = results(seed=number % 2, target=target, relative_flops=target, metrics={"accuracy": target / 2 + 0.4})
        runs.append({**run, "folder": str(tmp_path / f"run-{number}")})
    page, *_ = write_overview(Found(runs, {}), tmp_path)
    assert page.stat().st_size < 5e6
    assert page.read_text().count("<tr data-setting") == 250


def test_a_report_does_not_take_the_place_of_a_runs_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (written(tmp_path / name, run) for name, run in (("one", results()), ("other", dense())))
    assert around([one]) == one / "report"
    assert around([one, other]) == tmp_path
    assert around([one / "results.json", other]) == tmp_path
    assert main([str(tmp_path), "--out", str(one)]) == 2
    assert "is the folder of a run" in capsys.readouterr().err
    assert (one / "report.html").read_text() == "<title>a run</title>"
    assert main([str(tmp_path), "--out", str(one / "results.json")]) == 2
    assert "results.json: File exists." in capsys.readouterr().err


def test_training_curves_are_thinned_and_half_a_line_is_left_out(tmp_path: Path) -> None:
    run = {**results(), "folder": str(some(tmp_path) / "tk 50%-1")}
    found = history(run, 10)
    assert {name: len(steps) for name, (steps, _) in found.items()} == {"metric": 10, "loss": 10}
    steps, losses = found["loss"]
    assert (steps[0], steps[-1], losses[0], losses[-1]) == (0, 99, 1, 0.01)
    assert history({**run, "folder": str(tmp_path)}, 10) == {}


def test_texts_are_matched_whatever_the_tokenizer(tmp_path: Path) -> None:
    settings = aggregate([dense(), results(), results(target=0.3)])
    bert = SkimmedText(["A", "fun", "##ny", "film"], [2, 1, 0, 2], [4, 2])
    other = SkimmedText(["a", "funny", "fi", "##lm"], [1, 1, 1, 1], [4, 0])
    alone = SkimmedText(["word"] * 300, [1] * 300, [300, 0])
    both, one = compared(settings, [[bert], [other], [alone]])
    assert [(read["setting"], read["words"]) for read in both["read"]] == [
        (0, [["A"], ["fun", "ny"], ["film"]]),
        (1, [["a"], ["funny"], ["fi", "lm"]]),
    ]
    assert both["read"][0]["survived"] == [2, 1, 0, 2]
    assert (len(one["read"][0]["survived"]), one["read"][0]["cut"]) == (200, True)


def test_texts_that_cannot_be_read_harm_no_other_run(tmp_path: Path) -> None:
    folder = some(tmp_path / "runs")
    (folder / "dense" / "examples.json").write_text("[{}]")
    data, broken = content(aggregate(collect([folder]).runs), tmp_path)
    assert list(broken) == ["runs/dense"]
    assert len(data["texts"]) == 1


def test_a_run_that_diverged_and_curves_that_cannot_be_read_harm_no_other_run(tmp_path: Path) -> None:
    folder = some(tmp_path / "runs")
    written(folder / "diverged", results(target=0.4, relative_flops=0.1, metrics={"accuracy": math.nan}))
    (folder / "dense" / "metrics.csv").write_text("step,train/loss\nten,much\n")
    settings = aggregate(collect([folder]).runs)
    data, broken = content(settings, tmp_path)
    assert json.dumps(data, allow_nan=False), "a browser reads no nan, and would draw nothing"
    assert [one["metric"] for one in data["settings"] if one["name"] == "transkimmer 0.4"] == [None]
    assert "transkimmer 0.4" not in {one.name for one in front(settings, lambda one: one.relative_flops)}
    assert list(broken) == ["runs/dense"]
    assert "does not hold the curves of a run" in broken["runs/dense"]


def test_a_spreadsheet_takes_no_text_for_a_formula(tmp_path: Path) -> None:
    run = {**results(task="=HYPERLINK(1)", command="@SUM(1)", target=-1.0), "folder": str(tmp_path)}
    (row,) = csv.DictReader(table(aggregate([run]), tmp_path, {}).splitlines())
    assert (row["task"], row["command"], row["target"]) == ("'=HYPERLINK(1)", "'@SUM(1)", "-1")
