"""Streams of texts, which need not fit or be fetched first: shuffled, tokenised and masked while they are read.

A stream has no end: it goes through its data again and again, each time in another order. Documents are shuffled in a
buffer by seed and pass, dealt out to the ranks, and tokenised in chunks; the rest of a chunk that does not fill a
block is dropped. So pass, chunk and block are a place in the stream, and a run that goes on reads the same blocks and
masks.
"""

from __future__ import annotations

import glob
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from skim import hub
from skim.errors import SkimError, first_line
from tasks.data.batches import laid_out

if TYPE_CHECKING:
    from datasets import IterableDataset
    from pyarrow import Table

log = logging.getLogger(__name__)

CHUNK = 1000  # documents that are tokenised together
KEPT = 16  # places of the last batches that are remembered: Lightning fetches a batch or two ahead
READERS = {".txt": "text", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def files_of(file: str) -> list[Path]:
    """Find the files that a path, or a pattern such as ``corpus/*.jsonl``, names."""
    if (path := Path(file).expanduser()).is_file():  # whose name may look like a pattern
        return [path]
    return sorted(map(Path, glob.glob(str(path), recursive=True)))


def opened(file: str, **options: Any) -> IterableDataset:
    """Open a user's files as a stream of rows.

    Args:
        file: a path, or a pattern such as ``corpus/*.jsonl``; may be packed with gzip or zstd.
        options: of the reader of .txt files.

    Raises:
        SkimError: no such file, or of an unknown kind.
    """
    import datasets

    found = files_of(file)
    if not found:
        raise SkimError(f"{file} is not there (looked for {Path(file).expanduser().absolute()}).")
    name = found[0]
    kind = (name.with_suffix("") if name.suffix in (".gz", ".zst") else name).suffix.lower()
    if kind not in READERS:
        raise SkimError(f"{found[0]}: skim streams {', '.join(READERS)}, also packed as .gz or .zst, not '{kind}'.")
    settings: dict[str, Any] = options if kind == ".txt" else {"sep": "\t"} if kind == ".tsv" else {}
    return datasets.load_dataset(
        READERS[kind], data_files={"rows": list(map(str, found))}, split="rows", streaming=True, **settings
    )


def fetched(hub_id: str, config: str, split: str) -> IterableDataset:
    """Open a split of a data set as a stream of rows: of the mirror, or read from the hub as it is needed.

    Raises:
        SkimError: it is neither in the mirror nor on the hub.
    """
    import datasets

    folder = hub.mirror()
    file = None if folder is None else folder / "datasets" / hub_id / config / f"{split}.parquet"
    if file is not None and file.is_file():
        return opened(str(file))
    try:
        return datasets.load_dataset(hub_id, config, split=split, streaming=True)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        looked = f"the mirror has no {file}; " if file is not None else "SKIM_MIRROR is not set; "
        why = first_line(error)
        raise SkimError(f"{hub_id} ({config}, {split}) cannot be streamed.\nLooked: {looked}the hub: {why}") from error


class Place(NamedTuple):
    """Place in a stream.

    Attributes:
        turn: passes through the data that are done.
        chunk: of this pass.
        block: of this chunk, the next to be read.
    """

    turn: int = 0
    chunk: int = 0
    block: int = 0


START = Place()


def bounds_of(batch_size: int, rank: int, ranks: int) -> tuple[int, int]:
    """Find where a process's share of a batch begins and ends, as ``numpy.array_split`` shares it out.

    Raises:
        SkimError: there are more processes than blocks.
    """
    if batch_size < ranks:
        raise SkimError(
            f"train: task.batch_size={batch_size} cannot be shared out over {ranks} processes.\n"
            "Raise it, or set task.global_batch=false."
        )
    each, more = divmod(batch_size, ranks)
    return rank * each + min(rank, more), (rank + 1) * each + min(rank + 1, more)


class Stream(torch.utils.data.IterableDataset):
    """Stream of whole batches without an end; ``DataLoader(Stream(...), batch_size=None)``.

    Args:
        source: the rows, and where they are from, for errors.
        column: of the texts.
        encode: from some rows' columns to those of blocks, as :meth:`tasks.base.Task.encode`.
        full: tokens of a block, if shorter ones are to be dropped; 0 keeps all.
        finish: from a padded batch and the epochs of its rows to the batch that the model sees.
        fill: padding of each list column.
        left: pad on the left.
        batch_size: blocks per batch and rank.
        whole: ``batch_size`` is of all ranks together: each reads the whole stream, and takes its share of a batch.
        seed: of the shuffle.
        buffer: documents that are shuffled together.
        skip: whether a document without a text is left out; an error else.
        number: of the first batch among all.
        start: where to begin.

    Attributes:
        places: by the number of the last batches, the stream's place before them.
    """

    def __init__(
        self,
        source: tuple[IterableDataset, str],
        column: str,
        encode: Callable[[dict[str, list]], dict[str, list]],
        full: int,
        finish: Callable[[dict[str, Tensor], np.ndarray], dict[str, Tensor]],
        fill: dict[str, int],
        left: bool,
        batch_size: int,
        seed: int,
        buffer: int,
        skip: bool,
        number: int = 0,
        start: Place = START,
        whole: bool = False,
    ) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        processes = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
        self.rank, self.ranks = (0, 1) if whole else processes  # among the readers of the stream
        self.share = slice(*bounds_of(batch_size, *processes)) if whole else slice(None)
        (self.rows, self.where), self.column = source, column
        self.encode, self.full, self.finish, self.fill, self.left = encode, full, finish, fill, left
        self.batch_size, self.seed, self.buffer, self.skip = batch_size, seed, buffer, skip
        self.number, self.start = number, start
        self.places = {number: start}
        self.warned = False  # that bad rows are skipped

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        import pyarrow as pa

        number, held, known = self.number, None, np.zeros((0, 3), np.int64)
        for table, places in self._blocks():
            held = table if held is None else pa.concat_tables([held, table])
            known = np.concatenate([known, places])
            while len(held) >= self.batch_size:
                batch, held = held.slice(0, self.batch_size), held.slice(self.batch_size)
                turn, chunk, block = known[: self.batch_size].T
                number += 1
                self.places[number] = Place(int(turn[-1]), int(chunk[-1]), int(block[-1]) + 1)
                self.places.pop(number - KEPT, None)
                # a number that no other block of this pass has: its masks hang on it
                row = torch.from_numpy((self.rank << 48) + (chunk << 24) + block)[self.share]
                mine = batch.take(np.arange(self.batch_size)[self.share])
                yield self.finish({"row": row, **laid_out(mine, self.fill, self.left)}, turn[self.share] + 1)
                known = known[self.batch_size :]

    def _blocks(self) -> Iterator[tuple[Table, np.ndarray]]:
        """Yield tokenised blocks, chunk by chunk: their columns, and turn, chunk and block of each, (blocks, 3)."""
        import pyarrow as pa

        for turn in itertools.count(self.start.turn):
            first = self.start if turn == self.start.turn else Place(turn)
            some = False
            for chunk, texts in enumerate(self._chunks(turn, first.chunk), first.chunk):
                if not texts:  # all were bad; the chunk counts all the same
                    continue
                columns = self.encode({self.column: texts})
                table = pa.table({name: pa.array(column) for name, column in columns.items() if name != "truncated"})
                lengths = np.asarray([len(ids) for ids in columns["input_ids"]])
                begin = first.block if chunk == first.chunk else 0
                whole = np.flatnonzero(lengths == self.full if self.full else lengths > 0)[begin:]
                if len(whole):
                    some = True
                    yield table.take(whole), np.stack([np.full_like(whole, turn), np.full_like(whole, chunk), whole], 1)
            if not some and first == Place(turn):
                size = f"less text than one block of {self.full} tokens" if self.full else "no text"
                raise SkimError(
                    f"{self.where} has {size} in {CHUNK} documents for each of {self.ranks} processes.\n"
                    "Use more text, or a smaller task.max_length."
                )

    def _chunks(self, turn: int, first: int) -> Iterator[list[str]]:
        """Yield the texts of this rank in one pass, from a chunk on."""
        import datasets
        import pyarrow as pa
        from datasets.distributed import split_dataset_by_node

        seed = int(np.random.SeedSequence((self.seed, turn)).generate_state(1)[0])
        rows = self.rows.select_columns([self.column]).shuffle(seed=seed, buffer_size=self.buffer)
        try:
            for chunk in itertools.islice(split_dataset_by_node(rows, self.rank, self.ranks).iter(CHUNK), first, None):
                texts = chunk[self.column]
                bad = [text for text in texts if not isinstance(text, str)]
                if bad and self.skip and not self.warned:
                    self.warned = True
                    log.warning("%s: rows without a text are skipped, such as %r", self.where, bad[0])
                if bad and not self.skip:
                    raise SkimError(
                        f"{self.where}, column '{self.column}': a row holds {bad[0]!r}, not a text.\n"
                        "task.on_bad_row=skip leaves such rows out."
                    )
                yield [text for text in texts if isinstance(text, str)]
        except (datasets.exceptions.DatasetsError, pa.ArrowException, OSError, ValueError) as error:
            raise SkimError(f"{self.where} cannot be read: {first_line(error)}") from error
