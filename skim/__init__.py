"""skim: transformer encoders that spend less per input, with the method of your choice.

    import skim
    model = skim.compress(AutoModelForSequenceClassification.from_pretrained(...), "transkimmer")
    out = model(**batch)           # as before
    model.trace.relative_flops()   # what it cost

Shapes in all docstrings: B sequences, N input positions, K rows of a narrowed batch, T packed tokens, H heads, D width,
L layers.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from skim.errors import SkimError

__version__ = "0.1.0"

_PUBLIC = {
    "compress": "skim.compression",
    "decompress": "skim.compression",
    "execution": "skim.compression",
    "uncompressed": "skim.compression",
    "save_pretrained": "skim.saving",
    "from_pretrained": "skim.loading",
    "Method": "skim.methods",
    "Dense": "skim.methods.dense",
    "Transkimmer": "skim.methods.transkimmer",
    "LTP": "skim.methods.ltp",
    "TopK": "skim.methods.topk",
    "ACT": "skim.methods.act",
    "Funnel": "skim.methods.funnel",
    "EarlyExit": "skim.methods.early_exit",
}

__all__ = ["SkimError", "__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Load the public names on first use: ``import skim`` and ``train.py --help`` stay quick."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'skim' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)
