"""Control tasks: a word type has one label everywhere, and sentences keep the frequencies of theirs."""

from __future__ import annotations

import numpy as np
import pytest

from skim.analysis.redundancy.control import control_task, selectivity
from skim.analysis.redundancy.probing import Probing
from skim.analysis.redundancy.ridge import Ridge
from skim.analysis.redundancy.rows import Rows
from skim.analysis.redundancy.selection import layer_scores
from skim.errors import SkimError
from tests.analysis.redundancy.planted import WIDTH, planted

WORDS = 40


def tagged(seed: int = 0) -> tuple[Probing, dict[str, np.ndarray]]:
    """Words that layer 0 tells apart one by one, and of which layer 1 knows the tag alone."""
    draw = np.random.default_rng(seed)
    names = draw.normal(size=(WORDS, 64))
    rows, types = {}, {}
    for split, count in (("train", 1200), ("dev", 300), ("test", 300)):
        word = draw.integers(WORDS, size=count)
        tag = word % 3
        values = np.zeros((count, 2, 64), np.float32)
        values[:, 0] = names[word]
        values[:, 1, :3] = np.eye(3)[tag]
        values[:, 1] += draw.normal(size=(count, 64)) / 50
        rows[split], types[split] = Rows(values.reshape(count, -1), tag), word * 1000 - 7
    return Probing(**rows, recipe=Ridge()), types


def test_a_word_type_has_one_label_in_all_splits() -> None:
    probing, types = tagged()
    control = control_task(probing, types)
    of_type: dict[int, set[int]] = {}
    for split, rows in control.splits.items():
        assert rows.values is probing.splits[split].values
        for word, label in zip(types[split], rows.labels, strict=True):
            of_type.setdefault(word, set()).add(label)
    assert {len(labels) for labels in of_type.values()} == {1}
    assert len(set.union(*of_type.values())) == 3
    assert (control_task(probing, types).train.labels == control.train.labels).all()
    assert (control_task(probing, types, seed=1).train.labels != control.train.labels).any()


def test_states_that_know_the_word_are_less_selective_than_those_that_know_the_tag() -> None:
    probing, types = tagged()
    task, control = (layer_scores(one, 64).single for one in (probing, control_task(probing, types)))
    words, tags = (selectivity(one, other)["dev"] for one, other in zip(task, control, strict=True))
    assert task[0]["dev"] == task[1]["dev"] == control[0]["dev"] == 1.0
    assert words == 0
    assert tags > 0.3


def test_labels_of_sentences_are_shuffled_within_their_split() -> None:
    probing = planted(Ridge())
    control = control_task(probing)
    for split, rows in control.splits.items():
        assert (np.bincount(rows.labels) == np.bincount(probing.splits[split].labels)).all()
        assert (rows.labels != probing.splits[split].labels).any()
    assert layer_scores(control, WIDTH).oracle["test"] < 0.4


def test_rows_without_a_type_are_refused() -> None:
    probing, types = tagged()
    with pytest.raises(SkimError, match="300 rows of 'test'"):
        control_task(probing, {**types, "test": types["test"][1:]})
    with pytest.raises(SkimError, match="300 rows of 'dev'"):
        control_task(probing, {"train": types["train"]})
