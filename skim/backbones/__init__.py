"""Backbone families by ``config.model_type``. Adding one: a file here and a line here."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from skim.backbones.base import Backbone
from skim.errors import SkimError

FAMILIES = (
    "skim.backbones.bert.Bert",
    "skim.backbones.bert.Roberta",
    "skim.backbones.distilbert.DistilBert",
    "skim.backbones.electra.Electra",
    "skim.backbones.albert.Albert",
    "skim.backbones.mobilebert.MobileBert",
    "skim.backbones.esm.Esm",
    "skim.backbones.modernbert.ModernBert",
    "skim.backbones.nomic_bert.NomicBert",
    "skim.backbones.eurobert.EuroBert",
    "skim.backbones.mpnet.MPNet",
    "skim.backbones.deberta_v2.DebertaV2",
    "skim.backbones.xlnet.XLNet",
    "skim.backbones.megatron_bert.MegatronBert",
    "skim.backbones.rembert.RemBert",
    "skim.backbones.roformer.RoFormer",
    "skim.backbones.funnel.Funnel",
)


def families() -> dict[str, Backbone]:
    """Every supported ``model_type`` with its adapter."""
    found: dict[str, Backbone] = {}
    for path in FAMILIES:
        module, _, attribute = path.rpartition(".")
        family = getattr(import_module(module), attribute)()
        found.update(dict.fromkeys(family.model_types, family))
    return found


def find(model: nn.Module) -> Backbone:
    """The adapter for a Hugging Face model; a SkimError that lists the families for any other."""
    known = families()
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", type(model).__name__)
    if model_type not in known:
        raise SkimError(
            f"skim does not know the model family '{model_type}' ({type(model).__name__}).\n"
            f"Supported: {', '.join(sorted(known))}.\n"
            "A family is one short file in skim/backbones/; anything else would silently ignore the masks."
        )
    if not isinstance(getattr(model, "base_model", None), nn.Module):
        raise SkimError(
            f"{type(model).__name__} is a part of a transformers model, or stands around one, and is none itself.\n"
            "Compress the model that AutoModel... or its own class has loaded."
        )
    if getattr(config, "is_decoder", False):
        raise SkimError(f"{type(model).__name__} is configured as a decoder (is_decoder); skim compresses encoders.")
    reason = known[model_type].refuses(config)
    if reason is not None:
        raise SkimError(f"skim cannot compress this {type(model).__name__}: {reason}.")
    return known[model_type]


__all__ = ["Backbone", "families", "find"]
