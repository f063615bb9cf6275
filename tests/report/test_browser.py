"""The page of many runs in a real browser: nothing fails, charts are drawn, filters, order and slider work."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skim.report.found import collect
from skim.report.overview import write_overview
from tests.report.test_overview import EVIL, some

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the extra dev")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_overview(collect([some(folder / "runs")]), folder)[0]


def opened(browser: Any, report: Path, width: int = 1280, scheme: str = "light") -> Any:
    """The page, from disk and without a network; what goes wrong in it ends the test."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page = context.new_page()
    page.wrong = []
    page.on(
        "console", lambda message: page.wrong.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda request: page.wrong.append(request.url) if request.url != report.as_uri() else None)
    page.goto(report.as_uri())
    page.wait_for_selector(".chart svg")
    return page


def marks(page: Any, chart: int = 0) -> int:
    """Points of a chart."""
    return page.locator(".chart").nth(chart).locator(".mark-symbol path").count()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_chart_is_drawn_and_nothing_fails(browser: Any, report: Path, width: int, scheme: str) -> None:
    page = opened(browser, report, width, scheme)
    charts = page.locator(".chart")
    for number in range(charts.count()):
        charts.nth(number).scroll_into_view_if_needed()
        charts.nth(number).locator("svg").first.wait_for()
    # each task by FLOPs and by time, the first by parameters too; layers of both; length by score and cost; training
    assert charts.count() == 2 + 3 + 2 + 2 + 2
    assert marks(page, charts.count() - 11 + 2) == 4, "a mark for each setting of sst2"
    assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing is wider than the screen"
    assert page.wrong == []
    page.context.close()


def test_filters_order_slider_and_links(browser: Any, report: Path) -> None:
    page = opened(browser, report)
    rows = page.locator("#settings tbody tr:visible")
    assert rows.count() == 6
    page.select_option("select[name=task]", "sst2")
    assert rows.count() == 4
    page.wait_for_function("document.querySelectorAll('.chart:not([hidden]) .mark-symbol path').length >= 4")

    page.get_by_role("button", name="accuracy").click()
    shown = [text.splitlines()[0] for text in rows.all_inner_texts()]
    assert [text.split("\t")[0].removesuffix(" front") for text in shown] == [
        "layer_drop, layers=2",
        "layer_drop, layers=4",
        "transkimmer 0.5",
        "dense",
    ]
    page.get_by_role("button", name="accuracy").click()
    assert rows.first.inner_text().startswith("dense")

    page.locator("#methods button", has_text="layer_drop").click()
    assert rows.count() == 2
    page.fill("input[name=words]", "seed=2")
    assert rows.count() == 1

    words = page.locator("#tokens .words span.gone")
    assert words.count() == 0
    page.locator("input[name=layer]").fill("2")
    assert words.all_inner_texts() == ["fun", "ny"]
    assert "layer 2: 2 rows" in page.locator("#tokens .texts").inner_text()

    page.locator(".chart:visible .mark-symbol path").first.scroll_into_view_if_needed()
    page.locator(".chart:visible .mark-symbol path").first.hover()
    assert f"python train.py seed=2 {EVIL}" in page.locator("#vg-tooltip-element").inner_text()
    with page.context.expect_page() as another:
        page.locator(".chart:visible .mark-symbol path").first.click()
    another.value.wait_for_load_state()
    assert another.value.title() == "a run"

    assert EVIL in page.locator("#tokens .words").first.inner_text()
    assert page.locator("main script").count() == 0
    assert page.title() == "Runs", "no script of a data set has run"
    assert page.wrong == []
    page.context.close()
