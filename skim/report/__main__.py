"""``python -m skim.report runs/``: every run below, aggregated over seeds, and the curves of quality against cost."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from skim.errors import SkimError
from skim.report.compared import runs_table
from skim.report.runs import collect


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m skim.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="searched for results.json, with all that is below them")
    parser.add_argument("--out", type=Path, help="where the curves go; the first folder if not given")
    parser.add_argument("--curves", action="store_true", help="with curve.json too: trained models at shifted budgets")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        results, left_out = collect(options.folders, options.curves)
        console.print(runs_table(results))
        for reason in left_out.values():
            console.print(Text(f"left out: {reason}", style="yellow"), soft_wrap=True)
        if all(run["status"] != "done" for run in results):
            raise SkimError(f"All {len(results)} runs failed; there is nothing to compare.")
    except SkimError as error:
        Console(stderr=True).print(Text(f"error: {error}"))
        return 2
    from skim.report.curve import write_curves

    first = options.folders[0]
    for path in write_curves(results, options.out or (first if first.is_dir() else first.parent)):
        console.print(Text(str(path)), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
