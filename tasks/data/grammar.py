"""The grammar of the built-in tasks: small texts about who did what, for every kind of task, with a known truth.

    we walked along the river , the waiter never opened the window , and in the end the soup was not really dull .
                                                                                               ^^^        ^^^^

:func:`rows` makes the rows of a kind, always the same ones, in the schema that data sets of that kind have on the hub:

    pairs     premise, hypothesis, label: does the hypothesis follow from the premise?
    spans     SQuAD's columns: who did it, or what was it done to? A quarter has no answer in the text
    tags      tokens, tags: people, objects and places, as BIO
    choices   RACE's columns: the question of spans, with four options
    labels    text, labels: which of deed, move, day, praise and blame its clauses are; one to four of them
    text      text: for pretraining

:func:`examples` makes classified texts: one clause is an opinion; its adjective and the negation before it decide.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from skim.errors import unknown

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


LABELS = ("deed", "move", "day", "praise", "blame")  # of clauses
SIZES = {"train": 4000, "validation": 1000, "test": 1000}  # rows of a split

Fact = tuple[str, bool, str, str]  # who, whether never, deed, object


def facts(rng: random.Random, count: int) -> list[Fact]:
    """So many facts of which no two share a person, a deed or an object."""
    people, deeds, things = (rng.sample(words, count) for words in (PEOPLE, DEEDS, THINGS))
    return [(who, rng.random() < NEGATED, did, what) for who, did, what in zip(people, deeds, things, strict=True)]


def told(fact: Fact) -> str:
    """A fact as a clause."""
    who, never, did, what = fact
    return f"the {who} {'never ' if never else ''}{did} the {what}"


def joined(rng: random.Random, clauses: list[str]) -> str:
    """Clauses as one text."""
    text = clauses[0]
    for clause in clauses[1:]:
        text += rng.choice(JOINTS) + clause
    return f"{text} ."


def story(rng: random.Random, some: list[Fact]) -> str:
    """Facts among up to two other clauses, in any order."""
    clauses = [told(fact) for fact in some] + [statement_of_others(rng) for _ in range(rng.randint(0, 2))]
    rng.shuffle(clauses)
    return joined(rng, clauses)


def statement_of_others(rng: random.Random) -> str:
    """A clause without a fact."""
    if rng.random() < 0.5:
        return f"we {rng.choice(MOVES)} {rng.choice(PLACES)}"
    return f"it was a {rng.choice(PLAIN)} {rng.choice(TIMES)}"


def other(rng: random.Random, words: list[str], *taken: str) -> str:
    """A word that is none of those."""
    return rng.choice([word for word in words if word not in taken])


def pair(rng: random.Random, number: int) -> dict[str, Any]:
    """A premise, and a hypothesis that follows, is denied, or is left open."""
    some = facts(rng, rng.randint(1, 3))
    who, never, did, what = rng.choice(some)
    label = rng.choice(("entailment", "neutral", "contradiction"))
    if label == "contradiction":
        never = not never
    elif label == "neutral":
        who = other(rng, PEOPLE, *(fact[0] for fact in some))
    return {"premise": story(rng, some), "hypothesis": f"{told((who, never, did, what))} .", "label": label}


def asked(rng: random.Random, some: list[Fact], answerable: bool = True) -> tuple[str, str, str]:
    """A question about one of the facts, its answer, and ``who`` or ``what`` is asked for."""
    who, _, did, what = rng.choice(some)
    if rng.random() < 0.5:
        if not answerable:
            who = other(rng, PEOPLE, *(fact[0] for fact in some))
        return f"what was it that the {who} {did} ?", f"the {what}", "what"
    if not answerable:
        what = other(rng, THINGS, *(fact[3] for fact in some))
    return f"who {did} the {what} ?", f"the {who}", "who"


def question(rng: random.Random, number: int) -> dict[str, Any]:
    """A text and a question; three quarters have their answer in the text, once."""
    some = [(who, False, did, what) for who, _, did, what in facts(rng, rng.randint(2, 4))]
    answerable = rng.random() < 0.75
    asks, answer, _ = asked(rng, some, answerable)
    context = story(rng, some)
    found = [(answer, context.index(answer))] if answerable else []
    answers = {"text": [text for text, _ in found], "answer_start": [start for _, start in found]}
    return {"id": str(number), "title": "built-in", "context": context, "question": asks, "answers": answers}


def tagged(rng: random.Random, number: int) -> dict[str, Any]:
    """Words, and the tag of each: PER, OBJ or LOC, begun (B-) or continued (I-), or O."""
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
    """A text, a question, and four options of which one is right."""
    some = [(who, False, did, what) for who, _, did, what in facts(rng, rng.randint(2, 4))]
    asks, answer, kind = asked(rng, some)
    wrong = [f"the {word}" for word in (THINGS if kind == "what" else PEOPLE) if f"the {word}" != answer]
    options = [answer, *rng.sample(wrong, 3)]
    rng.shuffle(options)
    article = story(rng, some)
    right = "ABCD"[options.index(answer)]
    return {"example_id": str(number), "article": article, "answer": right, "question": asks, "options": options}


def labelled(rng: random.Random, number: int) -> dict[str, Any]:
    """A text of one to four clauses, and what they are."""
    clauses, labels = [], []
    for _ in range(rng.randint(1, 4)):
        label = rng.choice(LABELS)
        if label == "deed":
            clause = told(facts(rng, 1)[0])
        elif label == "move":
            clause = f"we {rng.choice(MOVES)} {rng.choice(PLACES)}"
        elif label == "day":
            clause = f"it was a {rng.choice(PLAIN)} {rng.choice(TIMES)}"
        else:
            clause, positive, _ = opinion(rng)
            label = "praise" if positive else "blame"
        clauses.append(clause)
        labels.append(label)
    return {"text": joined(rng, clauses), "labels": [label for label in LABELS if label in labels]}


def plain(rng: random.Random, number: int) -> dict[str, Any]:
    """A text of two to six sentences."""
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
    """The first ``count`` rows of a split, by default all; always the same ones.

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


def vocabulary(kind: str) -> set[str]:
    """The words of a kind's texts."""
    some = rows(kind, "train", 2000)
    texts = [name for name, feature in some.features.items() if name not in NO_TEXTS]
    lists = [[value] if isinstance(value, str) else value for name in texts for value in some[name]]
    return {word for several in lists for text in several for word in text.split()}


NO_TEXTS = ("label", "labels", "tags", "answers", "answer", "id", "example_id")  # columns that hold none


def tokenizer_of(words: set[str]) -> Any:
    """One token per word: for backbones that have no tokenizer of their own."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate([*SPECIALS, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    names = {f"{special[1:-1].lower()}_token": special for special in SPECIALS}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
