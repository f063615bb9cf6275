"""Frame of every HTML report: one file, no scripts, nothing fetched, light and dark; and its tables."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

STYLE = """
:root{color-scheme:light dark;--page:#fff;--text:#161b26;--quiet:#5b6577;--line:#dde2ea;--card:#f6f8fb;--accent:#2f64bd}
@media(prefers-color-scheme:dark){
:root{--page:#12161f;--text:#e6eaf2;--quiet:#98a3b5;--line:#2b3343;--card:#1a202c;--accent:#8ab1f5}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text)}
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .5rem}
h2{font-size:1.1rem;margin:2.5rem 0 .75rem;padding-bottom:.3rem;border-bottom:1px solid var(--line)}
"""


def document(title: str, body: str, style: str = "") -> str:
    """Make a whole page.

    Args:
        title: plain text; escaped here.
        body: HTML whose texts are escaped already.
        style: CSS after the frame's own.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""


def grid(heads: Sequence[str], lines: Iterable[Sequence[str]], about: str) -> str:
    """Make an HTML table with a line below it."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in lines)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div><p class="quiet">{html.escape(about)}</p>'
