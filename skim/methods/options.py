"""The vocabulary of methods' options: what several methods mean by the same kind of number or name.

A method says by them, in the annotations of its constructor, what its options may be; :mod:`skim.options.declared`
checks by that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, WithJsonSchema

from skim.options.declared import OptionError, arguments, checked, declared
from skim.options.kinds import Between, Count, Fraction, NotNegative, Positive

Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]  # of the dense FLOPs
Range: TypeAlias = Annotated[tuple[Share, Share], Field(examples=[[0.25, 1.0]])]  # from the smallest to the largest
Target: TypeAlias = Share | Range  # one budget, or any of a range
Threshold: TypeAlias = Annotated[float, Field(ge=0, lt=1)]  # scores are shares of attention, so 1 prunes everything
Layer: TypeAlias = Annotated[int, Field(ge=0)]  # counted from 0
Place: TypeAlias = Annotated[str | Path, WithJsonSchema({"type": "string"})]  # of a file or a folder
Special: TypeAlias = Literal["cls", "sep"]  # tokens: what the head reads, and the separator
Preset: TypeAlias = Literal["default", "paper"]

__all__ = [
    "Between",
    "Count",
    "Fraction",
    "Layer",
    "NotNegative",
    "OptionError",
    "Place",
    "Positive",
    "Preset",
    "Range",
    "Share",
    "Special",
    "Target",
    "Threshold",
    "arguments",
    "checked",
    "declared",
]
