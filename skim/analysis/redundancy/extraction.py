"""Extraction: one batched pass of a compressed model's own walk over the rows of a split, all layers into a file.

The states are those that ``output_hidden_states`` reports: of a dense model transformers' own, of any other the last
state of each token before the next layer, at its input position, whether it has left or not. Only what is asked for is
kept: the position that the head reads, the mean of a sequence, or words by their sub-words.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from skim.analysis.redundancy.splits import Split
from skim.analysis.redundancy.states import States
from skim.analysis.redundancy.store import Store
from skim.calibration import Batches
from skim.compression import standing_in, walk_of
from skim.engine.hooks import Hooks
from skim.engine.inputs import inputs_of
from skim.engine.tokens import at_place
from skim.engine.trace import LayerTrace
from skim.errors import SkimError
from tasks.base import Task

BLOCK = 1024  # examples between two records of what is done


@dataclass(frozen=True)
class Reading:
    """Tokens that a row of states is read from.

    Attributes:
        text: of a text: ``position`` (the one that the head reads: [CLS]) or ``mean`` (of its real tokens).
        word: of a word: its ``last`` or ``first`` sub-word, or the ``average`` of all.
        dtype: of the file: float32 or float16.
    """

    text: Literal["position", "mean"] = "position"
    word: Literal["last", "first", "average"] = "last"
    dtype: Literal["float32", "float16"] = "float32"


@dataclass(frozen=True)
class Picked:
    """Tokens of a batch that rows are made of: a row is the mean over those that bear its number.

    Attributes:
        tokens: ``(T,)`` flat positions, ``sequence * N + position``.
        rows: ``(T,)`` the row that each token is part of, rising.
        count: rows R.
    """

    tokens: Tensor
    rows: Tensor
    count: int

    def mean(self, hidden: Tensor) -> Tensor:
        """States ``(B, N, D)`` of the rows, ``(R, D)``."""
        taken = hidden.flatten(0, 1)[self.tokens]
        if len(taken) == self.count:
            return taken
        sums = taken.new_zeros(self.count, taken.shape[1]).index_add_(0, self.rows, taken)
        return sums / self.rows.bincount(minlength=self.count)[:, None]

    def any(self, mask: Tensor) -> Tensor:
        """Tell of each row whether one of its tokens is in a mask ``(B, N)``; ``(R,)`` bool."""
        taken = mask.flatten()[self.tokens].to(torch.int64)
        return taken.new_zeros(self.count).index_add_(0, self.rows, taken) > 0


class Extraction:
    """States of a model's layers on the rows of splits.

    Args:
        model: compressed, in evaluation.
        task: its data, loaded (:func:`skim.analysis.redundancy.splits.splits_of`).
        reading: what is kept.
        batch_size: examples per forward.

    Attributes:
        numbers: of the layers, see :class:`States`; those that the method never runs are left out.
        not_run: their numbers.
    """

    def __init__(self, model: nn.Module, task: Task, reading: Reading = Reading(), batch_size: int = 32) -> None:
        self.model, self.task, self.reading, self.batch_size = model, task, reading, batch_size
        self.walk = walk_of(model)
        self.layers = len(self.walk.costs)
        ran = [k for k in range(1, self.layers + 1) if self.walk.method.runs(k - 1)]
        self.numbers = (0, *ran)
        self.not_run = [k for k in range(1, self.layers + 1) if k not in ran]
        self.width = int(self.walk.base.config.hidden_size)  # type: ignore[arg-type, union-attr]
        self._weights: str | None = None

    def size(self, splits: list[Split]) -> int:
        """Count the bytes that the states of some splits take on the disk."""
        per_row = len(self.numbers) * (self.width * np.dtype(self.reading.dtype).itemsize + 1)
        return sum(split.rows for split in splits) * per_row

    def run(
        self, split: Split, folder: Path, advance: Callable[[int], None] = lambda examples: None
    ) -> tuple[States, list[str]]:
        """Extract one split, or go on where an earlier process stopped.

        Args:
            split: which.
            folder: of the files; see :class:`Store`.
            advance: is told how many examples more are done.

        Returns:
            The states, and the kinds of the key (weights, data, settings) in which earlier states in the folder
            differed, and for which they were thrown away.

        Raises:
            SkimError: states that are not numbers, and a full disk.
        """
        rows, lengths = self.task.tokenised(split.part)
        arrays = {"labels": split.labels, "examples": np.repeat(np.arange(len(split.examples)), split.counts)}
        if split.types is not None:
            arrays["types"] = split.types
        shape = (split.rows, len(self.numbers), self.width)
        store = Store(folder, self.key(split), shape, self.reading.dtype, self.numbers, arrays)
        order = np.argsort(-lengths[split.examples], kind="stable")  # places in the split, the longest first
        blocks = [order[start : start + BLOCK] for start in range(0, len(order), BLOCK)]
        advance(sum(len(block) for block in blocks[: store.done]))
        if not store.whole:
            with store.open() as files, torch.inference_mode():
                for number, block in list(enumerate(blocks))[store.done :]:
                    for start in range(0, len(block), self.batch_size):
                        places = block[start : start + self.batch_size]
                        batch = rows[split.examples[places].tolist()]
                        values, ran = self._states(batch, split, places)
                        bounds = np.cumsum([0, *split.counts[places]])
                        for place, begin, end in zip(places.tolist(), bounds[:-1], bounds[1:], strict=True):
                            files.write(int(split.starts[place]), values[begin:end], ran[begin:end])
                        advance(len(places))
                    files.block_done(whole=number == len(blocks) - 1)
        return store.states(), store.changed

    def _states(self, batch: dict[str, Tensor], split: Split, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run one batch: the values ``(R, layers, width)`` of its rows, and by which layers they were computed."""
        device = next(self.model.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in inputs_of(batch).items()}
        output = self.walk.base(**inputs, output_hidden_states=True, return_dict=True)
        trace: Any = self.walk.trace
        picked = self.picked(batch, split, places, device)
        states = self.walk.backbone.states_of_layers(self.walk.base, output.hidden_states)
        wide = [states[0], *(unfolded(state, layer) for state, layer in zip(states[1:], trace.layers, strict=True))]
        values = torch.stack([picked.mean(wide[number].float()) for number in self.numbers], 1)
        ran = [picked.any(trace.layers[number - 1].feeding.alive()) for number in self.numbers[1:]]
        found, ran_by = values.cpu().numpy(), torch.stack([torch.ones_like(ran[0]), *ran], 1).cpu().numpy()
        self._check(found, split, places)
        return found, ran_by

    def picked(self, batch: dict[str, Tensor], split: Split, places: np.ndarray, device: torch.device) -> Picked:
        """Choose the tokens of a batch's rows."""
        real = batch["attention_mask"].bool()
        of_word = self.task.words_of(batch)
        if of_word is None:
            taken = real if self.reading.text == "mean" else at_place(real, self.walk.head.place)
            tokens = taken.flatten().nonzero().squeeze(1)
            return Picked(tokens.to(device), (tokens // real.shape[1]).to(device), len(real))
        assert split.words is not None
        counts = torch.from_numpy(split.counts[places])
        wanted = np.concatenate(
            [split.words[s : s + n] for s, n in zip(split.starts[places], split.counts[places], strict=True)]
        )
        example = torch.arange(len(real)).repeat_interleave(counts)
        row_of = torch.full((len(real), int(of_word.max()) + 2), -1)
        row_of[example, torch.from_numpy(wanted)] = torch.arange(len(wanted))
        row = row_of.gather(1, of_word.masked_fill(of_word < 0, row_of.shape[1] - 1))  # of each token; -1 of no row's
        tokens = (row >= 0).flatten().nonzero().squeeze(1)
        rows = row.flatten()[tokens]
        if self.reading.word != "average":
            step = rows.diff() != 0
            edge = torch.ones(1, dtype=torch.bool)
            ends = torch.cat([step, edge] if self.reading.word == "last" else [edge, step])
            tokens, rows = tokens[ends], rows[ends]
        return Picked(tokens.to(device), rows.to(device), len(wanted))

    def _check(self, values: np.ndarray, split: Split, places: np.ndarray) -> None:
        """Refuse states that are not numbers, and those too large for the file's, by layer and row."""
        with np.errstate(over="ignore"):
            stored = values.astype(self.reading.dtype)
        if np.isfinite(stored).all():
            return
        row, layer = np.argwhere(~np.isfinite(stored).all(2))[0]
        place = int(places[np.searchsorted(np.cumsum(split.counts[places]), row, side="right")])
        number = self.task.numbers[split.part][split.examples[place]]
        where = f"{name_of(self.numbers[layer])}, row {number} of {split.part}"
        if np.isfinite(values).all():
            raise SkimError(f"{where}: a state is too large for float16.\nUse redundancy.dtype=float32.")
        raise SkimError(
            f"{where}: a state is not a number, so nothing can be said of this model's neurons.\n"
            "Its training diverged, or its weights are broken; look at its metrics: what=metrics."
        )

    def seconds(self, top: int, batches: Batches) -> float:
        """Measure the wall time of the encoder up to a layer's number on some batches."""
        device = next(self.model.parameters()).device
        inputs = [{name: tensor.to(device) for name, tensor in inputs_of(batch).items()} for batch in batches]
        with standing_in(self.model, cast(Hooks, UpTo(self.walk.method, top))), torch.inference_mode():
            started = time.perf_counter()
            for batch in inputs:
                self.walk.base(**batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter() - started

    def key(self, split: Split) -> dict[str, str]:
        """Hash what the states of a split depend on, by kind: weights, data and settings."""
        if self._weights is None:
            self._weights = weights_hash(self.model)
        rows, _ = self.task.tokenised(split.part)
        settings = [self.reading.text, self.reading.word, self.reading.dtype, self.walk.execution, self.numbers]
        data = hashlib.blake2b(digest_size=16)
        for array in (split.examples, split.labels, split.counts, split.words):
            data.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        for batch in rows.table.select_columns(["input_ids"]).with_format("arrow").iter(4096):
            column = batch.column("input_ids").combine_chunks()
            data.update(column.flatten().to_numpy(zero_copy_only=False).tobytes())
            data.update(np.diff(column.offsets.to_numpy()).tobytes())
        return {
            "weights": self._weights,
            "data": data.hexdigest(),
            "settings": hashlib.blake2b(json.dumps(settings).encode(), digest_size=16).hexdigest(),
        }


class UpTo:
    """Hooks of a method on the first layers of an encoder; the others do not run.

    Args:
        method: whose hooks.
        layers: that run, unless the method leaves some of them out.
    """

    def __init__(self, method: Hooks, layers: int) -> None:
        self.method, self.layers = method, layers

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def runs(self, i: int) -> bool:
        """Tell whether layer ``i`` runs."""
        return i < self.layers and self.method.runs(i)


def unfolded(states: Tensor, layer: LayerTrace) -> Tensor:
    """Put states that a layer left, ``(B, K, D)``, at input positions, ``(B, N, D)``, if a family reports rows."""
    if not layer.shortened:
        return states
    rows: Any = layer.feeding
    return rows.shared(rows.restored(states, None)[:, : layer.feeding.sequences.real.shape[1]])


def name_of(number: int) -> str:
    """Name a layer by its number."""
    return f"layer {number}" if number else "embeddings"


def weights_hash(model: nn.Module) -> str:
    """Hash the parameters and buffers of a model, with those of its method, and their configuration."""
    found = hashlib.blake2b(digest_size=16)
    walk = walk_of(model)
    found.update(
        json.dumps([walk.base.config.to_dict(), walk.method.definition()], default=str, sort_keys=True).encode()
    )
    for name, tensor in model.state_dict().items():
        raw = tensor.detach().cpu().contiguous().flatten()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b"")
    return found.hexdigest()
