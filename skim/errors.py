"""The one error a user meets: what is wrong, where, and what to do about it."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class SkimError(Exception):
    """A mistake in a config, a data set, a checkpoint or a device that its user can mend.

    The entry points print the message in a few lines and exit with code 2; a traceback is shown only on request
    (``HYDRA_FULL_ERROR=1``).
    """


class Interrupted(SkimError):
    """A training that could not go on from a step to the next; there may be a checkpoint from which another does.

    Args:
        what: has happened, and where.
        advice: a sentence or two.
        said: how the run goes on.
    """

    def __init__(self, what: str, advice: str, said: str = "") -> None:
        super().__init__(f"{what}{said}.\n{advice}")
        self.what, self.advice = what, advice

    def with_way_on(self, said: str) -> Interrupted:
        """The same error, with a word on how the run goes on."""
        return type(self)(self.what, self.advice, said)


def unknown(kind: str, name: object, options: Iterable[str]) -> SkimError:
    """The error for a name that is not in a closed list: names the nearest option, then all of them.

    Args:
        kind: what was looked up, in the user's words ("method", "task", "backbone family").
        name: what the user wrote; ``None`` for null.
        options: every name that would have worked.
    """
    options = sorted(options)
    what = "null" if name is None else name
    return SkimError(f"Unknown {kind} '{what}'.{nearest(name, options)}\nAvailable: {', '.join(options)}.")


@contextlib.contextmanager
def reading(file: object, what: str, advice: str = "") -> Iterator[None]:
    """Say that a file is damaged, whatever a library raises about it: there are as many ways as there are readers.

    Args:
        file: what is read within.
        what: it should be, such as ``a checkpoint``.
        advice: a sentence on what to do.
    """
    try:
        yield
    except SkimError:
        raise
    except Exception as error:
        raise SkimError(f"{file} cannot be read as {what}: {first_line(error)}.{advice and f' {advice}'}") from error


def nearest(name: object, options: Iterable[str]) -> str:
    """A question that names the option which a user may have meant, with a space before it; empty if none is near."""
    near = difflib.get_close_matches(str(name), list(options), n=1, cutoff=0.4)
    return f" Did you mean '{near[0]}'?" if near else ""


def shortened(text: str) -> str:
    """A value's text on one line of at most 60 characters."""
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def first_line(error: BaseException) -> str:
    """First line of an error's message, with the next one behind a colon; at most 300 characters.

    The error's name if it has no message.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".:")[:300]


def message(error: BaseException) -> str:
    """A SkimError's message, also from under the exceptions that Hydra wraps round it; else the first six lines.

    What a terminal would obey, or not show, is written out: a message may quote a stranger's file.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SkimError):
            return visible(str(cause))
        cause = cause.__cause__ or cause.__context__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return visible("\n".join(lines[:6]))


def visible(text: str) -> str:
    """Write out what does not print, but for ends of lines, as Python does: the escape character is four letters."""
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)
