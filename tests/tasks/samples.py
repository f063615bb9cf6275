"""A few rows of each data set in the schema that it has on the hub, and the mirror folder that they make."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, List, Value

SPLITS = ("train", "validation", "test")
TEXTS = ["a good film", "the soup was not very good", "it is a bad film and it is not good", "the film was bad"]


def texts(names: list[str], column: str = "label", splits: tuple[str, ...] = SPLITS) -> dict[str, Dataset]:
    """Texts and classes."""
    features = Features({"text": Value("string"), column: ClassLabel(names=names)})
    rows = {"text": TEXTS * 3, column: [i % len(names) for i in range(12)]}
    return {split: Dataset.from_dict(rows, features=features) for split in splits}


STORY = "Ada, the sailor, carried the old lamp. The waiter (of the hotel) painted a chair on Monday, 3 May."
ASKED = [  # question, answers
    ("Who carried the lamp?", ["Ada", "Ada, the sailor"]),
    ("What did the waiter paint?", ["a chair", "chair"]),
    ("When was it painted?", ["Monday, 3 May", "on Monday"]),
]


def asked(no_answers: bool = False, splits: tuple[str, ...] = ("train", "validation")) -> dict[str, Dataset]:
    """SQuAD's rows; the last question of each four has no answer with ``no_answers``."""
    questions = ASKED + [("Who borrowed the lamp?", [])] * no_answers
    texts = Features({"text": List(Value("string")), "answer_start": List(Value("int32"))})
    features = Features({**dict.fromkeys(("id", "title", "context", "question"), Value("string")), "answers": texts})
    rows = [
        {
            "id": f"56be4db0acb8001400a502{number:02x}",
            "title": "A_story",
            "context": STORY,
            "question": question,
            "answers": {"text": answers, "answer_start": [STORY.index(answer) for answer in answers]},
        }
        for number, (question, answers) in enumerate(questions * (12 // len(questions)))
    ]
    return {split: Dataset.from_list(rows, features=features) for split in splits}


def asked_file(folder: Path) -> list[str]:
    """Own questions as SQuAD's json."""
    file = folder / "own.json"
    file.write_text(json.dumps(squad_json(asked()["train"])), encoding="utf-8")
    return [f"task.files.{part}={file}" for part in ("train", "test")]


def squad_json(rows: Dataset) -> dict[str, Any]:
    """Rows as SQuAD publishes them."""

    def answers(row: dict[str, Any]) -> list[dict[str, Any]]:
        pairs = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        return [{"text": text, "answer_start": start} for text, start in pairs]

    paragraphs = [
        {
            "context": row["context"],
            "qas": [
                {
                    "id": row["id"],
                    "question": row["question"],
                    "answers": answers(row),
                    "is_impossible": not row["answers"]["text"],
                }
            ],
        }
        for row in rows
    ]
    return {"version": "v2.0", "data": [{"title": "A_story", "paragraphs": paragraphs}]}


# by file in conf/task: the splits of its data set
SAMPLES: dict[str, Callable[[], dict[str, Dataset]]] = {
    "rotten_tomatoes": lambda: texts(["neg", "pos"]),
    "squad": lambda: asked(),
    "squad_v2": lambda: asked(no_answers=True),
}

SAMPLES |= dict.fromkeys(
    ("mlm", "sop", "electra"),
    lambda: {split: Dataset.from_dict({"text": ["", *TEXTS, " = A film = \n", *TEXTS]}) for split in SPLITS},
)

SAMPLES |= dict.fromkeys(
    ("mlm", "sop", "electra"),
    lambda: {split: Dataset.from_dict({"text": ["", *TEXTS, " = A film = \n", *TEXTS]}) for split in SPLITS},
)

# by file in conf/task that has no data set: writes files into a folder and returns the overrides that name them
FILES: dict[str, Callable[[Path], list[str]]] = {
    "question_answering": asked_file,
}
# by file in conf/task that only predicts: what is said to whoever trains it
NOT_TRAINED: dict[str, str] = {}
# by file in conf/task whose test split is not to be had: how it predicts all the same
PREDICTED: dict[str, list[str]] = {}


def write(mirror: Path, task: str, cfg: Any) -> None:
    """Write a task's sample where its config looks for it.

    Args:
        mirror: the folder that ``SKIM_MIRROR`` will name.
        task: of :data:`SAMPLES`.
        cfg: the task's config.
    """
    folder = mirror / "datasets" / cfg.hub_id / (cfg.get("config") or "default")
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in SAMPLES[task]().items():
        rows.to_parquet(folder / f"{split}.parquet")
