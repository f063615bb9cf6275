"""BERT and the families that share its layer: RoBERTa, XLM-R, CamemBERT, ERNIE, Data2Vec-text."""

from __future__ import annotations

from skim.backbones.base import Backbone


class Bert(Backbone):
    """The default adapter as it is."""

    model_types = ("bert", "roberta", "xlm-roberta", "camembert", "ernie", "data2vec-text")
