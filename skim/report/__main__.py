"""``python -m skim.report runs/``: every run below, aggregated over seeds, and the report of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from skim.errors import SkimError, message, visible
from skim.report.compared import runs_table
from skim.report.found import collect


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["wandb-workspace"]:
        from skim.report import workspace

        return workspace.main(arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m skim.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="searched for results.json, with all that is below them")
    parser.add_argument(
        "--out", type=Path, help="where the files go; the folder around those that are searched if not given"
    )
    parser.add_argument(
        "--docs", type=Path, help="write the frontier of each task, <task>.md and .svg, here: parts of a page beside it"
    )
    parser.add_argument("--curves", action="store_true", help="with curve.json too: trained models at shifted budgets")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        found = collect(options.folders, options.curves, peers=True)
        console.print(runs_table(found.runs))
        for reason in found.left_out.values():
            console.print(Text(f"left out: {reason}", style="yellow"), soft_wrap=True)
        if all(run["status"] != "done" for run in found.runs):
            raise SkimError(f"All {len(found.runs)} runs failed; there is nothing to compare.")
        if options.docs is not None:
            from skim.report.frontier import write_frontiers

            written = write_frontiers(found.runs, options.docs)
            if options.out is None:
                for path in written:
                    console.print(Text(str(path)), soft_wrap=True)
                return 0
        from skim.report.curve import write_curves
        from skim.report.overview import bundling, made, write_overview

        folder = made(options.out or around(options.folders))
        bundling()  # while the pictures are drawn
        pictures = write_curves(found.runs, folder)
        for path in (*write_overview(found, folder), *pictures):
            console.print(Text(str(path)), soft_wrap=True)
    except (SkimError, OSError) as error:
        said = visible(f"{error.filename}: {error.strerror}.") if isinstance(error, OSError) else message(error)
        print(f"error: {said}", file=sys.stderr)
        return 2
    return 0


def around(folders: Sequence[Path]) -> Path:
    """Choose where a report goes: the folder around all that are given, or ``report/`` in it if it is a run's own."""
    folder = Path(os.path.commonpath([path.resolve() for path in folders]))
    folder = folder if folder.is_dir() else folder.parent
    return folder / "report" if (folder / "results.json").is_file() else folder


if __name__ == "__main__":
    sys.exit(main())
