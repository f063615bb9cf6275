"""How this program was started, for results.json and for the processes that a run starts. Imports nothing heavy."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

TYPED: list[str] = []  # the command line as it was before it was settled; its first word is the script
MODULE: list[str] = []  # ``-m`` and the module that was started so; empty for a script


def remember(typed: Sequence[str], module: Sequence[str] | None = None) -> None:
    """Keep a command line that stands for this process: the user's, or that of one job of a sweep.

    Args:
        typed: the script, and what stood behind it.
        module: ``-m`` and the module, or nothing for a script; ``None`` for what this process was started as.
    """
    TYPED[:], MODULE[:] = typed, started() if module is None else module


def command() -> str:
    """The command line as the user typed it; in a job of a sweep, one that runs this job alone."""
    script, *arguments = TYPED or sys.argv
    return shlex.join(["python", *(program() or [script]), *arguments])


def program() -> list[str]:
    """``-m`` and the module, of a program that was started so; nothing of a script."""
    return list(MODULE) if TYPED else started()


def started() -> list[str]:
    """``-m`` and the module that Python runs in this process, which may be a worker of joblib."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return ["-m", spec.name] if spec is not None else []


def repeated() -> list[str]:
    """The beginning of a command that starts this program once more, from any folder."""
    return [sys.executable, *(program() or [os.path.abspath((TYPED or sys.argv)[0])])]
