"""``what=peers``: a run, and a backbone without one, beside what else could be run; at real lengths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skim.benchmark import peers
from skim.errors import SkimError
from skim.lightning.looks import evaluate
from skim.lightning.recipe import train
from skim.report.found import collect, load_peers
from skim.report.runs import speedups
from tests.runs import composed, looking, small

QUICK = ("what=peers", "benchmark.samples=24", "benchmark.batch_sizes=[8]", "benchmark.repeats=1")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers that cost nothing to build; the others are built in tests/benchmark."""
    kept = [peer for peer in peers.PEERS if "layers" in peer.name or "grouped" in peer.name]
    gone = [peers.Peer("gone", lambda offer: None, needs=("nowhere_to_be_had",), extra="onnx")]
    monkeypatch.setattr("skim.benchmark.rows.PEERS", (*kept, *gone))


def test_what_rounds_is_scored_and_joins_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [peer for peer in peers.PEERS if peer.name == "torch int8 dynamic"]
    monkeypatch.setattr("skim.benchmark.rows.PEERS", (*kept, peers.Peer("itself", peers.itself)))
    monkeypatch.setattr(
        "skim.benchmark.rows.exported", lambda name, model: peers.Peer(name, peers.itself, ("nowhere",))
    )
    folder = tmp_path / "run"
    train(small("method=topk", "train.max_steps=1"), folder, "")
    evaluate(looking(folder, *QUICK, "benchmark.dtypes=[fp32,bf16]", "benchmark.score=true"))
    told = json.loads((folder / "peers.json").read_text())
    scores = {row["candidate"]: row["score"] for row in told["batch_sizes"]["8"]["rows"]}
    run, *others = collect([folder], peers=True).runs
    rounds = ["padded HF, bf16", "packed dense, bf16", "this model, packed, bf16", "torch int8 dynamic"]
    assert [name for name, score in scores.items() if score is not None] == rounds
    assert told["scored"] == run["samples"]["validation"]
    assert told["command"].endswith("what=peers benchmark.samples=24 benchmark.repeats=1 benchmark.score=true")
    assert scores["this model, packed, bf16"] == pytest.approx(run["metrics"][run["monitor"]], abs=0.05)
    (own,) = others  # the rest has weights that topk trained, and no topk
    assert (own["method"], own["relative_flops"]) == ("topk, bf16", run["relative_flops"])
    plain = load_peers(folder / "peers.json", run | {"method": "dense", "relative_flops": 0.9})
    assert [other["method"] for other in plain] == [*rounds[:2], "dense, bf16", rounds[3]]
    assert [other["relative_flops"] for other in plain] == [1.0, 1.0, 0.9, 1.0]
    assert all(speedups(other)[8, "padded_hf"] > 0 for other in (own, *plain))
    (folder / "peers.json").write_text(json.dumps(told | {"scored": 3}))
    found = collect([folder], peers=True)
    assert [str(path.name) for path in found.left_out] == ["peers.json"]
    assert "has scores of 3 rows" in next(iter(found.left_out.values()))
    assert len(found.runs) == len(collect([folder]).runs) == 1


def names(path: Path) -> list[str]:
    return [row["candidate"] for row in json.loads(path.read_text())["batch_sizes"]["8"]["rows"]]


def test_a_run_is_timed_beside_its_peers(tmp_path: Path, few: None, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    train(small("method=topk", "train.max_steps=1"), folder, "")
    before = (folder / "results.json").read_text()
    evaluate(looking(folder, *QUICK, "benchmark.dtypes=[fp32]"))
    own = ["padded HF", "packed dense", "this model, packed"]
    found = names(folder / "peers.json")
    assert found[:4] == [*own, "HF, not grouped by length"]
    assert found[4].startswith("HF, first ")
    out = " ".join(capsys.readouterr().out.split())
    assert 'not timed: gone: needs nowhere_to_be_had: pip install "skim[onnx]"' in out
    assert "builtin, tiny: 24 texts" in out
    assert (folder / "results.json").read_text() == before


def test_a_backbone_without_a_run_has_scripted_shares(tmp_path: Path, few: None) -> None:
    folder = tmp_path / "out"
    asked = ("backbone=tiny", "task=builtin", f"folder={folder}", "benchmark.keep=[0.5]", "hardware.accelerator=cpu")
    evaluate(composed(*QUICK, *asked, config="evaluate"))
    found = names(folder / "peers.json")
    assert found[:6] == [
        f"{name}, {dtype}" for dtype in ("fp32", "bf16") for name in ("padded HF", "packed dense", "scripted, keep 0.5")
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["peers.json"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("benchmark.keep=[0]", "above 0"),
        ("benchmark.dtypes=[]", "one or more"),
        ("benchmark.dtypes=[int8]", "fp32"),
        ("benchmark.clock=sun", "wall"),
    ],
)
def test_refusals(override: str, says: str) -> None:
    with pytest.raises(SkimError, match=says):
        evaluate(composed(*QUICK, "backbone=tiny", "task=builtin", override, config="evaluate"))


def test_peers_without_a_task_are_refused() -> None:
    with pytest.raises(SkimError, match="what=redundancy or what=peers with backbone"):
        evaluate(composed(*QUICK, "backbone=tiny", config="evaluate"))
