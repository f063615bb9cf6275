"""Values of a composed config, held against the declarations of what they are for, in the words of the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from skim.errors import SkimError
from skim.options.declared import OptionError


@contextlib.contextmanager
def typed(place: str) -> Iterator[None]:
    """Say what is wrong with options as one types them: ``method.target=2 must be ...``.

    Args:
        place: the group that they stand in, such as ``method`` or ``task``.
    """
    from hydra.errors import InstantiationException

    try:
        yield
    except (OptionError, InstantiationException) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, OptionError):
            raise SkimError(cause.typed(place)) from None
        if isinstance(cause, SkimError):
            raise cause from None
        raise
