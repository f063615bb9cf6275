"""Places where names are looked for, and the error for one that is in none of them."""

from __future__ import annotations

import os
from pathlib import Path

from skim.errors import SkimError, first_line

PROBE_SECONDS = 4.0  # how long the hub may take to say whether it has a name


def mirror() -> Path | None:
    """The folder that ``SKIM_MIRROR`` names, if it is set."""
    folder = os.environ.get("SKIM_MIRROR")
    return Path(folder).expanduser() if folder else None


def nowhere(what: str, looked: list[str], fetch: str | None, model: str = "") -> SkimError:
    """The error for a name that was found nowhere: the places looked at, and the command that gets it."""
    command = (
        f"python -m skim.hub fetch {fetch}" if fetch else f"hf download {model} --local-dir $SKIM_MIRROR/models/{model}"
    )
    return SkimError(
        f"{what} was found nowhere.\nLooked: {'; '.join(looked)}.\n"
        f"On a machine with internet, with SKIM_MIRROR=<folder> set: {command}"
    )


def problem_with(name: str, kind: str, revision: str | None = None, token: str | bool | None = None) -> str | None:
    """Ask the hub once, briefly: ``None`` if it has the name. Its own loaders would retry for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        HfApi().repo_info(name, repo_type=kind, timeout=PROBE_SECONDS, revision=revision, token=token)
    except RevisionNotFoundError:
        return f"it knows no revision {revision} of this {kind}"
    except (RepositoryNotFoundError, HFValidationError):
        return f"it knows no {kind} of this name (a private one needs `hf auth login`)"
    except Exception as error:  # which HTTP library raises what is the hub client's affair; all of it means "not now"
        return f"cannot be reached ({first_line(error)})"
    return None
