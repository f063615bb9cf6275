"""``question-answering``: spans of a text that answer a question, called and answered as in transformers until 5.2.

Windows that overlap cover a long text. In each, a span's score is the product of the probabilities of its first and
its last token, of softmaxes over the text and [CLS]; scores of spans with the same wording add up, over windows too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.pipelines.base import ChunkPipeline

from skim.errors import SkimError
from skim.pipelines.batches import Batched
from tasks.metrics.spans import best_spans

LONGEST = 384  # tokens of a window
OVERLAP = 128  # tokens that it shares with the next, where it is long enough


class QuestionAnswering(Batched, ChunkPipeline):
    """Answer questions with a span of a text: ``qa(question="...", context="...")``, or dicts of both, or a stream.

    An answer is ``score``, ``start`` and ``end`` (characters) and ``answer``; with ``top_k`` above 1, a list of them.
    """

    by_token = frozenset({"start", "end"})

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        doc_stride: int | None = None,
        max_answer_len: int | None = None,
        max_seq_len: int | None = None,
        handle_impossible_answer: bool | None = None,
        align_to_words: bool | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        for name, value in (("top_k", top_k), ("max_answer_len", max_answer_len)):
            if value is not None and value < 1:
                raise SkimError(f"question-answering: {name}={value} must be at least 1.")
        before = {"doc_stride": doc_stride, "max_seq_len": max_seq_len}
        after = {
            "top_k": top_k,
            "max_answer_len": max_answer_len,
            "handle_impossible_answer": handle_impossible_answer,
            "align_to_words": align_to_words,
        }
        given = [{name: value for name, value in group.items() if value is not None} for group in (before, after)]
        return given[0], {}, given[1]

    def __call__(self, inputs: Any = None, *, question: Any = None, context: Any = None, **options: Any) -> Any:
        """Answer one question, a list of them, or a stream.

        Args:
            inputs: ``{"question": ..., "context": ...}``, a list of such, or a generator.
            question: instead of ``inputs``: one question, or a list.
            context: its text; or one for each question, or one for all.
            options: ``top_k``, ``doc_stride``, ``max_answer_len``, ``max_seq_len`` (tokens),
                ``handle_impossible_answer``, ``align_to_words``, ``batch_size``.
        """
        if (inputs is None) == (question is None and context is None):
            raise SkimError("question-answering takes question= and context=, or dicts with both.")
        if inputs is None:
            inputs = paired(question, context)
        if isinstance(inputs, (list, tuple)):
            inputs = list(inputs)
            for one in inputs:
                check(one)
        return super().__call__(inputs[0] if isinstance(inputs, list) and len(inputs) == 1 else inputs, **options)

    def preprocess(
        self, input_: Any, max_seq_len: int | None = None, doc_stride: int | None = None
    ) -> Iterator[dict[str, Any]]:
        check(input_)
        question, context = input_["question"], input_["context"]
        window = max_seq_len or min(self.tokenizer.model_max_length, LONGEST)
        overlap = min(window // 2, OVERLAP) if doc_stride is None else doc_stride
        if overlap >= window:
            raise SkimError(f"question-answering: doc_stride={overlap} must be below max_seq_len={window}.")
        first = self.tokenizer.padding_side == "right"  # else the text's end would be next to the pads
        try:
            encoded = self.tokenizer(
                *((question, context) if first else (context, question)),
                truncation="only_second" if first else "only_first",
                max_length=window,
                stride=overlap,
                return_overflowing_tokens=True,
            )
        except Exception as error:  # the tokenizer's own words are of a library in Rust, which panics too
            raise SkimError(
                f"question-answering: a question leaves no room for its text in max_seq_len={window} tokens with "
                f"doc_stride={overlap}: {question[:60]!r} ({str(error)[:100]})."
            ) from error
        names = [name for name in self.tokenizer.model_input_names if name in encoded]
        for number, tokens in enumerate(encoded.encodings):
            inside = np.asarray(tokens.sequence_ids, float) == (1 if first else 0)
            words = [-1 if word is None else word for word in tokens.word_ids]
            begins, ends = np.where(inside, np.asarray(tokens.offsets).T, -1)
            cls = np.asarray(tokens.ids) == self.tokenizer.cls_token_id
            made = {name: torch.tensor([encoded[name][number]]) for name in names}
            along = {"begins": begins, "ends": ends, "words": np.where(inside, words, -1), "cls": cls}
            made |= {name: torch.as_tensor(values)[None] for name, values in along.items()}
            yield {**made, "context": context, "is_last": number == len(encoded.encodings) - 1}

    def _forward(self, input_tensors: dict[str, Any]) -> dict[str, Any]:
        given = {name: input_tensors[name] for name in self.tokenizer.model_input_names if name in input_tensors}
        output = self.model(**given)
        return {**input_tensors, "start": output["start_logits"], "end": output["end_logits"]}

    def postprocess(
        self,
        model_outputs: list[dict[str, Any]],
        top_k: int = 1,
        max_answer_len: int = 15,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> Any:
        context = model_outputs[0]["context"]
        # spans within the same words are one answer, so more are looked at; as many as transformers looks at
        count = 2 * top_k + 10 if align_to_words else top_k
        answers: dict[str, dict[str, Any]] = {}
        null = float("inf")
        for window in model_outputs:
            start, end = (log_probabilities(window[name], window) for name in ("start", "end"))
            if window["cls"].any():
                place = int(window["cls"][0].nonzero()[0])
                null = min(null, float((start + end)[0, place].exp()))
            begins, ends = window["begins"], window["ends"]
            if align_to_words:
                begins, ends = whole_words(begins, ends, window["words"])
            spans = best_spans(start, end, begins, ends, max_answer_len, count)
            for begin, stop, score in zip(*(values[0].tolist() for values in spans), strict=True):
                if begin < 0:
                    continue
                text = context[begin:stop]
                known = answers.setdefault(text.lower(), {"score": 0.0, "start": begin, "end": stop, "answer": text})
                known["score"] += float(np.exp(score))
        found = list(answers.values())
        if handle_impossible_answer:
            found.append({"score": null, "start": 0, "end": 0, "answer": ""})
        found = sorted(found, key=lambda answer: -answer["score"])[:top_k]
        return found[0] if len(found) == 1 else found


def paired(question: Any, context: Any) -> Any:
    """Put questions beside their texts: one each, or one text for all questions."""
    if isinstance(question, str) and isinstance(context, str):
        return {"question": question, "context": context}
    if isinstance(question, (list, tuple)):
        contexts = [context] * len(question) if isinstance(context, str) else context
        if isinstance(contexts, (list, tuple)) and len(contexts) == len(question):
            return [{"question": q, "context": c} for q, c in zip(question, contexts, strict=True)]
    raise SkimError("question-answering: question and context are two texts, or lists of as many, or one context.")


def check(example: Any) -> None:
    """Refuse what is not a question beside its text."""
    if not isinstance(example, dict) or not {"question", "context"} <= set(example):
        raise SkimError(f"question-answering takes dicts with question and context, and got {str(example)[:60]!r}.")
    for name in ("question", "context"):
        if not isinstance(example[name], str) or not example[name]:
            raise SkimError(f"question-answering: {name} is {example[name]!r}, and must be a text that is not empty.")


def log_probabilities(logits: Tensor, window: dict[str, Any]) -> Tensor:
    """Normalise logits (1, N) over the tokens of the text and [CLS]; -inf elsewhere."""
    taken = (window["begins"] >= 0) | window["cls"]
    return logits.float().masked_fill(~taken, -float("inf")).log_softmax(1)


def whole_words(begins: Tensor, ends: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Widen each token's characters to those of its word, all (1, N); a token of no word keeps its own."""
    first, last = begins[0].clone(), ends[0].clone()
    _, group = torch.unique_consecutive(words[0], return_inverse=True)
    for values, how in ((first, "amin"), (last, "amax")):
        of_word = torch.zeros_like(values).scatter_reduce(0, group, values.clone(), how, include_self=False)
        values.copy_(torch.where(words[0] >= 0, of_word[group], values))
    return first[None], last[None]
