"""Sentence order prediction beside masked language modelling: are two segments of a text in their order?"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.text import Perplexity

from skim.errors import SkimError
from tasks.data.masking import SWAP
from tasks.losses import softened_divergence
from tasks.pretraining import MaskedLanguage, Masker

ORDER_LABELS = ("sentence_order_label", "next_sentence_label")  # of ALBERT's and of BERT's forward
ENDS = (".", "!", "?")  # tokens behind which a document is rather cut in two than elsewhere


class Swapper(Masker):
    """Puts the second of two segments first in half of the rows, and masks the result."""

    def __call__(self, batch: dict[str, Tensor], epoch: np.ndarray) -> dict[str, Tensor]:
        """Swap and mask; adds ``labels``, ``token_type_ids`` and the order's labels, 0 as written and 1 swapped.

        Args:
            batch: rows ``[CLS] a [SEP] b [SEP]`` with ``cut`` (B,), the tokens of a, which is left out.
            epoch: of each row, (B,), counted from 1; 0 is evaluation.
        """
        batch = dict(batch)
        real = batch["attention_mask"].numpy().astype(bool)
        places = self.places(batch, real, epoch)
        swapped = places.rows(SWAP) < 0.5
        a = batch.pop("cut").numpy()
        b = real.sum(1) - 3 - a
        at, turned, a, b = places.column, swapped[:, None], a[:, None], b[:, None]
        inside = turned & (at > 0) & (at < a + b + 2)
        source = np.select([at <= b, at == b + 1], [at + a + 1, a + 1], at - b - 1)
        source = np.where(inside, source - at, 0) + np.arange(at.shape[1])
        for name in ("input_ids", "begins"):
            batch[name] = torch.from_numpy(np.take_along_axis(batch[name].numpy(), source, 1))
        second = real & (at > np.where(turned, b, a) + 1)
        order = torch.from_numpy(swapped.astype(np.int64))
        labels = dict.fromkeys(ORDER_LABELS, order)
        return super().__call__(batch | labels | {"token_type_ids": torch.from_numpy(second.astype(np.int64))}, epoch)


@dataclass(kw_only=True, eq=False, repr=False)
class SentenceOrder(MaskedLanguage):
    """Masked language modelling and the order of two segments of a text: ALBERT's pretraining (arXiv 1909.11942, 3.1).

    A document is cut into blocks, and each block in two, between sentences if that is near its middle. For families
    whose head for pretraining tells the order: ALBERT, and BERT with the head of its next sentence prediction.
    ``order_accuracy`` is reported beside the metrics of the hidden tokens.
    """

    pack: bool = field(init=False, default=False)  # two documents end to end are in no order
    single_texts: ClassVar[bool] = False

    def auto_class(self) -> Any:
        from transformers import AutoModelForPreTraining

        return AutoModelForPreTraining

    def check_model(self, model: nn.Module) -> None:
        if not set(ORDER_LABELS) & set(inspect.signature(type(model).forward).parameters):
            raise SkimError(
                f"task={self.name} needs a head for the order of two segments; {type(model).__name__} is another.\n"
                "Use an ALBERT or BERT (backbone=albert_base, bert_base, minilm), or task=mlm."
            )

    def metrics(self) -> Metric | MetricCollection:
        found = {"accuracy": MeanMetric(), "perplexity": Perplexity(), "order_accuracy": MeanMetric()}
        return MetricCollection(found, compute_groups=False)  # type: ignore[arg-type]

    def update(self, metrics: Any, output: Any, batch: dict[str, Tensor]) -> None:
        super().update(metrics, output, batch)
        right = order_logits(output).argmax(-1) == batch[ORDER_LABELS[0]]
        metrics["order_accuracy"].update(right.float())

    def distance(self, output: Any, taught: Any, batch: dict[str, Tensor], temperature: float) -> Tensor:
        order = softened_divergence(order_logits(output), order_logits(taught), temperature)
        return super().distance(output, taught, batch, temperature) + order

    def predictions(self, output: Any, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Add ``swapped``, the truth, and ``swapped_probability``."""
        chances = order_logits(output).float().softmax(-1)[:, 1].tolist()
        orders = zip(batch[ORDER_LABELS[0]].bool().tolist(), chances, strict=True)
        found = [{"swapped": truth, "swapped_probability": chance} for truth, chance in orders]
        return [one | other for one, other in zip(super().predictions(output, batch), found, strict=True)]

    def setup_tokenizer(self, tokenizer: Any) -> None:
        super().setup_tokenizer(tokenizer)
        ends = [[tokenizer.cls_token_id], [tokenizer.sep_token_id]]
        if [self.before.tolist(), self.after.tolist()] != ends:
            raise SkimError(
                f"task={self.name} lays texts out as [CLS] a [SEP] b [SEP], which is not how this tokenizer does.\n"
                "Use an ALBERT or BERT (backbone=albert_base, bert_base, minilm), or task=mlm."
            )
        self.room -= 1
        if self.room < 2:
            raise SkimError(f"task.max_length={self.max_length} leaves no room for two segments; use at least 5.")

    def encode(self, rows: dict[str, list]) -> dict[str, list]:
        found = self.tokenizer.convert_tokens_to_ids(list(ENDS))
        ends = [i for i in found if i is not None and i != self.tokenizer.unk_token_id]
        columns: dict[str, list] = {"input_ids": [], "begins": [], "cut": [], "truncated": []}
        gap = np.asarray([[self.tokenizer.sep_token_id], [True]])
        for document in self.tokens(rows[self.text_column]):
            for start in range(0, document.shape[1], self.room):
                block = document[:, start : start + self.room]
                cut = middle(block[1].astype(bool), np.isin(block[0], ends))
                if cut is None:  # one word has no order
                    continue
                framed = self.framed(np.concatenate([block[:, :cut], gap, block[:, cut:]], axis=1))
                columns["input_ids"].append(framed[0].astype(np.int32))
                columns["begins"].append(framed[1].astype(bool))
                columns["cut"].append(cut)
                columns["truncated"].append(False)
        return columns

    def masker(self) -> Masker:
        return Swapper(self.masking, self.tokenizer, self.seed)


def middle(begins: np.ndarray, ends: np.ndarray) -> int | None:
    """Choose where to cut a block of n tokens in two: before a word, near the middle, and rather behind a sentence.

    Args:
        begins: which tokens begin a word, (n,) bool.
        ends: which tokens end a sentence, (n,) bool.

    Returns:
        The tokens of the first part; ``None`` if there is but one word.
    """
    places = np.flatnonzero(begins[1:]) + 1
    if not len(places):
        return None
    away = np.abs(places - len(begins) / 2) + np.where(ends[places - 1], 0, len(begins) / 4)
    return int(places[away.argmin()])


def order_logits(output: Any) -> Tensor:
    """Return the logits of as written and swapped, (B, 2)."""
    return output.sop_logits if "sop_logits" in output else output.seq_relationship_logits
