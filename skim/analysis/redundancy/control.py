"""Control tasks: what probes score on labels that the states cannot know (Hewitt and Liang, EMNLP 2019).

A probe that scores well there memorises. Selectivity is its score on the task minus that on the control task: it tells
what the states hold from what the probe learned by heart.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from skim.analysis.redundancy.probing import Probing, Scores
from skim.analysis.redundancy.rows import Rows
from skim.errors import SkimError


def control_task(probing: Probing, types: Mapping[str, np.ndarray] | None = None, seed: int = 0) -> Probing:
    """Give the same rows labels that say nothing.

    With types, every word type gets one label for all its rows in all splits, that of a training row drawn at random,
    so labels are as frequent as in the task (section 2.1). Without, as where a row is a sentence, the labels of each
    split are shuffled; the score of a split that was not trained on is then that of the labels' frequencies alone.

    Args:
        probing: the task.
        types: number of each row's word type, (rows,), by split: the same number for the same word in all splits.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    splits = probing.splits
    if types is None:
        labels = {name: generator.permutation(rows.labels) for name, rows in splits.items()}
    else:
        for name, rows in splits.items():
            if name not in types or len(types[name]) != len(rows):
                raise SkimError(f"A control task needs the word type of each of the {len(rows)} rows of '{name}'.")
        known = np.unique(np.concatenate([types[name] for name in splits]))
        drawn = generator.choice(probing.train.labels, len(known))
        labels = {name: drawn[np.searchsorted(known, types[name])] for name in splits}
    return probing.changed(lambda name, rows: Rows(rows.values, labels[name]))


def selectivity(task: Scores, control: Scores) -> Scores:
    """Subtract the scores on a control task from those on the task, split by split."""
    return {split: score - control[split] for split, score in task.items()}
