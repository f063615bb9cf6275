"""Replaced token detection: which tokens did a small generator put in? ELECTRA's pretraining (arXiv 2003.10555)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryF1Score, BinaryPrecision, BinaryRecall

from skim.engine.ranks import weighed
from skim.errors import SkimError
from skim.options.kinds import Fraction, Positive
from tasks.data.masking import IGNORED, SAMPLE
from tasks.losses import softened_divergence
from tasks.pretraining import MaskedLanguage, Masker


class Hider(Masker):
    """Masks for the generator, and draws the numbers that it will sample by."""

    def __call__(self, batch: dict[str, Tensor], epoch: np.ndarray) -> dict[str, Tensor]:
        """Hide some ``input_ids`` of a batch.

        Adds ``originals`` (B, N), the ids that were hidden, -100 elsewhere, and ``draw`` (B, N), numbers in [0, 1).
        """
        batch = super().__call__(batch, epoch)
        batch["originals"] = batch.pop("labels")
        hidden = batch["originals"].numpy() != IGNORED
        draw = np.zeros(hidden.shape, np.float32)
        places = self.places(batch, batch["attention_mask"].numpy().astype(bool), epoch)
        draw[hidden] = places.tokens(SAMPLE, *np.nonzero(hidden))
        return batch | {"draw": torch.from_numpy(draw)}


@dataclass(kw_only=True, eq=False, repr=False)
class ReplacedTokens(MaskedLanguage):
    """Tell tokens that a generator made up from those that were there. For ELECTRA's family.

    The generator is a smaller masked language model, trained beside the backbone, with its embeddings tied to the
    backbone's. What it puts in is drawn from its distribution by numbers that follow from epoch, row and position, in
    evaluation as in training. The loss is that of the paper (equation in section 2, weight 50) divided by the weight,
    ``detection + generator / 50``: the backbone's own loss then has the scale that penalties of methods expect.

    FLOPs are the backbone's; the generator's are in neither side of relative FLOPs.
    """

    generator_size: Annotated[float, Field(gt=0, le=1)] = 0.25
    """the generator's width as a share of the backbone's; it is as deep"""
    detection_weight: Positive = 50.0
    """weight of the backbone's loss, the generator's being 1"""
    replaced: Fraction = 0.85
    """share of the hidden tokens that the generator sees as [MASK]; 0.85 in the published code, all in the paper"""
    randomised: Fraction = 0.0
    """share of them that it sees as any token"""

    single_texts: ClassVar[bool] = False

    @property
    def monitor(self) -> str:
        return "f1"

    @property
    def num_labels(self) -> int:
        return 1

    def auto_class(self) -> Any:
        from transformers import AutoModelForPreTraining

        return AutoModelForPreTraining

    def check_model(self, model: nn.Module) -> None:
        from transformers import ElectraForPreTraining

        if not isinstance(model, ElectraForPreTraining):
            raise SkimError(
                f"task={self.name} needs ELECTRA's head, which judges each token; {type(model).__name__} has another.\n"
                "Use backbone=electra_small, or backbone.overrides.model_type=electra for one from random weights."
            )

    def companion(self, model: nn.Module) -> nn.Module:
        """Make the generator: as deep as the backbone, narrower, with its token, position and type embeddings."""
        from transformers import ElectraForMaskedLM

        from skim.compression import walk_of

        whole: Any = walk_of(model).model
        config = copy.deepcopy(whole.config)
        heads = max(1, round(config.num_attention_heads * self.generator_size))
        config.hidden_size = config.hidden_size // config.num_attention_heads * heads
        config.num_attention_heads = heads
        config.intermediate_size = max(1, round(config.intermediate_size * self.generator_size))
        config._attn_implementation = "sdpa"  # and not skim's
        generator = ElectraForMaskedLM(config)
        ours, theirs = generator.electra.embeddings, whole.electra.embeddings
        for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
            getattr(ours, name).weight = getattr(theirs, name).weight
        generator.generator_lm_head.weight = theirs.word_embeddings.weight
        return generator

    def corrupt(self, batch: dict[str, Tensor], companion: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
        """Put the generator's tokens in, and add ``labels`` (B, N), 1 where one differs; returns also its loss."""
        hidden = batch["originals"] != IGNORED
        out = companion(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["originals"])
        with torch.no_grad():
            chances = out.logits[hidden].float().softmax(-1).cumsum(-1)
            draw = batch["draw"][hidden, None] * chances[:, -1:]
            made_up = torch.searchsorted(chances, draw).squeeze(-1).clamp_max(chances.shape[-1] - 1)
        ids = batch["input_ids"].masked_scatter(hidden, made_up)
        labels = (hidden & (ids != batch["originals"])).long()
        return {**batch, "input_ids": ids, "labels": labels}, weighed(out.loss, hidden.sum) / self.detection_weight

    # ---- what is measured: over real tokens ----

    def metrics(self) -> MetricCollection:
        kinds = {"f1": BinaryF1Score, "accuracy": BinaryAccuracy, "precision": BinaryPrecision, "recall": BinaryRecall}
        return MetricCollection({name: kind() for name, kind in kinds.items()})

    def update(self, metrics: Any, output: Any, batch: dict[str, Tensor]) -> None:
        real = batch["attention_mask"].bool()
        metrics.update((output.logits[real] > 0).long(), batch["labels"][real])

    def scored(self, output: Any, batch: dict[str, Tensor]) -> Tensor:
        real = batch["attention_mask"].bool()
        right = ((output.logits > 0) == (batch["labels"] > 0)) & real
        return right.sum(1) / real.sum(1)

    def labelled(self, batch: dict[str, Tensor]) -> int:
        return int(batch["attention_mask"].sum()) if "labels" in batch else 0

    def distance(self, output: Any, taught: Any, batch: dict[str, Tensor], temperature: float) -> Tensor:
        real = batch["attention_mask"].bool()
        ours, theirs = (torch.stack([torch.zeros_like(o.logits), o.logits], -1)[real] for o in (output, taught))
        return softened_divergence(ours, theirs, temperature)

    def predictions(self, output: Any, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Return ``text`` as the model saw it, and ``tokens``, those that were put in or are predicted to be.

        Each has ``token``, ``replaced`` (the truth), and ``probability`` (the model's, of its being so).
        """
        chances, real = output.logits.float().sigmoid(), batch["attention_mask"].bool()
        shown = real & ((chances > 0.5) | (batch["labels"] == 1))
        rows = []
        for ids, there, some, truth, chance in zip(
            batch["input_ids"], real, shown, batch["labels"], chances, strict=True
        ):
            names = self.tokenizer.convert_ids_to_tokens(ids[some].tolist())
            columns = zip(names, truth[some].bool().tolist(), chance[some].tolist(), strict=True)
            keys = ("token", "replaced", "probability")
            text = self.tokenizer.decode(ids[there].tolist())
            rows.append({"text": text, "tokens": [dict(zip(keys, one, strict=True)) for one in columns]})
        return rows

    # ---- batches ----

    def masker(self) -> Masker:
        return Hider(self.masking, self.tokenizer, self.seed)
