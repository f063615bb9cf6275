"""Labels of a column of texts, numbers or class labels: which there are, and the id of each.

A cell is taken as a text, whatever kind of file it is in: so 1, 1.0, "1" and " 1 " are one label, and no
label's id depends on what else its file holds.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from skim.errors import SkimError
from tasks.data.columns import Rejects, as_names, check_column, column_of, is_missing, rows_of

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

Read = TypeVar("Read")

LABELS = "task.label_column=<column>"
REGRESSION = "For numbers to predict, set task.head=regression."
LISTED = "If all of them are names, list them in task.label_names."
# as a whole; 007 is a name, and so are nan and inf
FIGURE = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
WHOLE = re.compile(r"([+-]?(?:0|[1-9][0-9]*))(?:\.0*)?")


def settings_of(label_names: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a model's config that name its labels."""
    return {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: i for i, name in enumerate(label_names)},
    }


def known_labels(part: str, rejects: Rejects, read: Callable[[Rejects], Read | None]) -> Read | None:
    """Read a part's labels; ``None`` if it has none.

    Rows can be predicted whatever their labels: a test part of which one label is missing or unknown counts as one
    without any, with a warning.

    Args:
        part: train, validation or test.
        rejects: takes rows without a label, except those of the test part.
        read: gives the labels.
    """
    if part != "test":
        return read(rejects)
    try:
        return read(rejects.strict())
    except SkimError as error:
        why = str(error).splitlines()[0]
        log.warning("%s So no labels of this part are read: it can be predicted, and not be measured.", why)
        return None


def is_labeled(rows: Dataset, name: str, rejects: Rejects, needed: bool, option: str = LABELS) -> bool:
    """Tell whether a split has labels; the hub marks labels that are withheld by -1 in every row.

    Args:
        rows: the split.
        name: of the label column.
        rejects: takes rows without a label.
        needed: whether a split without labels is an error.
        option: by which the user chooses the column.
    """
    import pyarrow.types as kinds

    where = rejects.where
    if name not in rows.column_names and not needed:
        return False
    check_column(rows, name, "label column", option, where)
    column = column_of(rows, name)
    if not needed and column.null_count == len(column):
        return False
    names = (kinds.is_string, kinds.is_large_string)
    known = (*names, kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_decimal)
    if not any(is_kind(column.type) for is_kind in known):
        several = "\nLists of labels are for task.head=multi_label." if kinds.is_list(column.type) else ""
        raise SkimError(
            f"{where}, column '{name}' holds {column.type}: neither names nor numbers, or a mixture.{several}"
        )
    values = column.unique().to_pylist()
    if any(map(is_missing, values)):
        if not needed and all(map(is_missing, values)):
            return False
        for row in rows_of(column, is_missing):
            rejects.add(row, name, "there is not a label")
    withheld = all(whole(str(value).strip()) == -1 for value in values)
    if withheld and needed:
        raise SkimError(f"{where}: all labels are -1, which means withheld; it can be predicted and nothing else.")
    return not withheld


def whole(text: str) -> int | None:
    """Return the whole number that a text is: 3, -1, 2.0; else ``None``."""
    found = WHOLE.fullmatch(text)
    return int(found[1]) if found else None


def label_text(value: Any, named: Sequence[str] | None = None) -> str | None:
    """Write a label as a text, without the spaces around it; ``None`` if there is none.

    Args:
        value: of a cell.
        named: the names of a parquet file's class labels, if it has them: then the value is a class's number.
    """
    if is_missing(value):
        return None
    if named is None:
        return str(value).strip()
    return named[value].strip() if value in range(len(named)) else f"class {value}"


def label_texts(rows: Dataset, name: str) -> tuple[list[str | None], np.ndarray]:
    """List the labels that occur in a column, and the number in that list of each row's, (rows,)."""
    coded = column_of(rows, name).combine_chunks().dictionary_encode(null_encoding="encode")
    named = getattr(rows.features[name], "names", None)
    return [label_text(value, named) for value in coded.dictionary.to_pylist()], coded.indices.to_numpy()


def shown_label(text: str) -> str:
    """Write a label for errors: a number as it is, anything else in quotation marks."""
    return text if FIGURE.fullmatch(text) else repr(text)


def finder(label_names: Sequence[str]) -> Callable[[str | None], int | None]:
    """Make a function from a label's text to its id, or to ``None``.

    A name is looked up first. A number is an id only if no name is a number: of the names 1, 2, 3 and 5+, 1 is the
    first, and 0 is none. True and False are the classes of these names, in any case, and never numbers.
    """
    by_name = {label: i for i, label in enumerate(label_names)}
    by_number = {whole(label): i for i, label in enumerate(label_names) if FIGURE.fullmatch(label)}
    by_number = by_number or {i: i for i in range(len(label_names))}
    by_number.pop(None, None)

    def find(text: str | None) -> int | None:
        if text is None or text in by_name:
            return None if text is None else by_name[text]
        if text.lower() in ("true", "false"):
            return next((by_name[one] for one in (text.lower(), text.title(), text.upper()) if one in by_name), None)
        return by_number.get(whole(text))

    return find


def infer_label_names(rows: Dataset, name: str, rejects: Rejects) -> list[str]:
    """Find the classes of a label column: a parquet file's own, names by the alphabet, or numbers without a gap.

    Numbers are 0, 1, 2, ... or 1, 2, 3, ... or -1 and 1; the name of a class is its number as a text. One word among
    numbers, or the reverse, is a mistake.
    """
    import pyarrow as pa

    is_labeled(rows, name, rejects, needed=True)
    feature, where = rows.features[name], rejects.where
    if hasattr(feature, "names"):
        return as_names(feature.names, f"{where}, column '{name}'")
    texts, codes = label_texts(rows, name)
    counts: Counter[str] = Counter()
    for text, count in zip(texts, np.bincount(codes, minlength=len(texts)).tolist(), strict=True):
        if text is not None:
            counts[text] += count

    def refuse(wrong: set[str], why: str, advice: str) -> None:
        for row in np.flatnonzero(np.isin(codes, [i for i, text in enumerate(texts) if text in wrong])).tolist():
            rejects.add(row, name, f"{shown_label(str(texts[codes[row]]))} {why}", advice)

    floating = pa.types.is_floating(column_of(rows, name).type)  # where nan and inf are numbers
    figures = {text for text in counts if floating or FIGURE.fullmatch(text)}
    words = set(counts) - figures
    if sum(counts[text] for text in words) > sum(counts[text] for text in figures):
        refuse(figures, "numbers a class, and most rows name theirs", LISTED)
        found = sorted(words)
    else:
        refuse(words, "names a class, and most rows number theirs", LISTED)
        found = _numbered(figures, f"{where}, column '{name}'", refuse)
    if not found:
        raise SkimError(f"{where}, column '{name}': no row has a label. The first: {rejects.first or 'it is empty'}")
    if len(found) < 2:
        raise SkimError(f"{where}, column '{name}': every row has the label '{found[0]}'; there is nothing to learn.")
    return found


def _numbered(figures: set[str], where: str, refuse: Callable[[set[str], str, str], None]) -> list[str]:
    """Name classes that are numbers."""
    numbers = {text: whole(text) for text in figures}
    if set(numbers.values()) != {-1, 1}:
        wrong = {text for text, number in numbers.items() if number is None or number < 0}
        # some write -1 for a class, and some where there is none
        refuse(wrong, "is not a class (a name, or 0, 1, 2, ...)", f"{LISTED} {REGRESSION}")
        numbers = {text: number for text, number in numbers.items() if text not in wrong}
    ids = sorted({number for number in numbers.values() if number is not None})
    if len(ids) > 1 and ids not in (list(range(len(ids))), list(range(1, len(ids) + 1)), [-1, 1]):
        shown = ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
        wanted = "0, 1" if len(ids) == 2 else f"0 to {len(ids) - 1}"
        raise SkimError(
            f"{where}: the labels are {shown} and not {wanted}.\n"
            "Number the classes from 0 or 1 or write names; if some have no rows here, list all in "
            f"task.label_names.\n{REGRESSION}"
        )
    return [str(i) for i in ids]


def label_ids(rows: Dataset, name: str, label_names: list[str], rejects: Rejects) -> np.ndarray:
    """Read label ids, (rows,) int64, of a column of names, ids or class labels, see :func:`finder`; 0 for a bad row.

    Class labels in another order than ours keep their names, not their numbers.
    """
    texts, codes = label_texts(rows, name)
    ids = [*map(finder(label_names), texts)]
    unknown = [i for i, (text, one) in enumerate(zip(texts, ids, strict=True)) if one is None and text is not None]
    if unknown:
        numbered = any(map(FIGURE.fullmatch, label_names))
        known = ", ".join(label_names if numbered else (f"{i} ({label})" for i, label in enumerate(label_names)))
        for row in np.flatnonzero(np.isin(codes, unknown)).tolist():
            shown = shown_label(str(texts[codes[row]]))
            rejects.add(row, name, f"{shown} is not a label of this task", f"Labels: {known}.")
    return np.asarray([one or 0 for one in ids], dtype=np.int64)[codes]


def numbers(rows: Dataset, name: str, rejects: Rejects) -> np.ndarray:
    """Read finite numbers, (rows,) float32; 0 for a bad row. In a csv file they are texts."""
    column = column_of(rows, name)

    def number(value: Any) -> float | None:
        try:
            if isinstance(value, bool) or "_" in str(value):  # of which Python makes numbers
                return None
            return float(value) if math.isfinite(float(value)) else None
        except (TypeError, ValueError):
            return None

    if any(number(value) is None for value in column.unique().to_pylist()):
        for row in rows_of(column, lambda value: number(value) is None and not is_missing(value)):
            rejects.add(row, name, f"{column[row].as_py()!r} is not a number")
    coded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    found = np.asarray([number(value) or 0.0 for value in coded.dictionary.to_pylist()], dtype=np.float32)
    return found[coded.indices.to_numpy()]
