"""Batches of tokenised rows: padded, of similar length, shared out over ranks.

``LengthBatches`` decides which rows go together, so many at a time, ``TokenBatches`` so many tokens at a time; ``Rows``
turns a list of row numbers into tensors. A loader is ``DataLoader(Rows(...), sampler=LengthBatches(...),
batch_size=None)``: the sampler yields whole batches. It is the loader's *sampler* and not its batch sampler, because
Lightning calls ``set_epoch`` on the former only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils.data import Sampler

from skim.errors import SkimError
from tasks.data.matching import drawn, matched

if TYPE_CHECKING:
    from datasets import Dataset

POOL = 50  # batches whose rows are sorted together in training: little padding, and still a thorough shuffle


class LengthBatches(Sampler[list[int]]):
    """Batches of rows of similar length: every row exactly once per epoch over all ranks, as many batches on each rank.

    Padding costs as much as tokens: on short texts these batches train twice as fast as shuffled ones. In training the
    rows are shuffled, sorted by length within pools of ``POOL`` batches, and the batches shuffled; in evaluation the
    rows are sorted, the longest first, so that memory runs out at once or never.

    So that no row is repeated or left out, all batches have the same size or one row less, at most ``batch_size``. One
    exception: batches of one row that do not come out even over the ranks; the rows left over join others, two by two.

    Args:
        lengths: tokens of each row.
        batch_size: rows per batch and rank, at most.
        shuffle: whether to shuffle, by ``seed`` and epoch.
        seed: of the shuffle; the same on all ranks.
        whole: ``batch_size`` is of all ranks together, which share it out.
        rank: this process among ``world_size``; both are asked of ``torch.distributed`` if not given.
        world_size: number of processes.
        name: of the split, for the error.
        draws: number the rows of shuffled epochs on, ``row + (epoch + 1) * rows``: for data that draw by the epoch.
        like: tokens of other rows; a shuffled epoch draws as many rows as there are, as long as those (see
            :mod:`tasks.data.matching`): some more than once, some not at all.

    Raises:
        SkimError: fewer rows than processes.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        name: str = "data",
        draws: bool = False,
        whole: bool = False,
        like: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        self.rank = rank if rank is not None else dist.get_rank() if distributed else 0
        self.world_size = world_size if world_size is not None else dist.get_world_size() if distributed else 1
        self.of_rows = np.asarray(lengths)
        like = like if shuffle else None
        self.drawing = like is not None
        self.lengths = self.of_rows if like is None else matched(self.of_rows, like)  # of places
        if len(self.lengths) < self.world_size:
            raise SkimError(f"{name}: {len(self.lengths)} rows cannot be shared out over {self.world_size} processes.")
        self.per_step = batch_size if whole else batch_size * self.world_size  # rows of all ranks
        if self.per_step < self.world_size:
            raise SkimError(
                f"{name}: {batch_size} rows per step cannot be shared out over {self.world_size} processes.\n"
                "Raise task.batch_size and eval_batch_size, or set task.global_batch=false."
            )
        self.shuffle, self.seed, self.name, self.draws = shuffle, seed, name, draws
        self.epoch = 0
        self.resumed: tuple[int, int] | None = None  # epoch and batch of the next pass: of a run that goes on
        # the second bound counts at one row per rank only: none may get a batch of no rows, on which models fail
        self.steps = min(math.ceil(len(self.lengths) / self.per_step), len(self.lengths) // self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's shuffle; Lightning calls this before each one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        # the batches of one step stand side by side in the sorted order: no rank waits long for another
        # Lightning may number the epoch otherwise: it closes one that max_steps cuts short
        epoch, start = self.resumed or (self.epoch, 0)
        self.resumed = None
        first = (epoch + 1) * len(self.lengths) if self.draws and self.shuffle else 0
        rows = self._rows(epoch)
        for step in self._steps(epoch)[start:]:
            yield (rows[step[self.rank]] + first).tolist()

    def _rows(self, epoch: int) -> np.ndarray:
        """Number the row in each place of an epoch."""
        if not self.drawing:
            return np.arange(len(self.lengths))
        return drawn(self.of_rows, self.lengths, np.random.default_rng([self.seed, epoch, 1]))

    def _steps(self, epoch: int) -> list[list[np.ndarray]]:
        """Share out an epoch's batches over all ranks, ``[step][rank]``."""
        if not self.shuffle:
            return self._cut(np.argsort(-self.lengths, kind="stable"))
        rng = np.random.default_rng([self.seed, epoch])
        steps = self._cut(self._order(rng))
        return [steps[i] for i in rng.permutation(len(steps))]

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        """Shuffle the rows so that neighbours are of similar length."""
        order = rng.permutation(len(self.lengths))
        size = POOL * self.per_step
        pools = [order[start : start + size] for start in range(0, len(order), size)]
        pools = [pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools]
        # every other pool downwards: a batch across the border of two pools holds rows of similar length too
        pools[1::2] = [pool[::-1] for pool in pools[1::2]]
        return np.concatenate(pools)

    def _cut(self, order: np.ndarray) -> list[list[np.ndarray]]:
        return self._shared(order, self.steps)

    def _shared(self, order: np.ndarray, steps: int) -> list[list[np.ndarray]]:
        """Share rows out over some steps, evenly, and those of a step over the ranks: one rank has the same steps."""
        return [np.array_split(rows, self.world_size) for rows in np.array_split(order, steps)]


class TokenBatches(LengthBatches):
    """Batches of as many rows of similar length as fit a budget of tokens; else as :class:`LengthBatches`.

    A batch's tokens are its rows times its longest one, pads included. So a batch of short texts has many rows and one
    of long texts few: a step costs the same time and memory whichever it gets. Every epoch has as many batches.

    In training, rows are shuffled within bins of similar length, ``POOL`` of them and as many tokens in each; all bins
    are the same in every epoch, which is what makes their batches as many. Over ranks every step is even. One
    exception to the budget: of rows that do not come out even over the ranks, those left over join others.

    Args:
        lengths: tokens of each row.
        tokens: per batch and rank, at most, pads included.
        shuffle: whether to shuffle, by ``seed`` and epoch.
        whole: ``tokens`` are of all ranks together, which share them out.
        options: the others of :class:`LengthBatches`.

    Raises:
        SkimError: a row is longer than the budget; fewer rows than processes.
    """

    def __init__(
        self, lengths: Sequence[int] | np.ndarray, tokens: int, shuffle: bool, whole: bool = False, **options: Any
    ) -> None:
        super().__init__(lengths, 1, shuffle, **options)
        shares = self.world_size if whole else 1
        check_budget(self.lengths, tokens, self.name, shares)
        self.tokens = tokens // shares
        self.bins = self._bins()
        self.steps = sum(steps for _, steps in self.bins)

    def _bins(self) -> list[tuple[int, int]]:
        """Rows and steps of each bin of rows, the longest rows first."""
        falling = -np.sort(-self.lengths)
        # of evaluation, a bin is a step: the least padding
        whole = int(falling.sum()) // (self.tokens * self.world_size)
        deep = max(1, whole // POOL) if self.shuffle else 1
        bins, start = [], 0
        while (left := len(falling) - start) > 0:
            step = self.tokens // int(falling[start]) * self.world_size
            size = min(deep * step, left)
            if left - size < self.world_size:  # too few for a step of their own
                size = left
            bins.append((size, min(math.ceil(size / step), size // self.world_size)))
            start += size
        return bins

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        order = rng.permutation(len(self.lengths))
        order = order[np.argsort(-self.lengths[order], kind="stable")]
        ends = np.cumsum([size for size, _ in self.bins])
        return np.concatenate([rng.permutation(rows) for rows in np.split(order, ends[:-1])])

    def _cut(self, order: np.ndarray) -> list[list[np.ndarray]]:
        parts = np.split(order, np.cumsum([size for size, _ in self.bins])[:-1])
        return [step for rows, (_, steps) in zip(parts, self.bins, strict=True) for step in self._shared(rows, steps)]


def check_budget(lengths: np.ndarray, tokens: int, name: str, shares: int = 1) -> None:
    """Refuse a budget of tokens per batch that the longest row does not fit.

    Args:
        lengths: tokens of each row.
        tokens: the budget.
        name: of the split, for the error.
        shares: processes that share it out.
    """
    if len(lengths) and (longest := int(lengths.max())) > tokens // shares:
        over = f" over {shares} processes" if shares > 1 else ""
        raise SkimError(
            f"{name}: a row takes {longest} tokens of a batch, and task.tokens_per_batch={tokens}{over} is room for "
            "fewer.\n"
            "Raise it, or lower task.max_length."
        )


class Rows(torch.utils.data.Dataset):
    """Tokenised rows, memory-mapped; indexed by a list of row numbers it gives the padded batch.

    Args:
        table: a ``datasets.Dataset``. Lists of numbers become (B, N) tensors, numbers become (B,) tensors; lists of C
            such lists, as many in every row, become (B, C, N).
        fill: value of the padding for each list column; 0 for a column that is not in it.
        left: pad on the left (XLNet reads the last token).
        hidden: columns that stay out of the batches.
    """

    def __init__(self, table: Any, fill: dict[str, int], left: bool = False, hidden: tuple[str, ...] = ()) -> None:
        # arrow, not python lists: 32 rows cost 0.2 ms instead of 5
        self.table = table.with_format("arrow", columns=[c for c in table.column_names if c not in hidden])
        self.fill = fill
        self.left = left

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, rows: list[int]) -> dict[str, Tensor]:
        """Pad rows to a batch, in this order; with ``row`` (B,) and ``attention_mask`` (B, N), 1 on real tokens."""
        return {"row": torch.tensor(rows), **laid_out(self.table[rows], self.fill, self.left)}


def laid_out(table: Any, fill: dict[str, int], left: bool = False) -> dict[str, Tensor]:
    """Pad some tokenised rows, an Arrow table, to a batch; see :class:`Rows`."""
    batch = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if hasattr(column, "offsets"):
            shape: tuple[int, ...] = (len(table),)
            if hasattr(column.values, "offsets"):  # of lists
                column, shape = column.flatten(), (len(table), -1)
            values, lengths = column.flatten().to_numpy(zero_copy_only=False), np.diff(column.offsets.to_numpy())
            real = _real(lengths, left)
            batch[name] = _pad(values, real, fill.get(name, 0)).unflatten(0, shape)
            if name == "input_ids":  # a list may be of something else than tokens
                batch["attention_mask"] = torch.from_numpy(real.astype(np.int64)).unflatten(0, shape)
        else:
            batch[name] = torch.from_numpy(column.to_numpy(zero_copy_only=False).copy())
    return batch


def _real(lengths: np.ndarray, left: bool) -> np.ndarray:
    """Mask the places that tokens take, (B, N) bool with N the longest."""
    place = np.arange(lengths.max())
    return place >= place.size - lengths[:, None] if left else place < lengths[:, None]


def _pad(values: np.ndarray, real: np.ndarray, fill: int) -> Tensor:
    """Lay the concatenated rows out, (B, N); integers become int64, as models take them."""
    dtype = np.int64 if np.issubdtype(values.dtype, np.integer) else values.dtype
    out = np.full(real.shape, fill, dtype=dtype)
    out[real] = values
    return torch.from_numpy(out)


def lengths_of(table: Dataset) -> np.ndarray:
    """Read the number of tokens of each row of a tokenised table, (rows,)."""
    return np.asarray(table.with_format("numpy")["length"][:])
