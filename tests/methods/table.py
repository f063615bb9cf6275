"""The table of methods that the laws run over.

A row says how a method is made, how to draw what it decides by, and how to bring it where a law can see something.
A chain is a row as well, made of others: ``chained("topk", "transkimmer")``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from skim.engine.trace import Trace
from skim.methods import Method
from skim.methods.act import ACT
from skim.methods.adapler import AdapLeR
from skim.methods.budget import Budget
from skim.methods.chain import Chain
from skim.methods.dense import Dense
from skim.methods.early_exit import EarlyExit, entropy
from skim.methods.funnel import Funnel
from skim.methods.layer_drop import LayerDrop
from skim.methods.length_drop import LengthDrop
from skim.methods.ltp import LTP
from skim.methods.random_tokens import RandomTokens
from skim.methods.stop_words import StopWords, codes_of
from skim.methods.threshold import Manual, Relative, Rising
from skim.methods.tome import ToMe
from skim.methods.topk import TopK
from skim.methods.transkimmer import Transkimmer
from skim.methods.truncate import Truncate
from tests.families import VOCAB, enliven
from tests.ragged import entering, is_ragged

QUERIES = re.compile(r"(query|query_proj|q_proj|q_lin|Wqkv|attn\.q)(\.weight)?$")  # XLNet's are long enough
SHIFTS = (0.0, *(sign * 0.07 * step for step in range(1, 13) for sign in (1, -1)))

Change = Callable[[Any], None]


def nothing(method: Any) -> None:
    """Change nothing."""


def shift(value: float) -> Change:
    """Move all of a method's hard decisions."""
    return lambda method: method.shift.fill_(value)


def steer(method: Any) -> None:
    """Give a method a target that it is far from."""
    method.target, method.budget = 0.05, Budget(0.05, warmup=0.0)


def prunes(trace: Trace) -> bool:
    """Tokens leave in several layers, and a different number of each sequence is left."""
    return is_ragged(entering(trace), trace.lengths)


def thins(trace: Trace) -> bool:
    """Tokens leave, if only in one layer, and a different number of each sequence is left."""
    there = trace.lengths > 0
    left = entering(trace)[-1, there]
    return bool((left < trace.lengths[there]).any() and len(left.unique()) > 1 and left.min() > 1)


@dataclass(frozen=True)
class Row:
    """One method of the table.

    Attributes:
        make: constructs it.
        draw: draws anew what the method of a compressed model decides by; given the model, a batch and the attempt.
        is_ragged: tells from a trace that decisions differ, between layers and between sequences.
        drop_nothing: makes it keep every token (law 1); ``None`` where that is not the plain model.
        harden: makes its relaxed decisions hard ones (law 2, of methods that train masked).
        blur: puts every decision in doubt, so that all of them have a gradient (law 4).
        steer: gives it a target in training; ``None`` for a method without one, or whose target no penalty follows.
        apart: True if its rows look at other rows, so that it runs where a family's attention can.
        narrows: True if the tokens that it takes out leave a narrower rectangle.
        invariant: False if what it decides depends on the padding, as published.
        tolerance: of gradients in double precision; larger where the method computes in float32 all the same.
        also: families that it has to be tried on beside those that every method is.
    """

    make: Callable[[], Method]
    draw: Callable[[nn.Module, dict[str, Tensor], int], None] = lambda model, batch, attempt: None
    is_ragged: Callable[[Trace], bool] = prunes
    drop_nothing: Change | None = nothing
    harden: Change = nothing
    blur: Change = nothing
    steer: Change | None = None
    apart: bool = False
    narrows: bool = True
    invariant: bool = True
    tolerance: float = 1e-9
    also: tuple[str, ...] = ()

    @cached_property
    def reads_head(self) -> bool:
        """True if it reads the model's own head, and so needs one for sequences."""
        return self.make().reads_head

    @cached_property
    def is_chain(self) -> bool:
        """True if it is several methods, one after the other."""
        return isinstance(self.make(), Chain)

    @cached_property
    def trains_relaxed(self) -> bool:
        """True if training goes through all decisions that are taken in the end; exits are not taken in training."""
        method = self.make()
        return method.trains_masked and "exits" not in method.does

    @cached_property
    def trains_packed(self) -> bool:
        """True if, in its last stage, training runs without the tokens that are gone."""
        method = self.make()
        if method.stages:
            method.enter(method.stages[-1])
        return not (method.trains_masked or method.trains_dense or "exits" in method.does)


# --- retired before a layer, by a predictor ---------------------------------------------------------------------------


def draw_predictors(model: nn.Module, batch: dict[str, Tensor], attempt: int) -> None:
    """Draw predictors that keep and retire about as often."""
    method: Any = model.method
    enliven(method, attempt)
    for net in method.predictors.values():
        net[4].weight.data *= 4
        net[4].bias.data += torch.tensor([-0.6, 0.6]).to(net[4].bias)


def predicting(make: Callable[[], Method]) -> Row:
    """A row of predictors that skim."""
    return Row(make, draw_predictors, drop_nothing=shift(1e4), steer=steer)


def draw_contributions(model: nn.Module, batch: dict[str, Tensor], attempt: int) -> None:
    """Draw predictors that tell of some tokens more than of others."""
    enliven(model.method, attempt)
    for net in model.method.predictors:
        net[2].weight.data *= 3
    model.method.eta.data.fill_(0.7)


def steep(method: Any) -> None:
    """Remove softly by a slope that is none."""
    method.slope = method.slope_end = 1e7


def gentle(method: Any) -> None:
    """Remove so softly that every token is in doubt."""
    method.slope = method.slope_end = 1.0


def contributing(make: Callable[[], Method]) -> Row:
    """A row of methods that tell contributions."""
    return Row(make, draw_contributions, drop_nothing=shift(1e4), harden=steep, blur=gentle, steer=steer)


# --- retired between the halves, by the attention received ------------------------------------------------------------


def draw_shift(model: nn.Module, batch: dict[str, Tensor], attempt: int) -> None:
    """Try shifts, on queries made ever longer: random attention is too flat for a threshold to tell tokens apart.

    MobileBERT's most of all. LTP has learned something: its thresholds are off the ramp, the first is not zero.
    """
    method: Any = model.method
    if attempt % len(SHIFTS) == 0:
        longer = (3.0, 10.0, 10 / 3)[attempt // len(SHIFTS) % 3] if attempt < 3 * len(SHIFTS) else 1.0
        for name, parameter in model.named_parameters():
            if QUERIES.search(name):
                parameter.data *= longer
    if isinstance(method, LTP):
        method.delta.data.copy_(torch.linspace(0.8, 0.4, len(method.delta)) * method.final_token_threshold)
    method.shift.fill_(SHIFTS[attempt % len(SHIFTS)])


def pruning(make: Callable[[], Method], **columns: Any) -> Row:
    """A row of methods that prune by received attention."""
    return Row(make, draw_shift, drop_nothing=shift(200.0), **columns)


def cool(method: Any) -> None:
    """Take LTP's relaxed decisions at a temperature of nothing."""
    method.temperature = method.temperature_start = 1e-8


def warm(method: Any) -> None:
    """Take LTP's relaxed decisions at a temperature at which every token is in doubt."""
    method.temperature = method.temperature_start = 0.0025


def still(method: LengthDrop) -> LengthDrop:
    """Let training have the lengths of evaluation, not those that each forward draws for itself."""
    method.draws = False
    return method


# --- halted -----------------------------------------------------------------------------------------------------------


def draw_units(model: nn.Module, batch: dict[str, Tensor], attempt: int) -> None:
    """Draw halting units: tokens halt after several layers, and some run to the end."""
    method: Any = model.method
    generator = torch.Generator().manual_seed(attempt)
    for unit in method.units:
        noise = torch.randn(unit.weight.shape, generator=generator)
        unit.weight.data.copy_(0.4 * noise)
        unit.bias.data.fill_(-0.8 if method.spec.layers < 5 else -1.5)


def halting(make: Callable[[], Method], drop_nothing: Change | None = None, **columns: Any) -> Row:
    """A row of methods whose tokens halt and are looked at; their mix of layers is not the last one's state."""
    return Row(
        make,
        draw_units,
        lambda trace: is_ragged(trace.counts(), trace.lengths),
        drop_nothing=drop_nothing,
        steer=steer,
        apart=True,
        narrows=False,
        tolerance=1e-6,  # its probabilities are float32 in every model
        also=("albert-shared",),
        **columns,
    )


# --- merged -----------------------------------------------------------------------------------------------------------


def merges(trace: Trace) -> bool:
    """Every sequence comes to fewer rows, and in some layer they do not all come to as many."""
    there = trace.lengths > 0
    fewer = [rows for rows in trace.counts()[:, there] if (rows < trace.lengths[there]).all()]
    return any(len(rows.unique()) > 1 for rows in fewer)


def one_block(method: Any) -> None:
    """Merge nowhere."""
    method.merged_before = ()


def pooling(make: Callable[[], Method]) -> Row:
    """A row of methods that merge neighbours; there is nothing to draw."""
    return Row(make, is_ragged=merges, drop_nothing=one_block, also=("albert-shared",))


def merging(make: Callable[[], Method]) -> Row:
    """A row of methods that merge the most similar tokens, wherever they are."""
    return Row(make, is_ragged=merges, drop_nothing=shift(1e4))


# --- gone as a whole --------------------------------------------------------------------------------------------------


def depths(trace: Trace) -> Tensor:
    """Count the layers that each sequence went through, ``(B,)``."""
    return torch.stack([layer.feeding.counts() > 0 for layer in trace.layers]).sum(0)


def leaves(trace: Trace) -> bool:
    """Sequences leave at different layers, one of them at the end."""
    left = depths(trace)[trace.lengths > 0]
    return len(left.unique()) > 1 and int(left.max()) == len(trace.layers)


@torch.no_grad()
def draw_exits(model: nn.Module, batch: dict[str, Tensor], attempt: int) -> None:
    """Draw halting units and, now and then, weights of the model; and try shifts.

    Entropies can lie close together: the threshold comes in between two of those that there are.
    """
    method: Any = model.method
    seed, step = divmod(attempt, 20)
    if step == 0:
        enliven(method, seed)
        if seed > 0:
            redraw(model, seed)
    if method.shift is None:
        return
    if method.halting != "entropy":
        method.shift.fill_((step + 1) // 2 / 4 * (1 if step % 2 else -1))
        return
    method.shift.fill_(200.0)
    model(**batch)
    there = model.trace.lengths > 0
    found = torch.cat([entropy(logits)[there] for logits in model.trace.carry.logits]).sort().values
    between = (found[1:] + found[:-1]) / 2
    method.shift.fill_((method.threshold / between[step % len(between)]).log())


def redraw(model: nn.Module, seed: int) -> None:
    """Draw a model's matrices anew, of the same size; embeddings stay."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.data.copy_(noise * parameter.std())


def exiting(make: Callable[[], Method], drop_nothing: Change) -> Row:
    """A row of methods that let whole sequences leave."""
    return Row(make, draw_exits, leaves, drop_nothing)


def be_patient(method: Any) -> None:
    """Wait for more layers than there are."""
    method.patience = 99


# --- retired by the input alone ---------------------------------------------------------------------------------------


def draw_more(model: nn.Module, batch: dict[str, Tensor], attempt: int) -> None:
    """Let more tokens enter with each attempt, so that some sequences are short enough to lose none."""
    method: Any = model.method
    method.shift.fill_(0.1 * attempt)


def draw_words(model: nn.Module, batch: dict[str, Tensor], attempt: int) -> None:
    """Draw how ids make words, and which of the batch's words are stop words."""
    method: Any = model.method
    generator = torch.Generator().manual_seed(attempt)
    method.kinds = torch.randint(0, 3, (VOCAB,), generator=generator, dtype=torch.int8)
    codes = codes_of(batch["input_ids"], batch["attention_mask"].bool(), method.kinds, method.mixers).unique()
    method.codes = codes[torch.rand(len(codes), generator=generator) < 0.5]


def know_no_word(method: Any) -> None:
    """Take no word for a stop word."""
    method.codes = method.codes[:0]


# --- layers that do not run, and chains -------------------------------------------------------------------------------


def run_all(method: Any) -> None:
    """Let every layer run."""
    method.kept = frozenset(range(method.spec.layers))


@dataclass(frozen=True)
class Beside:
    """A model with one member of its chain in the place of the chain.

    Attributes:
        model: the compressed model.
        method: the member.
    """

    model: nn.Module
    method: Method

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's own parameters."""
        return self.model.named_parameters()


def chained(*names: str, **columns: Any) -> Row:
    """A row of the methods of other rows, one after the other in each layer."""
    rows = [METHODS[name] for name in names]

    def each(column: str) -> Change | None:
        changes = [getattr(row, column) for row in rows]
        if None in changes:
            return None
        return lambda method: [change(member) for change, member in zip(changes, method.members, strict=True)]

    def draw(model: nn.Module, batch: dict[str, Tensor], attempt: int) -> None:
        for k, (row, member) in enumerate(zip(rows, model.method.members, strict=True)):
            row.draw(Beside(model, member), batch, attempt + k * 1009)  # type: ignore[arg-type]

    def steer_first(method: Any) -> None:
        steer(next(member for row, member in zip(rows, method.members, strict=True) if row.steer is not None))

    given: dict[str, Any] = {
        "is_ragged": merges if any(row.is_ragged is merges for row in rows) else prunes,
        "drop_nothing": each("drop_nothing"),
        "harden": each("harden"),
        "blur": each("blur"),
        "steer": steer_first if any(row.steer is not None for row in rows) else None,
        "apart": any(row.apart for row in rows),
        "narrows": all(row.narrows for row in rows),
        "invariant": all(row.invariant for row in rows),
        "tolerance": max(row.tolerance for row in rows),
    }
    return Row(lambda: Chain([row.make() for row in rows]), draw, **given | columns)


# --- the table --------------------------------------------------------------------------------------------------------

METHODS: dict[str, Row] = {
    "dense": Row(Dense, is_ragged=lambda trace: True),
    "transkimmer": predicting(lambda: Transkimmer(noise_until=0.0)),
    "adapler": contributing(AdapLeR),
    "ltp": pruning(lambda: LTP(final_token_threshold=0.05, score_norm="length"), harden=cool, blur=warm, steer=steer),
    "ltp_alive": pruning(
        lambda: LTP(final_token_threshold=0.1, score_norm="alive"), harden=cool, blur=warm, steer=steer
    ),
    "ltp_manual": pruning(lambda: Manual(final_token_threshold=0.15 * 10 / 128)),
    "ltp_manual_padded": pruning(lambda: Manual(final_token_threshold=0.12, score_norm="padded"), invariant=False),
    "ltp_relative": pruning(lambda: Relative(token_threshold=0.3)),
    "ltp_rising": pruning(lambda: Rising(final_token_threshold=0.5)),
    "tome": merging(lambda: ToMe(r=0.25)),
    "topk": pruning(lambda: TopK(token_keep_rate=0.37, start=1, min_tokens=2)),
    "length_drop": pruning(lambda: still(LengthDrop(drop=0.3))),
    "act_gate": halting(lambda: ACT(temperature=0.5), shift(1e4)),
    "act_mix": halting(lambda: ACT(mix="act", share_head=False)),
    "act_published": halting(lambda: ACT(mix="act", final_remainder=False, ponder_reduction="sum", tau=1e-3)),
    "funnel": pooling(Funnel),
    "funnel_all": pooling(lambda: Funnel(pool_q_only=False)),
    "funnel_max": pooling(lambda: Funnel(pooling="max", separate_cls=False, truncate_seq=True)),
    "funnel_decoder": pooling(lambda: Funnel(residual=True, decoder_layers=1, stride=3)),
    "exit_patience": exiting(lambda: EarlyExit("patience", patience=1), be_patient),
    "exit_entropy": exiting(lambda: EarlyExit("entropy", threshold=0.7), shift(200.0)),
    "exit_pondernet": exiting(lambda: EarlyExit("pondernet"), shift(200.0)),
    "truncate": Row(lambda: Truncate(tokens=4), draw_more, thins, drop_nothing=shift(200.0)),
    "random_tokens": Row(lambda: RandomTokens(share=0.6), is_ragged=thins, drop_nothing=shift(200.0)),
    "stop_words": Row(StopWords, draw_words, thins, know_no_word),
    "layer_drop": Row(lambda: LayerDrop(every=2), is_ragged=lambda trace: True, drop_nothing=run_all),
    "layer_drop_subset": Row(lambda: LayerDrop([1]), is_ragged=lambda trace: True, drop_nothing=run_all),
}
METHODS |= {
    "topk+topk": chained("topk", "topk"),
    "funnel+transkimmer": chained("funnel", "transkimmer"),
    "act+transkimmer": chained("act_gate", "transkimmer"),
    "transkimmer+transkimmer": chained("transkimmer", "transkimmer"),
    "transkimmer+topk": chained("transkimmer", "topk"),
    "ltp+transkimmer": chained("ltp", "transkimmer"),
    "layer_drop+transkimmer": chained("layer_drop", "transkimmer", is_ragged=thins, drop_nothing=None),
    "layer_drop+ltp": chained("layer_drop", "ltp", is_ragged=thins, drop_nothing=None),
    "layer_drop+adapler": chained("layer_drop", "adapler", is_ragged=thins, drop_nothing=None),
    "funnel+ltp": chained("funnel", "ltp"),
    "truncate+topk": chained("truncate", "topk"),
    "funnel+topk": chained("funnel", "topk"),
    "tome+transkimmer": chained("tome", "transkimmer"),
    "tome+ltp": chained("tome", "ltp"),
    "layer_drop+tome": chained("layer_drop", "tome", drop_nothing=None),
    "transkimmer+exit": chained("transkimmer", "exit_pondernet", is_ragged=leaves),
    "ltp+exit": chained("ltp", "exit_pondernet", is_ragged=leaves),
    "act+exit": chained("act_gate", "exit_pondernet", is_ragged=leaves),
}
