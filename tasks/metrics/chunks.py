"""Scores of tags: the share of right words, and of chunks (names, phrases) that are found whole.

Chunks are read off tags by the rules of conlleval (Tjong Kim Sang and Buchholz 2000, CoNLL-2000's script), which read
any sequence: an I after an O begins a chunk, and so does one of another kind than the tag before it. They cover BIO,
IOB and IOBES alike; BILOU's L and U are read as E and S.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

OUTSIDE = ("O", "")
LETTERS = {"L": "E", "U": "S"}
TAG = re.compile(r"([BIESLU])-(.+)")


def is_chunked(names: Sequence[str]) -> bool:
    """Tell whether tags of these names mark chunks: all are ``O`` or a letter, a hyphen and a kind, as in ``B-NP``."""
    return all(name == "O" or TAG.fullmatch(name) for name in names) and any(name != "O" for name in names)


def parts(name: str) -> tuple[str, str]:
    """Split a tag into its letter and kind."""
    found = TAG.fullmatch(name)
    return (LETTERS.get(found[1], found[1]), found[2]) if found else OUTSIDE


def begins(before: tuple[str, str], tag: tuple[str, str]) -> bool:
    """Tell whether a chunk begins at a tag."""
    return tag != OUTSIDE and (tag[0] in "BS" or before[0] in "ESO" or before[1] != tag[1])


def ends(before: tuple[str, str], tag: tuple[str, str]) -> bool:
    """Tell whether a chunk ends ahead of a tag."""
    return before != OUTSIDE and (before[0] in "ES" or tag[0] in "BSO" or before[1] != tag[1])


class TagScores(Metric):
    """Accuracy of words; precision, recall and F1 of chunks, where the tags mark chunks. Sums, exact over ranks.

    Args:
        label_names: by label id.
        names: of the scores to compute: ``accuracy``, ``precision``, ``recall``, ``f1``.
    """

    full_state_update = False
    higher_is_better = True
    begins: Tensor
    ends: Tensor
    kinds: Tensor

    def __init__(self, label_names: Sequence[str], names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.chunked = is_chunked(label_names)
        self.outside = len(label_names)  # an id beyond the labels: no tag, and what stands between sentences
        tags = [parts(name) for name in label_names] + [OUTSIDE] if self.chunked else []
        kinds = sorted({kind for _, kind in tags})
        tables = {
            "begins": [[begins(before, tag) for tag in tags] for before in tags],
            "ends": [[ends(before, tag) for tag in tags] for before in tags],
            "kinds": [kinds.index(kind) for _, kind in tags],
        }
        for name, table in tables.items():
            self.register_buffer(name, torch.tensor(table), persistent=False)
        for name in ("words", "right", "true", "predicted", "found"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Add some sentences.

        Args:
            predicted: label ids, (B, W); negative where there is none, which is never right and in no chunk.
            target: label ids, (B, W); words where it is negative are passed over, as if they were not there.
        """
        counted = target >= 0
        self.words += counted.sum()
        self.right += (counted & (predicted == target)).sum()
        if not self.chunked:
            return
        # all sentences as one row, with a tag outside of chunks after each
        counted = torch.nn.functional.pad(counted, (0, 1), value=True)
        (begin, end, kind), (true_begin, true_end, true_kind) = (
            self._chunks(torch.nn.functional.pad(tags, (0, 1), value=self.outside)[counted])
            for tags in (predicted, target)
        )
        # end and kind of the true chunk that begins there, if one does
        true = end.new_full((int(counted.sum()),), -1)
        true[true_begin] = true_end * len(self.kinds) + true_kind
        self.true += len(true_begin)
        self.predicted += len(begin)
        self.found += (true[begin] == end * len(self.kinds) + kind).sum()

    def _chunks(self, tags: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find each chunk's first word, the word after its last, and its kind, in tags (T,) that end outside."""
        tags = torch.where((tags >= 0) & (tags < self.outside), tags, self.outside)
        before = torch.cat([tags.new_tensor([self.outside]), tags[:-1]])
        begin = self.begins[before, tags].nonzero()[:, 0]
        # chunks do not overlap: the first to begin is the first to end
        return begin, self.ends[before, tags].nonzero()[:, 0], self.kinds[tags[begin]]

    def compute(self) -> dict[str, Tensor]:
        """Compute the scores by name, float64 scalars; 0 where there is nothing to divide by."""
        pairs: dict[str, tuple[Any, Any]] = {
            "accuracy": (self.right, self.words),
            "precision": (self.found, self.predicted),
            "recall": (self.found, self.true),
            "f1": (2 * self.found, self.predicted + self.true),
        }
        scores = {name: int(part) / max(int(whole), 1) for name, (part, whole) in pairs.items()}
        return {name: torch.tensor(scores[name], dtype=torch.float64) for name in self.names}
