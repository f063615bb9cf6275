"""Law 10: static rows wait for nobody, and are packed execution to the last token.

They run on a GPU; here by their switch. What fills the rows behind those alive is not a number: whoever read it would
show it.
"""

from __future__ import annotations

import copy
import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import skim
from skim.benchmark import counting
from skim.benchmark.comparison import plain_twin
from skim.benchmark.scripted import KeepShare
from skim.engine import static
from skim.engine.kernels import static as kernels
from skim.engine.static import Pending, capacity
from skim.engine.step import Steps
from skim.engine.tokens import TokenBatch
from skim.methods import Method
from tests.families import batch_of, plain
from tests.laws.cases import Case
from tests.ragged import assert_same, entering, logits_of

packs = pytest.mark.where(lambda case: "packed" in case.executions, heads=("bert",))
LADDERS = {"ladder": capacity, "at the bound": lambda rows: rows, "one over it": lambda rows: rows + 1}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the context of filler rows be what a kernel that does not write it may leave."""
    monkeypatch.setattr(kernels, "FILLER", float("nan"))


def both(model: nn.Module, batch: dict[str, Tensor], **options: Any) -> list[tuple[Any, Any]]:
    """Outputs and traces of today's packed form and of static rows."""
    found = []
    for rows in (False, True):
        with skim.execution(model, "packed", static=rows):
            found.append((model(**batch, **options), model.trace))
        ran = [layer.attending for layer in model.trace.layers if layer.ran]
        assert all(isinstance(one, static.StaticOccupancy) == rows for one in ran)
    return found


def assert_alike(model: nn.Module, batch: dict[str, Tensor], named: str = "", nan: bool = False) -> Any:
    """Compare outputs, states, rows and FLOPs of both; returns the trace of the static rows."""
    (wanted, packed), (found, trace) = both(model, batch, output_hidden_states=True)
    assert trace.execution == packed.execution == "packed"
    assert torch.equal(entering(trace).long(), entering(packed).long()), named
    assert torch.equal(trace.alive(), packed.alive()), named
    assert_same(trace.flops(), packed.flops(), what=f"{named} flops")
    states: dict[str, Any] = {
        f"hidden_states[{i}]": pair
        for i, pair in enumerate(zip(found.hidden_states, wanted.hidden_states, strict=True))
    }
    logits = {name: (found[name], value) for name, value in logits_of(wanted).items()}
    for name, (one, other) in (states | logits).items():
        one, other = (value.nan_to_num() if nan else value for value in (one, other))  # of a text without tokens
        assert_same(one, other, batch["attention_mask"], what=f"{named} {name}")
    return trace


@packs
def test_10_static_rows_are_packed(case: Case, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same outputs, states, rows and FLOPs, whatever the capacity: the smallest that there may be, and larger ones."""
    compressed, batch = case.compressed(device), case.batch(device)
    for name, ladder in LADDERS.items() if case.family == "bert" else [("ladder", capacity)]:  # it knows no family
        monkeypatch.setattr(static, "capacity", ladder)
        with torch.no_grad():
            trace = assert_alike(compressed, batch, f"{case} {name}", nan=case.pools)
        assert case.row.is_ragged(trace)


@pytest.mark.where(lambda case: case.row.trains_packed and case.family in ("bert", "albert-shared"))
def test_10_gradients_are_those_of_packed(case: Case, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "FILLER", 0.0)  # a gradient of zero for what is not a number is not a number
    compressed = case.compressed(device).train().double()
    inputs, method = case.labelled(case.some(case.batch(device))), compressed.method
    if method.stages:
        method.enter(method.stages[-1])
    grads = []
    for rows in (False, True):
        compressed.zero_grad()
        with skim.execution(compressed, "packed", static=rows):
            (compressed(**inputs).loss + method.loss(compressed.trace)).backward()
        grads.append({name: p.grad.clone() for name, p in compressed.named_parameters() if p.grad is not None})
    scale = max(value.abs().max().item() for value in grads[0].values())
    assert {name for name in grads[0] if "method." not in name} == {name for name in grads[1] if "method." not in name}
    for name, value in grads[1].items():
        assert (value - grads[0][name]).abs().max() <= case.row.tolerance * scale, name


@packs
def test_10_the_host_waits_once(case: Case, device: str) -> None:
    """For the number of tokens, before the first layer; counts that it learns later, it learns from layers behind."""
    compressed, batch = case.compressed(device), case.batch(device)
    if case.row.reads_head and compressed.skim_walk.head.token_flops:
        pytest.skip("a head that maps every token is read by length")
    with torch.inference_mode(), skim.execution(compressed, "packed", static=True), counting() as work:
        compressed.base_model(**batch)
    assert sum(work.reads.values()) <= 1, work.reads


def test_10_a_count_is_read_when_later_layers_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, begun, behind = [0], {}, []
    start, read, enter = Pending.__init__, Pending.read, Steps.enter

    def begin(self: Pending, bounds: tuple[Tensor, ...]) -> None:
        begun[id(self)] = layers[0]
        start(self, bounds)

    def ask(self: Pending) -> list[int]:
        behind.append(layers[0] - begun[id(self)])
        return read(self)

    def take(self: Steps, i: int, tokens: TokenBatch) -> TokenBatch:
        layers[0] += 1
        return enter(self, i, tokens)

    monkeypatch.setattr(Pending, "__init__", begin)
    monkeypatch.setattr(Pending, "read", ask)
    monkeypatch.setattr(Steps, "enter", take)
    model = skim.compress(plain("bert", num_hidden_layers=6), KeepShare(0.5)).eval()
    with torch.inference_mode(), skim.execution(model, "packed", static=True):
        model(**batch_of("bert"))
    assert behind == [static.LAG] * 5


def test_10_capacity_follows_the_tokens_and_filler_is_told() -> None:
    model = skim.compress(plain("bert", num_hidden_layers=6), KeepShare(0.3)).eval()
    ids = torch.randint(10, 50, (24, 30))
    (_, packed), (_, trace) = both(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    alive = [int(layer.attending.counts().sum()) for layer in trace.layers]
    rows = [layer.attending.computed for layer in trace.layers]
    known = [ids.numel(), *alive]
    assert rows == [min(capacity(known[i]), ids.numel()) for i in range(6)]
    assert trace.counts().dtype == packed.counts().dtype
    assert packed.filler_flops() == 0
    per_row = trace.layers[0].cost.attention + trace.layers[0].cost.feed_forward
    assert trace.filler_flops() == per_row * sum(c - n for c, n in zip(rows, alive, strict=True))


def test_10_the_ladder_has_few_rungs_and_wastes_little() -> None:
    rungs = sorted({capacity(rows) for rows in range(1, 40_000)})
    assert rungs[:8] == [64 * k for k in range(1, 9)]
    assert all(rung % 64 == 0 for rung in rungs)
    assert len(rungs) < 45
    assert capacity(0) == 0
    assert all(high <= 1.15 * low or high - low == 64 for low, high in pairwise(rungs))
    assert all(capacity(rung) == rung and capacity(rung + 1) > rung for rung in rungs[:-1])


LIMITS = {  # dispatched operations / those of padded transformers
    "half kept": (lambda: KeepShare(0.5), 1.5),
    "topk": (lambda: skim.TopK(token_keep_rate=0.2), 2.0),
    "ltp": (lambda: skim.LTP(), 2.0),
    "length_drop": (lambda: skim.LengthDrop(), 2.0),
}


@pytest.mark.parametrize("name", LIMITS)
def test_10_few_operations(name: str) -> None:
    """Every one is a launch on a GPU."""
    make, limit = LIMITS[name]
    model = skim.compress(plain("bert", num_hidden_layers=12), make()).eval()
    if name == "ltp":
        model.method.delta.data.fill_(1e-4)  # every layer decides
    batch = batch_of("bert", (30, 30, 30, 30))
    with torch.inference_mode(), counting() as padded:
        plain_twin(model)(**batch)
    with torch.inference_mode(), skim.execution(model, "packed", static=True), counting() as work:
        model(**batch)
    assert all(layer.attending.computed == 120 or layer.attending.computed == 64 for layer in model.trace.layers)
    assert work.operations.total() <= limit * padded.operations.total(), work.operations


class Drawn(Method):
    """Does in each layer what lots tell: lets rows leave, halt, merge, or sequences end; or nothing.

    Rows of many tokens weigh more.
    """

    does = frozenset({"retires"})

    def __init__(self, seed: int, batch: int, positions: int, layers: int, protect: tuple[str, ...]) -> None:
        super().__init__(protect)
        lots = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        self.halts = lots.random() < 0.4
        self.acts = [
            lots.choices(("retire", "leave", "pool", "join", "rank", "nothing"), (4, 1, 1, 1, 2, 1))[0]
            for _ in range(layers)
        ]
        share = lots.choice((0.1, 0.5, 0.9, 1.0, 0.0))
        self.script = torch.rand(layers, batch, positions, generator=generator) < share
        self.stop = torch.rand(layers, batch, positions, generator=generator) < 0.7
        self.gone = torch.rand(layers, batch, generator=generator) < 0.4
        self.scores = torch.rand(layers, batch, positions, generator=generator)

    def before_layer(self, i: int, tokens: TokenBatch) -> TokenBatch:
        rows, act = tokens.occupancy, self.acts[i]
        if act == "retire":
            return tokens.retire(rows.rows(self.script[i]))
        if act == "pool" and not self.halts:
            return tokens.pool(2 + i % 2, rows.rows(tokens.sequences.protected), "mean" if i % 2 else "max")
        if act == "join" and not self.halts:  # with the row before, where that one stays
            place = rows.by_sequence(lambda ones: (ones.cumsum(1).long() - 1,), torch.ones_like(tokens.hidden[..., 0]))
            return tokens.join((place[0] % 2 == 1) & rows.rows(self.stop[i]), place[0] - 1)
        return tokens

    def key_bias(self, i: int, looked_at: TokenBatch) -> Tensor:
        return looked_at.occupancy.sizes.log()

    def after_attention(self, i: int, tokens: TokenBatch, received: Tensor | None) -> TokenBatch:
        if self.acts[i] != "rank":
            return tokens
        rows = tokens.occupancy
        score = rows.rows(self.scores[i])
        stays = (rows.rank(score) < rows.spread(tokens.sequences.lengths // 2)) | (
            score >= rows.spread(rows.largest(score))
        )
        return tokens.retire(stays)

    def after_layer(self, i: int, before: TokenBatch, tokens: TokenBatch) -> TokenBatch:
        was = before.occupancy.follow(before.hidden, tokens.occupancy)
        tokens = tokens.with_hidden(tokens.hidden + 0.1 * was)
        if self.acts[i] == "leave":
            return tokens.leave(self.gone[i])
        return tokens.halt(tokens.occupancy.rows(self.stop[i])) if self.halts else tokens


@pytest.mark.parametrize("part", [0, 1, *(pytest.param(part, marks=pytest.mark.slow) for part in range(2, 20))])
def test_10_fuzz(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred drawn batches and decisions, at capacities of all kinds, empty texts among them."""
    models = {name: copy.deepcopy(plain(name)) for name in ("bert", "modernbert", "albert-shared")}
    left = 0
    for seed in range(100 * part, 100 * part + 100):
        lots = random.Random(seed)
        family = lots.choices(tuple(models), (8, 1, 1))[0]
        lengths = tuple(lots.randint(1, 9) for _ in range(lots.randint(1, 4)))
        batch = batch_of(family, lengths)
        if lots.random() < 0.3 and len(lengths) > 1:
            batch["attention_mask"][lots.randrange(len(lengths))] = 0
        step = lots.choice((1, 2, 5, 64))
        monkeypatch.setattr(static, "capacity", lambda rows, step=step: -(-rows // step) * step)
        model = models[family]
        layers = model.config.num_hidden_layers
        protect = lots.choice(((), ("cls",)))
        drawn = Drawn(seed, *batch["input_ids"].shape, layers, protect)
        skim.compress(model, drawn).eval()
        with torch.no_grad():
            trace = assert_alike(model, batch, f"seed {seed}", nan=True)
        left += int((trace.counts()[-1] < trace.lengths).any())
        skim.decompress(model)
    assert left > 40
