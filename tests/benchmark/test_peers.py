"""Peers compute what the model computes, and one that cannot be had is a line."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from transformers import BertConfig, BertForSequenceClassification

import skim
from skim.benchmark import KeepShare, plain_twin
from skim.benchmark.launches import launches, worked
from skim.benchmark.peers import PEERS, Offer, Peer, built, exported, regrouped
from skim.benchmark.rows import Settings, measure
from skim.benchmark.runtimes import Exports
from skim.benchmark.table import rows_table
from skim.benchmark.timing import processor
from skim.errors import SkimError

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
BY_NAME = {peer.name: peer for peer in PEERS}


@pytest.fixture
def model():
    torch.manual_seed(0)
    plain = BertForSequenceClassification(BertConfig(**SMALL, max_position_embeddings=64, initializer_range=0.4)).eval()
    return skim.compress(plain, KeepShare(0.5)).eval()


@pytest.fixture
def batches():
    found = []
    for longest, lengths in ((24, (24, 20, 18)), (12, (12, 7))):
        mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
        found.append({"input_ids": torch.randint(1, 50, mask.shape) * mask, "attention_mask": mask})
    return found


@pytest.fixture
def offer(model, batches, tmp_path):
    return Offer(plain_twin(model).eval(), batches, layers=2, folder=tmp_path)


def answers(call, batches):
    with torch.inference_mode():
        outputs = [call(**batch) for batch in batches]
    return torch.cat([torch.as_tensor(getattr(output, "logits", output)).float() for output in outputs])


def test_every_runtime_computes_what_the_model_computes(offer, model, batches):
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    mine = [peer for peer in PEERS if "compile" not in peer.name]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ready, left_out = built(offer, mine)
    made = {one.name: one for one in ready}
    bf16 = [line for line in left_out if line.startswith("OpenVINO bf16: OpenVINO finds no bf16")]  # an older CPU
    assert [peer.name.format(layers=2) for peer in mine] == [*made, *(line.partition(":")[0] for line in bf16)]
    assert left_out == bf16
    dense = answers(offer.model, batches)
    for name, one in made.items():
        if "first" in name or "grouped" in name:
            continue
        tolerance = 1e-4 if "fp32" in name else 0.2 * float(dense.abs().max())
        torch.testing.assert_close(answers(one.call, batches), dense, rtol=0, atol=tolerance, msg=name)
    cut = made["HF, first 2 layers"].call
    assert len(cut.bert.encoder.layer) == 2
    assert len(offer.model.bert.encoder.layer) == 4
    assert not torch.allclose(answers(cut, batches), dense, atol=1e-3)
    mixed = made["HF, not grouped by length"]
    torch.testing.assert_close(answers(mixed.call, mixed.batches).sort(0)[0], dense.sort(0)[0])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert len(list(offer.folder.iterdir())) == 3, "the graph was written more than once"


def test_what_is_compressed_joins_as_skim_exports_it(offer, model, batches):
    pytest.importorskip("onnxruntime")
    (one,), left_out = built(offer, [exported("half", model)])
    assert (one.name, left_out) == ("half, exported int8", [])
    answered = torch.cat([torch.as_tensor(one.call(**batch)["logits"]) for batch in batches])
    mine = answers(model, batches)
    torch.testing.assert_close(answered, mine, rtol=0, atol=0.3 * float(mine.abs().max()))


def test_weights_are_exported_once_and_others_anew(offer, monkeypatch):
    written = []
    monkeypatch.setattr(Exports, "_trace", lambda self, path: written.append(path.write_text("")))
    for _ in range(2):
        offer.exports.plain()
    assert len(written) == 1
    with torch.no_grad():
        offer.model.classifier.bias += 1
    assert offer.exports.plain().is_file()
    assert len(written) == 2


def test_compilation_is_done_before_anything_is_timed(offer, batches, monkeypatch):
    ran = []

    def compile_(model, dynamic, mode):
        assert dynamic
        return lambda **batch: ran.append(tuple(batch["input_ids"].shape)) or model(**batch)

    monkeypatch.setattr(torch, "compile", compile_)
    (one,), left_out = built(offer, [BY_NAME["HF, torch.compile"]])
    assert ran[:2] == [(3, 24), (2, 12)]
    torch.testing.assert_close(answers(one.call, batches), answers(offer.model, batches))
    assert left_out == []
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert built(offer, [BY_NAME["HF, torch.compile"]])[1] == [
        "HF, torch.compile: torch.compile needs a C++ compiler, such as g++"
    ]


def test_what_is_not_installed_is_a_line_that_says_how_to_have_it(offer, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    ready, left_out = built(offer, [peer for peer in PEERS if peer.needs])
    assert ready == []
    assert left_out[0] == 'ONNX Runtime fp32: needs onnx, onnxscript, onnxruntime: pip install "skim[onnx]"'
    assert len(left_out) == 5


def test_a_peer_that_fails_leaves_the_others(offer):
    def fails(offer):
        raise RuntimeError("no such node\n  at line 3")

    ready, left_out = built(offer, [Peer("broken", fails), BY_NAME["HF, first {layers} layers"]])
    assert [one.name for one in ready] == ["HF, first 2 layers"]
    assert left_out == ["broken: RuntimeError: no such node"]


def test_who_has_no_peer_of_a_kind_is_told_why(offer, batches):
    def said(name, **changes):
        return built(replace(offer, **changes), [BY_NAME[name]])[1]

    assert "one batch" in said("HF, not grouped by length", batches=batches[:1])[0]
    assert "nothing beside it" in said("HF, first {layers} layers", layers=None)[0]
    half = copy.deepcopy(offer.model).to(torch.bfloat16)
    assert "float32" in said("torch int8 dynamic", model=half)[0]
    with pytest.raises(SkimError, match="several texts"):
        regrouped([{"input_ids": torch.ones(2, 3, 4)}] * 2)


def test_rows_say_cost_time_and_work_in_each_dtype_and_leave_the_model_alone(model, batches, monkeypatch):
    monkeypatch.setattr("skim.benchmark.rows.built", lambda offer, peers: ([], []))
    settings = Settings(dtypes=("fp32", "bf16"), peers=True, repeats=1, warmup=0)
    rows, _ = measure(model, batches, {"packed, keep 1": KeepShare(1.0)}, settings)
    names = ("padded HF", "packed dense", "this model, packed", "packed, keep 1")
    assert [row.candidate for row in rows if "bf16" in row.candidate] == [f"{name}, bf16" for name in names]
    by_name = {row.candidate.removesuffix(", fp32"): row for row in rows}
    padded, dense, mine, all_of_it = (by_name[name] for name in names)
    assert (padded.relative_flops, padded.over_flops) == (1.0, None)
    assert (dense.relative_flops, dense.over_flops) == (1.0, 1.0)
    assert all_of_it.keep_ratio == 1.0
    assert 0.4 < mine.relative_flops < 0.65
    share = mine.timing.median_ms / dense.timing.median_ms
    assert mine.over_flops == pytest.approx(share / mine.relative_flops)
    assert mine.operations > dense.operations > padded.operations > 20
    assert mine.host_reads > padded.host_reads == 1
    assert (mine.kernels, mine.busy_ms) == (None, None)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with pytest.raises(SkimError, match="nothing to time"):
        measure(model, [], {}, settings)


def test_relative_flops_are_of_all_batches_and_so_is_the_number_of_layers(model, batches, monkeypatch):
    offers, asked = [], []

    def none(offer, peers):
        offers.append(offer)
        asked.extend(peer.name for peer in peers)
        return [], ["a: b"]

    monkeypatch.setattr("skim.benchmark.rows.built", none)
    rows, left_out = measure(model, batches, {}, Settings(peers=True, repeats=1, warmup=0))
    flops = dense = 0.0
    for batch in batches:
        with torch.no_grad():
            model(**batch)
        flops, dense = flops + float(model.trace.flops().sum()), dense + float(model.trace.dense_flops.sum())
    assert rows[2].relative_flops == pytest.approx(flops / dense)
    assert left_out == ["a: b"]
    assert offers[0].layers == 2
    assert asked == [*BY_NAME, "this model, packed, exported int8"]
    assert not offers[0].folder.exists()


def test_the_table_fits_80_columns_and_says_who_is_missing(model, batches):
    rows, _ = measure(model, batches, {}, Settings(repeats=1, warmup=0))
    console = Console(width=80, record=True, file=open("/dev/null", "w"))
    console.print(rows_table(rows, "a title", ["OpenVINO fp32: gone"], "a machine", "cpu"))
    text = console.export_text()
    assert "…" not in text
    assert all(word in text for word in ("not timed: OpenVINO fp32: gone", "a machine", "CPU seconds", "reads"))
    assert "kernels" not in text
    table = [replace(row, kernels=7, busy_ms=1.5) for row in rows]
    console.print(rows_table(table, "a title", [], "a machine"))
    assert "kernels" in console.export_text()


def test_busy_time_counts_overlapping_kernels_once():
    def event(start, end):
        return SimpleNamespace(time_range=SimpleNamespace(start=start, end=end))

    assert worked([event(10, 30), event(0, 15), event(40, 41), event(12, 14)]) == (4, pytest.approx(0.031))
    if not torch.cuda.is_available():
        assert launches(lambda: None) is None


def test_the_machine_says_what_its_arithmetic_has(tmp_path):
    told = tmp_path / "cpuinfo"
    told.write_text("processor: 0\nmodel name\t: A Chip\nflags\t\t: fpu avx2 amx_bf16 avx512_vnni\n\nprocessor: 1\n")
    assert processor(told) == "A Chip, AMX-BF16 AVX512-VNNI AVX2"
    assert processor(tmp_path / "none") == ""
