"""A few rows of each data set in the schema that it has on the hub, and the mirror folder that they make."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, List, Value
from hydra.utils import instantiate

from tasks.glue import AX, SPECS

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


def glue(name: str) -> dict[str, Dataset]:
    """A task of GLUE: class labels, the index of each row, and withheld labels of all test splits but MRPC's."""
    spec = SPECS[name]
    names = list(spec.label_names)
    label = ClassLabel(names=names) if names else Value("float32")
    columns = dict.fromkeys(spec.text_columns, Value("string"))
    features = Features({**columns, "label": label, "idx": Value("int32")})

    def split(part: str) -> Dataset:
        withheld = part.startswith("test") and name != "mrpc"
        labels: list[float] = [-1] * 12 if withheld else [i % len(names) if names else i % 6 for i in range(12)]
        rows = {**{column: TEXTS[i:] + TEXTS * 2 + TEXTS[:i] for i, column in enumerate(columns)}}
        return Dataset.from_dict({**rows, "label": labels, "idx": range(12)}, features=features)

    if name == AX:
        return {"test": split("test")}
    suffixes = ("_matched", "_mismatched") if name == "mnli" else ("",)
    parts = ["train", *(part + suffix for part in SPLITS[1:] for suffix in suffixes)]
    return {part: split(part) for part in parts}


def exam(splits: tuple[str, ...] = SPLITS) -> dict[str, Dataset]:
    """RACE's rows."""
    strings = dict.fromkeys(("example_id", "article", "answer", "question"), Value("string"))
    rows = [
        {
            "example_id": f"high{number}.txt",
            "article": STORY,
            "answer": "ABCD"[number % 4],
            "question": ("Who carried the lamp?", "The waiter painted _ on Monday.")[number % 2],
            "options": ["Ada", "a chair", "the lamp", "nobody"],
        }
        for number in range(12)
    ]
    features = Features({**strings, "options": List(Value("string"))})
    return {split: Dataset.from_list(rows, features=features) for split in splits}


def groups() -> dict[str, Dataset]:
    """The posts of SetFit's 20 newsgroups, which name their group beside its number."""
    rows = {"text": TEXTS * 3, "label": [i % 3 for i in range(12)], "label_text": ["sci.med", "sci.space", "misc"] * 4}
    return {split: Dataset.from_dict(rows) for split in ("train", "test")}


def lines(name: str, rows: list[dict[str, Any]]) -> Callable[[Path], list[str]]:
    """Own rows, a json object per line."""

    def write_file(folder: Path) -> list[str]:
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return [f"task.files.{part}={file}" for part in ("train", "test")]

    return write_file


WORDS = [["Ada", "Lovelace", "can", "n't", "sail", "."], ["He", "paid", "#", "20"], ["Monday"]]
PARTS = ["NOUN", "PUNCT", "ADP", "NUM", "SYM", "SCONJ", "ADJ", "PART", "DET", "CCONJ", "PROPN", "PRON", "X", "_", "ADV"]


def chunks(kinds: str) -> list[str]:
    """BIO tags."""
    return ["O", *(f"{letter}-{kind}" for kind in kinds.split() for letter in "BI")]


def tagged(splits: tuple[str, ...], **columns: list[str] | None) -> dict[str, Dataset]:
    """Words, and tags by column: class labels of these names, or texts with a null."""
    tags = {name: List(ClassLabel(names=names) if names else Value("string")) for name, names in columns.items()}
    features = Features({"id": Value("string"), "tokens": List(Value("string")), **tags})
    words = WORDS * 6
    rows: dict[str, list] = {"id": [str(i) for i in range(len(words))], "tokens": words}
    for name, names in columns.items():
        count = len(names or "ABC")
        ids = [[(3 * row + i) % count for i in range(len(some))] for row, some in enumerate(words)]
        rows[name] = (
            ids if names else [["ABC"[i] if place != 1 else None for place, i in enumerate(some)] for some in ids]
        )
    return {split: Dataset.from_dict(rows, features=features) for split in splits}


def columns_file(name: str, form: str) -> Callable[[Path], list[str]]:
    """Files of columns to train on and to predict, such as ``sem.txt``; each line is of this form."""

    def written(folder: Path) -> list[str]:
        file = folder / name
        pairs = [[(word, f"T{len(word) % 3}") for word in some] for some in WORDS * 6]
        sentences = ["".join(form.format(word=word, tag=tag) + "\n" for word, tag in some) for some in pairs]
        file.write_text("\n".join(sentences))
        return [f"task.files.train={file}", f"task.files.test={file}"]

    return written


POS_2000 = "'' # $ ( ) , . : `` CC CD DT".split()
NAMED = {"pos_tags": ['"', "''", "#"], "chunk_tags": chunks("NP VP"), "ner_tags": chunks("PER ORG LOC MISC")}

# by file in conf/task: the splits of its data set
SAMPLES: dict[str, Callable[[], dict[str, Dataset]]] = {
    "rotten_tomatoes": lambda: texts(["neg", "pos"]),
    "newsgroups": groups,
    "imdb": lambda: texts(["neg", "pos"], splits=("train", "test", "unsupervised")),
    "yelp_polarity": lambda: texts(["1", "2"], splits=("train", "test")),
    "yelp_full": lambda: texts(["1 star", "2 star", "3 stars", "4 stars", "5 stars"], splits=("train", "test")),
    "ag_news": lambda: texts(["World", "Sports", "Business", "Sci/Tech"], splits=("train", "test")),
    "race": exam,
    "race_middle": exam,
    "race_high": exam,
    **{name: partial(glue, name) for name in SPECS},
    "squad": lambda: asked(),
    "squad_v2": lambda: asked(no_answers=True),
}

SAMPLES |= dict.fromkeys(
    ("mlm", "sop", "electra"),
    lambda: {split: Dataset.from_dict({"text": ["", *TEXTS, " = A film = \n", *TEXTS]}) for split in SPLITS},
)

SAMPLES |= {
    **dict.fromkeys(
        ("conll2000", "conll2000_pos"),
        lambda: tagged(("train", "test"), pos_tags=POS_2000, chunk_tags=chunks("ADJP NP VP")),
    ),
    "conll2003": lambda: tagged(SPLITS, **NAMED),
    **dict.fromkeys(("ud", "ud_xpos"), lambda: tagged(SPLITS, upos=PARTS, xpos=None)),
}

# by file in conf/task that has no data set: writes files into a folder and returns the overrides that name them
FILES: dict[str, Callable[[Path], list[str]]] = {
    "question_answering": asked_file,
    "sem": columns_file("sem.txt", "{word}\t{tag}"),
    "ccg": columns_file("ccg.conll", "{word} x {tag}"),
    "tagging": columns_file("own.conllu", "1\t{word}\t_\t{tag}\t_\t_\t_\t_\t_\t_"),
    "text": lines("texts", [{"text": text, "label": i % 2} for i, text in enumerate(TEXTS * 5)]),
    "multiple_choice": lines(
        "exam",
        [{"article": STORY, "question": "Who?", "options": ["Ada", "Bo"], "answer": "AB"[i % 2]} for i in range(20)],
    ),
}
# by file in conf/task that only predicts: what is said to whoever trains it
NOT_TRAINED: dict[str, str] = {"ax": "task=ax, the diagnostics of GLUE, has nothing to train on: a model of MNLI"}
# by file in conf/task whose test split is not to be had: how it predicts all the same
PREDICTED: dict[str, list[str]] = {}


def write(mirror: Path, task: str, cfg: Any) -> None:
    """Write a task's sample where its config looks for it.

    Args:
        mirror: the folder that ``SKIM_MIRROR`` will name.
        task: of :data:`SAMPLES`.
        cfg: the task's config.
    """
    folder = mirror / "datasets" / cfg.hub_id / instantiate(cfg).config
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in SAMPLES[task]().items():
        rows.to_parquet(folder / f"{split}.parquet")
