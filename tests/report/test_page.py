from __future__ import annotations

import json
import re
import subprocess
import sys
from html import unescape
from xml.etree import ElementTree

import pytest

from skim.report.__main__ import main
from skim.report.curve import draw, write_curves
from skim.report.heatmap import SkimmedText
from skim.report.page import page, write_page
from skim.report.runs import aggregate
from tests.report.results import dense, results
from tests.report.test_heatmap import ODD, TEXT, Seen
from tests.report.test_tables import settings_of


def test_page_has_numbers_plot_times_texts_and_config():
    run = results(notes=["target <missed>"], masked_metrics={"accuracy": 0.95})
    whole = page(run, [TEXT, ODD])
    text = " ".join(Seen(whole).text.split())
    for part in ("transkimmer on sst2, minilm", "0.9000", "0.480", "0.500", "2.00 x", "3.00 x", "+0.0500"):
        assert part in text
    for part in ("this model50.049.0 - 51.0", "unforgettable", "target <missed>", "0123abc", run["command"]):
        assert part in text
    assert json.loads(unescape(re.search(r"config</summary><pre>(.*?)</pre>", whole, re.DOTALL)[1])) == run["config"]
    assert whole.count('class="bar"') == len(run["keep_ratio"])


def test_page_is_self_contained_and_escapes_what_users_wrote():
    evil = "<script>alert(1)</script>"
    whole = page(
        results(task=evil, backbone=evil, command=evil, notes=[evil], metrics={"accuracy": 1.0, evil: 0.0}), [ODD]
    )
    assert "<script" not in whole
    assert not re.search(r"https?://|url\(|@import|<link|<img|\bsrc=|\bhref=", whole)
    assert "prefers-color-scheme:dark" in whole


@pytest.mark.parametrize(
    "run", [dense(latency=None), results(keep_ratio=[], config={}), results(status="failed", metrics={}, latency=None)]
)
def test_page_of_less_than_everything(run, tmp_path):
    write_page(tmp_path / "report.html", run)
    text = Seen((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert ("did not finish" in text) == (run["status"] == "failed")
    assert "Skimmed texts" not in text
    assert ("this model" in text) == bool(run["latency"])


def test_keep_plot_is_as_tall_as_the_ratio():
    plot = re.search(r'<svg class="plot".*?</svg>', page(results(keep_ratio=[1.0, 0.5, 0.0])), re.DOTALL)[0]
    bars = [bar for bar in ElementTree.fromstring(plot).iter("rect") if bar.get("class") == "bar"]
    assert [float(bar.get("height")) for bar in bars] == [150, 75, 0]


@pytest.mark.parametrize("layers", [6, 12, 24])
def test_charts_stay_in_one_row_on_a_phone(layers):
    """A phone of 360 pixels leaves 320 beside the page's margins."""
    text = SkimmedText(["[CLS]", "word"], [layers, 0], [2] * layers, "positive")
    whole = page(results(keep_ratio=[0.5] * layers), [text])
    bars = re.search(r'<div class="layers">((?:<div .*?</div>)*)</div>', whole)[1]
    assert bars.count("<i style=") == layers
    assert ".bars .layers{display:flex;flex-wrap:nowrap;" in whole
    assert re.search(r"\.bars \.layers\{[^}]*min-width:0;overflow-x:auto\}", whole)
    ramp = re.search(r"took part in: <i>(.*?)</i>", whole)[1]
    assert ramp.count("<span") == layers + 1
    assert re.search(r"\.legend i\{display:inline-flex;[^}]*max-width:100%;overflow-x:auto", whole)
    plot = re.search(r'<div class="scroll"><svg class="plot".*?</svg></div>', whole, re.DOTALL)[0]
    # of twelve layers or fewer, all is seen at once; of more, it scrolls before its numbers cannot be read
    smallest = int(re.search(r"min-width:(\d+)px", plot)[1])
    width = int(re.search(r'viewBox="0 0 (\d+) ', plot)[1])
    assert (smallest <= 320) == (layers <= 12)
    assert 12 * smallest / width >= 9, "pixels of a number's height"
    assert ".plot{max-width:100%;height:auto}" in whole


def test_curves_are_written_per_task_in_two_formats(tmp_path):
    written = write_curves([results(), dense(), results(task="a/b", seed=2)], tmp_path / "new")
    assert [path.name for path in written] == ["curve-a_b.png", "curve-a_b.svg", "curve-sst2.png", "curve-sst2.svg"]
    assert written[0].read_bytes().startswith(b"\x89PNG")
    ElementTree.parse(written[1])


def test_curve_puts_points_where_the_numbers_are():
    runs = [make(seed=s, metrics={"accuracy": 0.9 + s / 100}) for s in (1, 2) for make in (results, dense)]
    flops, time = draw(aggregate(runs)).axes
    assert flops.get_xlabel() == "relative FLOPs"
    assert time.get_xlabel() == "time / packed dense, batch 32"
    for panel, cost in ((flops, 0.48), (time, 0.5)):
        skimmed = next(line for line in panel.lines if line.get_marker() == "o")
        assert skimmed.get_xydata().tolist() == [[cost, pytest.approx(0.915)]]


def test_ten_settings_of_a_curve_are_told_apart_and_none_is_covered():
    figure = draw(aggregate(settings_of(10)))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    labels = [" ".join(text.get_text().split()) for text in legend.get_texts()]
    assert labels[0] == "dense"
    assert labels[-1] == "front"
    assert len(set(labels)) == 12
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    assert whole.y0 <= box.y0 < box.y1 <= whole.y1
    for panel in figure.axes:
        assert panel.get_tightbbox().x1 <= box.x0
        assert panel.get_window_extent().width > 300
        points = [line for line in panel.lines if line.get_marker() not in ("None", "_", "|", "*")]
        looks = {(line.get_color(), line.get_marker()) for line in points}
        assert len({color for color, _ in looks}) == len({marker for _, marker in looks}) == len(looks) == 10


def test_more_settings_than_colours_differ_in_their_lines():
    panel, *_ = draw(aggregate(settings_of(25))).axes
    points = [line for line in panel.lines if line.get_marker() not in ("None", "_", "|", "*")]
    assert len({(line.get_color(), line.get_linestyle()) for line in points}) == 25
    assert len({(line.get_color(), line.get_marker()) for line in points}) == 25, "where each is alone on its line"


def test_command_prints_the_table_and_writes_curves(tmp_path, capsys):
    for name, run in (("one", results()), ("two", dense())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(run))
    assert main([str(tmp_path)]) == 0
    assert "transkimmer 0.5" in capsys.readouterr().out
    assert (tmp_path / "curve-sst2.png").is_file()
    assert main([str(tmp_path / "one"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "curve-sst2.svg").is_file()


def test_command_ends_with_two_where_there_is_nothing(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "No results.json under" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 2
    (tmp_path / "results.json").write_text(json.dumps(results(status="failed", metrics={})))
    assert main([str(tmp_path)]) == 2
    assert "All 1 runs failed" in capsys.readouterr().err
    assert not list(tmp_path.glob("curve*"))


def test_command_runs_as_a_module_without_torch(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results()))
    code = "import sys; from skim.report.__main__ import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    done = subprocess.run([sys.executable, "-m", "skim.report", str(tmp_path / "no")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: There is no folder")
    assert "Traceback" not in done.stderr
