"""The nine tasks of GLUE (https://gluebenchmark.com) and its diagnostics, with its leader board's metrics and files."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from skim import hub
from skim.errors import SkimError, unknown
from skim.files import write_text
from tasks.base import Task
from tasks.text import Kind, Text

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)


class Spec(NamedTuple):
    """Columns, labels, metrics and files of one of them."""

    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]  # none: a number
    metric_names: tuple[str, ...]  # the first selects the best checkpoint
    uploads: dict[str, str]  # split -> the leader board's file for it
    says_names: bool = False  # whether labels are names in that file, and not numbers
    suffix: str = ""  # of the evaluation and test splits' names


AX = "ax"  # the diagnostics: pairs in the form of MNLI, to be predicted by a model of it
SENTENCES = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
NLI = (("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",))
UPLOADS_OF_MNLI = {"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv", AX: "AX.tsv"}
SPECS = {
    "cola": Spec(("sentence",), ("unacceptable", "acceptable"), ("matthews",), {"test": "CoLA.tsv"}),
    "sst2": Spec(("sentence",), ("negative", "positive"), ("accuracy",), {"test": "SST-2.tsv"}),
    "mrpc": Spec(SENTENCES, ("not_equivalent", "equivalent"), ("accuracy", "f1"), {"test": "MRPC.tsv"}),
    "qqp": Spec(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1"), {"test": "QQP.tsv"}),
    "stsb": Spec(SENTENCES, (), ("pearson", "spearman"), {"test": "STS-B.tsv"}),
    "mnli": Spec(*NLI, UPLOADS_OF_MNLI, says_names=True, suffix="_matched"),
    "qnli": Spec(("question", "sentence"), ENTAILMENT, ("accuracy",), {"test": "QNLI.tsv"}, says_names=True),
    "rte": Spec(SENTENCES, ENTAILMENT, ("accuracy",), {"test": "RTE.tsv"}, says_names=True),
    "wnli": Spec(SENTENCES, ("not_entailment", "entailment"), ("accuracy",), {"test": "WNLI.tsv"}),
    AX: Spec(*NLI, {}),
}


@dataclass(kw_only=True, eq=False, repr=False)
class Glue(Text):
    """Task of GLUE, by ``name``; its columns, labels and metrics are those of ``SPECS``.

    The hub withholds the labels of all test splits but MRPC's. MNLI has two evaluation splits, ``validation_matched``
    and ``validation_mismatched``: training is evaluated on the first, and both are reported at its end.
    ``what=predict`` also writes the leader board's file of a whole test split: MNLI's three are ``test_matched`` (the
    default), ``split=test_mismatched`` and the diagnostics, ``split=ax``.
    """

    hub_id: str | None = "nyu-mll/glue"
    config: str = field(init=False)
    head: Kind = field(init=False)
    text_columns: Annotated[list[str], Field(max_length=2)] = field(default_factory=list)
    """columns of the texts, where those of own files differ from the hub's; empty: the hub's"""
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
        self._others: dict[str, Task] = {}

    def split_of(self, part: str) -> str:
        split = super().split_of(part)
        return split + SPECS[self.name].suffix if split in ("validation", "test") else split

    def splits(self) -> list[str]:
        if self.name == AX:
            return ["test"]
        both = self.name == "mnli" and self.eval_split is None and self.holdout is None
        return super().splits() + ["validation_mismatched"] * (both and self.hub_id is not None)

    def source(self, part: str) -> tuple[Dataset, str]:
        if self.name == "mnli" and self.split_of(part) == AX and self.hub_id is not None:
            return hub.dataset(self.hub_id, AX, "test", f"task={AX}"), f"{self.hub_id}/{AX} test"
        return super().source(part)

    def setup(self, stage: str | None = None) -> None:
        if self.name == AX:
            raise SkimError(
                "task=ax, the diagnostics of GLUE, has nothing to train on: a model of MNLI predicts it.\n"
                "python train.py task=mnli, then python evaluate.py ckpt=<that run> what=predict split=ax"
            )
        super().setup(stage)
        usual = self.eval_split is None and self.holdout is None and self.files.get("validation") is None
        if self.name == "mnli" and usual and stage in ("fit", "validate") and not self._others:
            other = copy.copy(self)  # with the tokenizer
            other.eval_split, other.numbers, other._raw, other._rows = "validation_mismatched", {}, {}, {}
            # counts of its rows are its own
            other.report = {key: {} if isinstance(value, dict) else value for key, value in self.report.items()}
            other.setup("validate")
            self._others["mismatched"] = other

    def others(self) -> dict[str, Task]:
        return self._others

    def write_predictions(self, found: list[dict[str, Any]], folder: Path) -> list[Path]:
        """Write the leader board's file too: ``index``, which is the hub's ``idx``, and ``prediction``."""
        files = super().write_predictions(found, folder)
        name = SPECS[self.name].uploads.get(self.split_of("test"))
        if name is None or self.files.get("test") is not None:
            return files
        rows, where = self.source("test")
        if len(rows) != len(found):
            log.warning("%s was not written: it needs all %d rows of %s, not %d", name, len(rows), where, len(found))
            return files
        numbers = rows["idx"] if "idx" in rows.column_names else range(len(rows))
        lines = [f"{index}\t{self._uploaded(predicted)}\n" for index, predicted in zip(numbers, found, strict=True)]
        write_text(folder / name, "index\tprediction\n" + "".join(lines))
        return [*files, folder / name]

    def _uploaded(self, predicted: dict[str, Any]) -> str:
        """Write a prediction as the leader board wants it."""
        label = predicted["prediction"]
        if self.head == "regression":
            return f"{min(max(label, 0.0), 5.0):.3f}"
        return label if SPECS[self.name].says_names else str(self.label_names.index(label))
