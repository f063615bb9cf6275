"""Fair timing: candidates take turns on the same batches, and a claim of speed is a ratio of their medians.

Two measurements made one after the other differ by what else the machine did, by clock speeds and by warm caches. Here
every round runs every candidate once, each round starts with another one, and only what ran side by side is compared.

    python -m skim.benchmark --backbone bert-base --batch 32 --length 128 512 --device cuda --dtype bf16

times shapes with random weights: padded Hugging Face (SDPA where it has it), the packed dense model, and what a method
costs whose decisions are scripted: retiring (``--keep``) or halting (``--halt``) a fixed share of the tokens, or
pooling (``--funnel``). :func:`compare` does the same for a trained model on real batches, and :func:`compare_training`
for its training steps.
"""

from __future__ import annotations

from skim.benchmark.comparison import compare, compare_training, plain_twin, twin
from skim.benchmark.counting import Work, counting
from skim.benchmark.scripted import HaltShare, KeepShare
from skim.benchmark.timing import Timing, machine, time_side_by_side, usable

__all__ = [
    "HaltShare",
    "KeepShare",
    "Timing",
    "Work",
    "compare",
    "compare_training",
    "counting",
    "machine",
    "plain_twin",
    "time_side_by_side",
    "twin",
    "usable",
]
