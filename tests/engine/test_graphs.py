"""Graphs of plain functions and of a model's layers, by a recorder that needs no GPU."""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skim.engine.baked import Baked, obstacle, switches
from skim.engine.graphs import Graphs
from skim.engine.recorders import CudaGraphs, NoReads, Tape, Uncapturable
from skim.engine.trees import take_apart


@dataclass(frozen=True)
class Rows:
    index: Tensor
    size: int

    @cached_property
    def doubled(self) -> Tensor:
        return self.index * 2


@dataclass(frozen=True)
class Batch:
    hidden: Tensor
    rows: Rows
    before: Any = None


class Failing(Tape):
    def record(self, work):
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")


class Lying(Tape):
    def record(self, work):
        return lambda: None


def batch(size=4, value=1.0):
    rows = Rows(torch.arange(size), size)
    return Batch(torch.full((size, 2), value), rows, rows)


def poisoned(graphs):
    for x in graphs.buffers():
        x.fill_(torch.nan if x.is_floating_point() else -(10**6))


class Chain:
    """Two steps; counts how often Python runs them."""

    def __init__(self, graphs):
        self.graphs, self.runs, self.factor = graphs, 0, torch.tensor(3.0)

    def start(self, ids):
        self.runs += 1
        rows = Rows(ids + 0, len(ids))
        return Batch(ids[:, None].expand(-1, 2).float(), rows, rows)

    def layer(self, given):
        self.runs += 1
        rows = Rows(given.rows.doubled - given.rows.index + 1, given.rows.size)
        return Batch(given.hidden * self.factor, rows, given.rows), given.rows

    def __call__(self, ids, layers=3):
        with self.graphs.forward() as on:
            assert on
            tokens = self.graphs("start", self.start, ids)
            seen = []
            for i in range(layers):
                tokens, entry = self.graphs(("layer", i), self.layer, tokens)
                seen.append(entry)
            build = self.graphs.keep(tokens, *seen)
            poisoned(self.graphs)
        return build()


def expected(ids, layers=3, factor=3.0):
    return ids[:, None].expand(-1, 2) * factor**layers, [ids + i for i in range(layers)]


def check(result, ids, factor=3.0):
    hidden, indices = expected(ids, factor=factor)
    tokens, *entries = result
    assert torch.equal(tokens.hidden, hidden)
    for entry, index in zip(entries, indices, strict=True):
        assert torch.equal(entry.index, index)


def test_a_tree_comes_back_with_what_was_shared_and_without_caches():
    tree = batch()
    assert tree.rows.doubled is tree.rows.doubled
    leaves, skeleton = take_apart((tree, {"a": [tree.hidden, None, 2.5]}))
    assert len(leaves) == 2
    other, named = skeleton.build([x + 1 for x in leaves])
    assert other.rows is other.before
    assert "doubled" not in vars(other.rows)
    assert named["a"][0] is other.hidden
    assert take_apart((batch(), {"a": [batch().hidden, None, 2.5]}))[1] != skeleton  # not the same tensor
    assert take_apart((other, named))[1] == skeleton
    assert take_apart(batch(5))[1] != take_apart(batch(4))[1]


def test_steps_are_captured_when_they_come_again_and_copy_at_the_beginning_only():
    graphs = Graphs(Tape())
    chain = Chain(graphs)
    for k in range(5):
        ids = torch.arange(4) + k
        check(chain(ids), ids)
        assert (graphs.captures, graphs.replays) == ((0, 0) if k == 0 else (4, 4 * k))
    assert chain.runs == 4 + 4 * 3  # once without graphs, then to rehearse twice and to record
    assert graphs.copies == 4  # ids, in every forward with graphs but the one that captured
    assert len(graphs) == 4


def test_what_is_kept_outlives_the_next_forward():
    graphs = Graphs(Tape(), after=1)
    chain = Chain(graphs)
    results = [(chain(torch.arange(4) * k), torch.arange(4) * k) for k in range(3)]
    for result, ids in results:
        check(result, ids)


def test_host_values_are_of_the_capture_and_weights_of_now():
    graphs = Graphs(Tape(), after=1)
    chain = Chain(graphs)
    chain(torch.arange(4))
    chain.factor.fill_(2.0)  # in place: graphs read where it is
    check(chain(torch.arange(4)), torch.arange(4), factor=2.0)
    chain.factor = torch.tensor(5.0)  # replaced: that has to be noticed, and Baked does
    check(chain(torch.arange(4)), torch.arange(4), factor=2.0)
    graphs.clear()
    check(chain(torch.arange(4)), torch.arange(4), factor=5.0)


def test_a_step_after_another_than_at_its_capture_gets_copies():
    graphs = Graphs(Tape(), after=1)

    def narrow(given, size):
        return Batch(given.hidden[:size], Rows(given.rows.index[:size], size))

    def add(given):
        return Batch(given.hidden + 1, given.rows)

    def forward(value, size):
        with graphs.forward():
            tokens = graphs("scale", lambda given: Batch(given.hidden * 1, given.rows), batch(size, value))
            tokens = graphs(("narrow", size), lambda given: narrow(given, 3), tokens)
            return graphs.keep(graphs("add", add, tokens))()[0].hidden

    for k, size in enumerate((4, 5, 4, 5)):
        assert torch.equal(forward(float(k), size), torch.full((3, 2), k + 1.0))
    assert graphs.captures == 5  # "add" once
    before = graphs.copies
    forward(7.0, 4)
    assert graphs.copies == before + 2  # its arguments alone: from there on all is in place
    forward(7.0, 5)
    assert graphs.copies == before + 2 + 4


def test_arguments_that_change_places_are_not_overwritten_before_they_are_read():
    graphs = Graphs(Tape(), after=1)
    pair = torch.arange(3.0), torch.arange(3.0) + 10
    with graphs.forward():
        one, other = graphs("copy", lambda a, b: (a + 0, b + 0), *pair)
        assert torch.equal(graphs("minus", lambda a, b: a - b, one, other), torch.full((3,), -10.0))
        assert torch.equal(graphs("minus", lambda a, b: a - b, other, one), torch.full((3,), 10.0))
        for still, then in zip((one, other), pair, strict=True):
            assert torch.equal(still, then)  # what this forward may still want


def test_the_least_recently_used_go_first_by_number_and_by_bytes():
    for bounds in ({"most": 2}, {"memory": 2 * 2 * 8 * 4}):  # inputs and outputs of two steps
        graphs = Graphs(Tape(), after=1, **bounds)

        def double(name, graphs=graphs):
            with graphs.forward():
                return graphs(name, lambda x: x * 2, torch.ones(8)).clone()

        for name in "abac":
            assert torch.equal(double(name), torch.full((8,), 2.0))
        assert (len(graphs), graphs.captures) == (2, 3)
        double("a")
        assert graphs.captures == 3
        double("b")
        assert graphs.captures == 4


def test_a_forward_that_is_above_the_bounds_by_itself_is_not_captured_again_and_again():
    graphs = Graphs(Tape(), after=1, most=2)
    for _ in range(4):
        with graphs.forward():
            for name in "abcd":
                graphs(name, lambda x: x * 2, torch.ones(8))
    assert (len(graphs), graphs.captures, graphs.replays) == (2, 4, 4 + 3 * 2)


def test_a_view_is_forgotten_with_its_graph():
    graphs = Graphs(Tape(), after=1)
    for name in "ab":
        with graphs.forward():
            graphs.view("half", lambda x: x[:4], graphs(name, lambda x: x * 2, torch.ones(8)))
    graphs.most = 1
    with graphs.forward():
        graphs("c", lambda x: x * 2, torch.ones(8))
    assert set(graphs._results) == {number for graph in graphs._graphs.values() for number in graph.ids}
    assert all(number == id(graph.result) for number, graph in graphs._results.items())  # else another's by now


def test_who_keeps_one_copy_does_not_keep_the_large_ones():
    graphs = Graphs(Tape(), after=1)
    with graphs.forward():
        states, few = graphs("both", lambda x: (x * 2, x[:2] * 3), torch.ones(2**15))
        states, few = graphs.keep(states, few)()
    assert (few.untyped_storage().nbytes(), states.untyped_storage().nbytes()) == (8, 4 * 2**15)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (lambda x: x * x.sum().item(), "_local_scalar_dense"),
        (lambda x: x[x > 0], "boolean index"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: torch.nn.functional.dropout(x, training=True), "random"),
    ],
)
def test_a_step_that_reads_the_device_runs_without_a_graph_and_says_so_once(step, reason, caplog):
    graphs = Graphs(Tape(), after=1)
    for _ in range(2):
        with graphs.forward() as on:
            assert on
            assert torch.equal(
                graphs(("layer", 3), lambda x: step(x).shape[0] + x, torch.ones(4)), torch.full((4,), 5.0)
            )
            graphs("other", lambda x: x + 1, torch.ones(4))
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert "layer 3 runs without a graph" in record.getMessage()
    assert "test_graphs.py:" in record.getMessage()
    assert (graphs.captures, graphs.off) == (1, None)


def test_a_failing_capture_turns_graphs_off_with_one_line_and_the_result_is_there(caplog):
    for recorder, reason in ((Failing(), "operation not permitted when stream is capturing"), (Lying(), "differ")):
        caplog.clear()
        graphs = Graphs(recorder, after=1)
        for k in range(2):
            with graphs.forward() as on:
                assert on == (k == 0)
                assert torch.equal(graphs("double", lambda x: x * 2, torch.ones(4)), torch.full((4,), 2.0))
        (record,) = caplog.records
        assert reason in record.getMessage()
        assert "\n" not in record.getMessage()
        assert graphs.captures == 0


def test_graphs_captured_in_one_mode_serve_the_others():
    graphs = Graphs(Tape(), after=1)
    modes = (torch.inference_mode, torch.no_grad)
    for first, second in (modes, modes[::-1]):
        graphs.clear()
        for mode in (first, second):
            with mode():
                check(Chain.__call__(Chain(graphs), torch.arange(4)), torch.arange(4))


def test_threads_take_turns_and_a_forward_within_a_forward_does_without():
    graphs = Graphs(Tape(), after=1)
    chain = Chain(graphs)
    answers: dict[int, Any] = {}
    ready = threading.Barrier(4)

    def ask(k):
        ready.wait()
        answers[k] = [chain(torch.arange(4) + 10 * k + n) for n in range(5)]

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(4):
        for n, answer in enumerate(answers[k]):
            check(answer, torch.arange(4) + 10 * k + n)
    assert graphs.captures == 4
    with graphs.forward() as outer, graphs.forward() as inner:
        assert (outer, inner) == (True, False)


def test_what_graphs_rely_on_is_looked_at():
    model, method = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), nn.Linear(2, 2)
    method.rates = [1.0, 2.0]
    model[0].scaling = {"default": 1.0}  # as PEFT's layers have it

    def changed(act):
        baked = Baked(model, method)
        assert not baked.changed(method)
        act()
        return baked.changed(method)

    def in_place():
        with torch.no_grad():
            model[0].weight.add_(1)

    def data():
        model[0].weight.data = model[0].weight.data.clone()

    assert not changed(in_place)
    assert changed(data)
    assert changed(lambda: setattr(model[0], "bias", nn.Parameter(torch.zeros(2))))
    assert changed(lambda: model.double())
    assert changed(lambda: setattr(method, "rate", 0.5))
    assert changed(lambda: setattr(method, "rate", 0.25))
    assert changed(lambda: method.rates.append(3.0))
    assert changed(lambda: model[0].scaling.update(default=0.5))
    assert changed(lambda: setattr(model, "1", nn.GELU()))
    baked = Baked(model, method)
    assert baked.changed(nn.Linear(2, 2))
    assert not baked.hooked()
    handle = model[0].register_forward_hook(lambda *_: None)
    assert baked.hooked()
    handle.remove()
    assert not baked.hooked()


def test_obstacles_are_named():
    model, cpu = nn.Linear(2, 2), torch.device("cpu")
    assert obstacle(model, cpu) == "gradients are enabled"
    with torch.no_grad():
        assert obstacle(model, cpu) == "the model is in training mode"
        model.eval()
        assert obstacle(model, cpu) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert obstacle(model, cpu) == "autocast is on"
        with NoReads():
            assert "every operation" in obstacle(model, cpu)
            with pytest.raises(Uncapturable, match=r"test_graphs.py:\d+"):
                torch.ones(2).sum().item()


def test_a_pool_whose_last_graph_is_gone_is_not_used_again(monkeypatch):
    pools, held = itertools.count(), {}

    class Captured:
        def capture_begin(self, pool, capture_error_mode):
            assert held.setdefault(pool, []) == [] or any(one() is not None for one in held[pool])  # as torch does
            held[pool].append(weakref.ref(self))

        def capture_end(self):
            pass

        replay = capture_end

    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Captured)
    monkeypatch.setattr(CudaGraphs, "_aside", contextlib.nullcontext)
    monkeypatch.setattr(CudaGraphs, "drain", lambda self: None)
    recorder = CudaGraphs(torch.device("cuda", 0))
    one = recorder.record(lambda: None)
    other = recorder.record(lambda: None)
    assert [len(graphs) for graphs in held.values()] == [2]
    del one, other
    recorder.record(lambda: None)
    assert [len(graphs) for graphs in held.values()] == [2, 1]


def test_switches_are_read_where_torch_answers_the_newer_one_only(monkeypatch):
    before = switches()

    def refuses():
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuses)
    assert switches()[1:] == before[1:]


READING = {
    "item": lambda x: x.sum().item(),
    "nonzero": lambda x: torch.where(x > 0),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long(), 0),
    "copy from the host": lambda x: x.to("meta"),
}


@pytest.mark.parametrize("kind", READING)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_reads_are_seen_within_composed_operations_too(kind: str, mode: Any):
    with mode(), NoReads(), pytest.raises(Uncapturable, match=rf"^{kind} \(\w+\) at engine/test_graphs.py:\d+"):
        READING[kind](torch.ones(2))
