"""Kinds of numbers that options of any part are: annotations that carry their bounds."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]  # a share that may be none or all
Between: TypeAlias = Annotated[float, Field(gt=0, lt=1)]  # a share or probability that is neither none nor all
Positive: TypeAlias = Annotated[float, Field(gt=0)]
NotNegative: TypeAlias = Annotated[float, Field(ge=0)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Number: TypeAlias = Annotated[int, Field(ge=0)]  # a count that may be none
