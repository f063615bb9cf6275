"""Compressed models whose decisions really differ from sequence to sequence, and comparisons of what came out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import skim
from skim.engine.inputs import Inputs
from skim.engine.tokens import TokenBatch
from skim.engine.trace import Trace
from skim.methods import Method

if TYPE_CHECKING:
    from tests.methods.table import Row

ATTEMPTS = 600


def ragged(model: nn.Module, batch: dict[str, Tensor], row: Row) -> nn.Module:
    """Compress a copy of ``model`` by a method whose decisions differ from sequence to sequence of ``batch``.

    The row of the table draws what decides, again and again, until decisions are ragged and none hangs on rounding:
    without that, none of the laws would test anything. In evaluation mode.
    """
    compressed = skim.compress(copy.deepcopy(model), row.make()).eval()
    for attempt in range(ATTEMPTS):
        row.draw(compressed, batch, attempt)
        if row.is_ragged(ran(compressed, batch)) and is_steady(compressed, batch):
            return compressed
    raise AssertionError(f"{ATTEMPTS} draws, and no decision was ragged")


@torch.no_grad()
def ran(compressed: nn.Module, batch: dict[str, Tensor]) -> Trace:
    """Run a batch masked; the trace of it."""
    with skim.execution(compressed, "masked"):
        compressed(**batch)
    return compressed.trace


@torch.no_grad()
def is_steady(compressed: nn.Module, batch: dict[str, Tensor], by: float = 3e-5) -> bool:
    """Tell whether every decision stays the same if all weights change a bit, by more than rounding ever does."""
    wanted = compressed.trace
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        other = copy.deepcopy(compressed)
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.mul_(1 + by * noise)
        found = ran(other, batch)
        if not torch.equal(found.alive(), wanted.alive()) or not torch.equal(entering(found), entering(wanted)):
            return False
    return True


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


def entering(trace: Trace) -> Tensor:
    """Count tokens entering each layer's attention, and at last the last feed-forward, ``(L + 1, B)``."""
    return torch.cat([trace.counts(), trace.layers[-1].feeding.counts()[None]])


def is_ragged(counts: Tensor, lengths: Tensor) -> bool:
    """Tell whether the tokens entering each layer, ``(L, B)``, fall in several layers and end up different."""
    totals = counts.sum(1)
    falls = (totals.diff() < 0).sum() >= min(2, len(totals) - 1)
    some = lengths > 0
    left = counts[-1][some]
    return bool(falls and (left < lengths[some]).any() and len(left.unique()) > 1 and left.min() > 1)


def logits_of(output: Any) -> dict[str, Tensor]:
    """Pick a head's outputs by name, losses left out."""
    return {name: value for name, value in output.items() if name.endswith("logits")}


def on_real(value: Tensor, mask: Tensor) -> Tensor:
    """Set whatever stands on pads to zero; values per sequence stay as they are."""
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


def assert_flops(compressed: nn.Module, batch: dict) -> None:
    """The formula equals torch's counter, less embeddings and pooler; it knows the plain attention kernel only."""
    base = compressed.base_model
    backbone = base.forward.backbone
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        hidden, before = count(lambda: backbone.embed(base, Inputs(**batch)))
        _, after = count(lambda: backbone.finish(base, hidden))
        _, total = count(lambda: base(**batch))
    assert total - before - after == compressed.trace.flops().sum().item()


def count(run: Callable[[], Any]) -> tuple[Any, int]:
    """Run something and count its FLOPs by torch's counter."""
    with FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops()
