"""Export to ONNX with tokens that really leave: ``skim.export(model, "model.onnx")`` and ``skim.export.load``.

    import skim
    skim.export(model, "exported/model.onnx", tokenizer=tokenizer, precision="int8")
    model = skim.export.load("exported/model.onnx")  # needs neither torch nor transformers
    model(**tokenizer("a gripping , funny film", return_tensors="np"))["logits"]

$ python -m skim.export ckpt=runs/sst2/ltp/minilm/<stamp> export.precision=int8

The walk itself is traced, over forms of a TokenBatch (:mod:`skim.export.forms`) whose operations a graph can hold, so
methods and backbones stay as they are. Extras: ``skim[onnx]`` to export and to run in ONNX Runtime, ``skim[openvino]``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from skim.lazy import on_first_use

if TYPE_CHECKING:
    from skim.export.exporting import Check as Check
    from skim.export.exporting import export as export
    from skim.export.loaded import Exported as Exported
    from skim.export.loaded import load as load

_PUBLIC = {
    "Check": "skim.export.exporting",
    "Exported": "skim.export.loaded",
    "export": "skim.export.exporting",
    "load": "skim.export.loaded",
}

__all__ = [*_PUBLIC]

__getattr__, __dir__ = on_first_use(__name__, _PUBLIC)


class _Callable(ModuleType):
    """A package that is called as its function: once it is imported, ``skim.export`` names the package."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call :func:`skim.export.exporting.export`."""
        return self.export(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
