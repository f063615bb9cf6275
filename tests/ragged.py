"""Methods whose decisions really differ from sequence to sequence, and how to compare what came out."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import skim
from skim.engine.inputs import Inputs
from skim.engine.tokens import Occupancy, TokenBatch
from skim.engine.trace import Trace
from skim.methods import Method
from skim.methods.ltp import LTP
from skim.methods.pruning import Pruner
from skim.methods.threshold import Manual, Relative, Rising
from skim.methods.topk import TopK
from skim.methods.transkimmer import Transkimmer
from tests.families import enliven

# The methods that prune by received attention, with each way to divide the scores.
PRUNERS: dict[str, Callable[[], Pruner]] = {
    "ltp": lambda: LTP(final_token_threshold=0.05, score_norm="length"),
    "ltp_alive": lambda: LTP(final_token_threshold=0.1, score_norm="alive"),
    "ltp_manual": lambda: Manual(final_token_threshold=0.15 * 10 / 128),
    "ltp_manual_padded": lambda: Manual(final_token_threshold=0.12, score_norm="padded"),
    "ltp_relative": lambda: Relative(token_threshold=0.3),
    "ltp_rising": lambda: Rising(final_token_threshold=0.5),
    "topk": lambda: TopK(token_keep_rate=0.37, start=1),
}
SHIFTS = (0.0, *(sign * 0.07 * step for step in range(1, 13) for sign in (1, -1)))
QUERIES = re.compile(r"(query|query_proj|q_proj|q_lin|Wqkv|attn\.q)(\.weight)?$")  # XLNet's are long enough


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


def pruner(model: nn.Module, batch: dict, name: str) -> nn.Module:
    """A compressed copy of ``model`` that prunes different numbers of tokens in each sequence, by one of PRUNERS.

    Its queries are made longer, because random attention is too flat for a threshold to tell tokens apart (MobileBERT's
    most of all). Shifts are tried until drops are ragged and no decision hangs on rounding. LTP has learned something:
    its thresholds are off the ramp, and the first layer's is not zero.
    """
    for sharper in (3, 30, 100):
        method = PRUNERS[name]()
        compressed = skim.compress(copy.deepcopy(model), method).eval()
        for part, parameter in compressed.named_parameters():
            if QUERIES.search(part):
                parameter.data *= sharper
        if isinstance(method, LTP):
            method.delta.data.copy_(torch.linspace(0.8, 0.4, len(method.delta)) * method.final_token_threshold)
        for shift in SHIFTS:
            method.shift.fill_(shift)
            with torch.no_grad(), skim.execution(compressed, "masked"), Borders(method) as borders:
                compressed(**batch)
            if borders.clear and is_ragged(entering(compressed.trace), compressed.trace.lengths):
                return compressed
    raise AssertionError("no shift gave ragged drops")


class Borders:
    """Watches a pruner's decisions: ``clear`` unless one would change with its score by a ``margin`` (relative)."""

    def __init__(self, method: Pruner, margin: float = 1e-4) -> None:
        self.method, self.margin, self.clear = method, margin, True

    def __enter__(self) -> Borders:
        self.rule, self.method.keep = self.method.keep, self.keep  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        del self.method.keep

    def keep(self, i: int, score: Tensor, occupancy: Occupancy) -> Tensor:
        kept = self.rule(i, score, occupancy)
        nearer = torch.where(kept, score * (1 - self.margin), score * (1 + self.margin))
        largest = score >= occupancy.spread(occupancy.largest(score))  # what others are compared with stays
        self.clear &= torch.equal(self.rule(i, torch.where(largest, score, nearer), occupancy), kept)
        return kept


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
    """Tokens entering each layer's attention, and at last the last feed-forward, ``(L + 1, B)``."""
    return torch.cat([trace.counts(), trace.layers[-1].feeding.counts()[None]])


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
    with FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops()
