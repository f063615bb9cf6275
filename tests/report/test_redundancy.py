"""Section ``redundancy``: a sentence to act on, tables, files and pictures that say what the numbers say."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from skim.report.page import page
from skim.report.redundancy import deltas, notes, redundancy_table, sentence, sheets, write_redundancy
from skim.report.redundancy_figures import drawings, inline
from tests.report.redundancy import kept, section
from tests.report.results import results
from tests.report.test_heatmap import Seen


@pytest.mark.parametrize(
    ("delta", "said"),
    [
        (1.0, "At 1 %, 3 of 12 neurons suffice; a head needs every layer."),
        (
            4.0,
            "At 5 %, layers 0 to 1 of 2 and 2 of 12 neurons suffice; method=layer_drop method.layers=1 keeps the "
            "layers that a head needs.",
        ),
    ],
)
def test_sentence(delta: float, said: str):
    assert sentence(section(), delta) == said


def test_sentence_where_little_was_asked_or_nothing_can_go():
    assert sentence(section(neurons=[])) == "At 1 %, nothing can go; a head needs every layer."
    every = [kept(1.0, None, list(range(12)), [4, 4, 4])]
    assert sentence(section(neurons=every)) == "At 1 %, nothing can go; a head needs every layer."
    layers = section()["layers"]
    assert "nothing" not in sentence(section(layers={**layers, "selected": []}))
    short = [{**kept(1.0, 0.3, [5], [0, 1, 0]), "suffices": False}, kept(1.0, None, [5, 8], [0, 1, 1])]
    assert sentence(section(neurons=short)) == "At 1 %, 2 of 12 neurons suffice; a head needs every layer."
    embeddings = [{"delta": 1.0, "layers": 1, "up_to": 0, "single": 0, "dev": 0.9, "test": 0.9}]
    assert sentence(section(layers={**layers, "selected": embeddings}, neurons=[])).startswith(
        "At 1 %, the embeddings suffice"
    )


def test_layers_that_did_not_run_are_not_suggested():
    layers = {**section()["layers"], "numbers": [0, 2, 5], "total": 6, "not_run": [1, 3, 4, 6]}
    for name in ("single", "up_to"):
        layers[name] = [{**one, "number": number} for one, number in zip(layers[name], (0, 2, 5), strict=True)]
    layers["selected"] = [
        {"delta": 1.0, "layers": 5, "up_to": 5, "single": None, "dev": 0.9, "test": 0.9},
        {"delta": 5.0, "layers": 2, "up_to": 2, "single": 2, "dev": 0.9, "test": 0.9},
    ]
    assert sentence(section(layers=layers)) == "At 1 %, 3 of 12 neurons suffice; a head needs every layer that runs."
    assert "layers 0 to 2 of 6 and 2 of 12 neurons suffice; method=layer_drop method.layers=[1]" in sentence(
        section(layers=layers), 5
    )


def test_what_a_reader_has_to_know_is_on_the_page_and_below_the_table():
    layers = {**section()["layers"], "computed": [1.0, 0.75, 0.5], "not_run": [3]}
    found = section(layers=layers, dev_seen=True)
    wanted = [
        "The method leaves out layer 3.",
        "Of the rows are computed 75% in layer 1, 50% in layer 2; the others have the states with which they left.",
        "The run was trained on the rows of dev, too, so scores on dev are too high: look at those on test.",
    ]
    assert notes(found) == wanted
    assert notes(section()) == []
    text = " ".join(Seen(page(results(redundancy=found))).text.split())
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(redundancy_table(found))
    printed = console.export_text()
    assert all(note in text and note in printed for note in wanted)
    assert [row[-2] for row in sheets(found)["layers"].rows] == [1.0, 0.75, 0.5]


def test_table_of_deltas():
    rows = [row[:7] + row[7:9] for row in deltas(section()).rows]
    assert [(row[0], row[5], row[6], row[7], round(row[8], 3)) for row in rows] == [
        (1.0, 2, None, 4, 0.333),
        (1.0, 2, 0.3, 3, 0.25),
        (5.0, 1, None, 2, 0.167),
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(redundancy_table(section()))
    lines = console.export_text().splitlines()
    assert lines[-2].split() == "5 % 0 to 1 0.860 0.850 - 1 - 2 16.7% 0.890 0.880".split()
    assert lines[-1].strip() == "what suffices of 2 layers and 12 neurons"


def test_files_hold_every_number(tmp_path: Path):
    written = {path.name for path in write_redundancy(section(), tmp_path / "redundancy")}
    assert written == {path.name for path in (tmp_path / "redundancy").iterdir()}
    pictures = {
        f"{name}.{suffix}" for name in ("similarity", "layers", "clusters", "neurons") for suffix in ("png", "svg")
    }
    tables = {f"{name}.csv" for name in ("deltas", "layers", "similarity", "clusters", "windows", "neurons")}
    assert written == pictures | tables

    def rows(name: str) -> list[list[str]]:
        with (tmp_path / "redundancy" / f"{name}.csv").open(newline="") as file:
            return list(csv.reader(file))

    assert rows("layers")[1] == ["0", "embeddings", "0.5", "0.5", "0.5", "0.5", "1.0", "4"]
    assert rows("similarity")[1:7:5] == [["linear", "0", "0", ""], ["linear", "1", "2", "0.25"]]
    assert rows("clusters")[1:3] == [["all", "0.3", str(1 / 6)], ["all", "0.7", "0.5"]]
    assert rows("clusters")[-1] == ["2", "0.7", "0.5"]
    assert rows("windows")[1:] == [["0.3", "1", "9"], ["0.3", "2", "1"], ["0.7", "1", "5"], ["0.7", "3", "1"]]
    assert rows("neurons")[5] == ["1.0", "0.3", "1", "9", "2", "1"]  # neuron 9 is dimension 1 of layer 2


def test_neurons_are_placed_by_the_numbers_of_layers_that_were_extracted():
    layers = {**section()["layers"], "numbers": [0, 3, 5]}
    for name in ("single", "up_to"):
        layers[name] = [{**one, "number": number} for one, number in zip(layers[name], (0, 3, 5), strict=True)]
    found = sheets(section(layers=layers, similarity={"degenerate": []}))
    assert [row[3:] for row in found["neurons"].rows[:2]] == [(5, 3, 1), (8, 5, 0)]
    assert "similarity" not in found


def test_page_shows_the_section_and_fetches_nothing():
    whole = page(results(redundancy=section(transfer=[{"delta": 1.0, "features": 1234, "training_seconds": 0.5}])))
    text = " ".join(Seen(whole).text.split())
    assert "At 1 %, 3 of 12 neurons suffice; a head needs <every> layer." in text
    assert "1,234" in text
    assert "rows: 6,000 of train, 667 of dev, 872 of test" in text
    assert "Layer 0: states that are the same for all rows are similar to nothing" in text
    assert "At 0.3 there are 10 clusters; 90% lie within a layer, 100% within two neighbours." in text
    assert whole.count('<svg class="drawing"') == 4
    assert not re.search(r"https?://|<script|<link|<img|\bsrc=|@import|url\((?!#)", whole)
    assert "Redundancy" not in page(results())


def test_pictures_show_the_numbers():
    found = drawings(section())
    texts = {name: [text.get_text() for text in drawing.figure.axes[0].texts] for name, drawing in found.items()}
    assert texts["similarity"] == ["1.00", "-.01", "-.01", "1.00"]  # debiased; none of the constant layer
    assert texts["clusters"][-2:] == [".17", ".50"]
    assert texts["layers"] == ["1 %", "5 %"]
    together, alone = found["layers"].figure.axes[0].lines[1:3]
    assert list(together.get_ydata()) == [0.5, 0.86, 0.9]
    assert list(alone.get_ydata()) == [0.5, 0.8, 0.9]
    bars = [bar.get_height() for bar in found["neurons"].figure.axes[0].patches]
    assert bars == [0, 1, 2, 0, 2, 0]  # the smaller set at 1 %, then that at 5 %


def test_control_task_has_its_file_and_its_line():
    control = [
        {"number": k, "dev": 0.3 - 0.1 * k, "test": 0.3, "selectivity": {"dev": 0.2 + 0.1 * k, "test": 0.2}}
        for k in range(3)
    ]
    found = section(control=control)
    assert sheets(found)["control"].rows[1] == (1, pytest.approx(0.2), 0.3, pytest.approx(0.3), 0.2)
    lines = {line.get_label(): line for line in drawings(found)["layers"].figure.axes[0].lines}
    assert list(lines["on the control task"].get_ydata()) == pytest.approx([0.3, 0.2, 0.1])
    assert list(lines["most frequent label"].get_ydata()) == [0.5, 0.5]
    assert "control" not in sheets(section())


def test_pictures_of_less_than_everything():
    bare = section(
        chance=None,
        similarity={"degenerate": []},
        neurons=[],
        clustering={"thresholds": [], "network": [], "layers": []},
    )
    assert set(drawings(bare)) == {"layers"}
    assert page(results(redundancy=bare)).count('class="drawing"') == 1
    one = section(neurons=[kept(1.0, None, [5], [0, 1, 0])])
    legend = drawings(one)["neurons"].figure.axes[0].get_legend().get_texts()
    assert [text.get_text() for text in legend] == ["at 1 %: 1 neuron"]


def test_pictures_are_the_same_bytes_each_time():
    first, second = (inline(drawings(section())["layers"], "layers") for _ in range(2))
    assert first == second
    ElementTree.fromstring(first.replace("xlink:", ""))
