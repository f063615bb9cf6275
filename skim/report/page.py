"""Page of a run, ``report.html``: the headline numbers, tokens alive in each layer, measured time, the config."""

from __future__ import annotations

import html
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from skim.report.classes import STYLE as CLASSES_STYLE
from skim.report.classes import class_html
from skim.report.depth import rows
from skim.report.document import document, grid
from skim.report.heatmap import STYLE as SKIMMED_STYLE
from skim.report.heatmap import SkimmedText, fragment
from skim.report.redundancy import redundancy_html
from skim.report.redundancy_figures import STYLE as DRAWING_STYLE
from skim.report.runs import BASELINES, Results, speedups
from skim.report.table import (
    CANDIDATES,
    TRAINING_HEADS,
    Latency,
    ending,
    latency_rows,
    masked_gap,
    training_about,
    training_rows,
)

STYLE = """
.quiet{color:var(--quiet)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(10rem,1fr));gap:.75rem;margin:1.5rem 0}
.cards div{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.8rem 1rem}
.cards b{display:block;font-size:1.6rem;line-height:1.3;font-variant-numeric:tabular-nums}
.cards span{font-size:.8rem;color:var(--quiet)}
.note{border-left:3px solid #d08a1d;padding:.3rem .8rem;background:var(--card)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.35rem .9rem .35rem 0;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:500;font-size:.8rem;color:var(--quiet)}
th:nth-child(-n+2),td:nth-child(-n+2){text-align:left}
pre{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem}
pre{overflow-x:auto;font-size:.8rem}
.plot{max-width:100%;height:auto}
.plot text{font-size:12px;fill:var(--quiet)}
.plot .bar{fill:var(--accent)}
.plot .rest{fill:var(--card)}
"""


def write_page(path: Path, results: Results, texts: Sequence[SkimmedText] = ()) -> None:
    """Write :func:`page` to a file."""
    Path(path).write_text(page(results, texts), encoding="utf-8")


def page(results: Results, texts: Sequence[SkimmedText] = ()) -> str:
    """Make a run's HTML page, which needs nothing beside itself.

    Args:
        results: a ``results.json``.
        texts: examples, skimmed by the model that the run left.
    """
    title = f"{results['method']} on {results['task']}, {results['backbone']}"
    about = f"seed {results['seed']}"
    if results["target"] is not None:
        about += f", target {results['target']:g}"
    status = "" if results["status"] == "done" else '<p class="note">This run did not finish.</p>'
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in results.get("notes", []))
    about = "<br>".join(html.escape(line) for line in (about, *ending(results)))
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="quiet">{about}</p>', status, notes, cards(results)]
    if results["keep_ratio"]:
        parts += [
            "<h2>Tokens alive in each layer</h2>",
            f'<div class="scroll">{keep_plot(results["keep_ratio"])}</div>',
        ]
    if results.get("classes"):
        parts += ["<h2>By class</h2>", class_html(results["classes"])]
    if texts:
        parts += ["<h2>Skimmed texts</h2>", fragment(texts)]
    if results["latency"]:
        parts += ["<h2>Time</h2>", latency_grid(results["latency"])]
    if results.get("training"):
        training = results["training"]
        parts += ["<h2>Training</h2>", grid(TRAINING_HEADS, training_rows(training), training_about(training))]
    if results.get("depth"):
        layers = f"Mean layers of {results['depth']['layers']} that tokens of a kind went through."
        kinds = [(section, kind, f"{mean:.2f}", str(count)) for section, kind, mean, count in rows(results["depth"])]
        parts += ["<h2>Depth</h2>", grid(("", "tokens", "layers", "count"), kinds, layers)]
    if results.get("redundancy"):
        parts += ["<h2>Redundancy</h2>", redundancy_html(results["redundancy"])]
    parts += ["<h2>How it was made</h2>", provenance(results)]
    return document(title, "\n".join(filter(None, parts)), STYLE + CLASSES_STYLE + SKIMMED_STYLE + DRAWING_STYLE)


def cards(results: Results) -> str:
    """Lay out the headline numbers."""
    shown = [(f"{value:.4f}", name) for name, value in results["metrics"].items()]
    shown.sort(key=lambda card: card[1] != results["monitor"])
    shown.append((f"{results['relative_flops']:.3f}", "relative FLOPs (dense = 1)"))
    if results["keep_ratio"]:
        shown.append((f"{statistics.fmean(results['keep_ratio']):.3f}", "keep ratio, mean over layers"))
    for (batch_size, baseline), ratio in speedups(results).items():
        shown.append((f"{ratio:.2f} x", f"the speed of {CANDIDATES[baseline]}, batch {batch_size}"))
    gap = masked_gap(results)
    if gap is not None:
        shown.append((f"{gap:+.4f}", f"{results['monitor']}, masked - packed execution"))
    body = "".join(f"<div><b>{value}</b><span>{html.escape(name)}</span></div>" for value, name in shown)
    return f'<div class="cards">{body}</div>'


def keep_plot(keep_ratio: Sequence[float], height: float = 150) -> str:
    """Draw the keep ratio per layer as bars, inline SVG."""
    pitch = 34.0
    bars = []
    for layer, kept in enumerate(keep_ratio, 1):
        x, tall, wide = (layer - 1) * pitch + 2, kept * height, pitch - 4
        middle = x + wide / 2
        bars.append(
            f'<rect class="rest" x="{x:.1f}" y="18" width="{wide:.1f}" height="{height:g}" rx="3"/>'
            f'<rect class="bar" x="{x:.1f}" y="{18 + height - tall:.1f}" width="{wide:.1f}" height="{tall:.1f}" rx="3">'
            f"<title>layer {layer}: {kept:.3f}</title></rect>"
            f'<text x="{middle:.1f}" y="{12 + height - tall:.1f}" text-anchor="middle">{kept:.2f}</text>'
            f'<text x="{middle:.1f}" y="{height + 34:g}" text-anchor="middle">{layer}</text>'
        )
    width = pitch * len(keep_ratio) + 2
    size = f'width="{width:.0f}" height="{height + 42:.0f}" viewBox="0 0 {width:.0f} {height + 42:.0f}"'
    size += f' style="min-width:{26 * len(keep_ratio)}px"'  # on a phone it shrinks while it can be read, then scrolls
    return f'<svg class="plot" role="img" aria-label="keep ratio per layer" {size}>{"".join(bars)}</svg>'


def latency_grid(latency: Latency) -> str:
    """Lay out measured times as an HTML table."""
    heads = ("batch", "model", "median ms", "min - max", "runs", *(f"time / {name}" for name in BASELINES.values()))
    about = "Measured in turns on the same batches, one pass over all of them per run; ratios are of medians."
    return grid(heads, latency_rows(latency), about)


def provenance(results: Results) -> str:
    """List command, versions and config; all of it text of the user's, and escaped."""
    facts = {"git commit": results["git_commit"], "wall time": f"{results['wall_seconds']:.0f} s"}
    facts |= {f"{name} samples": count for name, count in results["samples"].items()} | results["versions"]
    line = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    config = json.dumps(results["config"], indent=2, ensure_ascii=False)
    return (
        f"<pre>{html.escape(results['command'])}</pre>\n"
        f'<p class="quiet">{html.escape(line)}</p>\n'
        f"<details><summary>config</summary><pre>{html.escape(config)}</pre></details>"
    )
