"""Compression methods by name. Adding one: a file here, a line here, and ``conf/method/<name>.yaml``."""

from __future__ import annotations

from importlib import import_module

from skim.errors import unknown
from skim.methods.base import Method, Spec

METHODS = {
    "act": "skim.methods.act.ACT",
    "dense": "skim.methods.dense.Dense",
    "early_exit": "skim.methods.early_exit.EarlyExit",
    "funnel": "skim.methods.funnel.Funnel",
    "ltp": "skim.methods.ltp.LTP",
    "ltp_manual": "skim.methods.threshold.Manual",
    "ltp_relative": "skim.methods.threshold.Relative",
    "ltp_rising": "skim.methods.threshold.Rising",
    "topk": "skim.methods.topk.TopK",
    "transkimmer": "skim.methods.transkimmer.Transkimmer",
}


def method_class(name: str) -> type[Method]:
    """The class behind a method's name; an unknown name is a SkimError with the nearest one."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    module, _, attribute = METHODS[name].rpartition(".")
    return getattr(import_module(module), attribute)


def method_name(target: str) -> str:
    """The name of a method from its config's ``_target_``; of one that is not registered here, its module's."""
    known = {path: name for name, path in METHODS.items()}
    return known.get(target, target.rsplit(".", 2)[-2] if "." in target else target)


__all__ = ["METHODS", "Method", "Spec", "method_class", "method_name"]
