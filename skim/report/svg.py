"""Skimmed texts as SVG, for a README: the shaded sentence, and a grid of layers by tokens.

Text is laid out here, because SVG wraps nothing: a monospace font whose advance is forced by ``textLength``, so that
words fit their boxes whatever font a reader has.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from rich.cells import cell_len

from skim.files import write_text
from skim.report.heatmap import SkimmedText
from skim.report.shades import STEPS, colors, rules, step

ADVANCE, LINE, PAD, MARGIN = 8.4, 30.0, 4.0, 16.0  # pixels: a character, a line of words, inside a box, round it all
FONT = "font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;font-size:14px"
STYLE = (
    f"text{{{FONT};fill:#161b26}}.q{{fill:#5b6577;font-size:12px}}.e{{fill:#e9edf3}}"
    "@media(prefers-color-scheme:dark){text{fill:#e6eaf2}.q{fill:#98a3b5}.e{fill:#232b3a}}\n"
    + rules("rect", background="fill")
    + rules("text", ink="fill")
)


def sentence(text: SkimmedText, width: float = 820) -> str:
    """Draw the words of a text, shaded and wrapped to ``width`` pixels, with a legend under them."""
    parts, x, y = [], MARGIN, MARGIN
    for word in text.words():
        x += PAD
        if x > MARGIN + PAD and x + sum(cell_len(piece) for piece, _ in word) * ADVANCE + PAD > width - MARGIN:
            x, y = MARGIN + PAD, y + LINE
        for i, (piece, survived) in enumerate(word):
            length = cell_len(piece) * ADVANCE
            if x > MARGIN + PAD and x + length > width - MARGIN:  # a word longer than a line breaks between its pieces
                x, y = MARGIN, y + LINE
            left, right = PAD * (i == 0), PAD * (i == len(word) - 1)  # pieces of a word touch
            parts.append(_token(x, y, piece, step(survived, text.layers), text.fate(survived), left, right))
            x += length
        x += PAD + ADVANCE * 0.6
    y += LINE + 14
    label = "layers computed"
    parts.append(_label(MARGIN, y + 15, label))
    x = MARGIN + ADVANCE * len(label)
    for survived in range(text.layers + 1):
        parts.append(_token(x, y, str(survived), step(survived, text.layers), text.fate(survived), PAD, PAD))
        x += len(str(survived)) * ADVANCE + 2 * PAD
    counts = " ".join(map(str, text.rows))
    parts.append(_label(x + 4, y + 15, f"computed to the end; rows by layer: {counts}"))
    if text.prediction is not None:
        y += LINE
        parts.append(_label(MARGIN, y + 15, f"prediction: {text.prediction}"))
    return _svg(width, y + LINE + MARGIN / 2, parts)


def grid(text: SkimmedText, cell: float = 20) -> str:
    """Draw layers down, tokens across, rows behind; a filled cell is a token that is computed, alone or merged."""
    pieces = [piece for word in text.words() for piece, _ in word]
    top = MARGIN + ADVANCE * min(max((cell_len(piece) for piece in pieces), default=0), 24) + 6
    left = MARGIN + ADVANCE * len("layer 00")
    parts = []
    for column, piece in enumerate(pieces):
        x, y = left + (column + 0.5) * cell + 5, top - 6
        shown = piece if cell_len(piece) <= 24 else piece[:23] + "…"
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}" transform="rotate(-90 {x:.1f} {y:.1f})">{escape(shown)}</text>')
    for layer, count in enumerate(text.rows):
        y = top + layer * cell
        parts.append(_label(MARGIN, y + cell / 2 + 4, f"layer {layer + 1}"))
        for column, survived in enumerate(text.survived):
            kind = f"s{STEPS}" if survived > layer else "e"
            place = f'x="{left + column * cell + 1:.1f}" y="{y + 1:.1f}" width="{cell - 2:g}" height="{cell - 2:g}"'
            parts.append(f'<rect class="{kind}" {place} rx="3"><title>{text.fate(survived)}</title></rect>')
        parts.append(_label(left + len(pieces) * cell + 8, y + cell / 2 + 4, str(count)))
    width = left + len(pieces) * cell + 8 + 4 * ADVANCE + MARGIN
    return _svg(width, top + text.layers * cell + MARGIN, parts)


def write_svg(path: Path, drawing: str) -> None:
    """Write a drawing of :func:`sentence` or :func:`grid`."""
    write_text(path, drawing)


def _token(x: float, y: float, piece: str, place: int, fate: str, left: float, right: float) -> str:
    """Draw a piece of a word on its shade, its text from ``x`` on; colours are attributes too, for want of CSS."""
    background, ink = colors(place)
    length = cell_len(piece) * ADVANCE
    return (
        f'<g><title>{fate}</title><rect class="s{place}" x="{x - left:.1f}" y="{y:.1f}" '
        f'width="{left + length + right:.1f}" height="23" fill="{background}"/>'
        f'<text class="s{place}" x="{x:.1f}" y="{y + 16:.1f}" textLength="{length:.1f}" '
        f'lengthAdjust="spacingAndGlyphs" fill="{ink}">{escape(piece)}</text></g>'
    )


def _label(x: float, y: float, text: str) -> str:
    return f'<text class="q" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(width: float, height: float, parts: list[str]) -> str:
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{STYLE}</style>\n{body}\n</svg>\n'
