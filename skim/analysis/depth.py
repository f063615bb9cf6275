"""Depth of tokens: mean layers by kind of token (Simoulin and Crabbe, 2021, Tables 2 to 4), for every method.

Kinds are: all, [CLS], [SEP] and the other tokens of a text; tokens that were masked, replaced at random or chosen and
kept, as masked language modelling corrupts them, beside those left alone; and the tokens of words by their tag. Words
are aligned with tokens through the tokenizer's ``word_ids``: a word's depth is the mean over its tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skim import hub
from skim.compression import walk_of
from skim.engine.inputs import inputs_of
from skim.errors import SkimError
from tasks.data import conll

FILES = (".conllu", ".conll", ".iob", ".txt", ".tsv")  # endings of files; other names are data sets
CHOSEN = 0.15  # share of tokens that masked language modelling chooses; of those 8 in 10 are masked, 1 replaced, 1 kept


@dataclass
class Mean:
    """Running mean and the number of values in it."""

    total: float = 0.0
    count: int = 0

    def add(self, values: Tensor) -> None:
        """Add more values, of any shape."""
        self.total += float(values.sum())
        self.count += values.numel()

    @property
    def mean(self) -> float:
        """Mean of the values; 0 if there are none."""
        return self.total / self.count if self.count else 0.0


@dataclass
class Depths:
    """Mean number of layers by kind of token.

    Attributes:
        layers: of the backbone.
        kinds: section -> kind -> mean and count; sections are ``tokens``, ``corrupted`` and ``tags``.
    """

    layers: int
    kinds: dict[str, dict[str, Mean]] = field(default_factory=dict)

    def add(self, section: str, kind: str, values: Tensor) -> None:
        """Add the depths of some tokens."""
        self.kinds.setdefault(section, {}).setdefault(kind, Mean()).add(values)

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON's types: ``{"layers": L, section: {kind: {"mean": ..., "count": ...}}}``."""
        found = {
            section: {kind: {"mean": mean.mean, "count": mean.count} for kind, mean in kinds.items() if mean.count}
            for section, kinds in self.kinds.items()
        }
        return {"layers": self.layers, **found}


@torch.no_grad()
def survived(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Count the layers that computed each token, float32 on the CPU, in evaluation; ``(B, N)``, or as ``input_ids``.

    Only the encoder runs: the head may not take the sentences of :func:`by_tag`, and options, ``(B, C, N)``,
    are sequences of their own.
    """
    walk = walk_of(model)
    device = next(model.parameters()).device
    walk.base(**{name: tensor.to(device).flatten(0, -2) for name, tensor in inputs_of(batch).items()})
    trace: Any = walk.trace
    return trace.layers_survived().float().cpu().view(batch["input_ids"].shape)


def by_token(model: nn.Module, tokenizer: Any, batches: Iterable[dict[str, Tensor]], depths: Depths) -> None:
    """Add the depths of all tokens, of special ones and of the others, of texts as they are."""
    specials = {"[CLS]": tokenizer.cls_token_id, "[SEP]": tokenizer.sep_token_id}
    for batch in batches:
        ids, real = batch["input_ids"], batch["attention_mask"].bool()
        found = survived(model, batch)
        depths.add("tokens", "all", found[real])
        others = real.clone()
        for name, token in specials.items():
            here = real & (ids == token)
            others &= ~here
            depths.add("tokens", name, found[here])
        depths.add("tokens", "words", found[others])


def by_corruption(
    model: nn.Module, tokenizer: Any, batches: Iterable[dict[str, Tensor]], depths: Depths, seed: int = 0
) -> None:
    """Add the depths of masked, random, kept and untouched tokens, special ones left out; none without a mask token."""
    if tokenizer.mask_token_id is None:
        return
    generator = torch.Generator().manual_seed(seed)
    specials = torch.tensor(sorted(set(tokenizer.all_special_ids)))
    for batch in batches:
        ids, real = batch["input_ids"], batch["attention_mask"].bool()
        words = real & ~torch.isin(ids, specials)
        chosen = words & (torch.rand(ids.shape, generator=generator) < CHOSEN)
        fate = torch.rand(ids.shape, generator=generator)
        masked, random = chosen & (fate < 0.8), chosen & (fate >= 0.8) & (fate < 0.9)
        other = torch.randint(len(tokenizer), ids.shape, generator=generator)
        corrupted = torch.where(random, other, ids).masked_fill(masked, tokenizer.mask_token_id)
        found = survived(model, {**batch, "input_ids": corrupted})
        for kind, where in {
            "masked": masked,
            "replaced at random": random,
            "chosen and kept": chosen & ~masked & ~random,
            "untouched": words & ~chosen,
        }.items():
            depths.add("corrupted", kind, found[where])


def by_tag(
    model: nn.Module,
    tokenizer: Any,
    sentences: Sequence[tuple[list[str], list[str]]],
    depths: Depths,
    batch_size: int = 32,
    max_length: int = 128,
) -> None:
    """Add the depths of words by tag; words that were cut off are left out.

    Args:
        model: a compressed model.
        tokenizer: a fast one, which knows the word that each token is of.
        sentences: words and as many tags.
        depths: they are added to it.
        batch_size: sentences per forward.
        max_length: tokens of a sentence.
    """
    if not tokenizer.is_fast:
        raise SkimError(f"Tags need a fast tokenizer, which knows words; {type(tokenizer).__name__} does not.")
    for start in range(0, len(sentences), batch_size):
        some = sentences[start : start + batch_size]
        batch = tokenizer(
            [words for words, _ in some],
            is_split_into_words=True,
            truncation=True,
            max_length=max_length,
            padding=True,
            return_tensors="pt",
        )
        found = survived(model, batch)
        for row, (_, tags) in enumerate(some):
            tokens: dict[int, list[int]] = {}
            for position, word in enumerate(batch.word_ids(row)):
                if word is not None:
                    tokens.setdefault(word, []).append(position)
            for word, positions in tokens.items():
                depths.add("tags", tags[word], found[row, positions].mean())


def tagged(source: str, config: str | None, split: str, words: str, tags: str) -> list[tuple[list[str], list[str]]]:
    """Read sentences as words and tags, from a data set or from a file.

    Args:
        source: a hub id, or a file: CoNLL-U, or two columns (word, tag) with an empty line between sentences.
        config: of the data set.
        split: of the data set.
        words: its column of words.
        tags: its column of tags, names or classes.

    Raises:
        SkimError: no such data set or column, a line that is neither, or a row with more words than tags or fewer.
    """
    path = Path(source)
    if path.is_file():
        return list(_columns(path))
    if path.suffix in FILES:
        raise SkimError(f"depth.tagged.dataset={source}: there is no such file.")
    table = hub.dataset(source, config or "default", split)
    for column in (words, tags):
        if column not in table.column_names:
            raise SkimError(f"{source} has no column '{column}'; it has {', '.join(table.column_names)}.")
    feature = getattr(table.features[tags], "feature", None)
    names = getattr(feature, "names", None)
    rows = list(zip(table[words], table[tags], strict=True))
    for number, (some, found) in enumerate(rows):
        if not isinstance(some, list) or not isinstance(found, list) or len(some) != len(found):
            raise SkimError(
                f"{source}, row {number}: '{words}' and '{tags}' must be lists of the same length, a tag for each word."
            )
    return [(some, [names[tag] if names else str(tag) for tag in found]) for some, found in rows]


def _columns(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    for words, tags, lines in conll.sentences(path, None if path.suffix == conll.UNIVERSAL else (1, 2)):
        pairs = [(word, tag) for word, tag in zip(words, tags, strict=True) if word is not None and tag is not None]
        if len(pairs) < len(words):
            bad = next(line for word, tag, line in zip(words, tags, lines, strict=True) if None in (word, tag))
            raise SkimError(f"{path}, line {bad}: expected a word and its tag, as many columns as before.")
        yield [word for word, _ in pairs], [tag for _, tag in pairs]
