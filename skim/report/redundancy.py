"""Section ``redundancy`` of results: a sentence, the table of deltas and CSV files.

A delta is the percentage of the score of all layers that may be lost; layer 0 is the embeddings.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from skim.files import replacing
from skim.report.document import cell
from skim.report.fitted import Column, Fitted, Naming
from skim.report.redundancy_figures import drawings, fewest, save

Section = dict[str, Any]  # skim.analysis.redundancy writes it
SPLITS = ("dev", "test")
ABOUT_DELTAS = (
    "Layers are read together, from the embeddings (0) up; alone: the first whose own states suffice; keep: the layers "
    "that method=layer_drop should keep. Neurons are of the layers read, one of each cluster where they were cut, and "
    "lose at most the delta of what all of those score."
)


class Sheet(NamedTuple):
    """A table: names of its columns, and its rows."""

    heads: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    def written(self) -> Iterator[list[str]]:
        """Write the cells of each row for people."""
        for row in self.rows:
            yield [written(head, value) for head, value in zip(self.heads, row, strict=True)]

    def titles(self) -> list[str]:
        """Write the names of the columns for people."""
        return [head.strip().replace("_", " ") for head in self.heads]


def sentence(section: Section, delta: float = 1.0) -> str:
    """Say which layers and how many neurons suffice at a delta, or the nearest one, and the option that acts on it."""
    chosen = min(section["layers"]["selected"], key=lambda one: abs(one["delta"] - delta), default=None)
    if chosen is None:
        return "No performance delta was asked for, so no layer was selected."
    ran, total, up_to = section["layers"]["numbers"], section["layers"]["total"], chosen["up_to"]
    parts = [f"layers 0 to {up_to} of {total}" if up_to else "the embeddings"] if up_to < ran[-1] else []
    kept = fewest(section, chosen["delta"])
    if kept is not None and len(kept["neurons"]) < _neurons(section):
        parts.append(f"{len(kept['neurons']):,} of {_neurons(section):,} neurons")
    said = f"{' and '.join(parts)} suffice" if parts else "nothing can go"
    layers: Any = [number - 1 for number in ran if 0 < number <= chosen["layers"]]  # as a method counts them
    if layers == list(range(len(layers))):
        layers = len(layers)
    act = f"method=layer_drop method.layers={layers} keeps the layers that a head needs".replace(", ", ",")
    if chosen["layers"] >= ran[-1]:
        act = "a head needs every layer" + (" that runs" if section["layers"]["not_run"] else "")
    return f"At {chosen['delta']:g} %, {said}; {act}."


def notes(section: Section) -> list[str]:
    """Say what a reader of the scores has to know: layers that ran for some rows or none, and rows known already."""
    found, layers = [], section["layers"]
    if gone := layers["not_run"]:
        found.append(f"The method leaves out layer {', '.join(map(str, gone))}.")
    some = [
        f"{share:.0%} in layer {number}"
        for number, share in zip(layers["numbers"], layers["computed"], strict=True)
        if share < 1
    ]
    if some:
        found.append(f"Of the rows are computed {', '.join(some)}; the others have the states with which they left.")
    if section.get("dev_seen"):
        found.append(
            "The run was trained on the rows of dev, too, so scores on dev are too high: look at those on test."
        )
    return found


def deltas(section: Section) -> Sheet:
    """List what suffices, a row for each delta and threshold of clusters."""
    heads = ("delta", "read", "dev", "test", "alone", "keep", "cut at", "neurons", "share", "dev ", "test ")
    rows: list[tuple[Any, ...]] = []
    for chosen in section["layers"]["selected"]:
        layers = tuple(chosen[name] for name in ("delta", "up_to", "dev", "test", "single", "layers"))
        sets = [one for one in section["neurons"] if one["delta"] == chosen["delta"]]
        for one in sets:
            count = len(one["neurons"])
            rows.append((*layers, one["threshold"], count, count / _neurons(section), one["dev"], one["test"]))
        if not sets:
            rows.append((*layers, *(None,) * 5))
    return Sheet(heads, rows)


def redundancy_table(section: Section) -> Fitted:
    """Make a table of what suffices at each delta."""
    sheet = deltas(section)
    cells = list(map(list, zip(*sheet.written(), strict=True))) or [[] for _ in sheet.heads]
    columns = [Column(head.strip(), column) for head, column in zip(sheet.heads, cells, strict=True)]
    about = f"what suffices of {section['layers']['total']} layers and {_neurons(section):,} neurons"
    return Fitted([Naming(columns[:1], {})], columns[1:], notes=[about, *notes(section)])


def sheets(section: Section) -> dict[str, Sheet]:
    """Lay out all numbers as long tables, a value or a choice to a row, by the names of their files."""
    layers, width = section["layers"], section["layers"]["width"]
    numbers, names = layers["numbers"], dict(zip(layers["numbers"], layers["names"], strict=True))
    clustering = section["clustering"]
    found = {
        "deltas": deltas(section),
        "layers": Sheet(
            ("layer", "name", "alone_dev", "alone_test", "up_to_dev", "up_to_test", "computed", "constant_neurons"),
            [
                (
                    one["number"],
                    names[one["number"]],
                    *(scores[split] for scores in (one, up_to) for split in SPLITS),
                    *more,
                )
                for one, up_to, *more in zip(
                    *(layers[name] for name in ("single", "up_to", "computed")),
                    section["constant"]["by_layer"],
                    strict=True,
                )
            ],
        ),
        "similarity": Sheet(
            ("kind", "layer_a", "layer_b", "cka"),
            [
                (kind, a, b, value)
                for kind, matrix in section["similarity"].items()
                if kind != "degenerate"
                for a, line in zip(numbers, matrix, strict=True)
                for b, value in zip(numbers, line, strict=True)
            ],
        ),
        "clusters": Sheet(
            ("layer", "threshold", "redundant"),
            [("all", at["threshold"], at["redundant"]) for at in clustering["network"]]
            + [
                (layer["number"], threshold, share)
                for layer in clustering["layers"]
                for threshold, share in zip(clustering["thresholds"], layer["redundant"], strict=True)
            ],
        ),
        "windows": Sheet(
            ("threshold", "layers", "clusters"),
            [(at["threshold"], int(span), n) for at in clustering["network"] for span, n in at["widths"].items()],
        ),
        "neurons": Sheet(
            ("delta", "threshold", "rank", "neuron", "layer", "dimension"),
            [
                (one["delta"], one["threshold"], rank, neuron, numbers[neuron // width], neuron % width)
                for one in section["neurons"]
                for rank, neuron in enumerate(one["neurons"], 1)
            ],
        ),
        "transfer": _records(section["transfer"]),
        "control": Sheet(
            ("layer", "control_dev", "control_test", "selectivity_dev", "selectivity_test"),
            [
                (one["number"], one["dev"], one["test"], one["selectivity"]["dev"], one["selectivity"]["test"])
                for one in section["control"] or ()
            ],
        ),
    }
    return {name: sheet for name, sheet in found.items() if sheet.rows}


def write_redundancy(section: Section, folder: Path) -> list[Path]:
    """Write the CSV files, and each picture as PNG and SVG.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, sheet in sheets(section).items():
        paths.append(folder / f"{name}.csv")
        with replacing(paths[-1]) as part, part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(map(cell, row) for row in (sheet.heads, *sheet.rows))
    for name, drawing in drawings(section).items():
        paths += save(drawing, folder / name)
    return paths


def about_deltas(section: Section) -> str:
    """Explain the table of deltas: what probes were scored by and on, and what its columns say."""
    rows = ", ".join(f"{count:,} of {split}" for split, count in section["rows"].items())
    scored = f"Probes are scored by {section['metric']}; rows: {rows}."
    return " ".join([scored, ABOUT_DELTAS, *notes(section)])


def written(head: str, value: Any) -> str:
    """Write a cell for people, as the name of its column asks."""
    if value is None:
        return "-"
    if head == "delta":
        return f"{value:g} %"
    if head == "read":
        return f"0 to {value}"
    if head == "share":
        return f"{value:.1%}"
    if head == "cut at":
        return f"{value:g}"
    if isinstance(value, float):
        return f"{value:.2f}" if head.endswith("seconds") else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _neurons(section: Section) -> int:
    return section["layers"]["width"] * len(section["layers"]["numbers"])


def _records(found: list[dict[str, Any]] | None) -> Sheet:
    heads = tuple(dict.fromkeys(name for one in found or () for name in one))
    return Sheet(heads, [tuple(one.get(name) for name in heads) for one in found or ()])
