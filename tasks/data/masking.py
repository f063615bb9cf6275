"""Choice of the tokens that a masked language model has to guess: pure functions of numpy arrays, no random state.

Every random number is a hash of its use: seed, epoch, row, position in the row, and purpose. So the masks of a row
depend neither on the rows beside it nor on batch size, workers or ranks; they change from epoch to epoch, and are the
same in a run that goes on.

Legend: B rows, N positions, W words of the row with most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skim.errors import SkimError

IGNORED = -100  # label of tokens that are not to be guessed; transformers' losses leave it out

# uses of a random number
ORDER, LENGTH, LAST, REPLACE, TOKEN, SAMPLE, SWAP = range(7)


def mixed(numbers: np.ndarray) -> np.ndarray:
    """Mix bits by step and finaliser of SplitMix64 (Steele, Lea and Flood 2014), uint64 to uint64: one to one."""
    x = numbers + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(*keys: int | np.ndarray) -> np.ndarray:
    """Hash keys to numbers in [0, 1), float64, of the keys' common shape; the same keys give the same number anywhere.

    Args:
        keys: whole numbers, or arrays of them that broadcast; at least one.
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):  # modulo 2^64
        for key in keys:
            state = mixed(state ^ np.asarray(key).astype(np.uint64))
    return (state >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class Places:
    """Places of a batch's tokens in the whole training, which decide their random numbers.

    Attributes:
        seed: of each row, (B,).
        epoch: of each row, (B,).
        row: its number in the data, (B,).
        column: of each token in its row, (B, N), counted from its first token, on whichever side the padding is.
    """

    seed: np.ndarray
    epoch: np.ndarray
    row: np.ndarray
    column: np.ndarray

    def rows(self, purpose: int) -> np.ndarray:
        """Draw a number for each row, (B,)."""
        return uniform(self.seed, self.epoch, self.row, purpose)

    def tokens(self, purpose: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Draw a number for each of some tokens, whose places in the batch are given as by ``numpy.nonzero``."""
        some = (self.seed[rows], self.epoch[rows], self.row[rows], self.column[rows, columns])
        return uniform(*some, purpose)


@dataclass(frozen=True)
class Masking:
    """Rules of masking.

    Attributes:
        rate: share of the tokens that are to be guessed.
        whole_words: a word is masked with all of its tokens (Cui et al. 2019, arXiv 1906.08101), or not at all.
        n_gram: spans of 1 to that many words, or tokens, in a row; p(k) ~ 1/k as in ALBERT (arXiv 1909.11942, 3.1).
        replaced: share of the chosen tokens that become [MASK]; 0.8 in BERT (arXiv 1810.04805, 3.1).
        randomised: share of them that become any token; 0.1 in BERT. The rest stays as it is.

    Raises:
        SkimError: shares that are above 1 together.
    """

    rate: float = 0.15
    whole_words: bool = False
    n_gram: int = 1
    replaced: float = 0.8
    randomised: float = 0.1

    def __post_init__(self) -> None:
        if self.replaced + self.randomised > 1 + 1e-9:
            raise SkimError(
                f"task.replaced={self.replaced} and task.randomised={self.randomised} are shares of the masked tokens: "
                "not above 1 together."
            )

    def chosen(self, may: np.ndarray, begins: np.ndarray, places: Places) -> np.ndarray:
        """Choose the tokens that are to be guessed, (B, N) bool.

        Of a row with n tokens that may be chosen, ``rate * n`` are on average, and at least one word.

        Args:
            may: which tokens may be chosen: no special ones, no padding; (B, N) bool.
            begins: which tokens begin a word; (B, N) bool.
            places: of the tokens.
        """
        if not may.any():
            return may.copy()
        before = np.zeros_like(may)
        before[:, 1:] = may[:, :-1]
        starts = may & (begins | ~before) if self.whole_words else may
        word = np.cumsum(starts, axis=1) - 1  # of each token
        rows, columns = np.nonzero(starts)
        words = word[rows, columns]
        sizes = np.zeros((len(may), int(words.max()) + 1), np.int64)
        np.add.at(sizes, (np.nonzero(may)[0], word[may]), 1)
        turn = np.full(sizes.shape, np.inf)
        turn[rows, words] = places.tokens(ORDER, rows, columns)
        if self.n_gram > 1:
            lengths, part = np.zeros(sizes.shape, np.int64), np.full(sizes.shape, -1)
            lengths[rows, words] = self.lengths(places.tokens(LENGTH, rows, columns))
            part[rows, words] = np.cumsum(~may, axis=1)[rows, columns]  # no span reaches over a special token
            turn = spread(turn, lengths, part)
        order = np.argsort(turn, axis=1, kind="stable")
        ordered = np.take_along_axis(sizes, order, 1)
        earlier = np.cumsum(ordered, axis=1) - ordered
        # the word that would go beyond the share is taken as often as makes the share right on average
        taken = earlier + places.rows(LAST)[:, None] * ordered < self.rate * may.sum(1, keepdims=True)
        taken[:, 0] = True  # a row without anything to guess is a waste, and a batch without has no loss
        into = np.zeros(sizes.shape, bool)
        np.put_along_axis(into, order, taken, 1)
        return may & np.take_along_axis(into, np.maximum(word, 0), 1)

    def lengths(self, drawn: np.ndarray) -> np.ndarray:
        """Turn uniform numbers into lengths of spans, 1 to ``n_gram``: p(k) = (1/k) / sum_j (1/j)."""
        odds = np.cumsum(1 / np.arange(1, self.n_gram + 1))
        return np.searchsorted(odds / odds[-1], drawn, side="right") + 1

    def corrupted(
        self, ids: np.ndarray, chosen: np.ndarray, mask_id: int, ordinary: np.ndarray, places: Places
    ) -> np.ndarray:
        """Replace tokens for the model to see, (B, N): of the chosen ones some are masked, some randomised, some kept.

        Args:
            ids: (B, N).
            chosen: see :meth:`chosen`.
            mask_id: of [MASK].
            ordinary: ids that may stand in at random, (ids,).
            places: of the tokens.
        """
        rows, columns = np.nonzero(chosen)
        fate = places.tokens(REPLACE, rows, columns)
        other = ordinary[(places.tokens(TOKEN, rows, columns) * len(ordinary)).astype(np.int64)]
        new = np.where(fate < self.replaced + self.randomised, other, ids[rows, columns])
        out = ids.copy()
        out[rows, columns] = np.where(fate < self.replaced, mask_id, new)
        return out


def spread(turn: np.ndarray, lengths: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Take for each word the earliest turn of the spans that reach it, where each word begins a span; (B, W).

    Args:
        turn: of the spans, by their first word, (B, W).
        lengths: of the spans, in words, (B, W).
        part: of the row, (B, W): spans end with theirs.
    """
    reached = turn.copy()
    for back in range(1, min(int(lengths.max()), turn.shape[1])):
        reaches = (lengths[:, :-back] > back) & (part[:, :-back] == part[:, back:])
        reached[:, back:] = np.minimum(reached[:, back:], np.where(reaches, turn[:, :-back], np.inf))
    return reached
