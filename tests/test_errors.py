"""The one error a user meets, as it is printed."""

from __future__ import annotations

from skim.errors import SkimError, message


def test_what_a_terminal_would_obey_is_written_out() -> None:
    """A message may quote a stranger's file."""
    said = message(SkimError("x.csv, row 1: \x1b[2J\u202eevil\ud800\nUse café."))
    assert said == "x.csv, row 1: \\x1b[2J\\u202eevil\\ud800\nUse café."
