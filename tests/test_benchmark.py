from __future__ import annotations

import itertools
import json

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, MPNetConfig, MPNetForSequenceClassification

import skim
from skim.benchmark import KeepShare, Timing, compare, main, plain_twin, time_side_by_side, twin
from skim.errors import SkimError

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def model():
    return BertForSequenceClassification(BertConfig(**SMALL, max_position_embeddings=64)).eval()


@pytest.fixture
def batch():
    mask = torch.ones(3, 40, dtype=torch.long)
    mask[1, 30:] = 0
    mask[2, 20:] = 0
    return {
        "input_ids": torch.randint(1, 50, (3, 40)) * mask,
        "attention_mask": mask,
        "labels": torch.tensor([0, 1, 1]),
    }


def test_candidates_take_turns_and_each_comes_first():
    calls = []
    candidates = {name: lambda name=name: calls.append(name) for name in "ABC"}
    timings = time_side_by_side(candidates, repeats=3, warmup=2)
    assert "".join(calls) == "ABCBCACABABCBCA"
    assert {timing.runs for timing in timings.values()} == {3}


def test_warmup_is_not_counted_and_the_median_is_of_the_right_runs():
    now = itertools.count()
    spent = iter([900, 900, 5, 1, 2, 8, 3, 3])  # seconds: warm-up A B, then B A, A B, B A
    clock = {"now": 0.0}

    def run():
        clock["now"] += next(spent)
        next(now)

    timings = time_side_by_side({"A": run, "B": run}, repeats=3, warmup=1, clock=lambda: clock["now"])
    assert timings["A"] == Timing(2000, 1000, 3000, 3)
    assert timings["B"] == Timing(5000, 3000, 8000, 3)
    assert next(now) == 8


def test_timing_runs_without_gradients_and_needs_something_to_do():
    modes = []
    time_side_by_side({"A": lambda: modes.append(torch.is_inference_mode_enabled())}, repeats=1, warmup=0)
    assert modes == [True]
    for wrong in ({}, {"A": print}):
        with pytest.raises(SkimError, match="Timing needs"):
            time_side_by_side(wrong, repeats=0 if wrong else 1)


def test_a_twin_shares_weights_and_nothing_else(model, batch):
    compressed = skim.compress(model, KeepShare(0.5)).train()
    compressed(**batch).loss.backward()  # leaves a trace that cannot be copied
    other = twin(compressed)
    assert {p.data_ptr() for p in other.parameters()} == {p.data_ptr() for p in compressed.parameters()}
    plain = plain_twin(compressed)
    assert plain.config._attn_implementation == "sdpa"
    assert compressed.config._attn_implementation == "skim"
    assert not hasattr(plain, "method")
    with pytest.raises(SkimError):
        skim.decompress(plain)


def test_compare_times_every_batch_on_the_same_weights_and_leaves_the_model_alone(model, batch, monkeypatch):
    calls = []
    forward = BertForSequenceClassification.forward

    def counted(self, **inputs):
        inside = "plain" if not hasattr(self, "method") else type(self.method).__name__
        out = forward(self, **inputs)
        calls.append((inside, set(inputs), self.training, getattr(self, "trace", None)))
        return out

    compressed = skim.compress(model, KeepShare(0.5)).train()
    monkeypatch.setattr(BertForSequenceClassification, "forward", counted)
    latency = compare(compressed, [batch, batch], repeats=3, warmup=1)
    assert list(latency) == ["padded_hf", "packed_dense", "packed"]
    assert all(set(t) == {"median_ms", "min_ms", "max_ms", "runs"} and t["runs"] == 3 for t in latency.values())
    assert [sum(call[0] == kind for call in calls) for kind in ("plain", "Dense", "KeepShare")] == [8, 8, 8]
    assert all(names == {"input_ids", "attention_mask"} and not training for _, names, training, _ in calls)
    executions = {(kind, trace.execution) for kind, _, _, trace in calls if trace is not None}
    assert executions == {("Dense", "packed"), ("KeepShare", "packed")}
    assert compressed.training
    assert type(compressed.method) is KeepShare
    json.dumps(latency)


def test_compare_of_a_family_that_cannot_pack(batch):
    config = MPNetConfig(**SMALL, max_position_embeddings=64)
    compressed = skim.compress(MPNetForSequenceClassification(config), KeepShare(0.5)).eval()
    assert set(compare(compressed, [batch], repeats=1, warmup=0)) == {"padded_hf", "packed_dense", "packed"}
    with pytest.raises(SkimError, match="nothing to time"):
        compare(compressed, [])


@pytest.mark.parametrize("keep", [1.0, 0.5, 0.3])
def test_keep_share_keeps_its_share_alike_in_every_execution(model, batch, keep):
    compressed = skim.compress(model, KeepShare(keep)).eval()
    outputs, ratios = [], []
    for how in ("packed", "masked", "narrowed"):
        with skim.execution(compressed, how), torch.no_grad():
            outputs.append(compressed(**batch).logits)
            ratios.append(compressed.trace.keep_ratio())
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])
    assert float(ratios[0].mean()) == pytest.approx(keep, abs=0.04)
    assert (ratios[0].diff() <= 0).all()
    assert torch.equal(ratios[0].float(), ratios[1].float())


def test_the_command_prints_flops_beside_time_and_writes_numbers(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("skim.benchmark", fromlist=["SHAPES"]).SHAPES, "minilm", (16, 4, 2, 32))
    path = tmp_path / "numbers.json"
    arguments = "--batch 2 --length 16 32 --keep 1.0 0.4 --ragged --repeats 2 --warmup 0 --json"
    assert main([*arguments.split(), str(path)]) == 0
    out = capsys.readouterr().out
    assert "FLOPs" in out
    rows = json.loads(path.read_text())["rows"]
    names = ["padded SDPA", "packed dense", "packed, keep 1", "packed, keep 0.4"]
    assert [(row["length"], row["candidate"]) for row in rows] == [(n, name) for n in (16, 32) for name in names]
    assert all(row["timing"]["runs"] == 2 for row in rows)
    assert [row["relative_flops"] for row in rows[:3]] == [1.0, 1.0, 1.0]
    assert 0.3 < rows[3]["relative_flops"] < 0.5


@pytest.mark.parametrize("wrong", [["--device", "nonsense"], ["--keep", "0"], ["--repeats", "0"]])
def test_the_command_ends_with_two_on_what_a_user_can_mend(wrong, capsys, monkeypatch):
    monkeypatch.setitem(__import__("skim.benchmark", fromlist=["SHAPES"]).SHAPES, "minilm", (16, 1, 2, 32))
    assert main([*wrong, "--batch", "1", "--length", "8"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
