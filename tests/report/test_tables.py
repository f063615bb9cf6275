from __future__ import annotations

import io
import json
import re
import statistics
from typing import Any

import pytest
from rich.console import Console

from skim.errors import SkimError
from skim.report.__main__ import main
from skim.report.compared import runs_table
from skim.report.curve import draw, write_curve
from skim.report.fitted import letters
from skim.report.found import collect
from skim.report.pareto import axes, front
from skim.report.runs import Spread, aggregate
from skim.report.table import curve_table, latency_table, layers_table, print_run
from tests.report.results import dense, results, timing


def printed(table, width=120) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    console.print(table)
    return [" ".join(line.split()) for line in console.export_text().splitlines() if line.strip()]


def test_runs_table_shows_the_fixtures_numbers():
    lines = printed(runs_table([results(), dense()]))
    assert lines[1].split()[:2] == ["method", "accuracy"]
    rows = [line for line in lines if line.startswith(("dense 0", "transkimmer"))]
    # keep ratio is the mean of .75, .5, .25; speedups are 100/50 and 150/50
    assert rows == ["dense 0.9000 1.000 1.000 1.00 1.50", "transkimmer 0.5 0.9000 0.500 0.480 2.00 3.00"]


def test_runs_table_without_latency_has_no_speedup():
    lines = printed(runs_table([results(latency=None)]))
    assert lines[-1] == "transkimmer 0.5 0.9000 0.500 0.480"
    assert not any("speedup" in line for line in lines)


def test_runs_table_names_what_differs_and_counts_failures():
    lines = printed(runs_table([results(), results(task="mnli", seed=2), results(status="failed", metrics={})]))
    assert any(line.startswith("mnli transkimmer 0.5 2 ") for line in lines)
    assert lines[-1].endswith("left out: 1")


def test_runs_of_three_seeds_fit_eighty_columns():
    runs = [make(seed=s, metrics={"accuracy": 0.9 + s / 1000}) for s in (1, 2, 3) for make in (results, dense)]
    for run in runs:
        run["latency"]["1"] = run["latency"]["32"]
    lines = printed(runs_table(runs), width=80)
    assert "transkimmer 0.5 0.9020±.0010 0.500 0.480±.000 2.00 3.00 2.00 3.00" in lines
    assert "mean ± standard deviation over seeds 1, 2, 3" in lines


def settings_of(count: int, **changes) -> list[dict]:
    """Runs at batch sizes 1 and 32, told apart by a folder, a rate and a temperature, and their dense baseline."""
    runs = [dense()]
    for i in range(count):
        config = {
            "seed": 1,
            "task": {"files": {"train": f"/home/somebody/{i}/a-folder-of-many-words/reviews-train.csv"}},
            "method": {"temperature": i + 1},
            "train": {"lr": (i + 1) / 1e5},
        }
        runs.append(results(config=config, metrics={"accuracy": 0.8 + i / 1000}, **changes))
    for run in runs:
        run["latency"] = {**run["latency"], "1": run["latency"]["32"]}
    return runs


@pytest.mark.parametrize("width", [20, 40, 80, 100, 300])
@pytest.mark.parametrize("count", [2, 10])
def test_every_number_is_shown_at_any_width(count, width):
    lines = printed(runs_table(settings_of(count)), width)
    shown = " ".join(lines)
    for i in range(count):
        assert f"{0.8 + i / 1000:.4f}" in shown
    for number, times in (("0.480", count), ("2.00", 2 * count), ("3.00", 2 * count), ("1.50", 2)):
        assert shown.count(number) == times, lines
    assert "…" not in shown


def test_what_tells_two_settings_apart_stands_in_a_key_where_it_leaves_no_room():
    lines = printed(runs_table(settings_of(2, backbone="minilm")), width=80)
    rows = ["dense 0.9000 1.000 1.000 1.00 1.50 1.00 1.50"]
    rows += [f"transkimmer 0.5 {named} 0.500 0.480 2.00 3.00 2.00 3.00" for named in ("a 0.8000", "b 0.8010")]
    assert [line for line in lines if " 0.480 " in line or line.startswith("dense 0")] == rows
    keys = " ".join(lines[lines.index(rows[-1]) + 1 :])
    for key, i in (("a", 0), ("b", 1)):
        folder = f"/home/somebody/{i}/a-folder-of-many-words/reviews-train.csv"
        assert re.search(rf"\b{key} temperature={i + 1}, train={folder}, lr={i + 1}e-05", keys), keys
    wide = printed(runs_table(settings_of(2)), width=200)
    assert any(line.startswith("transkimmer 0.5, temperature=1, train=/home") for line in wide)


def test_names_of_task_backbone_and_seeds_go_to_the_key_too():
    runs = [r for task in ("sst2", "mnli") for r in settings_of(1, task=task, backbone=f"a_backbone_{task}", seed=2)]
    lines = printed(runs_table(runs), width=60)
    (row,) = (line for line in lines if "mnli" in line)
    assert row == "a mnli, a_backbone_mnli, transkimmer 0.5, seeds 2"
    assert any(line.startswith("a 0.8000 0.500 0.480 2.00") for line in lines)


def test_letters_go_on_after_z():
    found = letters(703)
    assert [found[i] for i in (0, 25, 26, 51, 701, 702)] == ["a", "z", "aa", "az", "zz", "aaa"]
    assert len(set(found)) == 703


def test_aggregate_takes_mean_and_sample_deviation_over_seeds():
    values = [0.90, 0.91, 0.95]
    runs = [
        results(seed=s, metrics={"accuracy": v}, relative_flops=v / 2) for s, v in zip((3, 1, 2), values, strict=True)
    ]
    (setting,) = aggregate(runs)
    assert setting.seeds == (1, 2, 3)
    assert setting.metric.n == 3
    assert setting.metric.mean == pytest.approx(0.92)
    assert setting.metric.std == pytest.approx(statistics.stdev(values))
    assert setting.relative_flops.mean == pytest.approx(0.46)
    assert setting.speedups[32, "packed_dense"] == Spread(2.0, 0.0, 3)
    assert setting.times[32, "padded_hf"].mean == pytest.approx(1 / 3)


def test_aggregate_of_one_seed_claims_no_spread():
    (setting,) = aggregate([results()])
    assert setting.metric == Spread(0.9, None, 1)
    assert setting.metric.text() == "0.900"


def test_aggregate_averages_ratios_of_runs_and_not_times():
    slow = {"32": {"padded_hf": timing(1500), "packed_dense": timing(1000), "packed": timing(250)}}
    (setting,) = aggregate([results(), results(seed=2, latency=slow)])
    assert setting.speedups[32, "packed_dense"].mean == pytest.approx(3.0)


@pytest.mark.parametrize("change", [{"task": "mnli"}, {"method": "ltp"}, {"backbone": "tiny"}, {"target": 0.3}])
def test_aggregate_keeps_other_settings_apart(change):
    assert len(aggregate([results(), results(**change)])) == 2


def test_aggregate_keeps_configurations_apart_and_names_what_differs():
    def run(bottleneck, seed=1, **changes):
        config = {
            "seed": seed,
            "init_from": f"runs/{seed}",
            "hardware": {"devices": seed},
            "method": {"bottleneck": bottleneck, "warmup": 10},
            "train": {"warmup": 0.1},
        }
        return results(seed=seed, config=config, **changes)

    names = {s.name: s.seeds for s in aggregate([run(32), run(32, 2), run(96), run(32, 3, target=0.3), dense()])}
    assert names == {
        "dense": (1,),
        "transkimmer 0.5, bottleneck=32": (1, 2),
        "transkimmer 0.5, bottleneck=96": (1,),
        "transkimmer 0.3, bottleneck=32": (3,),  # on one line of the figure with the first
    }
    other = run(32)
    other["config"]["method"]["warmup"], other["config"]["train"]["warmup"] = 20, 0.2
    assert "transkimmer 0.5, method.warmup=20, train.warmup=0.2" in {s.name for s in aggregate([run(32), other])}
    assert [s.name for s in aggregate([run(32), run(96, target=0.3)])] == ["transkimmer 0.5", "transkimmer 0.3"]


def curve_file(folder, seed=1, trained=0.5):
    folder.mkdir(parents=True)
    config = {"seed": seed, "method": {"target": trained}}
    points = [
        results(
            seed=seed, target=t, relative_flops=t, metrics={"accuracy": t + seed / 100}, config=config, latency=None
        )
        for t in (0.3, 0.5)
    ]
    (folder / "curve.json").write_text(json.dumps(points))
    (folder / "results.json").write_text(json.dumps(results(seed=seed, config=config)))


def test_curves_of_several_seeds_are_averaged_by_target_and_kept_from_trained_runs(tmp_path):
    for seed in (1, 2):
        curve_file(tmp_path / str(seed), seed)
    assert [s.name for s in aggregate(collect([tmp_path]).runs)] == ["transkimmer 0.5"]
    settings = {s.name: s for s in aggregate(collect([tmp_path], curves=True).runs)}
    assert set(settings) == {
        "transkimmer 0.5",
        "transkimmer 0.5, shifted from 0.5",
        "transkimmer 0.3, shifted from 0.5",
    }
    assert settings["transkimmer 0.3, shifted from 0.5"].metric.mean == pytest.approx(0.315)
    assert {s.seeds for s in settings.values()} == {(1, 2)}


def test_a_curve_of_a_run_without_a_target_is_no_trained_run(tmp_path):
    curve_file(tmp_path / "fixed", trained=None)
    names = {s.name for s in aggregate(collect([tmp_path], curves=True).runs)}
    assert "transkimmer 0.3, shifted from no target" in names


def grid(seed=1, **changes):
    """Points of a curve over shifts, as ``evaluate.py what=curve shifts=[-0.5,0.5]`` leaves them."""
    return [
        results(
            seed=seed,
            target=None,
            moved=by,
            relative_flops=0.5 + by / 5,
            metrics={"accuracy": 0.8, "f1": 0.7},
            **changes,
        )
        for by in (-0.5, 0.5)
    ]


def test_points_of_a_grid_of_shifts_are_told_apart_and_averaged_over_seeds(tmp_path):
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "curve.json").write_text(json.dumps(grid(seed, config={"method": {"target": None}})))
    settings = aggregate(collect([tmp_path], curves=True).runs)
    names = ["transkimmer shift +0.5, shifted from no target", "transkimmer shift -0.5, shifted from no target"]
    assert [s.name for s in settings] == names
    assert [s.seeds for s in settings] == [(1, 2), (1, 2)]
    panel = draw(settings).axes[0]
    assert [len(line.get_xdata()) for line in panel.lines if line.get_marker() == "o"] == [2], "one line of two points"


def test_a_curve_is_drawn_beside_its_file(tmp_path):
    curve_file(tmp_path / "run")
    assert [path.name for path in write_curve(tmp_path / "run" / "curve.json")] == ["curve.png", "curve.svg"]
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_curve_table_shows_every_point_with_its_times_and_notes():
    first, second = grid()
    first["notes"] = ["target 0.1 was missed, at 0.400"]
    lines = printed(curve_table([first, second]), width=80)
    assert lines[1].split() == "shift by FLOPs accuracy f1 ms dense padded".split()
    # 50 ms over 100 and over 150
    assert lines[3:5] == ["-0.5 * 0.400 0.8000 0.7000 50.0 0.50 0.33", "+0.5 0.600 0.8000 0.7000 50.0 0.50 0.33"]
    assert "was missed" in " ".join(lines)
    (row,) = printed(curve_table([results(target=0.3, latency=None)]))[3:]
    assert row == "0.3 0.480 0.9000 0.2500"


@pytest.mark.parametrize("execution", ["narrowed", "masked"])
def test_times_are_shown_by_whatever_execution_they_were_taken_in(execution):
    timings = {"padded_hf": timing(150), "packed_dense": timing(100), execution: timing(50)}
    run = results(target=0.3, latency={"32": timings})
    assert f"32 this model, {execution} 50.0" in " ".join(printed(latency_table(run["latency"])))
    assert "50.0 0.50 0.33" in " ".join(printed(curve_table([run])))
    (setting,) = aggregate([run])
    assert setting.speedups[32, "packed_dense"].mean == pytest.approx(2.0)


def test_training_table_compares_with_padded_hugging_face():
    speeds = {"padded_hf": 100.0, "packed_dense": 150.0, "masked": 80.0}
    timings = {name: {**timing(50), "samples_per_second": speed} for name, speed in speeds.items()}
    training = {"batch_size": 32, "samples": 256, "machine": "cpu", "timings": timings}
    console = Console(width=80, record=True, file=io.StringIO(), color_system=None)
    print_run(results(training=training), folder="nowhere", console=console)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "padded Hugging Face 100.0 1.00 50.0 49.0 - 51.0 5" in lines
    assert "packed dense 150.0 1.50 50.0 49.0 - 51.0 5" in lines
    assert "this model, masked 80.0 0.80 50.0 49.0 - 51.0 5" in lines


def test_the_command_draws_curves(tmp_path, capsys):
    curve_file(tmp_path / "runs" / "one")
    assert main([str(tmp_path / "runs"), "--curves", "--out", str(tmp_path)]) == 0
    assert "shifted from 0.5" in capsys.readouterr().out
    assert "transkimmer, shifted from 0.5" in (tmp_path / "curve-sst2.svg").read_text()
    (tmp_path / "runs" / "one" / "curve.json").unlink()
    assert main([str(tmp_path / "runs"), "--curves"]) == 2
    assert "No curve.json under" in capsys.readouterr().err


def test_aggregate_leaves_failed_runs_out_and_puts_dense_first():
    settings = aggregate([results(), dense(), results(seed=2, status="failed", metrics={})])
    assert [(s.method, s.seeds) for s in settings] == [("dense", (1,)), ("transkimmer", (1,))]


def test_aggregate_refuses_to_mix_metrics():
    with pytest.raises(SkimError, match="accuracy, f1"):
        aggregate([results(), results(monitor="f1", metrics={"f1": 0.8})])


def test_layers_table_has_a_line_per_layer():
    assert [line.split()[:2] for line in printed(layers_table([1.0, 0.5, 0.0]))[2:]] == [
        ["1", "1.000"],
        ["2", "0.500"],
        ["3", "0.000"],
    ]


def test_latency_table_has_times_and_both_ratios():
    lines = printed(latency_table(results()["latency"]))
    assert "32 this model 50.0 49.0 - 51.0 5 0.500 0.333" in lines
    assert "32 padded Hugging Face 150.0 149.0 - 151.0 5 1.500 1.000" in lines


def test_print_run_says_all_and_shows_markup_as_it_is(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    console = Console(width=200, record=True, file=io.StringIO(), color_system=None)
    run = results(masked_metrics={"accuracy": 0.94}, notes=["target [bold]missed[/bold]"])
    print_run(run, tmp_path, console)
    out = console.export_text()
    for part in (
        "0.9000",
        "loss 0.2500",
        "+0.0400 accuracy",
        "target [bold]missed[/bold]",
        str(tmp_path / "results.json"),
    ):
        assert part in out
    assert "report.html" not in out


def test_print_run_names_the_class_that_f1_is_of(tmp_path):
    classes = {"positive": "spam"}
    for metrics, said in (({"f1": 0.5, "accuracy": 0.9}, True), ({"accuracy": 0.9}, False)):
        console = Console(width=80, record=True, file=io.StringIO(), color_system=None)
        print_run(results(classes=classes, metrics=metrics), tmp_path, console)
        assert ("f1 is that of 'spam'" in console.export_text()) == said


def test_collect_finds_results_below_folders_once(tmp_path):
    for name in ("a/x", "b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "results.json").write_text(json.dumps(results(command=name)))
    found = collect([tmp_path, tmp_path / "a", tmp_path / "b" / "results.json"])
    assert [run["command"] for run in found.runs] == ["a/x", "b"]


@pytest.mark.parametrize(
    ("text", "message"), [("{", "cannot be read"), ("[]", "schema None"), ('{"schema": 9}', "schema 9")]
)
def test_collect_names_the_file_it_cannot_read(tmp_path, text, message):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(SkimError, match=message) as error:
        collect([tmp_path])
    assert "results.json" in str(error.value)


def test_collect_leaves_out_what_it_cannot_read_and_keeps_the_others(tmp_path, capsys):
    written = {
        "half": json.dumps(results())[:-9],
        "other": json.dumps(results(schema=9)),
        "part": '{"schema": 1, "status": "done"}',
        "whole": json.dumps(results()),
    }
    for name, text in written.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text)
    runs, left_out = collect([tmp_path])
    assert [run["folder"] for run in runs] == [str(tmp_path / "whole")]
    reasons = {path.parent.name: reason for path, reason in left_out.items()}
    assert "half-written" in reasons["half"]
    assert "has schema 9; this version of skim reads 1" in reasons["other"]
    assert "has no task, no method" in reasons["part"]


def test_the_front_is_what_nothing_beats():
    def at(flops, accuracy, **changes):
        return results(relative_flops=flops, metrics={"accuracy": accuracy}, target=10 * flops + accuracy, **changes)

    runs = [at(0.2, 0.7), at(0.3, 0.6), at(0.3, 0.8), at(0.5, 0.8), at(0.7, 0.85, latency=None), dense()]
    flops, dense_time, padded_time = axes(settings := aggregate(runs))
    assert [s.relative_flops.mean for s in front(settings, flops.cost)] == [0.2, 0.3, 0.7, 1.0]
    assert [axis.title for axis in (dense_time, padded_time)] == [
        "time / packed dense, batch 32",
        "time / padded, batch 32",
    ]
    assert [s.method for s in front(settings, dense_time.cost)] == ["transkimmer", "dense"], (
        "those without times are out"
    )
    assert axes(aggregate([results(parameters=7)]))[-1].cost(aggregate([results(parameters=7)])[0]) == Spread(
        7, None, 1
    )


def test_a_setting_has_layers_and_lengths_averaged_over_seeds_and_its_best_run_first():
    def at(seed, accuracy, kept):
        bucket = {"from": 3, "to": 9, "rows": 40, "tokens": 6, "score": accuracy, "relative_flops": kept}
        return results(seed=seed, metrics={"accuracy": accuracy}, keep_ratio=[1, kept], by_length=[bucket])

    (setting,) = aggregate([at(1, 0.8, 0.5), at(2, 0.9, 0.25)])
    assert [run["seed"] for run in setting.runs] == [2, 1]
    assert setting.kept == [1, 0.375]
    ((score, flops),) = ((one["score"], one["relative_flops"]) for one in setting.by_length)
    assert (score, flops) == (pytest.approx(0.85), pytest.approx(0.375))
    assert aggregate([results()])[0].by_length == []


def test_what_decides_which_weights_were_measured_tells_settings_apart() -> None:
    def run(**callbacks: Any) -> dict[str, Any]:
        return results(config={"callbacks": {"patience": None, "export": "best", "log_every": 50, **callbacks}})

    assert len(aggregate([run(), run(log_every=10)])) == 1
    assert [setting.variant for setting in aggregate([run(), run(export="last")])] == ["export=best", "export=last"]
    named = [setting.variant for setting in aggregate([run(), run(patience=2)])]
    assert named == ["patience=2", "patience=null"], "in the words in which it is typed"


def test_what_the_trainer_repeats_of_other_groups_tells_no_settings_apart() -> None:
    """Its folder is another in each run, which would leave every seed a setting of its own."""

    def run(seed: int, steps: int = -1, **trainer: Any) -> dict[str, Any]:
        own = {"default_root_dir": f"runs/{seed}", "accelerator": "cpu", "max_steps": -1, "gradient_clip_val": 1.0}
        config = {"train": {"max_steps": steps, "clip": 1.0}, "trainer": {**own, "max_steps": steps, **trainer}}
        return results(seed=seed, config=config)

    assert [one.seeds for one in aggregate([run(1), run(2, accelerator="gpu"), run(3)])] == [(1, 2, 3)]
    assert {one.variant for one in aggregate([run(1), run(2, steps=9)])} == {"max_steps=-1", "max_steps=9"}
    other = aggregate([run(1), run(2, gradient_clip_val=2.0)])
    assert {one.variant for one in other} == {"gradient_clip_val=null", "gradient_clip_val=2.0"}


def test_a_part_is_named_by_its_group_and_class() -> None:
    runs = [
        results(seed=s, config={"optimizer": {"_target_": f"torch.optim.{o}"}}) for s, o in ((1, "SGD"), (1, "Adam"))
    ]
    assert {one.variant for one in aggregate(runs)} == {"optimizer=SGD", "optimizer=Adam"}
