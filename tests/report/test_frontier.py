"""Frontiers for a page: every number is read from runs, and what a page claims is computed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from skim.report.__main__ import main
from skim.report.frontier import Family, part, portable, summed
from skim.report.runs import aggregate
from tests.report.results import dense, results, timing
from tests.report.test_overview import written

LAYERS = "skim.methods.layer_drop.LayerDrop"


def timed(one: float, many: float) -> dict[str, Any]:
    """Latency at batch 1 and 32, as shares of padded Hugging Face's."""
    return {
        "1": {"padded_hf": timing(200), "packed": timing(200 * one)},
        "32": {"padded_hf": timing(100), "packed": timing(100 * many)},
    }


def some() -> list[dict[str, Any]]:
    """Three seeds of dense, dropped layers, truncation and a method that is ahead of both."""
    on = {"machine": "x86_64 cpu, one thread", "precision": "32-true"}
    runs = []
    for seed in (1, 2, 3):
        lift = (seed - 2) / 100
        rows = [
            ("dense", None, 1.0, 0.80, {}),
            ("layer_drop", None, 0.5, 0.74, {"layers": 3}),
            ("layer_drop", None, 0.33, 0.70, {"layers": 2}),
            ("truncate", 0.33, 0.33, 0.72, {}),
            ("truncate", 0.5, 0.5, 0.75, {}),
            ("transkimmer", 0.33, 0.33, 0.74, {}),
            ("transkimmer", 0.55, 0.55, 0.80, {}),
        ]
        for method, target, flops, score, options in rows:
            bucket = {"from": 3, "to": 9, "rows": 40, "tokens": 6.5, "score": score, "relative_flops": flops}
            budget = f"method.target={target}" if target else "".join(f"method.{k}={v}" for k, v in options.items())
            name = f"{method}-{flops}-{seed}"
            start = f"init_from=/tmp/of me/dense-1.0-{seed}"
            runs.append(
                dense(
                    **{"method": method, "target": target, "seed": seed, "relative_flops": flops, "timed_on": on},
                    metrics={"accuracy": score + lift},
                    config={"seed": seed, "init_from": f"/tmp/dense-{seed}", "method": {"target": target, **options}},
                    latency=timed(0.2 + flops, flops),
                    by_length=[bucket, bucket | {"from": 10, "to": 30}],
                    command=f"python train.py method={method} {budget} seed={seed} '{start}' hydra.run.dir=/tmp/{name}",
                )
            )
    return runs


def test_the_command_writes_parts_of_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, run in enumerate(some()):
        written(tmp_path / f"runs/{number}", run, page=False)
    assert main([str(tmp_path / "runs"), "--docs", str(tmp_path / "frontier")]) == 0
    assert sorted(path.name for path in (tmp_path / "frontier").iterdir()) == ["sst2.md", "sst2.svg"]
    assert not (tmp_path / "runs" / "report.html").exists()
    text = (tmp_path / "frontier" / "sst2.md").read_text()
    lines = text.splitlines()
    assert "(frontier/sst2.svg)" in lines[0]
    assert "| **0.330 ± 0.000** | **0.530 ± 0.000** | **0.330 ± 0.000** |" in next(
        x for x in lines if "transkimmer 0.33" in x
    )
    rows = [line.split(" | ") for line in lines if line.startswith(("| layer_drop", "| t", "| dense"))]
    table = [row for row in rows if len(row) == 7]
    assert [float(row[4].strip("*").split()[0]) for row in table] == [0.33, 0.33, 0.33, 0.5, 0.5, 0.55, 1.0], "by cost"
    assert table[3][:4] == ["| layer_drop, layers=3", "1, 2, 3", "0.740 ± 0.010", "6.00 ± 0.00"], "paired by seed"
    assert "x86_64 cpu, one thread, 32-true" in text
    assert "<svg" in (tmp_path / "frontier" / "sst2.svg").read_text()
    assert "/tmp" not in text


def test_leads_are_on_the_line_between_measured_settings() -> None:
    section = part(aggregate(some()), "sst2.svg").split("**At the same relative FLOPs**")[1].split("**At")[0]
    assert [line for line in section.splitlines() if line.startswith("| 0")] == [
        # transkimmer at 0.4: 0.74 + 0.06 * 7 / 22; layer_drop 0.70 + 0.04 * 7 / 17, truncate 0.72 + 0.03 * 7 / 17
        "| 0.33 | transkimmer | 0.740 | 6.0 | +4.0 | +2.0 |",
        "| 0.4 | transkimmer | 0.759 | 4.1 | +4.3 | +2.7 |",
        "| 0.5 | transkimmer | 0.786 | 1.4 | +4.6 | +3.6 |",
    ]


def test_a_family_has_what_it_was_measured_with_and_no_more() -> None:
    family = Family("ltp", [(0.35, 0.8), (0.5, 0.9)], 0.65)
    assert family.at(0.425) == pytest.approx(0.85)
    assert family.at(0.345) == 0.8, "a target that is nearly met"
    assert family.at(0.6) == 0.9, "a dearer setting is worse, and nobody has to take it"
    assert family.at(0.33) is family.at(0.67) is None
    assert Family("none", [], 0.0).at(0.5) is None


def test_commands_are_one_line_for_budgets_and_seeds() -> None:
    commands = re.findall(r"```bash\n(.*)```", part(aggregate(some()), "sst2.svg"), re.S)[0].splitlines()
    assert commands[0] == (
        "python train.py method=dense seed=1 init_from=runs/dense-1.0-1 hydra.run.dir=runs/dense-1.0-1  # seed=1, 2, 3"
    )
    assert [line.partition("#")[2].strip() for line in commands[1:]] == [
        "method.layers=2, 3; seed=1, 2, 3",
        "method.target=0.33, 0.55; seed=1, 2, 3",
        "method.target=0.33, 0.5; seed=1, 2, 3",
    ]
    assert (
        summed([portable("python evaluate.py ckpt=/tmp/a what=latency")])
        == "python evaluate.py ckpt=<run> what=latency"
    )
    assert summed([portable("python train.py 'method=[a,b]'")]) == "python train.py 'method=[a,b]'"


def test_runs_of_two_versions_are_one_setting_where_the_later_option_is_at_its_default() -> None:
    def run(seed: int, **method: Any) -> dict[str, Any]:
        config = {"method": {"_target_": LAYERS, "layers": 3, **method}, "train": {"distill": 0.5} if seed > 1 else {}}
        return dense(method="layer_drop", seed=seed, config=config | {"optimizer": {"_target_": "os.getcwd"}})

    assert [s.name for s in aggregate([run(1), run(2, delta=1.0)])] == [
        "layer_drop, distill=0.0",
        "layer_drop, distill=0.5",
    ]
    (one,) = aggregate([run(2), run(3, delta=1.0, every=None)])
    assert one.seeds == (2, 3)
    assert len(aggregate([run(2), run(3, delta=2.0)])) == 2
    (same,) = aggregate([run(2, delta=0), run(3, delta=0.0)])
    assert same.seeds == (2, 3), "as people type it"


def test_a_page_says_what_is_not_alike() -> None:
    def said(*runs: dict[str, Any]) -> str:
        return part(aggregate(runs), "sst2.svg")

    few, many = ({"task": {"max_train_samples": rows}, "method": {"target": 0.5}} for rows in (4800, 6400))
    assert "**Not all saw the same data**: task.max_train_samples=4800, 6400." in said(
        results(config=few), results(config=many)
    )
    assert "**Not all" not in said(dense(config=few), results(config=many)), "the teacher has its own training"
    assert "A seed that stands twice was run twice" in said(results(), results())
    assert "run twice" not in said(results(seed=1), results(seed=2))


def test_a_backbone_is_held_against_its_own_dense_and_its_own_baselines() -> None:
    def run(backbone: str, method: str, flops: float, score: float) -> dict[str, Any]:
        names = {"backbone": backbone, "method": method, "target": flops}
        return dense(**names, relative_flops=flops, metrics={"accuracy": score}, latency=None)

    small = [run("tiny", "dense", 1.0, 0.7), run("tiny", "topk", 0.5, 0.68), run("tiny", "layer_drop", 0.5, 0.6)]
    large = [run("minilm", "dense", 1.0, 0.9), run("minilm", "topk", 0.25, 0.8), run("minilm", "layer_drop", 0.25, 0.7)]
    lines = part(aggregate(small + large), "sst2.svg").splitlines()
    (of_tiny,) = [line for line in lines if line.startswith("| topk 0.5")]
    assert " | 2.00 | " in of_tiny, "points below dense"
    ahead = [line for line in lines if line.startswith("| 0.")]
    assert ahead == ["| 0.25 | topk | 0.800 | 10.0 | +10.0 |", "| 0.5 | topk | 0.680 | 2.0 | +8.0 |"], "no line between"
    assert sum("**At the same relative FLOPs, " in line for line in lines) == 2


def test_chains_go_by_their_members_and_differ_in_their_options() -> None:
    def run(layers: int, target: float) -> dict[str, Any]:
        members = [{"method": "layer_drop", "layers": layers}, {"method": "ltp", "target": target}]
        return results(method="chain", target=None, config={"method": {"methods": members}})

    found = aggregate([run(4, 0.35), run(4, 0.25), run(3, 0.25)])
    assert [s.method for s in found] == ["layer_drop+ltp"] * 3
    assert {s.variant for s in found} == {"layers=4, target=0.35", "layers=4, target=0.25", "layers=3, target=0.25"}


def test_without_a_finished_run_there_is_no_frontier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "runs/a", results(metrics={}), page=False)
    assert main([str(tmp_path / "runs"), "--docs", str(tmp_path / "frontier")]) == 2
    assert "there is no frontier" in capsys.readouterr().err
    assert not (tmp_path / "frontier").exists()
