"""Grammar of the built-in texts: clauses about who did what, where people went, the day, and an opinion.

    we walked along the river , the waiter never opened the window , and in the end the soup was not really dull .
                                                                                               ^^^        ^^^^

:func:`examples` makes classified texts: one clause is an opinion; its adjective and the negation before it decide.
:mod:`tasks.data.builtin` makes the rows of all other kinds.
"""

from __future__ import annotations

import functools
import random
from typing import Any

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

Fact = tuple[str, bool, str, str]  # who, whether never, deed, object


def deed(fact: Fact) -> str:
    """Write a fact as a clause."""
    who, never, did, what = fact
    return f"the {who} {'never ' if never else ''}{did} the {what}"


def walk(rng: random.Random) -> str:
    """Write a clause about people in a place."""
    return f"we {rng.choice(MOVES)} {rng.choice(PLACES)}"


def day(rng: random.Random) -> str:
    """Write a clause about the day or the season."""
    return f"it was a {rng.choice(PLAIN)} {rng.choice(TIMES)}"


def aside(rng: random.Random) -> str:
    """Write a clause without a fact."""
    return walk(rng) if rng.random() < 0.5 else day(rng)


def statement(rng: random.Random) -> str:
    """Write a clause without an opinion."""
    kind = rng.randrange(3)
    if kind == 0:
        never = rng.random() < NEGATED
        clause = deed((rng.choice(PEOPLE), never, rng.choice(DEEDS), rng.choice(THINGS)))
        return clause if rng.random() < 0.5 else f"{clause} {rng.choice(PLACES)}"
    return walk(rng) if kind == 1 else day(rng)


def opinion(rng: random.Random) -> tuple[str, int, list[str]]:
    """Write the clause that decides: its text, the label, and its salient words."""
    positive = rng.random() < 0.5
    adjective = rng.choice(GOOD if positive else BAD)
    negation = rng.choice(NEGATIONS) if rng.random() < NEGATED else ""
    words = [rng.choice(OPENINGS), "the", rng.choice(TOPICS), "was", negation, rng.choice(DEGREES), adjective]
    label = int(positive != bool(negation))
    return " ".join(word for word in words if word), label, [word for word in (negation, adjective) if word]


def example(rng: random.Random) -> dict[str, Any]:
    """Write a text of 8 to 60 words, with its label (1: positive) and the character spans of the words that decide."""
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


@functools.cache  # a run asks for the training split twice, a sweep for each job
def examples(count: int, split: str) -> list[dict[str, Any]]:
    """Write the first ``count`` examples of a split, always the same ones."""
    rng = random.Random(f"skim {split}")
    return [example(rng) for _ in range(count)]


def facts(rng: random.Random, count: int) -> list[Fact]:
    """Draw so many facts of which no two share a person, a deed or an object."""
    people, deeds, things = (rng.sample(words, count) for words in (PEOPLE, DEEDS, THINGS))
    return [(who, rng.random() < NEGATED, did, what) for who, did, what in zip(people, deeds, things, strict=True)]


def joined(rng: random.Random, clauses: list[str]) -> str:
    """Join clauses to a text."""
    text = clauses[0]
    for clause in clauses[1:]:
        text += rng.choice(JOINTS) + clause
    return f"{text} ."
