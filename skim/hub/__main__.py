"""The commands of ``python -m skim.hub``; see :mod:`skim.hub`."""

from __future__ import annotations

import sys
from pathlib import Path

from skim.errors import SkimError, message
from skim.hub.fetch import USAGE, fetch
from skim.hub.listing import show


def main(arguments: list[str]) -> None:
    """``fetch ...``, ``list`` or ``convert ...``."""
    match arguments:
        case ["fetch", *overrides]:
            fetch(overrides)
        case ["list"]:
            show()
        case ["convert", source, target, *preset] if preset[:1] in ([], ["--preset"]) and len(preset) in (0, 2):
            from skim.hub.convert import convert

            print(convert(Path(source), Path(target), preset[1] if preset else None))
        case _:
            raise SkimError(USAGE)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SkimError as error:
        print(f"error: {message(error)}", file=sys.stderr)
        raise SystemExit(2) from None
