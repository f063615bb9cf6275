"""Kinds of answer to a text: a class, several labels, or a number; a file each."""

from __future__ import annotations

from tasks.heads.base import Head
from tasks.heads.classification import Classification
from tasks.heads.multi_label import MultiLabel
from tasks.heads.regression import Regression

HEADS: dict[str, type[Head]] = {
    "classification": Classification,
    "multi_label": MultiLabel,
    "regression": Regression,
}
