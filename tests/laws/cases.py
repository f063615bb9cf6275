"""The pairs of methods and families that the laws run over.

Wide: all methods on three families (chains on two of them), all families with two methods, and every head with one.
``make test`` runs a sample of these, in which every method, every family and every head is, and ``make test-slow`` the
others. ``--laws=full`` is the whole product, on every device that there is; ``--laws=quick`` all methods on one family.
"""

from __future__ import annotations

import copy
import functools
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import skim
from tests.families import FAMILIES, HEADS, any_mask, has, labels_of, plain
from tests.methods.table import METHODS, Row
from tests.ragged import ragged

# packed with plain attention; narrowed, with an attention that cannot be handed a function; rotary and windowed
THREE = ("bert", "deberta-v3", "modernbert")
# the families have one half of a layer each, and scores; then keys and values for rows that others look at
TWO = ("ltp", "act_gate")
INSTEAD = "funnel"  # of the second, where rows cannot look at other rows
EVERY_HEAD = "transkimmer"


@dataclass(frozen=True)
class Case:
    """A method of the table on a family of the table, under a head.

    Attributes:
        method: its name in the table.
        family: likewise.
        head: likewise.
    """

    method: str
    family: str
    head: str

    def __str__(self) -> str:
        return "-".join((self.method, self.family, self.head))

    @property
    def row(self) -> Row:
        """The method's row of the table."""
        return METHODS[self.method]

    @property
    def executions(self) -> tuple[str, ...]:
        """Ways to run it, masked first and then as it runs in inference."""
        return tuple(e for e in FAMILIES[self.family].executions if e != "narrowed" or self.row.narrows)

    @property
    def seed(self) -> int:
        """Seed of its batch; another for each case, so that masks of every kind come up."""
        return zlib.crc32(str(self).encode()) % 1000

    @property
    def applies(self) -> bool:
        """True if the family has the head and what the method needs."""
        per_sequence = self.head in ("classification", "regression")
        return (
            has(self.family, self.head)
            and (per_sequence or not self.row.reads_head)
            and (looks_apart(self.family) or not self.row.apart)
        )

    def batch(self, device: str = "cpu") -> dict[str, Tensor]:
        """Inputs ``(B, N)`` with pads on either side, holes and an empty row."""
        batch = any_mask(self.family, self.seed, reads(self.family, self.head))
        return {name: value.to(device) for name, value in batch.items()}

    def some(self, batch: dict[str, Tensor], pools_only: bool = False) -> dict[str, Tensor]:
        """The rows that have a token; ``pools_only``: unless the head takes a row of nothing."""
        if pools_only and not self.pools:
            return batch
        there = batch["attention_mask"].bool().any(1)
        return {name: value[there] for name, value in batch.items()}

    def labelled(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same with targets for the head's loss."""
        labels = labels_of(self.head, {name: value.cpu() for name, value in batch.items()})
        return batch | {name: value.to(batch["input_ids"].device) for name, value in labels.items()}

    def compressed(self, device: str = "cpu") -> nn.Module:
        """A model in evaluation mode whose decisions are ragged on :meth:`batch`."""
        return copy.deepcopy(drawn(self)).to(device)

    @property
    def pools(self) -> bool:
        """True if the head averages over the tokens: of none that is not a number, in transformers too."""
        return self.head in ("classification", "regression") and reads(self.family, self.head) is None


@functools.cache
def drawn(case: Case) -> nn.Module:
    """Make a case's model, once: only for whoever changes nothing of it."""
    return ragged(plain(case.family, case.head), case.batch(), case.row)


@functools.cache
def _dense(family: str, head: str) -> nn.Module:
    return skim.compress(plain(family, head), "dense")


def reads(family: str, head: str) -> str | None:
    """Find the position that a head reads, as a compressed model knows it."""
    return _dense(family, head).skim_walk.head.reads


@functools.cache
def looks_apart(family: str) -> bool:
    """Tell whether rows of a family can look at other rows than themselves."""
    return _dense(family, usual(family, False)).skim_walk.backbone.looks_apart


def usual(family: str, reads_head: bool) -> str:
    """Choose the head that reads every token, where the family has one and the method does not need another."""
    return "tokens" if has(family, "tokens") and not reads_head else "classification"


def tried_on(method: str) -> tuple[str, ...]:
    """Choose a method's families among the three: all that it can; of a chain, whose members run on all, two.

    Those are the first, and one of the others in turn, so that chains run packed, narrowed, and with windows.
    """
    can = [family for family in THREE if looks_apart(family) or not METHODS[method].apart]
    chains = [name for name, row in METHODS.items() if row.is_chain]
    return (can[0], can[1:][chains.index(method) % len(can[1:])]) if method in chains else tuple(can)


def wide(once: bool = False) -> list[tuple[str, str]]:
    """Pair all methods with the families that they are tried on, and all families with two methods."""
    tried = {method: (*tried_on(method), *row.also) for method, row in METHODS.items()}
    three = [(method, family) for method, some in tried.items() for family in some[: 1 if once else None]]
    two = [(method, family) for family in FAMILIES for method in TWO]
    instead = [(INSTEAD, family) for family in FAMILIES if not looks_apart(family)]
    return list(dict.fromkeys([*three, *two, *instead]))


def sample(once: bool = False) -> list[tuple[str, str]]:
    """Choose of :func:`wide`: every method and every family.

    A method runs on the first of its families and another in turn, a chain on one, in turn; a family with one of its
    two methods, in turn. All laws have the same sample: what is dear about a case is to find decisions that differ.
    """
    found = []
    for k, (method, row) in enumerate(METHODS.items()):
        first, *others = tried_on(method)
        turn = others[k % len(others)]
        some = (first,) if once else ((first, turn)[k % 2],) if row.is_chain else (first, turn, *row.also)
        found += [(method, family) for family in some]
    for k, family in enumerate(FAMILIES):
        of_two = TWO if looks_apart(family) else (TWO[0], INSTEAD)
        found.append((of_two[k % 2], family))
    return list(dict.fromkeys(found))


def pairs(selection: str, once: bool = False) -> list[tuple[str, str]]:
    """Pair methods with families; those that cannot be are among them.

    Args:
        selection: ``default``, ``wide``, ``full`` or ``quick``.
        once: but for ``full``, each method on one family only.
    """
    if selection in ("default", "wide"):
        return (sample if selection == "default" else wide)(once)
    families = FAMILIES if selection == "full" else THREE[:1]
    return [(method, family) for family in families for method in METHODS]


def cases(selection: str = "default", heads: Iterable[str] = (), once: bool = False) -> list[Case]:
    """List the cases of a law.

    Args:
        selection: as in :func:`pairs`.
        heads: families on which one method runs under every head as well, but for ``quick``; by ``default`` under one
            in turn, and under every head where a family is one of the three.
        once: as in :func:`pairs`, for a law about what a method or a family is, and not what they do together.
    """
    some = pairs(selection, once)
    found = [Case(method, family, usual(family, METHODS[method].reads_head)) for method, family in some]
    if selection != "quick":
        for k, family in enumerate(heads):
            there = [head for head in HEADS if has(family, head)]
            one_of = [there[k % len(there)]] if selection == "default" and family not in THREE else there
            found += [Case(EVERY_HEAD, family, head) for head in one_of]
    return [case for case in dict.fromkeys(found) if case.applies]


def of_law(selection: str, tells: Callable[[Case], bool], **options: Any) -> list[Case]:
    """List the cases that a law holds for; by ``default`` with every method that the wide selection has.

    A chain whose turn is a family that the law does not hold for would be lost: it runs on the first that it holds for.

    Args:
        selection: as in :func:`pairs`.
        tells: True for a case that the law holds for.
        options: ``heads`` and ``once``, as in :func:`cases`.
    """
    found = [case for case in cases(selection, **options) if tells(case)]
    if selection == "default":
        methods = {case.method for case in found}
        others = [case for case in cases("wide", **options) if case.method not in methods and tells(case)]
        found += {case.method: case for case in reversed(others)}.values()
    return found
