"""Stop words: "the", "of" and their like are gone before the first layer, as in the days of bags of words.

Which ids are stop words, and where words begin, the tokenizer says (:meth:`StopWords.read`); it is saved with the
method. A word of several pieces goes as a whole, and a piece that is only the beginning of another word stays.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from skim.engine.tokens import Occupancy
from skim.errors import SkimError
from skim.methods.entering import Entering
from skim.methods.options import Special

APART, BEGINS, GOES_ON = range(3)  # a piece is no word, the beginning of one, or goes on with the one before it
SPACES = ("Ġ", "▁")  # by which the tokenizers that keep spaces mark where a word begins
MIXER = 0x9E3779B97F4A7C15  # odd, so that multiplying by it loses nothing of 64 bits
LONGEST = 16  # pieces of a word that count by their places

Words = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, examples=[["the", "of"]])]


class StopWords(Entering):
    """Removes stop words from each input before the first layer; its cost is what the texts make it.

    Args:
        words: what to remove, in small letters; with a capital, or in capitals, they go as well. ``None``:
            scikit-learn's English ones, 318 (``pip install "skim[stop-words]"``).
        protect: special tokens that never retire: ``cls`` (what the head reads), ``sep``.
    """

    name = "stop_words"
    kinds: Tensor
    codes: Tensor
    mixers: Tensor

    def __init__(self, words: Words | None = None, protect: tuple[Special, ...] = ("cls",)) -> None:
        super().__init__(protect)
        self.words = words
        self.register_buffer("kinds", torch.zeros(0, dtype=torch.int8))  # of each id of the vocabulary
        self.register_buffer("codes", torch.zeros(0, dtype=torch.int64))  # of the words that go
        self.register_buffer("mixers", mixers(), persistent=False)

    def read(self, tokenizer: Any) -> None:
        words = english() if self.words is None else self.words
        self.kinds = kinds_of(tokenizer).to(self.kinds.device)
        written = {
            word: {spelt for one in (word, word.capitalize(), word.upper()) for spelt in (one, f" {one}")}
            for word in words
        }
        codes = {
            word: [code for one in spelt if (code := self.code_of(one, tokenizer)) is not None]
            for word, spelt in written.items()
        }
        unknown = [word for word in words if not codes[word]]
        if unknown and (self.words is not None or len(unknown) == len(words)):
            raise self.refusal(
                f"are to be single words in the vocabulary of this tokenizer, and '{unknown[0]}' is none.",
                words=self.words,
            )
        self.codes = torch.tensor(sorted({code for some in codes.values() for code in some}), device=self.codes.device)

    def code_of(self, text: str, tokenizer: Any) -> int | None:
        """The number of a word by :func:`codes_of`; ``None`` for what is not a single word of the vocabulary."""
        ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids], device=self.kinds.device)
        if not ids.numel() or (ids == (-1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id)).any():
            return None
        codes = codes_of(ids.long(), torch.ones_like(ids, dtype=torch.bool), self.kinds, self.mixers)
        single = (codes == codes[0, 0]).all() and (self.kinds[ids] != APART).all()
        return int(codes[0, 0]) if single else None

    def enters(self, ids: Tensor, rows: Occupancy) -> Tensor:
        if not len(self.kinds):
            raise self.refusal(
                "has not seen the tokenizer, and ids alone do not say what is a word.\n"
                "Before the first forward: model.method.read(tokenizer)."
            )
        return ~torch.isin(codes_of(ids, rows.sequences.real, self.kinds, self.mixers), self.codes)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in ("kinds", "codes"):  # as large as the vocabulary of whoever read it
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=self.kinds.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def english() -> tuple[str, ...]:
    """scikit-learn's English stop words, in alphabetical order."""
    try:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
    except ImportError:
        raise SkimError(
            "method=stop_words takes its list from scikit-learn, which is not installed.\n"
            'pip install "skim[stop-words]", or name the words: method.words=[the,of,and].'
        ) from None
    return tuple(sorted(ENGLISH_STOP_WORDS))


def kinds_of(tokenizer: Any) -> Tensor:
    """Tell of each id of a vocabulary how it stands in a word: ``APART``, ``BEGINS`` or ``GOES_ON``, ``(V,)`` int8."""
    pieces = [piece or "" for piece in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]  # None: no such id
    special = set(tokenizer.all_special_tokens)
    wordpiece = any(piece.startswith("##") and len(piece) > 2 for piece in pieces)
    spaces = not wordpiece and any(piece.startswith(SPACES) for piece in pieces)

    def kind(piece: str) -> int:
        said = tokenizer.convert_tokens_to_string([piece]) if spaces else piece.removeprefix("##")  # "Ċ" is a new line
        bare = said.lstrip("".join(SPACES))
        if piece in special or not any(letter.isalnum() for letter in bare):
            return APART
        joined = piece.startswith("##") if wordpiece else spaces and not piece.startswith(SPACES)
        return GOES_ON if joined else BEGINS

    return torch.tensor([kind(piece) for piece in pieces], dtype=torch.int8)


def codes_of(ids: Tensor, real: Tensor, kinds: Tensor, mixers: Tensor) -> Tensor:
    """Number the words: every piece of a word has the word's number, ``(B, N)`` int64, the same wherever it stands.

    Args:
        ids: ``(B, N)``.
        real: ``(B, N)`` bool.
        kinds: of the vocabulary, ``(V,)``.
        mixers: see :func:`mixers`.
    """
    kind = torch.where(real, kinds[ids.clamp_max(len(kinds) - 1)], APART)
    joined = (kind == GOES_ON) & F.pad(kind != APART, (1, 0))[:, :-1]
    word = (~joined).cumsum(1) - 1
    position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    place = position - torch.zeros_like(word).scatter_add(1, word, position * ~joined).gather(1, word)
    each = (ids + 1) * mixers[place.clamp_max(LONGEST)]  # whole numbers go round at 64 bits
    return torch.zeros_like(each).scatter_add(1, word, each).gather(1, word)


def mixers() -> Tensor:
    """Powers of :data:`MIXER`, for each place in a word one, ``(LONGEST + 1,)`` int64."""
    powers = [pow(MIXER, place + 1, 2**64) for place in range(LONGEST + 1)]
    return torch.tensor([power - 2**64 if power >= 2**63 else power for power in powers])
