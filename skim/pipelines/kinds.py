"""The pipelines that skim has: transformers' own, batched, and question answering, which transformers has no more."""

from __future__ import annotations

from typing import Any, NamedTuple

from transformers.models.auto import modeling_auto as auto
from transformers.pipelines import (
    FeatureExtractionPipeline,
    FillMaskPipeline,
    TextClassificationPipeline,
    TokenClassificationPipeline,
)

from skim.pipelines.answering import QuestionAnswering
from skim.pipelines.batches import Batched


class TextClassification(Batched, TextClassificationPipeline):
    """``text-classification``."""


class TokenClassification(Batched, TokenClassificationPipeline):
    """``token-classification``."""

    by_token = frozenset({"logits"})


class FillMask(Batched, FillMaskPipeline):
    """``fill-mask``; its outputs are as wide as the vocabulary, so a batch is smaller."""

    by_token = frozenset({"logits"})
    batch_tokens = 512


class FeatureExtraction(Batched, FeatureExtractionPipeline):
    """``feature-extraction``; its answers are large, so a window is smaller."""

    by_token = frozenset({"last_hidden_state"})
    window = 64


class Kind(NamedTuple):
    """A task of pipelines: its class, and which models of transformers it takes, by type; ``None``: any, headless."""

    pipeline: type[Batched]
    models: Any


KINDS = {
    "text-classification": Kind(TextClassification, auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    "token-classification": Kind(TokenClassification, auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
    "question-answering": Kind(QuestionAnswering, auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES),
    "fill-mask": Kind(FillMask, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    "feature-extraction": Kind(FeatureExtraction, None),
}
ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}  # transformers' own
