"""Overview of many runs for three kinds of reader: ``report.html``, ``report.md`` and ``report.csv``."""

from __future__ import annotations

import csv
import io
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from skim.errors import SkimError
from skim.files import write_text
from skim.options.words import budgets
from skim.report.card import escaped
from skim.report.curve import styles
from skim.report.document import cell, render
from skim.report.found import Found
from skim.report.heatmap import SkimmedText, load_texts
from skim.report.history import history
from skim.report.pareto import axes, front
from skim.report.runs import FOLDER, SHIFTED, Results, Setting, Spread, aggregate

PAGE = "report.html"
POINTS = 20_000  # of all training curves together, beyond which each has fewer
TOKENS = 200  # of a text that are shown
Cost = Callable[[Setting], Spread | None]


def made(folder: Path) -> Path:
    """Make the folder of a report.

    Raises:
        SkimError: it is that of a run, whose own page would be lost.
    """
    if (folder / "results.json").is_file():
        raise SkimError(
            f"{folder} is the folder of a run, whose own {PAGE} would be lost.\nName another: --out <folder>"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_overview(found: Found, folder: Path) -> list[Path]:
    """Write the three files; returns them.

    Raises:
        SkimError: the folder is that of a run, or the charts cannot be drawn; then nothing is written.
    """
    folder = made(Path(folder))
    settings = aggregate(found.runs)
    left_out = {os.path.relpath(path, folder): reason for path, reason in found.left_out.items()}
    for run in found.runs:
        if run["status"] != "done":
            left_out[os.path.relpath(run[FOLDER], folder)] = (
                f"{run['status']}: {(run.get('notes') or ['no reason is given'])[-1]}"
            )
    kinds = {PAGE: page, "report.md": markdown, "report.csv": table}
    written = {folder / name: write(settings, folder, left_out) for name, write in kinds.items()}
    for path, text in written.items():
        write_text(path, text)
    return list(written)


def measures(settings: Sequence[Setting]) -> dict[str, Cost]:
    """List what is told of a setting beside its metric: each kind of cost, and the keep ratio; by title."""
    kept: dict[str, Cost] = {"keep ratio": lambda s: s.keep_ratio}
    return {axis.title: axis.cost for axis in axes(settings)} | kept


def table(settings: Sequence[Setting], folder: Path, left_out: dict[str, str]) -> str:
    """Write every number of every setting as CSV, a setting to a line."""
    costs = measures(settings)
    names = ("task", "method", "backbone", "setting", "target", "seeds", "metric", "value", "value std")
    heads = [*names, *(head for title in costs for head in (title, f"{title} std"))]
    layers = max((len(s.kept) for s in settings), default=0)
    heads += [*(f"keep ratio of layer {i + 1}" for i in range(layers)), "folders", "command"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(cell, heads))
    for s in settings:
        said = [s.task, s.method, s.backbone, s.name]
        row: list[Any] = [
            *said,
            None if s.target is None else budgets(s.target),
            " ".join(map(str, s.seeds)),
            s.monitor,
        ]
        for spread in (s.metric, *(cost(s) for cost in costs.values())):
            row += [None, None] if spread is None else [spread.mean, spread.std]
        folders = " ".join(os.path.relpath(run[FOLDER], folder) for run in s.runs)
        ends = folders, s.runs[0]["command"]
        writer.writerow(map(cell, [*row, *s.kept, *[None] * (layers - len(s.kept)), *ends]))
    return file.getvalue()


def markdown(settings: Sequence[Setting], folder: Path, left_out: dict[str, str]) -> str:
    """Write a table for each task, in bold what is on the front of the metric against relative FLOPs."""
    costs, lines = measures(settings), ["# Runs", ""]
    for task in dict.fromkeys(s.task for s in settings):
        some = [s for s in settings if s.task == task]
        best = front(some, lambda s: s.relative_flops)
        shown = {title: cost for title, cost in costs.items() if any(cost(s) for s in some)}
        lines += [
            f"## {escaped(task)}",
            "",
            f"| setting | backbone | seeds | {escaped(some[0].monitor)} | {' | '.join(shown)} |",
        ]
        lines.append("|" + "---|" * (len(shown) + 4))
        for s in some:
            name = f"**{escaped(s.name)}**" if any(one is s for one in best) else escaped(s.name)
            numbers = [_text(s.metric, 4), *(_text(cost(s)) for cost in shown.values())]
            lines.append(" | ".join([f"| {name}", escaped(s.backbone), " ".join(map(str, s.seeds)), *numbers]) + " |")
        lines += ["", "Bold: no other setting is better at no more relative FLOPs. ± is the deviation over seeds.", ""]
    if left_out:
        lines += [
            "## Left out",
            "",
            *(f"- {escaped(path)}: {escaped(reason)}" for path, reason in left_out.items()),
            "",
        ]
    return "\n".join(lines)


def page(settings: Sequence[Setting], folder: Path, left_out: dict[str, str]) -> str:
    """Make the page, which needs nothing beside itself."""
    costs = measures(settings)
    fronts = {
        (task, axis.title): front([s for s in settings if s.task == task], axis.cost)
        for task in {s.task for s in settings}
        for axis in axes(settings)
    }
    rows = [
        {
            "setting": s,
            "runs": [{"run": run, "link": link(run, folder)} for run in s.runs],
            "cells": [(_text(s.metric, 4), s.metric), *((_text(cost(s)), cost(s)) for cost in costs.values())],
            "fronts": [title for (_, title), best in fronts.items() if any(s is one for one in best)],
        }
        for s in settings
    ]
    data, broken = content(settings, folder)
    return render(
        "overview.html",
        title="Runs",
        rows=rows,
        monitors=sorted({s.monitor for s in settings if s.metric}),
        titles=list(costs),
        tasks=sorted({s.task for s in settings}),
        backbones=sorted({s.backbone for s in settings}),
        runs=sum(len(s.runs) for s in settings),
        redundancy=[row for row in rows if row["setting"].runs[0].get("redundancy")],
        left_out=left_out | broken,
        data=data,
        library=library(),
    )


def content(settings: Sequence[Setting], folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Collect what the charts draw, in JSON's types; and what could not be read, reasons by path."""
    found = axes(settings, ("padded_hf",))
    broken: dict[str, str] = {}

    def known(run: Results, read: Callable[[], Any], nothing: Any) -> Any:
        try:
            return read()
        except SkimError as error:
            broken[os.path.relpath(run[FOLDER], folder)] = str(error)
            return nothing

    points = min(max(POINTS // sum(len(s.runs) for s in settings), 12), 200)
    drawn, texts = [], []
    for s in settings:
        trained = [run for run in s.runs if SHIFTED not in run]  # points of a curve.json have no training of their own
        drawn.append(
            {
                "name": s.name,
                **{name: getattr(s, name) for name in ("task", "method", "backbone", "line", "monitor", "seeds")},
                "metric": _pair(s.metric),
                "costs": {axis.name: _pair(axis.cost(s)) for axis in found if axis.cost(s)},
                "kept": _short(s.kept),
                "lengths": [[_short(one[n]) for n in ("from", "to", "score", "relative_flops")] for one in s.by_length],
                "history": [{"seed": run["seed"], **known(run, partial(history, run, points), {})} for run in trained],
                "command": s.runs[0]["command"],
                "link": link(s.runs[0], folder),
            }
        )
        best = trained[0] if trained else None
        texts.append(known(best, partial(load_texts, Path(best[FOLDER])), []) if best else [])
    methods = [{"name": name, **look} for name, look in styles([s.method for s in settings]).items()]
    costs = [{"name": axis.name, "title": axis.title} for axis in found]
    return {"settings": drawn, "axes": costs, "methods": methods, "texts": compared(settings, texts)}, broken


def compared(settings: Sequence[Setting], texts: Sequence[list[SkimmedText]]) -> list[dict[str, Any]]:
    """Lay texts that several settings have read side by side, whatever their tokenizers made of them."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for number, (setting, some) in enumerate(zip(settings, texts, strict=True)):
        for text in some:
            words = text.words()
            plain = " ".join("".join(piece for piece, _ in word) for word in words)
            key = (setting.task, "".join(c for c in plain.casefold() if c.isalnum()))
            one = found.setdefault(key, {"task": setting.task, "title": plain[:100], "read": []})
            pieces, survived, left = [], [], TOKENS
            for word in words:
                if left > 0:
                    pieces.append([piece for piece, _ in word])
                    survived += [layers for _, layers in word]
                    left -= len(word)
            shown = {"words": pieces, "survived": survived, "rows": text.rows, "prediction": text.prediction}
            one["read"].append({"setting": number, "cut": len(survived) < len(text.tokens), **shown})
    return list(found.values())


def link(run: Results, folder: Path) -> str | None:
    """Find the page of a run, relative to the folder of the report; ``None`` if it has none."""
    own = Path(run[FOLDER]) / PAGE
    return quote(Path(os.path.relpath(own, folder)).as_posix()) if own.is_file() else None


@cache
def bundling() -> subprocess.Popen[str]:
    """Start to bundle Vega-Lite, in a process of its own: that takes longer than a second, and Python waits for it."""
    said = 'import vl_convert; print(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed"))'
    command = [sys.executable, "-X", "utf8", "-c", said]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")


@cache
def library() -> str:
    """Return Vega-Lite for a page, about 0.9 MB of JavaScript.

    Raises:
        SkimError: it cannot be bundled.
    """
    found, error = bundling().communicate()
    if bundling().returncode:
        said = error.strip().splitlines()[-1]
        raise SkimError(
            f"The charts of {PAGE} need the package vl-convert-python: {said}\npip install vl-convert-python"
        )
    return found.replace("</script", "<\\/script")


def _text(spread: Spread | None, digits: int = 3) -> str:
    if spread is None:
        return "-"
    return f"{spread.mean / 1e6:,.1f} M" if spread.mean > 1e4 else spread.text(digits)


def _pair(spread: Spread | None) -> list[Any] | None:
    return [_short(spread.mean), _short(spread.std)] if spread and math.isfinite(spread.mean) else None


def _short(value: Any) -> Any:
    """Round to five digits, which is more than a chart shows; what is no number (nan) is not known in JSON."""
    if isinstance(value, list):
        return [_short(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
