from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import json
from collections import Counter

import pytest
import torch
from torch.optim import AdamW
from transformers import BertConfig, BertForSequenceClassification, MPNetConfig, MPNetForSequenceClassification

import skim
from skim.benchmark import (
    HaltShare,
    KeepShare,
    Timing,
    compare,
    compare_training,
    plain_twin,
    time_side_by_side,
    twin,
    usable,
)
from skim.benchmark.__main__ import main
from skim.benchmark.shapes import SHAPES, layered
from skim.errors import SkimError
from tests.families import batch_of, plain

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
        out = forward(self, **inputs)
        if "skim_walk" in vars(self):
            calls.append((type(self.method).__name__, set(inputs), self.training, self.trace))
        elif "return_dict" not in inputs:  # with which compress asks a new model's head what it reads
            calls.append(("plain", set(inputs), self.training, None))
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
    assert list(compare(compressed, [batch], repeats=1, warmup=0)) == ["padded_hf", "packed_dense", "narrowed"]
    with pytest.raises(SkimError, match="nothing to time"):
        compare(compressed, [])


@pytest.mark.parametrize("training", [False, True])
def test_compare_calls_a_masked_run_masked(model, batch, training):
    """The published preset masks in evaluation too, and soft stages mask in training only."""
    paper = skim.compress(copy.deepcopy(model), skim.LTP(preset="paper")).train(training)
    assert list(compare(paper, [batch], repeats=1, warmup=0)) == ["padded_hf", "packed_dense", "masked"]
    default = skim.compress(copy.deepcopy(model), skim.LTP()).train(training)
    assert list(compare(default, [batch], repeats=1, warmup=0)) == ["padded_hf", "packed_dense", "packed"]
    paper(**batch)
    assert paper.training == default.training == training
    assert paper.trace.execution == "masked"


class Seen(AdamW):
    """AdamW that counts its steps and which of its parameters had a gradient in the last one."""

    made: list[Seen] = []

    def __init__(self, parameters, **options):
        super().__init__(parameters, **options)
        self.mine = self.param_groups[0]["params"]
        self.before = [p.detach().clone() for p in self.mine]
        self.steps, self.reached = 0, []
        self.made.append(self)

    def step(self):
        self.steps += 1
        self.reached = [p.grad is not None and bool(p.grad.any()) for p in self.mine]
        super().step()


@pytest.fixture
def optimizers(monkeypatch):
    Seen.made = []
    monkeypatch.setattr("skim.benchmark.comparison.AdamW", Seen)
    return Seen.made


class Staged(KeepShare):
    stages = ("soft", "hard")


def test_every_candidate_trains_as_often_on_weights_of_its_own(model, batch, optimizers, monkeypatch):
    calls = []
    forward = BertForSequenceClassification.forward

    @functools.wraps(forward)  # what it takes is read from its signature
    def counted(self, **inputs):
        out = forward(self, **inputs)
        method = getattr(self, "method", None)
        how = self.trace.execution if method is not None else "padded"
        dropout = {(m.p, m.training) for m in self.modules() if isinstance(m, torch.nn.Dropout)}
        clean = out.loss.requires_grad and all(p.grad is None for p in self.parameters())
        calls.append((type(method).__name__, how, getattr(method, "stage", None), clean, *dropout))
        return out

    compressed = skim.compress(model, Staged(0.5)).eval()
    before = {name: tensor.clone() for name, tensor in compressed.state_dict().items()}
    monkeypatch.setattr(BertForSequenceClassification, "forward", counted)
    entered = []
    context = lambda: contextlib.nullcontext(entered.append(1))  # noqa: E731
    timings = compare_training(compressed, [batch, batch], repeats=2, warmup=1, forward=context)
    assert list(timings) == ["padded_hf", "packed_dense", "packed"]
    for timing in timings.values():
        assert timing["runs"] == 2
        assert timing["samples_per_second"] == pytest.approx(6 / timing["median_ms"] * 1000)
    dropout = (0.1, True)
    candidates = [("NoneType", "padded", None), ("Dense", "packed", ""), ("Staged", "packed", "hard")]
    assert Counter(calls) == {(*candidate, True, dropout): 6 for candidate in candidates}
    assert len(entered) == 18
    assert [optimizer.steps for optimizer in optimizers] == [6, 6, 6]
    for optimizer in optimizers:
        assert len(optimizer.mine) == len(list(model.parameters()))
        moved = [not torch.equal(p, b) for p, b in zip(optimizer.mine, optimizer.before, strict=True)]
        assert sum(moved) > len(moved) / 2
    held = [{p.data_ptr() for p in owner} for owner in (model.parameters(), *(o.mine for o in optimizers))]
    assert len(set.union(*held)) == sum(map(len, held)), "two candidates train the same weights"
    after = compressed.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not compressed.training
    assert compressed.method.stage == "soft"
    assert all(p.grad is None for p in compressed.parameters())
    with pytest.raises(SkimError, match="has run none"):
        _ = compressed.trace


class Taxed(skim.Transkimmer):
    """Its penalty is the only way to one of its parameters."""

    def build(self, spec):
        super().build(spec)
        self.tax = torch.nn.Parameter(torch.ones(()))

    def penalties(self, trace):
        return {"skim_loss": self.tax**2}


def test_a_method_that_gradients_pass_through_trains_masked_and_with_its_penalty(model, batch, optimizers):
    compressed = skim.compress(model, Taxed("paper", margin=0.0))
    assert list(compare_training(compressed, [batch], repeats=1, warmup=0)) == ["padded_hf", "packed_dense", "masked"]
    mine = optimizers[-1]
    assert sum(mine.reached) > len(optimizers[0].mine), "no gradient passed through decisions"
    assert [reached for p, reached in zip(mine.mine, mine.reached, strict=True) if p.dim() == 0] == [True]


def test_training_cannot_be_timed_without_batches_or_labels(model, batch):
    compressed = skim.compress(model, KeepShare(0.5))
    with pytest.raises(SkimError, match="nothing to time"):
        compare_training(compressed, [])
    del batch["labels"]
    with pytest.raises(SkimError, match="labels"):
        compare_training(compressed, [batch])


def test_timing_of_training_has_gradients():
    modes = []
    time_side_by_side({"A": lambda: modes.append(torch.is_grad_enabled())}, repeats=1, warmup=0, gradients=True)
    assert modes == [True]


def test_a_device_is_named_or_chosen():
    assert usable("cpu") == torch.device("cpu")
    assert usable("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(SkimError, match="device nonsense cannot be used"):
        usable("nonsense")


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
    monkeypatch.setitem(SHAPES, "minilm", layered("bert", 16, 4, 2))
    path = tmp_path / "numbers.json"
    arguments = "--batch 2 --length 16 32 --keep 1.0 0.4 --ragged --repeats 2 --warmup 0 --json"
    assert main([*arguments.split(), str(path)]) == 0
    out = capsys.readouterr().out
    assert "FLOPs" in out
    rows = json.loads(path.read_text())["rows"]
    names = ["padded HF", "packed dense", "packed, keep 1", "packed, keep 0.4"]
    assert [(row["length"], row["candidate"]) for row in rows] == [(n, name) for n in (16, 32) for name in names]
    assert all(row["timing"]["runs"] == 2 for row in rows)
    assert [row["relative_flops"] for row in rows[:3]] == [1.0, 1.0, 1.0]
    assert 0.3 < rows[3]["relative_flops"] < 0.5


def test_scripted_halting_and_pooling_cost_what_they_say(tmp_path, monkeypatch):
    monkeypatch.setitem(SHAPES, "minilm", layered("albert", 16, 4, 2))
    path = tmp_path / "numbers.json"
    arguments = "--batch 2 --length 32 --keep --halt 0.5 --funnel 2,2 --repeats 1 --warmup 0 --json"
    assert main([*arguments.split(), str(path)]) == 0
    rows = {row["candidate"]: row for row in json.loads(path.read_text())["rows"]}
    masked, packed = rows["masked, halt 0.5"], rows["packed, halt 0.5"]
    assert masked["relative_flops"] == pytest.approx(packed["relative_flops"])
    assert 0.4 < packed["relative_flops"] < 0.6
    assert rows["funnel 2,2 (all)"]["relative_flops"] < rows["funnel 2,2 (q)"]["relative_flops"] < 0.85


def test_halted_tokens_are_computed_only_where_masked() -> None:
    batch = batch_of("albert")
    for masked, execution in ((True, "masked"), (False, "packed")):
        compressed = skim.compress(plain("albert"), HaltShare(0.5, masked=masked)).eval()
        with torch.no_grad():
            compressed(**batch)
        assert compressed.trace.execution == execution
        assert (compressed.trace.counts()[-1] < compressed.trace.lengths).all()


WRONG = [
    *(["--device", "nonsense"], ["--keep", "0"], ["--repeats", "0"], ["--halt", "0"], ["--halt", "1.5"]),
    *(["--keep", "--halt", "0"], ["--funnel", "2,x"], ["--funnel", ""], ["--funnel", "2,2"], ["--funnel", "0,1"]),
    *(["--batch", "0"], ["--length", "0"], ["--threads", "0"], ["--json", "/dev/null/numbers.json"], ["--json", "/"]),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_the_command_ends_with_two_on_what_a_user_can_mend(wrong, capsys, monkeypatch):
    monkeypatch.setitem(SHAPES, "minilm", layered("bert", 16, 1, 2))
    assert main(["--batch", "1", "--length", "8", *wrong]) == 2
    assert capsys.readouterr().err.startswith("error: ")
