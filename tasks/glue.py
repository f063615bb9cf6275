"""The nine tasks of GLUE (https://gluebenchmark.com), with the metrics of its leader board."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from skim.errors import unknown
from tasks.text import Text


class Spec(NamedTuple):
    """What is particular to one of the nine."""

    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]  # none: a number
    metric_names: tuple[str, ...]  # the first selects the best checkpoint
    suffix: str = ""  # of the evaluation and test splits' names


SENTENCES = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
SPECS = {
    "cola": Spec(("sentence",), ("unacceptable", "acceptable"), ("matthews",)),
    "sst2": Spec(("sentence",), ("negative", "positive"), ("accuracy",)),
    "mrpc": Spec(SENTENCES, ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "qqp": Spec(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "stsb": Spec(SENTENCES, (), ("pearson", "spearman")),
    "mnli": Spec(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",), "_matched"),
    "qnli": Spec(("question", "sentence"), ENTAILMENT, ("accuracy",)),
    "rte": Spec(SENTENCES, ENTAILMENT, ("accuracy",)),
    "wnli": Spec(SENTENCES, ("not_entailment", "entailment"), ("accuracy",)),
}


@dataclass(kw_only=True, eq=False, repr=False)
class Glue(Text):
    """One of the nine, by ``name``; its columns, labels and metrics are those of ``SPECS``.

    The hub withholds the labels of all test splits but MRPC's. MNLI has two evaluation splits, ``validation_matched``
    (the default) and ``validation_mismatched``: ``python evaluate.py ckpt=... split=validation_mismatched``.
    """

    hub_id: str | None = "nyu-mll/glue"
    config: str = field(init=False)
    head: str = field(init=False)
    text_columns: list[str] = field(default_factory=list)  # of own files, where they differ; empty: the hub's
    label_names: list[str] = field(init=False)
    metric_names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        if self.name not in SPECS:
            raise unknown("GLUE task", self.name, SPECS)
        spec = SPECS[self.name]
        self.config = self.name
        self.head = "classification" if spec.label_names else "regression"
        self.text_columns = list(self.text_columns or spec.text_columns)
        self.label_names, self.metric_names = list(spec.label_names), list(spec.metric_names)
        super().__post_init__()

    def split_of(self, part: str) -> str:
        split = super().split_of(part)
        return split + SPECS[self.name].suffix if split in ("validation", "test") else split
