"""Options of a question: their column, the right one, and its place in the question."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from skim.errors import SkimError
from tasks.data.columns import Rejects, check_column, column_of
from tasks.data.labels import FIGURE, whole
from tasks.data.lists import is_of_texts, lists_of

if TYPE_CHECKING:
    from datasets import Dataset

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OPTIONS = "task.options_column=<column of lists>, or task.option_columns=[<a>,<b>,...]"
BLANK = re.compile("_+")  # in a question: what the option is to be put in place of


def put(question: str | None, option: str) -> str:
    """Put an option in a question's blank, or behind it if it has none; the option alone, where nothing is asked."""
    if question is None:
        return option
    return BLANK.sub(lambda _: option, question) if "_" in question else f"{question} {option}"


def check_options(rows: Dataset, name: str, rejects: Rejects) -> int:
    """Check that each row has a list of texts, as many as most rows; returns how many.

    Args:
        rows: the split.
        name: of the column.
        rejects: takes rows with more options or fewer, or with one that is not a text.
    """
    check_column(rows, name, "column of options", OPTIONS, rejects.where)
    column = column_of(rows, name)
    options = None if is_of_texts(column) else lists_of(rows, name, rejects.where)
    if options is None or not is_of_texts(options.values):
        raise SkimError(
            f"{rejects.where}, column '{name}' holds {column.type} and not lists of texts.\nChoose with {OPTIONS}."
        )
    usual = int(np.bincount(options.counts).argmax())
    if usual < 2:
        raise SkimError(f"{rejects.where}, column '{name}': rows of {usual} options leave nothing to choose.")
    for row in np.flatnonzero(options.counts != usual).tolist():
        rejects.add(row, name, f"{options.counts[row]} options, and other rows have {usual}")
    for row, place in options.first_of(options.values.is_null().to_numpy(zero_copy_only=False)):
        rejects.add(row, name, f"option {place + 1} is not a text")
    return usual


def option_of(answer: str, options: list[str]) -> int | None:
    """Find the right option's place by its text or its number; a number is a text where options are numbers."""
    for spelling in (answer, answer.lower()) if answer in ("True", "False") else (answer,):
        if spelling in options:
            return options.index(spelling)
    numbers = [whole(option) for option in options]
    number = whole(answer)
    if number is None:
        return None
    if any(map(FIGURE.fullmatch, options)):
        return numbers.index(number) if number in numbers else None
    return number if 0 <= number < len(options) else None
