"""skim: transformer encoders that spend less per input, with the method of your choice.

    import skim
    model = skim.compress(AutoModelForSequenceClassification.from_pretrained(...), "transkimmer")
    out = model(**batch)           # as before
    model.trace.relative_flops()   # what it cost

Shapes in all docstrings: B sequences, N input positions, K rows of a narrowed batch, T packed tokens, H heads, D width,
L layers.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:  # the public names, written once: for type checkers as they stand, and read below for everyone else
    from skim.calibration import calibrate as calibrate
    from skim.compression import compress as compress
    from skim.compression import decompress as decompress
    from skim.compression import execution as execution
    from skim.compression import uncompressed as uncompressed
    from skim.errors import SkimError as SkimError
    from skim.loading import from_pretrained as from_pretrained
    from skim.methods import Method as Method
    from skim.methods import register as register
    from skim.methods.act import ACT as ACT
    from skim.methods.chain import Chain as Chain
    from skim.methods.dense import Dense as Dense
    from skim.methods.early_exit import EarlyExit as EarlyExit
    from skim.methods.funnel import Funnel as Funnel
    from skim.methods.layer_drop import LayerDrop as LayerDrop
    from skim.methods.ltp import LTP as LTP
    from skim.methods.threshold import Manual as Manual
    from skim.methods.threshold import Relative as Relative
    from skim.methods.threshold import Rising as Rising
    from skim.methods.topk import TopK as TopK
    from skim.methods.transkimmer import Transkimmer as Transkimmer
    from skim.saving import save_pretrained as save_pretrained

_IMPORT = re.compile(r"^    from ([\w.]+) import (\w+) as \2$", re.MULTILINE)
_PUBLIC = {name: module for module, name in _IMPORT.findall(Path(__file__).read_text(encoding="utf-8"))}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Load the public names on first use: ``import skim`` and ``train.py --help`` stay quick."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'skim' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """The public names, loaded or not, and the modules that are loaded."""
    return sorted({*globals(), *__all__})
