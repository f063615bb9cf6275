"""Rows of the built-in data sets, of every kind that tasks read, from a small grammar; always the same ones.

:func:`rows` makes them in the schema that data sets of their kind have on the hub:

    pairs     premise, hypothesis, label: does the hypothesis follow from the premise?
    spans     SQuAD's columns: who did it, or what was it done to? A quarter has no answer in the text
    tags      tokens, tags: people, objects and places, as BIO
    choices   RACE's columns: the question of spans, with four options
    labels    text, labels: which of deed, move, day, praise and blame its clauses are; one to four of them
    text      text: for pretraining
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from skim.errors import unknown
from tasks.data.grammar import (
    JOINTS,
    PEOPLE,
    PLACES,
    THINGS,
    Fact,
    aside,
    day,
    deed,
    facts,
    joined,
    opinion,
    statement,
    walk,
)

if TYPE_CHECKING:
    from datasets import Dataset

LABELS = ("deed", "move", "day", "praise", "blame")  # of clauses
SIZES = {"train": 4000, "validation": 1000, "test": 1000}  # rows of a split
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def story(rng: random.Random, some: list[Fact]) -> str:
    """Write facts among up to two other clauses, in any order."""
    clauses = [deed(fact) for fact in some] + [aside(rng) for _ in range(rng.randint(0, 2))]
    rng.shuffle(clauses)
    return joined(rng, clauses)


def other(rng: random.Random, words: list[str], *taken: str) -> str:
    """Choose a word that is not taken."""
    return rng.choice([word for word in words if word not in taken])


def pair(rng: random.Random, number: int) -> dict[str, Any]:
    """Write a premise, and a hypothesis that follows, is denied, or is left open."""
    some = facts(rng, rng.randint(1, 3))
    who, never, did, what = rng.choice(some)
    label = rng.choice(("entailment", "neutral", "contradiction"))
    if label == "contradiction":
        never = not never
    elif label == "neutral":
        who = other(rng, PEOPLE, *(fact[0] for fact in some))
    return {"premise": story(rng, some), "hypothesis": f"{deed((who, never, did, what))} .", "label": label}


def asked(rng: random.Random, some: list[Fact], answerable: bool = True) -> tuple[str, str, str]:
    """Ask about one of the facts: the question, its answer, and ``who`` or ``what``, which it asks for."""
    who, _, did, what = rng.choice(some)
    if rng.random() < 0.5:
        if not answerable:
            who = other(rng, PEOPLE, *(fact[0] for fact in some))
        return f"what was it that the {who} {did} ?", f"the {what}", "what"
    if not answerable:
        what = other(rng, THINGS, *(fact[3] for fact in some))
    return f"who {did} the {what} ?", f"the {who}", "who"


def question(rng: random.Random, number: int) -> dict[str, Any]:
    """Write a text and a question; three quarters have their answer in the text, once."""
    some = [(who, False, did, what) for who, _, did, what in facts(rng, rng.randint(2, 4))]
    answerable = rng.random() < 0.75
    asks, answer, _ = asked(rng, some, answerable)
    context = story(rng, some)
    found = [(answer, context.index(answer))] if answerable else []
    answers = {"text": [text for text, _ in found], "answer_start": [start for _, start in found]}
    return {"id": str(number), "title": "built-in", "context": context, "question": asks, "answers": answers}


def tagged(rng: random.Random, number: int) -> dict[str, Any]:
    """Write words with the tag of each: PER, OBJ or LOC, begun (B-) or continued (I-), or O."""
    words: list[str] = []
    tags: list[str] = []

    def say(text: str, kind: str | None = None) -> None:
        some = text.split()
        words.extend(some)
        tags.extend([f"{'I' if i else 'B'}-{kind}" if kind else "O" for i in range(len(some))])

    for i, (who, never, did, what) in enumerate(facts(rng, rng.randint(1, 4))):
        say(rng.choice(JOINTS).strip() if i else "")
        say(f"the {who}", "PER")
        say(f"never {did}" if never else did)
        say(f"the {what}", "OBJ")
        if rng.random() < 0.5:
            say(rng.choice(PLACES), "LOC")
    say(".")
    return {"tokens": words, "tags": tags}


def choice(rng: random.Random, number: int) -> dict[str, Any]:
    """Write a text, a question, and four options of which one is right."""
    some = [(who, False, did, what) for who, _, did, what in facts(rng, rng.randint(2, 4))]
    asks, answer, kind = asked(rng, some)
    wrong = [f"the {word}" for word in (THINGS if kind == "what" else PEOPLE) if f"the {word}" != answer]
    options = [answer, *rng.sample(wrong, 3)]
    rng.shuffle(options)
    article = story(rng, some)
    right = "ABCD"[options.index(answer)]
    return {"example_id": str(number), "article": article, "answer": right, "question": asks, "options": options}


def labelled(rng: random.Random, number: int) -> dict[str, Any]:
    """Write a text of one to four clauses, labelled by their kinds."""
    clauses, labels = [], []
    for _ in range(rng.randint(1, 4)):
        label = rng.choice(LABELS)
        if label == "deed":
            clause = deed(facts(rng, 1)[0])
        elif label == "move":
            clause = walk(rng)
        elif label == "day":
            clause = day(rng)
        else:
            clause, positive, _ = opinion(rng)
            label = "praise" if positive else "blame"
        clauses.append(clause)
        labels.append(label)
    return {"text": joined(rng, clauses), "labels": [label for label in LABELS if label in labels]}


def plain(rng: random.Random, number: int) -> dict[str, Any]:
    """Write a text of two to six sentences."""
    sentences = [joined(rng, [statement(rng) for _ in range(rng.randint(1, 3))]) for _ in range(rng.randint(2, 6))]
    return {"text": " ".join(sentences)}


KINDS: dict[str, Callable[[random.Random, int], dict[str, Any]]] = {
    "pairs": pair,
    "spans": question,
    "tags": tagged,
    "choices": choice,
    "labels": labelled,
    "text": plain,
}


def rows(kind: str, split: str, count: int | None = None) -> Dataset:
    """Make the first ``count`` rows of a split, by default all; always the same ones.

    Args:
        kind: of :data:`KINDS`.
        split: of :data:`SIZES`.
        count: of rows.

    Raises:
        SkimError: there is no such kind or split.
    """
    from datasets import Dataset

    for what, name, known in (("built-in data set", kind, KINDS), ("built-in split", split, SIZES)):
        if name not in known:
            raise unknown(what, name, known)
    rng = random.Random(f"skim {kind} {split}")
    return Dataset.from_list([KINDS[kind](rng, number) for number in range(count or SIZES[split])])


NO_TEXTS = ("label", "labels", "tags", "answers", "answer", "id", "example_id")  # columns that hold none


def vocabulary(kind: str) -> set[str]:
    """Collect the words of a kind's texts."""
    some = rows(kind, "train", 2000)
    texts = [name for name, feature in some.features.items() if name not in NO_TEXTS]
    lists = [[value] if isinstance(value, str) else value for name in texts for value in some[name]]
    return {word for several in lists for text in several for word in text.split()}


def tokenizer_of(words: set[str]) -> Any:
    """Make a tokenizer of one token per word, for backbones that have none of their own."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate([*SPECIALS, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    names = {f"{special[1:-1].lower()}_token": special for special in SPECIALS}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
