"""The one error a user meets: what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SkimError(Exception):
    """A mistake in a config, a data set, a checkpoint or a device that its user can mend.

    The entry points print the message in a few lines and exit with code 2; a traceback is shown only on request
    (``HYDRA_FULL_ERROR=1``).
    """


def unknown(kind: str, name: object, options: Iterable[str]) -> SkimError:
    """The error for a name that is not in a closed list: names the nearest option, then all of them.

    Args:
        kind: what was looked up, in the user's words ("method", "task", "backbone family").
        name: what the user wrote; ``None`` for null.
        options: every name that would have worked.
    """
    options = sorted(options)
    near = difflib.get_close_matches(str(name), options, n=1, cutoff=0.4)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return SkimError(f"Unknown {kind} '{'null' if name is None else name}'.{hint}\nAvailable: {', '.join(options)}.")
