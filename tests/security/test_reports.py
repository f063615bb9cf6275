"""Reports show what strangers wrote as text; files of runs hold no key of the environment."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest

from skim.lightning.recipe import train
from skim.report.document import cell
from skim.report.heatmap import SkimmedText
from skim.report.overview import markdown, table
from skim.report.page import write_page
from skim.report.runs import aggregate
from tests.report.results import results
from tests.runs import small

EVIL = "</script></pre></style><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", " =1", "\uff1d1", "|calc"]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_no_script_of_a_run_runs_in_its_page(tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the extra dev")
    run = results(
        task=EVIL, method=EVIL, backbone=EVIL, monitor=EVIL, metrics={EVIL: 0.5}, notes=[EVIL], command=EVIL,
        config={EVIL: EVIL}, versions={EVIL: EVIL}, git_commit=EVIL,
    )  # fmt: skip
    write_page(tmp_path / "report.html", run, [SkimmedText([EVIL, "film"], [3, 1], [2, 2, 1], EVIL)])
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER)
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        assert page.title() != "run"
        assert page.locator("script").count() == page.locator("img").count() == 0
        assert EVIL in page.locator("main").inner_text()
        assert len(asked) == 1
        browser.close()


@pytest.mark.parametrize("formula", FORMULAS)
def test_no_cell_of_a_csv_is_a_formula(formula: str) -> None:
    run = results(task=formula, backbone=formula, monitor=formula, metrics={formula: 0.5}, command=formula)
    rows = list(csv.reader(io.StringIO(table(aggregate([{**run, "folder": "run"}]), Path(), {}))))
    assert [f"'{formula}"] * 4 == [one for one in rows[1] if formula in one and "accuracy" not in one][:4]
    assert not [one for row in rows for one in row if one.lstrip().startswith(("=", "+", "@", "|", "\uff1d"))]
    assert cell(-0.5) == -0.5, "a number stays one"


def test_markdown_of_a_report_holds_no_html_and_no_row_more() -> None:
    evil = f"a|b {EVIL}\n| c | d |"
    run = results(task=evil, backbone=evil, monitor=evil, metrics={evil: 0.5})
    text = markdown(aggregate([{**run, "folder": "run"}]), Path(), {evil: evil})
    assert "<script" not in text
    assert "<img" not in text
    (heads, rule, row) = [line for line in text.splitlines() if line.startswith("|")]
    columns = [line.replace("\\|", "").count("|") for line in (heads, rule, row)]
    assert columns == [columns[0]] * 3


def test_no_key_of_the_environment_is_in_any_file_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = {
        name: f"secret-{name.lower()}-0123456789" for name in ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    }
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    train(small("method=dense", "train.max_steps=1", "train.calibrate=0"), tmp_path / "run", "python train.py")
    said = "".join(capfd.readouterr()).encode()
    contents = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(contents) > 8
    assert not [name for name, value in keys.items() for one in (*contents, said) if value.encode() in one]
