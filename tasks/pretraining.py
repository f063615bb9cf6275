"""Masked language modelling on plain texts.

The masks of a block of tokens (:mod:`tasks.documents`) are drawn when a batch is assembled, anew in every epoch, and
always the same in evaluation (:mod:`tasks.data.masking`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.text import Perplexity

from skim.errors import SkimError
from skim.options.kinds import Between, Count, Fraction
from tasks.base import write_lines
from tasks.data.batches import Rows
from tasks.data.masking import IGNORED, Masking, Places
from tasks.documents import Documents
from tasks.losses import softened_divergence

if TYPE_CHECKING:
    from datasets import Dataset

EVALUATION_SEED = 0  # runs of all seeds are evaluated on the same masks


class Masker:
    """Masks a padded batch; its draws follow from seed, epoch, row and position.

    Args:
        masking: how.
        tokenizer: names the special tokens, which are never masked and stand in for none.
        seed: of the training's masks.
    """

    def __init__(self, masking: Masking, tokenizer: Any, seed: int) -> None:
        self.masking, self.seed, self.mask_id = masking, seed, tokenizer.mask_token_id
        self.special = np.zeros(len(tokenizer), bool)
        self.special[[i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id]] = True
        self.ordinary = np.flatnonzero(~self.special)

    def __call__(self, batch: dict[str, Tensor], epoch: np.ndarray) -> dict[str, Tensor]:
        """Replace some ``input_ids`` of a batch, and add ``labels``.

        Args:
            batch: with ``begins`` (B, N) bool, which is not returned.
            epoch: of each row, (B,), counted from 1; 0 is evaluation.
        """
        batch = dict(batch)
        real, begins = batch["attention_mask"].numpy().astype(bool), batch.pop("begins").numpy()
        places = self.places(batch, real, epoch)
        ids = batch["input_ids"].numpy()
        chosen = self.masking.chosen(real & ~self.special[ids], begins, places)
        new = self.masking.corrupted(ids, chosen, self.mask_id, self.ordinary, places)
        return batch | {
            "input_ids": torch.from_numpy(new),
            "labels": torch.from_numpy(np.where(chosen, ids, IGNORED)),
        }

    def places(self, batch: dict[str, Tensor], real: np.ndarray, epoch: np.ndarray) -> Places:
        """Return the places of a batch's tokens."""
        columns = np.arange(real.shape[1]) - real.argmax(1)[:, None]
        return Places(np.where(epoch == 0, EVALUATION_SEED, self.seed), epoch, batch["row"].numpy(), columns)


class MaskedRows(Rows):
    """Rows that are masked when they are asked for; row ``i`` of epoch ``e`` is number ``i + e * rows``.

    Args:
        masker: see :class:`Masker`.
        arguments: of :class:`tasks.data.batches.Rows`.
    """

    def __init__(self, masker: Masker, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.masker = masker

    def __getitem__(self, numbers: list[int]) -> dict[str, Tensor]:
        epoch, rows = np.divmod(numbers, len(self))
        return self.masker(super().__getitem__(rows.tolist()), epoch)


@dataclass(kw_only=True, eq=False, repr=False)
class MaskedLanguage(Documents):
    """Guessing of tokens that were hidden: BERT's pretraining (arXiv 1810.04805), without its second task.

    A row of the data is a document. ``accuracy`` is that of the hidden tokens, and ``perplexity`` theirs as well.
    """

    mask_rate: Between = 0.15
    """share of the tokens that are to be guessed"""
    whole_words: bool = False
    """mask words with all of their tokens (arXiv 1906.08101)"""
    n_gram: Count = 1
    """mask spans of 1 to that many words (tokens, without whole_words), p(k) ~ 1/k; ALBERT (arXiv 1909.11942): 3"""
    replaced: Fraction = 0.8
    """share of the chosen tokens that become [MASK] (BERT: 0.8); the rest stays as it is, but for those that are
    randomised"""
    randomised: Fraction = 0.1
    """share of the chosen tokens that become any token (BERT: 0.1)"""

    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.masking = Masking(self.mask_rate, self.whole_words, self.n_gram, self.replaced, self.randomised)

    @property
    def monitor(self) -> str:
        return "accuracy"

    @property
    def num_labels(self) -> int:
        return len(self.tokenizer)

    def auto_class(self) -> Any:
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM

    def model_kwargs(self) -> dict[str, Any]:
        return {}

    # ---- metrics ----

    def metrics(self) -> Metric | MetricCollection:
        return MetricCollection({"accuracy": MeanMetric(), "perplexity": Perplexity()}, compute_groups=False)

    def guesses(self, output: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Pick logits (M, V) and ids (M,) of the M tokens that were to be guessed."""
        hidden = batch["labels"] != IGNORED
        logits = output.logits if "logits" in output else output.prediction_logits
        return logits[hidden].float(), batch["labels"][hidden]

    def update(self, metrics: Any, output: Any, batch: dict[str, Tensor]) -> None:
        logits, truth = self.guesses(output, batch)
        metrics["accuracy"].update((logits.argmax(-1) == truth).float())
        metrics["perplexity"].update(logits[None], truth[None])

    def scored(self, output: Any, batch: dict[str, Tensor]) -> Tensor:
        logits, truth = self.guesses(output, batch)
        hidden = batch["labels"] != IGNORED
        right = torch.zeros(hidden.shape, device=hidden.device)
        right[hidden] = (logits.argmax(-1) == truth).float()
        return right.sum(1) / hidden.sum(1)

    def labelled(self, batch: dict[str, Tensor]) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def distance(self, output: Any, taught: Any, batch: dict[str, Tensor], temperature: float) -> Tensor:
        ours, theirs = (self.guesses(one, batch)[0] for one in (output, taught))
        return softened_divergence(ours, theirs, temperature)

    def predictions(self, output: Any, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Return ``text`` as the model saw it, and of each hidden token ``token``, ``guess`` and ``probability``."""
        logits, truth = self.guesses(output, batch)
        sure, guess = logits.softmax(-1).max(-1)
        names = self.tokenizer.convert_ids_to_tokens
        columns = (names(truth.tolist()), names(guess.tolist()), sure.tolist())
        guesses = [dict(zip(("token", "guess", "probability"), one, strict=True)) for one in zip(*columns, strict=True)]
        ends = np.cumsum((batch["labels"] != IGNORED).sum(1).tolist()).tolist()
        real = batch["attention_mask"].bool()
        return [
            {"text": self.tokenizer.decode(ids[there].tolist()), "guesses": guesses[start:end]}
            for ids, there, start, end in zip(batch["input_ids"], real, [0, *ends], ends, strict=False)
        ]

    def write_predictions(self, found: list[dict[str, Any]], folder: Path) -> list[Path]:
        return [write_lines(folder / "predictions.jsonl", found)]

    # ---- batches ----

    def setup_tokenizer(self, tokenizer: Any) -> None:
        super().setup_tokenizer(tokenizer)
        if tokenizer.mask_token_id is None:
            raise SkimError(
                f"task={self.name} hides tokens, and the tokenizer of this backbone has no [MASK].\n"
                "Use a backbone that was pretrained by hiding some (backbone=bert_base, ...), or name one of its "
                "tokens mask_token in its tokenizer_config.json."
            )

    def masker(self) -> Masker:
        """Make the function that masks a batch."""
        return Masker(self.masking, self.tokenizer, self.seed)

    def finish(self, batch: dict[str, Tensor], epoch: np.ndarray) -> dict[str, Tensor]:
        return self.masker()(batch, epoch)

    def _assembled(self, table: Dataset) -> Rows:
        tokenizer = self.tokenizer
        left = tokenizer.padding_side == "left"
        return MaskedRows(self.masker(), table, {"input_ids": tokenizer.pad_token_id}, left, self.no_columns)
