"""Methods whose decisions really differ from sequence to sequence, and how to compare what came out."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import skim
from skim.engine.tokens import TokenBatch
from skim.methods import Method
from skim.methods.transkimmer import Transkimmer
from tests.families import enliven


def transkimmer(model: nn.Module, batch: dict, **options) -> nn.Module:
    """A compressed copy of ``model`` whose random predictors drop different numbers of tokens in each sequence.

    Predictors are drawn anew until at least two layers retire tokens, no sequence keeps all of them, no two layers keep
    the same, and the survivors differ in number: without that, none of the laws would test anything.
    """
    compressed = skim.compress(copy.deepcopy(model), Transkimmer(**options)).eval()
    first = next(compressed.parameters())
    for seed in range(200):
        enliven(compressed.method, seed)
        for net in compressed.method.predictors.values():
            net[4].weight.data *= 4
            net[4].bias.data += torch.tensor([-0.6, 0.6]).to(first)
        with torch.no_grad(), skim.execution(compressed, "masked"):
            compressed(**batch)
        if is_ragged(compressed.trace.counts(), compressed.trace.lengths):
            return compressed
    raise AssertionError("no seed in 200 gave ragged drops")


class Scripted(Method):
    """Retires the tokens of a script, ``(L, B, N)`` keep decisions, before each layer or between its halves."""

    name = "scripted"

    def __init__(self, script: Tensor, protect: tuple[str, ...] = (), between: bool = False) -> None:
        super().__init__(protect)
        self.script, self.between = script, between

    def decide(self, i: int, tokens: TokenBatch) -> TokenBatch:
        return tokens.retire(tokens.occupancy.rows(self.script[i].to(tokens.hidden)))

    def before_layer(self, i: int, tokens: TokenBatch) -> TokenBatch:
        return tokens if self.between else self.decide(i, tokens)

    def after_attention(self, i: int, tokens: TokenBatch, received: Tensor | None) -> TokenBatch:
        return self.decide(i, tokens) if self.between else tokens


def is_ragged(counts: Tensor, lengths: Tensor) -> bool:
    """Whether the tokens entering each layer, ``(L, B)``, fall in several layers and end up different."""
    totals = counts.sum(1)
    falls = (totals.diff() < 0).sum() >= min(2, len(totals) - 1)
    some = lengths > 0
    left = counts[-1][some]
    return bool(falls and (left < lengths[some]).any() and len(left.unique()) > 1 and left.min() > 1)


def logits_of(output) -> dict[str, Tensor]:
    """A head's outputs by name, losses left out."""
    return {name: value for name, value in output.items() if name.endswith("logits")}


def on_real(value: Tensor, mask: Tensor) -> Tensor:
    """``value`` with whatever stands on pads set to zero; values per sequence as they are."""
    if value.shape[:2] != mask.shape:
        return value
    return value * mask.view(*mask.shape, *[1] * (value.dim() - 2)).to(value)


def assert_same(
    found: Tensor, wanted: Tensor, mask: Tensor | None = None, tolerance: float = 1e-5, what: str = ""
) -> None:
    """Equal within ``tolerance`` of the largest value (or of 1, if that is larger)."""
    assert found.shape == wanted.shape, f"{what}: {tuple(found.shape)} is not {tuple(wanted.shape)}"
    if mask is not None:
        found, wanted = on_real(found, mask), on_real(wanted, mask)
    assert torch.isfinite(found).all(), f"{what}: not finite"
    error = (found - wanted).abs().max().item()
    scale = max(wanted.abs().max().item(), 1.0)
    assert error <= tolerance * scale, f"{what}: off by {error:.1e} at scale {scale:.1e}"
