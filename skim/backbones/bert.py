"""BERT and the families that share its layer: RoBERTa, XLM-R, CamemBERT, ERNIE, Data2Vec-text."""

from __future__ import annotations

from skim.backbones.base import Backbone


class Bert(Backbone):
    """The default adapter as it is."""

    model_types = ("bert", "ernie")
    exports = True


class Roberta(Backbone):
    """The same layer; positions are counted from behind the padding id, so two of them are never used."""

    model_types = ("roberta", "xlm-roberta", "camembert", "data2vec-text")
    positions_after_padding = True
    exports = True
