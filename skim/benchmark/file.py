"""The file that numbers go into."""

from __future__ import annotations

import tempfile
from pathlib import Path

from skim.errors import SkimError, first_line


def make_room(path: Path) -> None:
    """Make the folder of a file, and see that it can be written, before what goes into it takes its minutes.

    Raises:
        SkimError: it cannot.
    """
    if path.is_dir():
        raise SkimError(f"{path} cannot be written: it is a folder.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SkimError(f"{path} cannot be written: {first_line(error)}") from error
