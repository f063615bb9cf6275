"""Which texts share a forward: a window of them is sorted by length and cut into batches of a number of tokens."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from typing import Any

from torch import Tensor
from transformers.pipelines.base import ChunkPipeline, Pipeline, pad_collate_fn

from skim.engine.walk import Walk
from skim.errors import SkimError, shortened

# Threads share a tokenizer, in which a call sets where to cut and the next may set it otherwise, and the counts.
SHARED = Lock()

Piece = Mapping[str, Any]  # what a forward takes of one text, or of one part of it: tensors (1, N), and what goes along


@dataclass
class Spent:
    """Counts of what a pipeline has computed since it was made.

    Attributes:
        tokens: special ones included and pads not.
        flops: of the encoder.
        dense_flops: of the dense encoder on the same tokens.
    """

    tokens: int = 0
    flops: float = 0.0
    dense_flops: float = 0.0

    def add(self, tokens: int, flops: float, dense_flops: float) -> None:
        """Count a forward."""
        self.tokens += tokens
        self.flops += flops
        self.dense_flops += dense_flops

    @property
    def relative_flops(self) -> float:
        """FLOPs / FLOPs of the dense encoder on the same tokens; 1 of a model that is not skim's."""
        return self.flops / self.dense_flops if self.dense_flops else 1.0


class Batched(Pipeline):
    """A pipeline of transformers that answers in batches of its own making. Threads may share it.

    Attributes:
        window: texts that are held at a time, sorted by length, and answered in the order in which they came.
        batch_tokens: tokens of a forward at most, pads included; a text that is longer goes alone.
        longest: tokens that a text may have, by the model's positions; ``None``: memory is the only limit.
        by_token: outputs of the forward that have a row for each token; those of pads are cut off.
        walk: of a compressed model, whose trace is counted; ``None`` for another.
        spent: counts of what was computed.
    """

    window = 1024
    batch_tokens = 2048
    longest: int | None = None
    by_token: frozenset[str] = frozenset()
    walk: Walk | None = None
    spent: Spent

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.spent = Spent()
        super().__init__(*args, **kwargs)

    def __call__(self, inputs: Any, *args: Any, **options: Any) -> Any:
        """Answer, as transformers' pipeline of the task does; nothing to an empty list, at which that stumbles."""
        if isinstance(inputs, Iterator):  # a file, a map: it knows only generators, and takes others for one text
            inputs = (text for text in inputs)
        return [] if isinstance(inputs, list) and not inputs else super().__call__(inputs, *args, **options)

    def run_single(
        self,
        inputs: Any,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Any:
        """Answer one text; called by transformers' ``__call__``, with the task's parameters."""
        return self.answers([inputs], None, preprocess_params, forward_params, postprocess_params)[0]

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Answer a list, a data set or a stream; called by transformers' ``__call__``.

        Args:
            inputs: texts, or what else the task takes.
            num_workers: not used: texts are tokenised where they are answered.
            batch_size: texts, or parts of long ones, of a batch at most; 1, transformers' default, is no bound here.
            preprocess_params: of the task.
            forward_params: likewise.
            postprocess_params: likewise.
        """
        sized = hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")  # a data set may have no __iter__
        texts: Iterator[Any] = (inputs[i] for i in range(len(inputs))) if sized else iter(inputs)
        most = batch_size if batch_size > 1 else None
        while window := list(islice(texts, self.window)):
            yield from self.answers(window, most, preprocess_params, forward_params, postprocess_params)

    def answers(
        self,
        window: list[Any],
        most: int | None,
        preprocess: dict[str, Any],
        forward: dict[str, Any],
        postprocess: dict[str, Any],
    ) -> list[Any]:
        """Answer the texts of a window, in their order.

        An answer is made as soon as all parts of its text are computed, so that no more outputs than those are held.
        """
        chunks = isinstance(self, ChunkPipeline)
        pieces: list[Piece] = []
        places: list[tuple[int, int]] = []  # of each piece: its text, and the how manieth of it
        outputs: list[list[Any]] = []
        for number, text in enumerate(window):
            with SHARED, told_of(text):
                made: Any = self.preprocess(text, **preprocess)
                parts = list(made) if chunks else [made]
            for part in parts:
                self.check_length(part, text)
            pieces += parts
            places += [(number, part) for part in range(len(parts))]
            outputs.append([None] * len(parts))
        answers: list[Any] = [None] * len(window)
        for batch in batches([length(piece) for piece in pieces], self.batch_tokens, most):
            for number, output in zip(batch, self.run([pieces[i] for i in batch], forward), strict=True):
                text, part = places[number]
                outputs[text][part] = output
                if all(one is not None for one in outputs[text]):
                    found: Any = outputs[text] if chunks else outputs[text][0]
                    answers[text] = self.postprocess(found, **postprocess)
                    outputs[text] = []
        return answers

    def check_length(self, piece: Piece, text: Any) -> None:
        """Refuse a text that is longer than the model: on a GPU it would end the process, and all that others asked.

        Raises:
            SkimError: with the tokens that it has, and how to cut it.
        """
        if self.longest is not None and length(piece) > self.longest:
            cut = "tokenizer_kwargs={'truncation': True}" if self.task == "fill-mask" else "truncation=True"
            raise SkimError(
                f"{self.task}: a text of {length(piece):,} tokens is longer than the model, which takes "
                f"{self.longest:,}: {shortened(str(text)[:200])}.\nCut it: {cut}, or max_length=."
            )

    def run(self, pieces: Sequence[Piece], forward: dict[str, Any]) -> Iterator[Any]:
        """Compute one batch; yields the outputs of each piece as if it had been alone: without the rows of pads."""
        if len(pieces) == 1:
            yield self.forward(dict(pieces[0]), **forward)
            return
        batch = pad_collate_fn(self.tokenizer, None)(pieces)
        whole = self.forward(batch, **forward)
        left = self.tokenizer.padding_side == "left"
        for row, piece in enumerate(pieces):
            own = length(piece)
            cut: dict[str, Any] = {}
            for name, value in whole.items():
                if name in piece:  # transformers hands on what it has made of a text
                    cut[name] = piece[name]
                elif isinstance(value, Tensor):
                    one = value[row : row + 1]
                    cut[name] = (one[:, -own:] if left else one[:, :own]) if name in self.by_token else one
                else:
                    cut[name] = value if value is None else value[row]
            yield type(whole)(**cut)

    def forward(self, model_inputs: Any, **forward_params: Any) -> Any:
        """Compute one batch on the pipeline's device, and count it."""
        mask = model_inputs.get("attention_mask")
        tokens = int(model_inputs["input_ids"].numel() if mask is None else mask.sum())
        outputs = super().forward(model_inputs, **forward_params)
        flops = dense = 0.0
        if self.walk is not None:
            flops, dense = float(self.walk.trace.flops().sum()), float(self.walk.trace.dense_flops.sum())
        with SHARED:
            self.spent.add(tokens, flops, dense)
        return outputs


def length(piece: Piece) -> int:
    """Count the tokens of a piece."""
    return int(piece["input_ids"].shape[1])


def batches(lengths: Sequence[int], tokens: int, most: int | None = None) -> Iterable[list[int]]:
    """Cut texts, sorted by length, into batches; the longest come first, so that memory runs out at once or never.

    Args:
        lengths: tokens of each text.
        tokens: of a batch, pads included, at most; a longer text is a batch of its own.
        most: texts of a batch.

    Yields:
        Numbers of the texts of each batch.
    """
    batch: list[int] = []
    longest = 0
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and ((len(batch) + 1) * longest > tokens or len(batch) == most):
            yield batch
            batch = []
        longest = longest if batch else lengths[number]
        batch.append(number)
    if batch:
        yield batch


@contextlib.contextmanager
def told_of(text: Any) -> Iterator[None]:
    """Say what is wrong with a text that no tokenizer takes.

    Raises:
        SkimError: it holds half a character.
    """
    try:
        yield
    except (TypeError, UnicodeError) as error:
        for one in text.values() if isinstance(text, dict) else [text]:
            half = re.search("[\ud800-\udfff]", one) if isinstance(one, str) else None
            if half is not None:
                raise SkimError(
                    f"A text holds half a character (a lone surrogate) at place {half.start()}, and no tokenizer takes "
                    "it.\nMend it, for instance: text.encode('utf-8', 'replace').decode()."
                ) from error
        raise
