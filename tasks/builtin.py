"""The built-in task: an opinion among plain statements, from a small grammar. No download, and a known truth.

    we walked along the river , the waiter never opened the window , and in the end the soup was not really dull .
                                                                                               ^^^        ^^^^

One clause of each text is an opinion; its adjective and the negation before it decide the label, and nothing else does.
The adjective alone does not, as many opinions are negated. So a method that drops tokens without looking loses what it
needs, and one that looks can drop nearly all. A tiny transformer learns it perfectly in three passes over 4,000 texts.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tasks.text import Text

if TYPE_CHECKING:
    from datasets import Dataset

PEOPLE = "waiter driver teacher gardener doctor cousin painter neighbour baker sailor".split()
DEEDS = "opened carried moved found painted watched borrowed washed counted repaired".split()
THINGS = "window basket chair letter bicycle lamp map ladder suitcase clock".split()
MOVES = "walked waited arrived talked cooked slept danced worked".split()
PLACES = (
    "along the river",
    "behind the station",
    "in the garden",
    "before lunch",
    "after the rain",
    "on monday",
    "across the square",
    "near the old bridge",
    "with two friends",
    "at the corner of the street",
)
PLAIN = "quiet cold long grey rainy windy short busy".split()
TIMES = "morning evening week afternoon winter summer".split()
OPENINGS = ("", "", "honestly", "in the end", "to be fair", "for me")
TOPICS = "soup film concert room book service journey coffee story hotel".split()
DEGREES = ("", "", "very", "quite", "really", "so")
NEGATIONS = ("not", "hardly")  # of opinions
GOOD = "wonderful excellent lovely charming superb brilliant delightful perfect".split()
BAD = "awful dreadful terrible boring poor horrible dull miserable".split()
JOINTS = (" , ", " and ", " . ", " , and ")

NEGATED = 0.35  # share of opinions; under a half, so that the adjective alone is a hint to start from, and no more
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def statement(rng: random.Random) -> str:
    """A clause that says nothing about the label."""
    kind = rng.randrange(3)
    if kind == 0:
        never = "never " if rng.random() < NEGATED else ""
        clause = f"the {rng.choice(PEOPLE)} {never}{rng.choice(DEEDS)} the {rng.choice(THINGS)}"
        return clause if rng.random() < 0.5 else f"{clause} {rng.choice(PLACES)}"
    if kind == 1:
        return f"we {rng.choice(MOVES)} {rng.choice(PLACES)}"
    return f"it was a {rng.choice(PLAIN)} {rng.choice(TIMES)}"


def opinion(rng: random.Random) -> tuple[str, int, list[str]]:
    """The clause that decides: its text, the label, and its salient words."""
    positive = rng.random() < 0.5
    adjective = rng.choice(GOOD if positive else BAD)
    negation = rng.choice(NEGATIONS) if rng.random() < NEGATED else ""
    words = [rng.choice(OPENINGS), "the", rng.choice(TOPICS), "was", negation, rng.choice(DEGREES), adjective]
    label = int(positive != bool(negation))
    return " ".join(word for word in words if word), label, [word for word in (negation, adjective) if word]


def example(rng: random.Random) -> dict[str, Any]:
    """One text of 8 to 60 words, its label (1 is positive), and the character spans of the words that decide it."""
    clauses = [statement(rng) for _ in range(rng.randint(1, 4))]
    verdict, label, words = opinion(rng)
    place = rng.randint(0, len(clauses))
    clauses.insert(place, verdict)
    text = ""
    salient: list[list[int]] = []
    for i, clause in enumerate(clauses):
        text += rng.choice(JOINTS) if i else ""
        if i == place:
            starts = [len(text) + clause.rindex(word) for word in words]
            salient = [[start, start + len(word)] for start, word in zip(starts, words, strict=True)]
        text += clause
    return {"text": f"{text} .", "labels": label, "salient": salient}


def examples(count: int, split: str) -> list[dict[str, Any]]:
    """The first ``count`` examples of a split, always the same ones."""
    rng = random.Random(f"skim {split}")
    return [example(rng) for _ in range(count)]


@dataclass(kw_only=True, eq=False, repr=False)
class Builtin(Text):
    """Classification of texts from the grammar above. Batches also hold ``salient`` (B, N), bool: what decides."""

    name: str = "builtin"
    train_rows: int = 4000  # texts to train on
    eval_rows: int = 1000  # texts to evaluate on, and as many to test on
    label_names: list[str] | None = field(init=False)

    def __post_init__(self) -> None:
        self.label_names = ["negative", "positive"]
        super().__post_init__()

    def source(self, part: str) -> tuple[Dataset, str]:
        from datasets import Dataset

        split = self.split_of(part)
        rows = examples(self.train_rows if part == "train" else self.eval_rows, split)
        return Dataset.from_list(rows), f"built-in {split}"

    def check(self, rows: Dataset, part: str, where: str) -> Dataset:
        return rows

    def encode(self, rows: dict[str, list]) -> dict[str, list]:
        columns = super().encode(rows)
        length = self.report["max_length"]
        offsets = self.tokenizer(rows["text"], truncation=True, max_length=length, return_offsets_mapping=True)
        spans = zip(offsets["offset_mapping"], rows["salient"], strict=True)
        # special tokens have the empty span (0, 0), which overlaps nothing
        salient = [[any(a < end and start < b for a, b in words) for start, end in tokens] for tokens, words in spans]
        return {**columns, "salient": salient}

    def own_tokenizer(self) -> Any:
        """One token per word of the grammar: for backbones that have no tokenizer of their own."""
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        words = sorted({word for row in examples(2000, "train") for word in row["text"].split()})
        vocab = {word: i for i, word in enumerate([*SPECIALS, *words])}
        tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
        names = {f"{special[1:-1].lower()}_token": special for special in SPECIALS}
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
