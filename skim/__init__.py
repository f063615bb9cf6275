"""skim: transformer encoders that spend less per input, with the method of your choice.

    import skim
    model = skim.compress(AutoModelForSequenceClassification.from_pretrained(...), "transkimmer")
    out = model(**batch)           # as before
    model.trace.relative_flops()   # what it cost

Shapes in all docstrings: B sequences, N input positions, K rows of a narrowed batch, T packed tokens, H heads, D width,
L layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skim.lazy import on_first_use

__version__ = "0.2.0"

if TYPE_CHECKING:  # the names of _PUBLIC, for editors and type checkers; a test holds the two together
    from skim.budgets import set_budget as set_budget
    from skim.calibration import calibrate as calibrate
    from skim.compression import compress as compress
    from skim.compression import decompress as decompress
    from skim.compression import execution as execution
    from skim.compression import uncompressed as uncompressed
    from skim.errors import SkimError as SkimError
    from skim.export import export as export
    from skim.loading import from_pretrained as from_pretrained
    from skim.methods import Method as Method
    from skim.methods import register as register
    from skim.methods.act import ACT as ACT
    from skim.methods.adapler import AdapLeR as AdapLeR
    from skim.methods.chain import Chain as Chain
    from skim.methods.dense import Dense as Dense
    from skim.methods.early_exit import EarlyExit as EarlyExit
    from skim.methods.funnel import Funnel as Funnel
    from skim.methods.layer_drop import LayerDrop as LayerDrop
    from skim.methods.length_drop import LengthDrop as LengthDrop
    from skim.methods.ltp import LTP as LTP
    from skim.methods.random_tokens import RandomTokens as RandomTokens
    from skim.methods.stop_words import StopWords as StopWords
    from skim.methods.threshold import Manual as Manual
    from skim.methods.threshold import Relative as Relative
    from skim.methods.threshold import Rising as Rising
    from skim.methods.tome import ToMe as ToMe
    from skim.methods.topk import TopK as TopK
    from skim.methods.transkimmer import Transkimmer as Transkimmer
    from skim.methods.truncate import Truncate as Truncate
    from skim.pipelines.making import pipeline as pipeline
    from skim.saving import save_pretrained as save_pretrained

_PUBLIC = {  # public names, and the modules that they are loaded from on first use
    "set_budget": "skim.budgets",
    "calibrate": "skim.calibration",
    "compress": "skim.compression",
    "decompress": "skim.compression",
    "execution": "skim.compression",
    "uncompressed": "skim.compression",
    "SkimError": "skim.errors",
    "export": "skim.export",
    "from_pretrained": "skim.loading",
    "Method": "skim.methods",
    "register": "skim.methods",
    "ACT": "skim.methods.act",
    "AdapLeR": "skim.methods.adapler",
    "Chain": "skim.methods.chain",
    "Dense": "skim.methods.dense",
    "EarlyExit": "skim.methods.early_exit",
    "Funnel": "skim.methods.funnel",
    "LayerDrop": "skim.methods.layer_drop",
    "LengthDrop": "skim.methods.length_drop",
    "LTP": "skim.methods.ltp",
    "RandomTokens": "skim.methods.random_tokens",
    "StopWords": "skim.methods.stop_words",
    "Manual": "skim.methods.threshold",
    "Relative": "skim.methods.threshold",
    "Rising": "skim.methods.threshold",
    "ToMe": "skim.methods.tome",
    "TopK": "skim.methods.topk",
    "Transkimmer": "skim.methods.transkimmer",
    "Truncate": "skim.methods.truncate",
    "pipeline": "skim.pipelines.making",
    "save_pretrained": "skim.saving",
}

__all__ = ["__version__", *_PUBLIC]

# ``import skim`` and ``train.py --help`` stay quick
__getattr__, __dir__ = on_first_use(__name__, _PUBLIC)
