"""Recipes of probes by name."""

from __future__ import annotations

from skim.analysis.redundancy.elastic_net import ElasticNet
from skim.analysis.redundancy.probes import Recipe
from skim.analysis.redundancy.ridge import Ridge

RECIPES: dict[str, Recipe] = {"default": Ridge(), "paper": ElasticNet()}
