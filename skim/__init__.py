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
from typing import TYPE_CHECKING, Any

from skim.errors import SkimError

if TYPE_CHECKING:  # what _PUBLIC finds at run time, for editors and type checkers
    from skim.compression import compress, decompress, execution, uncompressed
    from skim.lightning.budget import calibrate
    from skim.loading import from_pretrained
    from skim.methods import Method
    from skim.methods.act import ACT
    from skim.methods.dense import Dense
    from skim.methods.early_exit import EarlyExit
    from skim.methods.funnel import Funnel
    from skim.methods.ltp import LTP
    from skim.methods.threshold import Manual, Relative, Rising
    from skim.methods.topk import TopK
    from skim.methods.transkimmer import Transkimmer
    from skim.saving import save_pretrained

__version__ = "0.2.0"

_PUBLIC = {
    "compress": "skim.compression",
    "decompress": "skim.compression",
    "execution": "skim.compression",
    "uncompressed": "skim.compression",
    "calibrate": "skim.lightning.budget",
    "save_pretrained": "skim.saving",
    "from_pretrained": "skim.loading",
    "Method": "skim.methods",
    "Dense": "skim.methods.dense",
    "Transkimmer": "skim.methods.transkimmer",
    "LTP": "skim.methods.ltp",
    "Manual": "skim.methods.threshold",
    "Relative": "skim.methods.threshold",
    "Rising": "skim.methods.threshold",
    "TopK": "skim.methods.topk",
    "ACT": "skim.methods.act",
    "Funnel": "skim.methods.funnel",
    "EarlyExit": "skim.methods.early_exit",
}

__all__ = [
    "ACT",
    "LTP",
    "Dense",
    "EarlyExit",
    "Funnel",
    "Manual",
    "Method",
    "Relative",
    "Rising",
    "SkimError",
    "TopK",
    "Transkimmer",
    "__version__",
    "calibrate",
    "compress",
    "decompress",
    "execution",
    "from_pretrained",
    "save_pretrained",
    "uncompressed",
]


def __getattr__(name: str) -> Any:
    """Load the public names on first use: ``import skim`` and ``train.py --help`` stay quick."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'skim' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """The public names, loaded or not, and the modules that are loaded."""
    return sorted({*globals(), *__all__})
