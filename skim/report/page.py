"""Page of a run, ``report.html``: the headline numbers, tokens alive in each layer, measured time, the config."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skim.files import write_text
from skim.options.words import budgets
from skim.report.classes import grids
from skim.report.classes import notes as class_notes
from skim.report.depth import rows
from skim.report.document import render
from skim.report.heatmap import SkimmedText
from skim.report.redundancy import about_deltas, sheets
from skim.report.redundancy_figures import drawings, inline
from skim.report.runs import BASELINES, Results, speedups
from skim.report.table import (
    CANDIDATES,
    TRAINING_HEADS,
    ending,
    latency_rows,
    masked_gap,
    training_about,
    training_rows,
)


def write_page(path: Path, results: Results, texts: Sequence[SkimmedText] = ()) -> None:
    """Write :func:`page` to a file."""
    write_text(path, page(results, texts))


def page(results: Results, texts: Sequence[SkimmedText] = ()) -> str:
    """Make a run's HTML page, which needs nothing beside itself.

    Args:
        results: a ``results.json``.
        texts: examples, skimmed by the model that the run left.
    """
    target = "" if results["target"] is None else f", target {budgets(results['target'])}"
    values: dict[str, Any] = {
        "title": f"{results['method']} on {results['task']}, {results['backbone']}",
        "about": [f"seed {results['seed']}{target}", *ending(results)],
        "run": results,
        "texts": texts,
        "cards": cards(results),
        "by_length": [
            (
                f"{one['from']:g} to {one['to']:g}",
                f"{one['rows']:,}",
                f"{one['score']:.4f}",
                f"{one['relative_flops']:.3f}",
            )
            for one in results.get("by_length") or []
        ],
        "facts": facts(results),
        "config": json.dumps(results["config"], indent=2, ensure_ascii=False),
    }
    if classes := results.get("classes"):
        values |= {"classes": grids(classes), "class_notes": class_notes(classes)}
    if results["latency"]:
        heads = ["batch", "model", "median ms", "min - max", "runs", *(f"time / {name}" for name in BASELINES.values())]
        values |= {"latency_heads": heads, "latency": latency_rows(results["latency"])}
    if training := results.get("training"):
        values |= {"training_heads": TRAINING_HEADS, "training": training_rows(training)}
        values["training_about"] = training_about(training)
    if depth := results.get("depth"):
        values["depth"] = [(section, kind, f"{mean:.2f}", str(n)) for section, kind, mean, n in rows(depth)]
    if section := results.get("redundancy"):
        values |= redundancy(section)
    return render("run.html", **values)


def redundancy(section: dict[str, Any]) -> dict[str, Any]:
    """Lay out the section ``redundancy``: the table of deltas, pictures, and the steps of the transfer."""
    abouts = {"deltas": about_deltas(section), "transfer": "Steps of a feature-based transfer, with measured seconds."}
    found = sheets(section)
    tables = {
        name: {"heads": sheet.titles(), "rows": list(sheet.written()), "about": abouts[name]}
        for name in abouts
        if (sheet := found.get(name)) is not None
    }
    pictures = [{"svg": inline(one, name), "caption": one.caption} for name, one in drawings(section).items()]
    return {**dict.fromkeys(abouts), **tables, "pictures": pictures}


def cards(results: Results) -> list[tuple[str, str]]:
    """List the headline numbers, each with its name."""
    shown = [(f"{value:.4f}", name) for name, value in results["metrics"].items()]
    shown.sort(key=lambda card: card[1] != results["monitor"])
    shown.append((f"{results['relative_flops']:.3f}", "relative FLOPs (dense = 1)"))
    if results["keep_ratio"]:
        shown.append((f"{statistics.fmean(results['keep_ratio']):.3f}", "keep ratio, mean over layers"))
    if results.get("parameters"):
        shown.append((f"{results['parameters'] / 1e6:.1f} M", "parameters that run"))
    for (batch_size, baseline), ratio in speedups(results).items():
        shown.append((f"{ratio:.2f} x", f"the speed of {CANDIDATES[baseline]}, batch {batch_size}"))
    gap = masked_gap(results)
    if gap is not None:
        shown.append((f"{gap:+.4f}", f"{results['monitor']}, masked - packed execution"))
    return shown


def facts(results: Results) -> str:
    """List what the run was made with: the commit, time, samples and versions."""
    found = {"git commit": results["git_commit"], "wall time": f"{results['wall_seconds']:.0f} s"}
    found |= {f"{name} samples": count for name, count in results["samples"].items()} | results["versions"]
    return ", ".join(f"{name} {value}" for name, value in found.items() if value is not None)
