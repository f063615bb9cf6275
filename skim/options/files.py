"""YAML files of ``conf``, line by line: their options, and the comments above them."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """An option in a file, or a group of options.

    Attributes:
        path: its keys, with dots in between.
        value: as the file has it; ``None`` for a group.
        line: the number of its line, from 0.
        above: the number of the first line of the comment above it; ``line`` if there is none.
        comment: that comment, on one line.
    """

    path: str
    value: str | None
    line: int
    above: int
    comment: str

    @property
    def place(self) -> str:
        """Name the group that the option stands in."""
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        """Name the option without its group."""
        return self.path.rpartition(".")[2]


def entries(text: str) -> list[Entry]:
    """List the options of a file in their order, but for its list of defaults and what is Hydra's (``_target_``).

    The comment that a file opens with is about the file, up to an empty line.
    """
    found: list[Entry] = []
    keys: list[str] = []
    lines = text.splitlines()
    opening = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    above = opening
    for number, line in enumerate(lines[opening:], opening):
        if line.strip().startswith("#"):
            continue
        key = re.match(r"( *)(\w+):(?: +(.*?))?(?: +#.*)?$", line)
        if key is not None:
            del keys[len(key[1]) // 2 :]
            keys.append(key[2])
            if keys[0] != "defaults" and not key[2].startswith("_"):
                comment = " ".join(one.strip().lstrip("# ") for one in lines[above:number])
                found.append(Entry(".".join(keys), key[3], number, above, comment))
        above = number + 1
    return found


def parents(text: str) -> list[str]:
    """List the files of the same folder that a file starts from, by their names."""
    found = re.search(r"^defaults:(?: \[(.*)\]|((?:\n +- .*)+))", text, re.MULTILINE)
    if found is None:
        return []
    listed = found[1].split(",") if found[1] else found[2].strip().splitlines()
    return [match[1] for one in listed if (match := re.fullmatch(r"(?: *- )?(?:/\w+/)?(\w+)(?:@\w+)?", one.strip()))]
