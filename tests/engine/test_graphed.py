"""Forwards of whole models by graphs, recorded by a tape: the same answers and traces, with less done by the host."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import skim
from skim.benchmark import HaltShare, KeepShare
from skim.compression import compress, standing_in, walk_of
from skim.engine import graphed
from skim.engine.buckets import bucket
from skim.engine.recorders import Tape
from skim.engine.static import STEP
from skim.errors import SkimError

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 32}


class Failing(Tape):
    def record(self, work):
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Small batches are cut as large ones are."""
    monkeypatch.setattr(graphed, "FEW", STEP)


def batch(seed, size=4, length=40, whole=False):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, length + 1, (size, 1), generator=draw)
    mask = (torch.arange(length)[None] < (length if whole else lengths)).long()
    return {"input_ids": torch.randint(1, 50, (size, length), generator=draw) * mask, "attention_mask": mask}


def compressed(method, config=BertConfig, cls=BertForSequenceClassification, **more):
    torch.manual_seed(0)
    return compress(cls(config(**SIZES, **more)).eval(), method).eval()


@torch.inference_mode()
def run(model, given, graphs=True, static=True):
    walk = walk_of(model)
    walk.static, walk.graphs = static, graphs
    logits = model(**given).logits
    if graphs and walk.graphed.graphs is not None:
        for x in walk.graphed.graphs.buffers():  # the next forward would write there as well
            x.fill_(torch.nan if x.is_floating_point() else 0)
    return logits, model.trace


def check(model, given):
    logits, trace = run(model, given)
    wanted, static = run(model, given, graphs=False)
    exact, _ = run(model, given, static=False, graphs=False)
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, exact, rtol=1e-5, atol=1e-5)
    assert torch.equal(trace.counts(), static.counts())
    assert torch.equal(trace.flops(), static.flops())
    assert torch.equal(trace.alive(), static.alive())
    assert torch.equal(trace.layers_survived(), static.layers_survived())


def test_a_forward_is_one_launch_a_part_and_copies_its_inputs_only():
    model = compressed(KeepShare(0.5))
    for seed in range(3):
        check(model, batch(0, 8, whole=True) | {"input_ids": batch(seed, 8, whole=True)["input_ids"]})
    graphs = walk_of(model).graphed.graphs
    captures, replays, copies = graphs.captures, graphs.replays, graphs.copies
    run(model, batch(9, 8, whole=True))
    # embedding, who enters the first layer, then layers ever narrower, the last ones at 64 rows together, and the end
    assert graphs.replays - replays <= 8
    assert graphs.replays - replays == len(graphs)
    assert (graphs.captures, graphs.copies - copies) == (captures, 2)  # ids and mask


def test_a_small_batch_is_three_launches(monkeypatch):
    monkeypatch.undo()
    model = compressed(KeepShare(0.5))
    for seed in range(4):
        check(model, batch(seed, 6))
    graphs = walk_of(model).graphed.graphs
    replays = graphs.replays
    run(model, batch(9, 6))
    assert graphs.replays - replays == 3  # embedding, all layers, and the end


def test_shapes_and_rungs_have_graphs_of_their_own_and_answers_are_the_same():
    model = compressed(skim.TopK(start=1, token_keep_rate=0.1))
    given = [batch(seed, 6) for seed in range(4)] + [batch(4, 4, 16, whole=True), batch(5, 5, 13, whole=True)]
    for one in given * 3:
        check(model, one)
    graphs = walk_of(model).graphed.graphs
    assert graphs.off is None
    assert not graphs.said
    assert graphs.replays > graphs.captures > 12


def test_a_trace_outlives_later_forwards():
    model = compressed(KeepShare(0.5))
    for _ in range(2):
        run(model, batch(0))
    first, second = run(model, batch(0))[1], run(model, batch(1))[1]
    assert not torch.equal(first.lengths, second.lengths)
    assert torch.equal(first.lengths, batch(0)["attention_mask"].sum(1))
    assert torch.equal(second.lengths, batch(1)["attention_mask"].sum(1))
    assert torch.equal(first.counts(), run(model, batch(0), graphs=False)[1].counts())
    assert torch.equal(model.trace.counts(), first.counts())


def test_keys_of_halted_rows_are_kept_where_layers_share_their_weights():
    method = skim.ACT(mix="act", bias_init=-1.0)
    model = compressed(method, AlbertConfig, AlbertForSequenceClassification, embedding_size=16)
    torch.nn.init.normal_(method.units[0].weight, std=0.1)
    for seed in (0, 1, 0, 1, 0):
        check(model, batch(seed, 8))
    assert walk_of(model).graphed.graphs.replays > 10


def test_weights_options_and_modules_that_change_are_noticed():
    method = skim.TopK(start=1, token_keep_rate=0.5)
    model = compressed(method)
    given = batch(0)
    for _ in range(3):
        run(model, given)
    before = run(model, given)[0]
    graphs = walk_of(model).graphed.graphs
    captures = graphs.captures
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight.mul_(3.0)
    check(model, given)
    assert not torch.allclose(run(model, given)[0], before)
    assert graphs.captures == captures  # they read the weights where these are
    for change in (
        lambda: setattr(method, "token_keep_rate", -1.0),
        lambda: setattr(model.bert.encoder.layer[0].output.dense, "bias", torch.nn.Parameter(torch.ones(16))),
        lambda: model.double(),
    ):
        change()
        assert len(graphs)
        for _ in range(3):
            check(model, given)
        assert graphs.captures > captures
        captures = graphs.captures
    with standing_in(model, skim.TopK(start=2)) as other:
        walk_of(other).method.build_for(method.spec)
        check(model, given)
    check(model, given)


def test_forwards_that_graphs_would_change_run_without_and_hooks_are_called(caplog):
    model = compressed(KeepShare(0.5))
    given = batch(0)
    for _ in range(3):
        run(model, given)
    graphs = walk_of(model).graphed.graphs
    replays, seen = graphs.replays, []
    logits = run(model, given, graphs=False)[0]
    handle = model.bert.encoder.layer[0].register_forward_hook(lambda *_: seen.append(1))
    handle.remove()
    handle = model.bert.encoder.layer[0].output.register_forward_hook(lambda *_: seen.append(1))
    for _ in range(2):
        assert torch.allclose(run(model, given)[0], logits, atol=1e-6)
    handle.remove()
    assert len(seen) == 2
    assert [record.getMessage() for record in caplog.records if "hook" in record.getMessage()] != []
    assert len(caplog.records) == 1
    assert torch.allclose(model(**given).logits, logits, atol=1e-6)  # with gradients
    with torch.inference_mode():
        states = model(**given, output_hidden_states=True)
        assert len(states.hidden_states) == 6
        with torch.autocast("cpu", torch.bfloat16):
            model(**given)
    model.train()
    run(model, given)
    model.eval()
    assert graphs.replays == replays
    check(model, given)
    assert graphs.replays > replays
    outer = model.register_forward_hook(lambda *_: seen.append(2))  # it is called anyway
    run(model, given)
    outer.remove()
    assert seen[-1] == 2
    assert len(caplog.records) == 1


def test_a_model_whose_capture_fails_goes_on_without_and_says_so_once(caplog):
    model = compressed(KeepShare(0.5))
    walk_of(model).graphed.recorder = Failing()
    for seed in range(3):
        check(model, batch(seed))
        check(model, batch(seed))
    (record,) = caplog.records
    assert "graphs are off: opening could not be captured: RuntimeError" in record.getMessage()


def test_a_copy_begins_without_graphs_and_shares_none():
    model = compressed(KeepShare(0.5))
    for _ in range(3):
        run(model, batch(0))
    other = copy.deepcopy(model)
    assert walk_of(other).graphed.graphs is None
    with torch.no_grad():
        other.classifier.weight.zero_()
        other.bert.encoder.layer[0].output.dense.weight.zero_()
    for one in (other, model):
        check(one, batch(0))


def test_errors_and_empty_batches_are_those_of_the_walk():
    model = compressed(KeepShare(0.5))
    given = batch(0)
    left = {name: value.flip(1) for name, value in given.items()}
    nothing = {name: torch.zeros_like(value) for name, value in given.items()}
    for _ in range(3):
        run(model, given)
        with pytest.raises(SkimError, match="padding"):
            run(model, left)
        assert torch.allclose(run(model, nothing)[0], run(model, nothing, static=False, graphs=False)[0], atol=1e-6)
        check(model, given | {"attention_mask": None})


def test_threads_get_their_own_answers_and_traces():
    model = compressed(HaltShare(0.5))
    given = [batch(seed) for seed in range(4)]
    wanted = [run(model, one, graphs=False) for one in given]
    walk = walk_of(model)
    walk.graphs = True
    wrong = []

    @torch.inference_mode()
    def ask(k):
        for _ in range(4):
            logits = model(**given[k]).logits
            if not torch.allclose(logits, wanted[k][0], atol=1e-6):
                wrong.append(k)
            if not torch.equal(model.trace.counts(), wanted[k][1].counts()):
                wrong.append(k)

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert walk.graphed.graphs.replays > 0


def test_batches_of_like_size_share_graphs_and_nobody_can_tell():
    for method in (
        KeepShare(0.5),
        skim.ACT(mix="act", bias_init=-1.0),
        skim.Funnel(),
        skim.EarlyExit(),
        skim.LTP(score_norm="padded"),
    ):
        model = compressed(method)
        for size, length in ((9, 37), (10, 40), (9, 35), (10, 33)):
            given = batch(length, size, length)
            check(model, given)
            with torch.inference_mode():
                walk_of(model).graphs = True
                output = model.bert(**given)
                assert output.last_hidden_state.shape == (size, length, 16)
                walk_of(model).graphs = False
                torch.testing.assert_close(
                    output.last_hidden_state, model.bert(**given).last_hidden_state, rtol=1e-4, atol=1e-5
                )
        openings = [key for key in walk_of(model).graphed.graphs._graphs if key[0] == "opening"]
        assert len(openings) == (0 if method.reads_padding else 1)  # sizes that come once are not captured


def test_padding_to_a_bucket_keeps_to_the_model_and_its_head():
    assert [bucket(n) for n in (1, 7, 8, 9, 10, 11, 17, 33, 65, 100, 512)] == [
        1,
        7,
        8,
        10,
        10,
        12,
        20,
        40,
        80,
        112,
        512,
    ]
    assert [bucket(n, 8) for n in (1, 8, 9, 37, 65)] == [8, 8, 16, 40, 80]
    model = compressed(KeepShare(0.5), max_position_embeddings=39)
    for _ in range(2):
        check(model, batch(0, 9, 37))  # forty positions the model has not
    model = compressed(KeepShare(0.5), RobertaConfig, RobertaForSequenceClassification, pad_token_id=1)
    given = batch(0, 9, 37)
    given["input_ids"] = given["input_ids"].masked_fill(given["attention_mask"] == 0, 1)
    for _ in range(3):
        check(model, given)
        check(model, {"input_ids": given["input_ids"].clamp_min(2)})
    assert walk_of(model).graphed.graphs.replays > 0


def test_rows_that_come_back_find_places_though_the_host_has_not_counted_them():
    model = compressed(skim.Funnel(blocks=[2, 2], decoder_layers=1))
    for seed in (0, 1, 0, 1, 0):
        check(model, batch(seed))
    graphs = walk_of(model).graphed.graphs
    assert (graphs.off, graphs.replays > 0) == (None, True)
