"""Scores of probes: the published numbers, and which fit which labels."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from skim.analysis.redundancy.metrics import METRICS, OF_NUMBERS, metric
from skim.errors import SkimError
from tests.analysis.redundancy import golden

GOLDEN = golden.table("metrics")


@pytest.mark.parametrize("name", METRICS)
def test_published_scores_are_reproduced(name: str) -> None:
    kind, outputs = ("cont", 1) if name in OF_NUMBERS else ("bin", 2)
    predicted, right = (np.array(GOLDEN[f"{of}_{kind}"]) for of in ("pred", "true"))
    wanted = GOLDEN["scores"]["matthews_corrcoef" if name == "matthews" else name]
    assert metric(name, outputs)(predicted, right) == pytest.approx(wanted, abs=1e-9)


def test_scores_of_many_classes() -> None:
    draw = np.random.default_rng(0)
    predicted, right = draw.integers(4, size=(2, 200))
    right[:100] = predicted[:100]
    assert metric("f1", 4)(predicted, right) == pytest.approx(f1_score(right, predicted, average="macro"), abs=1e-9)
    assert metric("matthews", 4)(predicted, right) == pytest.approx(matthews_corrcoef(right, predicted), abs=1e-9)


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SkimError, match=r"Unknown metric of probes 'acuracy'\. Did you mean 'accuracy'"):
        metric("acuracy", 2)
    with pytest.raises(SkimError, match="metric of numbers 'accuracy'"):
        metric("accuracy", 1)
    with pytest.raises(SkimError, match="metric of classes 'pearson'"):
        metric("pearson", 3)
