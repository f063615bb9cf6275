"""Values that a forward keeps for later, in a model that several threads may share (law 9)."""

from __future__ import annotations

import threading
from typing import Any


class PerThread(threading.local):
    """A value of each thread's own: what one forward notes here, no other forward sees.

    A copied or pickled model leaves it behind; the graph of a forward could not be copied anyway.

    Attributes:
        value: the calling thread's; ``None`` until it sets one.
    """

    value: Any = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return PerThread, ()
