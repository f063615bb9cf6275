"""The command for a machine with a GPU, run on a CPU where a tape stands in for graphs."""

from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch

from skim.benchmark.gpu import __main__ as command
from skim.benchmark.gpu.__main__ import apart, here, main, parts
from skim.benchmark.gpu.laws import differ, law
from skim.benchmark.gpu.rows import Row, table
from skim.benchmark.gpu.times import Bench, Shape, times
from skim.benchmark.timing import Timing

CPU = torch.device("cpu")


def test_all_parts_but_the_compiled_one_run_and_make_one_table(tmp_path, capsys):
    file = tmp_path / "rows.json"
    chosen = ["laws", "bert-base 32x128", "kernels", "recovery"]
    main(["--device", "cpu", "--quick", "--here", "--json", str(file), "--parts", *chosen])
    rows = [Row(**row) for row in json.loads(file.read_text())["rows"]]
    assert {row.verdict for row in rows if row.part in ("laws", "kernels")} == {"passed"}
    captured = {row.name: row.graphs for row in rows if "graphs = exact" in row.name}
    assert len(captured) == 10
    assert min(captured.values()) > 5
    timed = {row.name: row for row in rows if row.part == "bert-base 2x16"}
    assert {"padded HF", "packed dense", "kept 0.5", "topk", "ltp", "act"} <= set(timed)
    assert timed["padded HF"].ratio == 1
    assert all(row.ms > 0 for row in timed.values())
    for name in ("topk", "ltp", "act"):
        (beside,) = [row for row in timed.values() if row.name.endswith(f"(FLOPs of {name})")]
        assert abs(beside.flops - timed[name].flops) < 0.08  # of 16 tokens a few more or less
        assert beside.name in timed[name].bound
    assert "rows as asked" in capsys.readouterr().out


def test_every_part_is_there_in_its_order():
    names = list(parts())
    assert names[:2] == ["laws", "bert-base 32x128"]
    assert {"bert-base 32x512", "bert-base 1x128", "bert-large 32x512", "minilm 32x128", "kernels"} <= set(names)


def test_a_part_that_fails_or_has_no_time_is_a_row(monkeypatch):
    def failing(*_):
        yield Row("bad", "first", "passed")
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(command, "parts", lambda: {"bad": failing, "good": lambda *_: iter([Row("good", "one")])})
    assert [row.verdict for row in here("bad", CPU, True, 9)] == [
        "passed",
        "RuntimeError: CUDA error: an illegal memory access was encountered",
    ]
    assert main(["--device", "cpu", "--here"]) == 1
    assert main(["--device", "cpu", "--here", "--parts", "good"]) == 0
    assert main(["--device", "cpu", "--here", "--parts", "good", "--seconds", "1"]) == 1  # left out


def test_a_process_that_dies_is_a_row_with_its_last_words(monkeypatch):
    row = Row("laws", "one", "passed")
    script = (
        f"import sys; print({row.line()!r}); print('ROW no json'); print('abort: device', file=sys.stderr); exit(3)"
    )
    popen = command.subprocess.Popen
    monkeypatch.setattr(command.subprocess, "Popen", lambda _, **more: popen([sys.executable, "-c", script], **more))
    first, last = apart("laws", SimpleNamespace(device="cpu", quick=True), 30)
    assert (first.line(), last.verdict) == (row.line(), "abort: device")


def test_a_bound_is_met_or_not_and_says_by_how_much():
    bench = Bench("part", {}, CPU)
    bench.models = {"padded HF": None, "packed dense": None, "kept": None}
    bench.runs = dict.fromkeys(bench.models, lambda: None)
    bench.bounds["kept"] = [("padded HF", 0.45), ("packed dense", 1.0), ("never ran", 0.1)]
    timings = {name: Timing(ms, ms, ms, 1) for name, ms in (("padded HF", 10.0), ("packed dense", 9.0), ("kept", 4.0))}
    assert bench.row("kept", timings).verdict == "met"
    assert bench.row("padded HF", timings).verdict == ""
    timings["kept"] = Timing(9.5, 9.5, 9.5, 1)
    row = bench.row("kept", timings)
    assert row.verdict == "not met: 0.95 x padded HF, 1.06 x packed dense"
    assert row.bound == "<= 0.45 x padded HF, <= 1 x packed dense"
    assert not row.good


def test_a_candidate_that_fails_is_a_row_and_the_others_are_timed(monkeypatch):
    def broken(self, name, dense, method):
        raise RuntimeError(f"no {name}")

    monkeypatch.setattr(Bench, "matched", broken)
    with pytest.raises(RuntimeError, match="no topk"):
        list(times(Shape("minilm", 2, 16, methods=True), CPU, True, math.inf))
    bench = Bench("part", {"input_ids": torch.ones(1, 2, dtype=torch.long)}, CPU)
    bench.add("broken", torch.nn.Linear(2, 2))
    assert bench.runs == {}
    assert bench.failed[0].verdict.startswith("TypeError: ")


def test_laws_see_what_differs_and_a_row_survives_its_way():
    alive = torch.ones(2, 1, 3, dtype=torch.bool)
    one = (torch.zeros(1, 2), alive, alive.sum(2))
    assert differ([one], [one], 1e-4) == ""
    assert "logits differ by 1.0e+00" in differ([one], [(torch.ones(1, 2), *one[1:])], 1e-4)
    assert "logits" in differ([(torch.full((1, 2), torch.nan), *one[1:])], [one], 1e-4)
    assert "tokens" in differ([one], [(one[0], ~alive, one[2])], 1e-4)
    assert law("name", lambda: 1 / 0).verdict == "ZeroDivisionError: division by zero"
    row = Row("part", "name", ms=1.5)
    assert Row.of(row.line()).ms == 1.5
    assert table([row, row], "title").row_count == 2
