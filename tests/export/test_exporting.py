"""Exported models say what the model in torch says, with the same tokens gone; or nothing is written."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import skim
from skim.engine.walk import walk_of
from skim.errors import SkimError
from skim.export import exporting
from skim.export import load as opened
from skim.export.tracing import SURVIVED
from tests.families import batch_of, plain
from tests.laws.cases import Case

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

CASES = [
    ("transkimmer", "bert", "classification", "one"),
    ("transkimmer", "roberta", "tokens", "any"),
    ("ltp", "bert", "classification", "any"),
    ("ltp", "distilbert", "classification", "one"),
    ("topk", "bert", "tokens", "one"),
    ("topk", "electra", "classification", "any"),
    ("ltp_relative", "albert", "classification", "one"),
    ("funnel", "bert", "tokens", "one"),
    ("tome", "bert", "tokens", "one"),
    ("adapler", "bert", "classification", "any"),
    ("truncate", "bert", "tokens", "one"),
    ("random_tokens", "bert", "classification", "one"),
    ("layer_drop", "bert", "classification", "any"),
    ("transkimmer+topk", "bert", "answers", "one"),
    ("transkimmer+topk", "bert", "classification", "any"),
    ("transkimmer", "modernbert", "classification", "one"),
    ("dense", "bert", "classification", "one"),
]


def made(method: str = "transkimmer", family: str = "bert", head: str = "classification") -> nn.Module:
    return Case(method, family, head).compressed().eval()


@pytest.fixture(scope="module")
def topk(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return opened(skim.export(made("topk"), tmp_path_factory.mktemp("topk") / "model.onnx", batch="one").file)


@torch.no_grad()
def in_torch(model: nn.Module, batch: dict[str, Any]) -> dict[str, np.ndarray]:
    output = model(**batch)
    return {name: value.numpy() for name, value in output.items()}


@pytest.mark.parametrize(("method", "family", "head", "batch"), CASES)
def test_it_says_what_the_model_says(method: str, family: str, head: str, batch: str, tmp_path: Path) -> None:
    model, inputs = made(method, family, head), batch_of(family)
    check = skim.export(model, tmp_path / "model.onnx", batch=batch, inputs=[inputs, batch_of(family, seed=3)])
    assert (check.texts, check.flipped) == (8, 0)
    assert check.difference < 1e-5
    assert check.kept < 1 or method in ("dense", "funnel", "tome")  # merged tokens survive in their row
    exported, wanted = opened(check.file, threads=1), in_torch(model, inputs)
    assert SURVIVED not in exported.outputs
    mask = inputs["attention_mask"].numpy()
    for name, value in exported(**inputs).items():
        seen = mask.reshape(*mask.shape, *[1] * (value.ndim - 2)) if value.shape[:2] == mask.shape else 1
        np.testing.assert_allclose(value * seen, wanted[name] * seen, atol=1e-5)


@pytest.mark.parametrize("batch", ["one", "any"])
def test_openvino_reads_standard_operators(batch: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    model, inputs = made("ltp"), batch_of("bert")
    check = skim.export(model, tmp_path / "model.onnx", operators="standard", batch=batch, inputs=[inputs])
    wanted = in_torch(model, inputs)["logits"]
    for runtime in ("openvino", "onnxruntime"):
        np.testing.assert_allclose(opened(check.file, runtime)(**inputs)["logits"], wanted, atol=1e-5)
    check.file.write_text("no graph")
    with pytest.raises(SkimError, match="operators=standard"):
        opened(check.file, "openvino")


def test_int8_is_smaller_and_projections_are_one_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = made("transkimmer"), [batch_of("bert")]
    whole = skim.export(model, tmp_path / "fp32" / "model.onnx", batch="one", inputs=inputs)
    small = skim.export(model, tmp_path / "int8" / "model.onnx", batch="one", precision="int8", inputs=inputs)
    assert small.bytes < 0.8 * whole.bytes
    operators = [node.op_type for node in onnx.load(small.file).graph.node]
    assert operators.count("QAttention") == len(walk_of(model).costs)
    assert operators.count("NonZero") == len(walk_of(model).costs)  # rows leave before every layer
    assert np.isfinite(opened(small.file)(**inputs[0])["logits"]).all()
    monkeypatch.setattr(exporting, "QUANTISED", 0.0)  # nothing is fine enough
    options: Any = {"batch": "one", "precision": "int8", "inputs": inputs}
    with pytest.raises(SkimError, match="Quantising is too coarse"):
        skim.export(model, tmp_path / "refused" / "model.onnx", **options)
    assert not (tmp_path / "refused" / "model.onnx").exists()
    assert skim.export(model, tmp_path / "told" / "model.onnx", **options, strict=False).difference > 0


def test_a_text_of_any_length_up_to_the_longest(topk: Any) -> None:
    model, exported = made("topk"), topk
    for length in (1, 2, 40, 64):
        batch = batch_of("bert", (length,))
        np.testing.assert_allclose(exported(**batch)["logits"], in_torch(model, batch)["logits"], atol=1e-5)
    with pytest.raises(SkimError, match=r"65 tokens, and .*model.onnx takes 64 at most"):
        exported(**batch_of("bert", (65,)))
    with pytest.raises(SkimError, match="padding stands behind"):
        exported([[1, 2, 5]], [[0, 1, 1]])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (([2, 5, 3],), r"input_ids is int64 \(3,\)"),
        (([[2, 5, 3], [2, 3]],), "input_ids cannot be read as an array"),
        (([[2.0, 5.0]],), "input_ids is float64"),
        ((np.zeros((0, 4), int),), "not empty"),
        (([[2, -1]],), "input_ids has numbers from -1 to 2; .* takes 0 to"),
        (([[2, 10**6]],), "numbers from 2 to 1000000"),
        (([[2, 5]], [[2, 2]]), "attention_mask has numbers from 2 to 2"),
        (([[2, 5]], None, [[0, 9]]), "token_type_ids has numbers from 0 to 9"),
    ],
)
def test_inputs_that_the_model_has_no_answer_for_are_refused(given: Any, says: str, topk: Any) -> None:
    with pytest.raises(SkimError, match=says):
        topk(*given)


def test_a_file_that_is_not_of_skims_is_refused_by_both_runtimes(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "foreign", ends[:1], ends[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "foreign.onnx")
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(SkimError, match="was not written by this version"):
            opened(tmp_path / "foreign.onnx", runtime)


def test_what_ships_beside_it(tmp_path: Path) -> None:
    class Tokenizer:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_text("{}")

    model = made()
    model.config.id2label = {0: "bad", 1: "so", 2: "good"}
    model.train()
    check = skim.export(model, tmp_path / "new" / "model.onnx", tokenizer=Tokenizer(), batch="one")
    assert model.training
    assert {path.name for path in check.file.parent.iterdir()} == {"model.onnx", "config.json", "tokenizer.json"}
    assert opened(check.file).labels == ["bad", "so", "good"]
    assert opened(check.file).about["method"] == "transkimmer"


@pytest.mark.parametrize(
    ("build", "options", "says"),
    [
        (lambda: made("act_gate"), {}, "method=act cannot be exported: halted tokens"),
        (lambda: made("exit_entropy"), {}, "method=early_exit cannot be exported"),
        (lambda: made("funnel"), {}, "method=funnel cannot be exported for batches"),
        (lambda: made("transkimmer", "mpnet"), {}, "MPNetModel cannot be exported yet; these families can: albert, "),
        (lambda: skim.compress(plain("bert"), skim.LTP(preset="paper")), {}, "preset=paper removes nothing"),
        (lambda: made().half(), {}, "float32 on the CPU"),
        (lambda: plain("bert"), {}, "not compressed"),
        (made, {"precision": "int8", "operators": "standard"}, "precision=int8 is for ONNX Runtime"),
        (made, {"precision": "int4"}, "Unknown precision 'int4'"),
        (made, {"inputs": []}, "inputs holds no batch"),
    ],
)
def test_what_cannot_be_exported_says_so(build: Any, options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(SkimError, match=says):
        skim.export(build(), tmp_path / "new" / "model.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(graph: Any, file: Path) -> None:
        weight = next(one for one in graph.graph.initializer if "classifier" in one.name and len(one.dims) == 2)
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 2, weight.name))
        onnx_save(graph, file)

    onnx_save = onnx.save
    (tmp_path / "model.onnx").write_text("the one before")
    monkeypatch.setattr(onnx, "save", other)
    with pytest.raises(SkimError, match="from the model in torch; 1e-04 is allowed, so nothing was written"):
        skim.export(made("dense"), tmp_path / "model.onnx")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the one before"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "ship", full)
    with pytest.raises(SkimError, match="new was not written, for the disk is full"):
        skim.export(made("dense"), tmp_path / "new" / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("package", "extra"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_a_runtime_that_is_not_there_names_its_extra(package: str, extra: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "model.onnx").touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SkimError, match=rf"pip install 'skim\[{extra}\]'"):
        opened(tmp_path / "model.onnx", package)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's list of what is mapped")
def test_openvino_leaves_a_stack_for_signals(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    file = skim.export(made("dense"), tmp_path / "model.onnx", operators="standard").file
    models = [opened(file, "openvino"), opened(file, "openvino")]
    while models:  # in the order in which they came; on a CPU with AMX each could bring a stack and take it away
        models.pop(0)
        gc.collect()
    stack = (ctypes.c_uint64 * 3)()  # the kernel's stack_t: address, flags, size
    assert ctypes.CDLL(None).sigaltstack(None, stack) == 0
    mapped = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    disabled = stack[1] & 2
    assert disabled or any(int(first, 16) <= stack[0] < int(last, 16) for first, last in mapped)


def test_who_runs_an_export_needs_no_torch() -> None:
    heavy = "('torch', 'transformers', 'onnx', 'onnxruntime')"
    code = f"import sys, skim.export as e; e.load; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
