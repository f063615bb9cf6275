"""Public names of a package that are loaded on first use, so that to import it costs next to nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def on_first_use(package: str, public: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make a package's ``__getattr__`` and ``__dir__``.

    Args:
        package: its name.
        public: by public name the module that it is loaded from.

    Returns:
        One loads a public name; the other lists them, loaded or not, and what else the package holds.
    """

    def load(name: str) -> Any:
        if name not in public:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(import_module(public[name]), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *public})

    return load, names
