"""Other people's trainers and adapters: what makes a compressed model whole in their hands."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skim.integrations.trainer import SkimCallback

__all__ = ["SkimCallback"]


def __getattr__(name: str) -> Any:
    """Load on first use: who trains with Lightning needs neither Trainer nor PEFT."""
    if name not in __all__:
        raise AttributeError(f"module 'skim.integrations' has no attribute '{name}'")
    return getattr(import_module("skim.integrations.trainer"), name)
