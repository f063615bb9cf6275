"""Plain texts in blocks of tokens: tokenised once and laid end to end, or read as a stream; for pretraining."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils.data import DataLoader

from skim.engine.ranks import everywhere
from skim.errors import SkimError, first_line
from skim.options.kinds import Count
from tasks.base import Task
from tasks.data.columns import Rejects, check_texts, column_of
from tasks.data.stream import Place, Stream, fetched, files_of, opened

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

log = logging.getLogger(__name__)

TEXT = "task.text_column=<column>"


@dataclass(kw_only=True, eq=False, repr=False)
class Documents(Task):
    """Documents, one a row, of which blocks of tokens between special ones are trained on.

    Batches also hold ``begins`` (B, N), bool: which tokens begin a word.
    """

    text_column: str = "text"
    """column of the texts"""
    documents: Literal["line", "paragraph"] = "line"
    """a document in a .txt file: line, or paragraph (between blank lines)"""
    pack: bool = True
    """true lays documents end to end, a thousand at a time, with [SEP] in between, and cuts blocks of max_length (the
    last one of a thousand is shorter, and a stream drops it); false makes each a block of its own, truncated to
    max_length"""
    streaming: bool = False
    """read the training texts as they are needed, for corpora that do not fit; files.train may then be a pattern such
    as corpus/*.jsonl. Needs train.max_steps, train.eval_every, and a validation file or split, which is not streamed.
    Bad rows that are skipped are not counted, and hardware.num_workers is not used"""
    shuffle_buffer: Count = 10000
    """documents that a stream shuffles together"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._stream: Stream | None = None
        self._places: list[list[int]] | None = None  # of a run that goes on, by rank
        self._before: list[int] | None = None  # bytes of the training files, in its checkpoint
        if self.streaming:
            self._check_stream()

    def setup_tokenizer(self, tokenizer: Any) -> None:
        super().setup_tokenizer(tokenizer)
        if self.report["max_length"] < self.max_length:
            taken = (self.report["max_length"], self.max_length)
            log.warning("blocks have %d tokens, as many as the backbone takes, and not task.max_length=%d", *taken)
        marked = tokenizer("a", return_special_tokens_mask=True)
        kinds = np.asarray(marked["special_tokens_mask"])
        first, last = np.flatnonzero(kinds == 0)[[0, -1]]
        ids = np.asarray(marked["input_ids"])
        self.before, self.after = ids[:first], ids[last + 1 :]  # of every block: [CLS] and [SEP]
        self.room = self.report["max_length"] - len(self.before) - len(self.after)  # tokens of a block without those
        if self.room < 1:
            raise SkimError(f"task.max_length={self.max_length} leaves no room between the special tokens.")

    def read(self, file: str) -> Dataset:
        if Path(file).suffix.lower() != ".txt" or not Path(file).is_file():
            return super().read(file)
        import datasets

        try:
            rows = datasets.load_dataset("text", data_files={"rows": file}, split="rows", sample_by=self.documents)
        except (datasets.exceptions.DatasetGenerationError, ValueError, OSError) as error:
            why = first_line(error.__cause__ or error)
            raise SkimError(f"{file} cannot be read as text: {why}") from error
        return rows.rename_column("text", self.text_column) if self.text_column != "text" else rows

    def check(self, rows: Dataset, part: str, rejects: Rejects) -> Dataset:
        check_texts(rows, self.text_column, rejects, TEXT)
        return rows.select_columns([self.text_column])

    def _tokenise(self, part: str) -> Dataset:
        import pyarrow.compute as pc

        texts = column_of(self._raw[part], self.text_column)
        if not pc.any(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)).as_py():
            raise SkimError(
                f"task={self.name}, {part}: there is no text in column '{self.text_column}' of the {len(texts)} rows "
                f"that are used.\nChoose another with {TEXT}, or use more rows."
            )
        return super()._tokenise(part)

    def encode(self, rows: dict[str, list]) -> dict[str, list]:
        documents = self.tokens(rows[self.text_column])
        if self.pack:
            gap = np.asarray([[self.tokenizer.sep_token_id], [True]])
            joined = [part for document in documents for part in (gap, document)][1:]
            line = np.concatenate(joined or [np.zeros((2, 0), np.int64)], axis=1)
            blocks = [line[:, start : start + self.room] for start in range(0, line.shape[1], self.room)]
        else:
            blocks = [document[:, : self.room] for document in documents]
        truncated = [not self.pack and document.shape[1] > self.room for document in documents]
        framed = [self.framed(block) for block in blocks]
        return {
            "input_ids": [block[0].astype(np.int32) for block in framed],
            "begins": [block[1].astype(bool) for block in framed],
            "truncated": [False] * len(blocks) if self.pack else truncated,
        }

    def tokens(self, texts: list[str]) -> list[np.ndarray]:
        """Tokenise texts: for each that has any tokens, their ids and whether a word begins there; (2, n)."""
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        found = []
        for one in encoded.encodings:
            if len(one.ids):
                word = np.asarray(one.word_ids, dtype=float)  # None, that of no word, becomes NaN and equals nothing
                found.append(np.stack([np.asarray(one.ids), np.append(True, word[1:] != word[:-1])]))
        return found

    def framed(self, block: np.ndarray) -> np.ndarray:
        """Put a block, (2, n), between its special tokens."""
        ends = [np.stack([ids, np.ones_like(ids)]) for ids in (self.before, self.after)]
        return np.concatenate([ends[0], block, ends[1]], axis=1)

    def count(self, rows: dict[str, list]) -> list[int]:
        encoded = self.tokenizer(rows[self.text_column], return_attention_mask=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def encoding(self) -> list[Any]:
        return [type(self).__name__, self.text_column, self.pack]

    def example_texts(self, count: int) -> list[Any]:
        rows = self._raw["validation"]
        some = [text for text in rows[:1000][self.text_column] if text.strip()] or [""]
        return [some[i * len(some) // count] for i in range(min(count, len(some)))]

    # ---- streams ----

    def _check_stream(self) -> None:
        """Refuse options that need all rows at once: a stream's are seen one by one, in unknown number."""
        for option in ("holdout", "max_train_samples", "length_min", "length_max", "tokens_per_batch", "match_lengths"):
            if getattr(self, option) not in (None, False):
                off = "false" if getattr(self, option) is True else "null"
                raise SkimError(
                    f"task.{option}={getattr(self, option)} needs all training rows at once, and task.streaming reads "
                    f"them as they come.\nSet task.{option}={off}, or task.streaming=false."
                )

    @property
    def endless(self) -> bool:
        return self.streaming

    def setup(self, stage: str | None = None) -> None:
        if not self.streaming or stage not in (None, "fit"):
            return super().setup(stage)
        super().setup("validate")
        if self._stream is None:
            rows, where = self.streamed()
            first = next(iter(rows), None)
            if first is None:
                raise SkimError(f"{where} has no rows.")
            if self.text_column not in first:
                raise SkimError(
                    f"{where} has no text column '{self.text_column}'. Its columns: {', '.join(first)}.\n"
                    f"Choose with {TEXT}."
                )
        return None

    def finish(self, batch: dict[str, Tensor], epoch: np.ndarray) -> dict[str, Tensor]:
        """Make the batch that the model sees of a padded one of a stream; ``epoch`` of each of its rows, from 1."""
        raise NotImplementedError

    def streamed(self) -> tuple[IterableDataset, str]:
        """Open the training rows as a stream; returns also where they are from."""
        file = self.files.get("train")
        if file is not None:
            rows = opened(str(file), sample_by=self.documents)
            text = ".txt" in Path(str(file)).suffixes and self.text_column != "text"
            return rows.rename_column("text", self.text_column) if text else rows, str(file)
        if self._builtin is not None or self.hub_id is None:
            rows, where = self.source("train")
            return rows.to_iterable_dataset(), where
        return fetched(self.hub_id, self.config, self.train_split), f"{self.hub_id}/{self.config} {self.train_split}"

    def train_dataloader(self) -> DataLoader:
        if not self.streaming:
            return super().train_dataloader()
        number, start = (self._resume or (0, 0))[1], Place()
        if number:
            ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
            if self._places is None or (len(self._places) != ranks and not self.global_batch):
                before = "none" if self._places is None else len(self._places)
                raise SkimError(
                    f"resume: the checkpoint has places in the stream of {before} processes, and now there are {ranks}."
                    f"\nUse as many as before, or start anew from its weights: init_from=<that run>."
                )
            if self._before not in (None, self._sizes()):
                raise SkimError(
                    f"resume: the checkpoint stands in the middle of {self.files['train']}, and its size has changed.\n"
                    "Bring back what it was, or start anew from its weights: init_from=<that run>."
                )
            start = Place(*self._places[dist.get_rank() if ranks > 1 and not self.global_batch else 0])
        self._resume = self._places = None
        tokenizer = self.tokenizer
        self._stream = Stream(
            self.streamed(),
            self.text_column,
            self.encode,
            full=self.report["max_length"] if self.pack else 0,
            finish=self.finish,
            fill={"input_ids": tokenizer.pad_token_id},
            left=tokenizer.padding_side == "left",
            batch_size=self.batch_size,
            seed=self.seed,
            buffer=self.shuffle_buffer,
            skip=self.on_bad_row == "skip",
            number=number,
            start=start,
            whole=self.global_batch,
        )
        return DataLoader(self._stream, batch_size=None, pin_memory=torch.cuda.is_available())

    def _sizes(self) -> list[int] | None:
        """List the bytes of the user's training files; ``None`` for a data set of the hub."""
        file = self.files.get("train")
        return None if file is None else [found.stat().st_size for found in files_of(str(file))]

    def state_dict(self) -> dict[str, Any]:
        """Return the place of each rank's stream, for checkpoints; Lightning asks all ranks."""
        if self._stream is None:
            return {}
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[union-attr]
        return {"places": everywhere(list(self._stream.places[done])), "bytes": self._sizes()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._places, self._before = state_dict["places"], state_dict.get("bytes")
