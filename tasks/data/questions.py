"""Checks of questions: every one has a text and an id, and its answer stands in the text."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.data.answers import COUNTED, Given, given, golds, places
from tasks.data.cache import Parsed, cached, problems
from tasks.data.cells import Problem
from tasks.data.columns import Rejects, check_column, check_texts, column_of

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

PLACING = 1  # counted up whenever the same rows shall give another table of questions; old caches are then left alone


class Findings(Rejects):
    """Rejects that are collected, whatever is to be done about them."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.problems: list[Problem] = []

    def add(self, row: int, column: str, why: str, advice: str = "") -> None:
        self.problems.append(Problem(row, column, why, advice))


@dataclass(frozen=True)
class Questions:
    """Check of the questions of a split.

    Attributes:
        question: column of the questions.
        context: column of the texts.
        answers: column of the answers.
        ids: column of the ids; ``None``: ``id`` if there is one, else the row's number.
        no_answers: whether questions without an answer are right.
    """

    question: str
    context: str
    answers: str
    ids: str | None
    no_answers: bool

    def check(self, rows: Dataset, rejects: Rejects, test: bool) -> Dataset:
        """Make columns ``id``, ``question``, ``context``; with answers ``golds``, ``begin`` and ``end`` of the first.

        The table is cached with its problems: to find answers in a hundred thousand texts takes a while.

        Args:
            rows: the split.
            rejects: takes bad rows.
            test: whether the split is to be predicted: then it needs ids, and answers that cannot be used are left out.
        """
        from datasets.fingerprint import Hasher

        columns = [self.question, self.context, self.answers, self.ids]
        numbers, unread = rejects.numbers(len(rows)), rejects.unread(self.answers, len(rows))
        key = Hasher.hash([PLACING, rows._fingerprint, columns, self.no_answers, test])
        table = cached(key, lambda: self._checked(rows, test, numbers, unread, Findings(rejects.where)))
        unusable = []
        for row, column, why, advice in problems(table):
            assert column is not None
            if test and column == self.answers:
                unusable.append((row, column, why))
            else:
                rejects.add(row, column, why, advice)
        if unusable:
            row, column, why = unusable[0]
            log.warning(
                "%s, row %d, column '%s': %s. So no answers of this part are read: it can be predicted, and not be "
                "measured.",
                *(rejects.where, numbers[row], column, why),
            )
        return table

    def _checked(
        self, rows: Dataset, test: bool, numbers: np.ndarray, unread: list[Problem], findings: Findings
    ) -> Parsed:
        """Make the table of :meth:`check`, and list its problems.

        Args:
            rows: the split.
            test: whether it is to be predicted, with or without answers.
            numbers: of the rows in the file or split, from 1.
            unread: answers that are null because they could not be read, not because there are none.
            findings: takes the problems.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        found: dict[str, Any] = {}
        for role, name in (("question", self.question), ("context", self.context)):
            check_texts(rows, name, findings, f"task.{role}_column=<column>")
            texts = column_of(rows, name)
            if findings.problems:  # Arrow's functions refuse bytes that are not UTF-8
                known = np.isin(np.arange(len(rows)), [problem.row for problem in findings.problems])
                texts = pc.if_else(pa.array(known), None, texts)
            for row in np.flatnonzero(pc.or_(pc.utf8_is_space(texts), pc.equal(texts, "")).fill_null(False)).tolist():
                findings.add(row, name, "there is no text")
            found[role] = texts
        found["id"] = self._named(rows, test, numbers, findings)
        if not test or self.answers in rows.column_names:
            check_column(rows, self.answers, "answers column", "task.answers_column=<column>", findings.where)
            where = f"{findings.where}, column '{self.answers}'"
            answers = given(column_of(rows, self.answers), where)
            right = golds(answers)
            findings.problems += unread
            if not test or len(right.values):  # else they are withheld
                placed = self._placed(found["context"], answers, findings)
                wrong = any(problem.column == self.answers for problem in findings.problems)
                if not (test and wrong):
                    found |= {"golds": right, "begin": placed[:, 0], "end": placed[:, 1]}
        return pa.table(found), findings.problems

    def _named(self, rows: Dataset, test: bool, numbers: np.ndarray, findings: Findings) -> list[str]:
        """Read the ids, or number the rows; every row of the test part needs an id of its own."""
        ids = list(map(str, numbers.tolist()))
        if self.ids is None and "id" not in rows.column_names:
            return ids
        name = self.ids or "id"
        check_column(rows, name, "column of ids", "task.id_column=<column>", findings.where)
        seen: set[str] = set()
        for row, value in enumerate(column_of(rows, name).to_pylist()):
            if value is not None and str(value).strip():
                ids[row] = str(value)
                if test and ids[row] in seen:
                    findings.add(row, name, f"{ids[row]!r} is the id of an earlier row too")
                seen.add(ids[row])
            elif test:
                findings.add(row, name, "there is no id")
        return ids

    def _placed(self, contexts: Any, answers: Given, findings: Findings) -> np.ndarray:
        """Find the first and last character (exclusive) of each row's first answer, (rows, 2); -1 for none."""
        found = np.full((len(contexts), 2), -1)
        for row, where in enumerate(places(contexts, answers)):
            if isinstance(where, str):
                findings.add(row, self.answers, where, COUNTED)
            elif where[0] < 0 and not self.no_answers:
                advice = "For questions without one: task.no_answers=true."
                findings.add(row, self.answers, "there is not an answer", advice)
            else:
                found[row] = where
        return found
