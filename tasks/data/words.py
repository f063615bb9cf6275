"""Tokens of sentences that come as lists of words."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor


def space_words(tokenizer: Any) -> None:
    """Let a byte-level tokenizer put a space ahead of each word, as its own training texts had.

    RoBERTa's, and those like it, have one token for ``dog`` at the beginning of a text and another after a space; words
    that come one by one would all be beginnings. The option is theirs, ``add_prefix_space``, and is saved with them.
    """
    from tokenizers import pre_tokenizers

    first = tokenizer.backend_tokenizer.pre_tokenizer
    for one in first if isinstance(first, pre_tokenizers.Sequence) else [first]:
        if isinstance(one, pre_tokenizers.ByteLevel):
            one.add_prefix_space = True
            tokenizer.add_prefix_space = True
            tokenizer.init_kwargs["add_prefix_space"] = True


def tokenised(tokenizer: Any, words: list[list[str]], **settings: Any) -> Any:
    """Tokenise sentences; a word that gives no token is read as the unknown token, if there is one."""
    settings |= {"is_split_into_words": True, "return_attention_mask": False}
    encoded = tokenizer(words, **settings)
    pairs = zip(words, encoded.encodings, strict=True)
    unread = {some[i] for some, one in pairs for i in {*range(len(some))}.difference(one.word_ids)}
    if not unread or tokenizer.unk_token is None:
        return encoded
    # the others of them were cut off
    alone = [[word] for word in unread]
    ids = tokenizer(alone, is_split_into_words=True, add_special_tokens=False, verbose=False)["input_ids"]
    silent = {word for word, found in zip(unread, ids, strict=True) if not found}
    if not silent:
        return encoded
    unknown = tokenizer.unk_token
    return tokenizer([[unknown if word in silent else word for word in some] for some in words], **settings)


def first_tokens(encoded: Any) -> tuple[np.ndarray, np.ndarray]:
    """Find the sentence of each token, and the word of which it is the first, or -1; (T,), all sentences in one line.

    Args:
        encoded: from :func:`tokenised`.
    """
    sizes = [len(ids) for ids in encoded["input_ids"]]
    sentence = np.repeat(np.arange(len(sizes)), sizes)
    # None, of special tokens, becomes nan
    word = np.fromiter(chain(*(one.word_ids for one in encoded.encodings)), np.float64, len(sentence))
    first = ~np.isnan(word) & np.r_[True, (word[1:] != word[:-1]) | (sentence[1:] != sentence[:-1])]
    return sentence, np.where(first, word, -1).astype(np.int64)


def spread(first: Tensor, real: Tensor, special: int) -> Tensor:
    """Number the word that each token is of, (B, N), from the numbers at first tokens; -1 for special tokens and pads.

    Every token of a sentence that came as words is of a word, but for the special ones ahead of them and behind.

    Args:
        first: (B, N), the word of which this is the first token, else -1.
        real: (B, N) bool, False on pads.
        special: special tokens of a sentence.
    """
    word = first.cummax(1).values  # -1 ahead of the first word
    ahead = ((word < 0) & real).sum(1)
    left = real.flip(1).cumsum(1).flip(1)  # real tokens from here on
    behind = left <= (special - ahead)[:, None]
    return word.masked_fill(~real | behind, -1)
