"""Precision, recall and F1 of each class, and the confusion matrix."""

from __future__ import annotations

from typing import Any, NamedTuple

from rich.console import Group

from skim.report.fitted import Column, Fitted, Naming

Classes = dict[str, Any]  # ``classes`` of a results.json, see tasks.heads.base.Head.table
MOST = 20  # classes of which the confusion matrix is shown
LONG = 14  # characters of a class's name in a table's head


class Grid(NamedTuple):
    """Table: titles of its columns, and rows of cells, the first of which names the row."""

    titles: list[str]
    rows: list[list[str]]


def grids(classes: Classes) -> list[Grid]:
    """Lay out the scores of each class and, of few classes, the confusion matrix."""
    names: list[str] = classes["names"]
    titles = ["class" if classes["kind"] == "classes" else "label", "precision", "recall", "F1", "rows"]
    scores = [
        [name, *(f"{classes[score][i]:.4f}" for score in ("precision", "recall", "f1")), f"{classes['rows'][i]:,}"]
        for i, name in enumerate(names)
    ]
    if classes["kind"] == "labels":  # each has a matrix of its own: neither given nor predicted, ...
        for row, ((_, wrong), (missed, right)) in zip(scores, classes["confusion"], strict=True):
            row += [f"{count:,}" for count in (right, missed, wrong)]
        return [Grid([*titles, "right", "missed", "wrong"], scores)]
    found = [Grid(titles, scores)]
    if len(names) <= MOST:
        heads = [name if len(name) <= LONG else name[: LONG - 1] + "…" for name in names]
        counts = [[name, *(f"{n:,}" for n in row)] for name, row in zip(names, classes["confusion"], strict=True)]
        found.append(Grid(["true \\ predicted", *heads], counts))
    return found


def notes(classes: Classes) -> list[str]:
    """Notes for a reader of the tables."""
    found = [] if classes["positive"] is None else [f"f1, as one number, is that of '{classes['positive']}'"]
    if classes["kind"] == "labels":
        found.append("right: predicted and true; missed: true and not predicted; wrong: predicted and not true")
    elif len(classes["names"]) > MOST:
        found.append(f"of more than {MOST} classes, the confusion matrix is in the file alone: classes.confusion")
    return found


def class_tables(classes: Classes) -> Group:
    """Make the tables for a terminal."""
    parts: list[Any] = []
    for titles, rows in grids(classes):
        first, *others = (
            Column(title, list(cells)) for title, cells in zip(titles, zip(*rows, strict=True), strict=True)
        )
        parts += [Fitted([Naming([first], {})], others), ""]
    return Group(*parts, *notes(classes))
