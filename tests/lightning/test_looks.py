"""Looking at a run again: its curve over budgets or shifts, and how fast it trains."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import skim
from skim.calibration import EXTREME, spend
from skim.compression import walk_of
from skim.engine.dtype import Choice
from skim.errors import SkimError
from skim.lightning.looks import curve, evaluate, load, loaded, of_the_run, timing
from skim.lightning.looks.loaded import trainer_of
from skim.lightning.looks.metrics import measured
from skim.lightning.recipe import train
from skim.options.settle import settle
from tasks.builtin import Builtin
from tests.runs import CONF, composed, looking, small

SAVED = 0.25  # the shift that the run below was saved with


def asked(folder: Path, *overrides: str) -> DictConfig:
    """What ``python evaluate.py ckpt=<folder> <overrides>`` would do."""
    return looking(folder, "max_samples=48", *overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose predictors disagree about tokens: any budget can be had by moving them."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    train(small("method=transkimmer", "method.margin=0", "train.max_steps=2", "train.calibrate=0"), folder, "")
    model = load(asked(folder)).parts.model
    method = walk_of(model).method
    torch.manual_seed(0)
    for predictor in method.predictors.values():
        torch.nn.init.normal_(predictor[-1].weight, std=0.5)
    method.shift.fill_(SAVED)
    skim.save_pretrained(model, folder / "model")
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "dense"
    train(small("method=dense", "train.max_steps=1"), folder, "")
    return folder


@pytest.mark.parametrize(("typed", "dtype"), [("bfloat16", "bfloat16"), ("auto", "bfloat16"), ("null", "32-true")])
def test_metrics_in_a_dtype(
    dense: Path, typed: str, dtype: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was chosen is said and written, and training has no part in it."""
    monkeypatch.setattr(loaded, "fastest", lambda device: Choice(torch.bfloat16, "says the test"))
    evaluate(asked(dense, "what=metrics", f"dtype={typed}"))
    assert json.loads((dense / "evaluation.json").read_text())["machine"]["precision"] == dtype
    assert ("dtype=auto: bfloat16, says the test" in capsys.readouterr().out) == (typed == "auto")
    if typed == "auto":
        with pytest.raises(SkimError, match="dtype=auto is for inference, and what=throughput"):
            evaluate(asked(dense, "what=throughput", "dtype=auto"))


def points_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "curve.json").read_text())


def test_shifts_are_added_to_the_saved_one_which_comes_back(folder: Path) -> None:
    loaded = load(asked(folder))
    model, method = loaded.parts.model, walk_of(loaded.parts.model).method
    inputs = loaded.parts.task.sample_batches(32, curve.SAMPLES)
    points = curve.along(loaded, asked(folder, "shifts=[1,0,-1]"), Console())
    assert float(method.shift) == SAVED
    assert [point["moved"] for point in points] == [1, 0, -1]
    assert [point["calibration"]["shift"] for point in points] == [SAVED + 1, SAVED, SAVED - 1]
    assert {point["target"] for point in points} == {None}
    as_saved = spend(model, inputs)
    assert points[1]["relative_flops"] == pytest.approx(as_saved, abs=1e-6)
    assert {point["calibration"]["relative_flops_before"] for point in points} == {as_saved}
    method.target = 0.7
    curve.along(loaded, asked(folder, "targets=[0.5]"), Console())
    assert (method.target, float(method.shift)) == (0.7, SAVED)


def test_the_shift_comes_back_from_an_error_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    loaded = load(asked(folder))
    monkeypatch.setattr(curve, "measured", fail)
    with pytest.raises(RuntimeError, match="luck"):
        curve.along(loaded, asked(folder, "shifts=[1]"), Console())
    assert float(walk_of(loaded.parts.model).method.shift) == SAVED


def test_lower_shifts_spend_less_and_all_that_is_printed_is_kept(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(asked(folder, "what=curve", "shifts=[2,1,0,-1,-2]"))
    points = points_of(folder)
    spent = [point["relative_flops"] for point in points]
    assert len(points) == 5
    assert all(before - after > 0.01 for before, after in itertools.pairwise(spent))
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip().startswith(("+", "-"))]
    kept = [[f"{p['moved']:+g}", f"{p['relative_flops']:.3f}", f"{p['metrics']['accuracy']:.4f}"] for p in points]
    assert [row[:3] for row in rows] == kept
    assert all(point["latency"] is None for point in points)
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    ElementTree.parse(folder / "curve.svg")
    assert not list(folder.glob("*.part"))


def test_a_target_out_of_reach_is_told_and_given_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(asked(folder, "what=curve", "targets=[0.02,0.01,0.6]"))
    out = " ".join(capsys.readouterr().out.split())
    loaded = load(asked(folder))
    walk_of(loaded.parts.model).method.shift.fill_(-EXTREME)
    floor = spend(loaded.parts.model, loaded.parts.task.sample_batches(32, curve.SAMPLES))
    low, reached = points_of(folder)
    assert low["notes"] == [f"target 0.02 cannot be reached, the floor is {floor:.3f}"]
    assert low["relative_flops"] == pytest.approx(floor, abs=1e-6)
    assert low["notes"][0] in out
    assert f"target 0.01 cannot be reached, the floor is {floor:.3f}; left out" in out
    assert reached["target"] == 0.6
    assert reached["notes"] == []
    assert reached["relative_flops"] == pytest.approx(0.6, abs=0.02)


def test_a_timed_curve_has_times_at_every_point(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("benchmark.samples=8", "benchmark.batch_sizes=[4]", "benchmark.repeats=1")
    evaluate(asked(folder, "what=curve", "shifts=[0.5,-0.5]", "timed=true", *quick))
    out = capsys.readouterr().out
    for point in points_of(folder):
        assert list(point["latency"]) == ["4"]
        assert set(point["latency"]["4"]) == {"padded_hf", "packed_dense", "packed"}
        assert f" {point['latency']['4']['packed']['median_ms']:.1f} " in out
    assert "b4" in out
    assert "batch 4" in (folder / "curve.svg").read_text()


def test_throughput_joins_the_results(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((folder / "results.json").read_text())
    quick = ("benchmark.samples=20", "benchmark.train_batch_size=8", "benchmark.repeats=1")
    evaluate(asked(folder, "what=throughput", *quick))
    after = json.loads((folder / "results.json").read_text())
    training = after.pop("training")
    assert after == {name: value for name, value in before.items() if name != "training"}
    assert (training["batch_size"], training["samples"]) == (8, 24)  # whole batches
    assert set(training["timings"]) == {"padded_hf", "packed_dense", "packed"}, "as its hard stage trains"
    out = capsys.readouterr().out
    for took in training["timings"].values():
        assert took["samples_per_second"] == pytest.approx(24000 / took["median_ms"])
        assert f"{took['samples_per_second']:.1f}" in out


def test_throughput_is_of_the_batches_that_training_sees(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def instead(model: Any, batches: Any, **options: Any) -> dict[str, Any]:
        given.update(options, batches=batches)
        timing = {"median_ms": 1.0, "min_ms": 1.0, "max_ms": 1.0, "runs": 1, "samples_per_second": 1.0}
        return {"padded_hf": timing, "packed_dense": timing, "packed": timing}

    monkeypatch.setattr(timing, "compare_training", instead)
    evaluate(asked(folder, "what=throughput", "benchmark.samples=64", "benchmark.repeats=3"))
    task = load(asked(folder)).parts.task
    task.setup("fit")
    expected = list(itertools.islice(task.train_dataloader(), 2))  # the run's batch size is 32 too
    assert given["repeats"] == 3
    assert len(given["batches"]) == 2
    for batch, other in zip(given["batches"], expected, strict=True):
        assert "labels" in batch
        assert all(torch.equal(batch[name], other[name]) for name in other)


def test_throughput_needs_training_data_and_a_finished_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    (tmp_path / "model").symlink_to(folder / "model")
    with pytest.raises(SkimError, match=r"results\.json"):
        evaluate(asked(tmp_path, "what=throughput"))
    source = Builtin.source

    def without_train(self: Builtin, part: str) -> Any:
        return super(Builtin, self).source(part) if part == "train" else source(self, part)

    monkeypatch.setattr(Builtin, "source", without_train)
    with pytest.raises(SkimError, match="no train data"):
        evaluate(asked(folder, "what=throughput"))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["what=curve", "targets=[]"], "targets=.* one or more numbers, from 0 to 1"),
        (["what=curve", "targets=0.5"], "targets=0.5 must be a list"),
        (["what=curve", "targets=[0.5,1.5]"], "from 0 to 1"),
        (["what=curve", "shifts=[]"], "shifts=.* one or more numbers"),
        (["what=curve", "shifts=[a]"], "shifts=.* must be"),
        (["what=throughput", "benchmark.train_batch_size=0"], "train_batch_size=0"),
        (["batch_size=0"], "^batch_size=0 must be"),
        (["what=predict", "max_samples=0"], "^max_samples=0 must be"),
        (["split=foo"], "Unknown built-in split 'foo'"),
        (["what=predict", "split=trian"], "Did you mean 'train'"),
        (["what=throughput", "benchmark.repeats=0"], "repeats=0"),
        (["what=latency", "benchmark.batch_sizes=[0]"], "at least 1"),
        (["what=curves"], "curve"),
        (["hardware.accelerator=nonsense"], "device nonsense"),
    ],
)
def test_refusals(folder: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(SkimError, match=says) as caught:
        evaluate(asked(folder, *overrides))
    assert len(str(caught.value).splitlines()) <= 5


def test_a_method_without_a_knob_has_no_curve(dense: Path) -> None:
    with pytest.raises(SkimError, match="dense takes none"):
        evaluate(asked(dense, "what=curve"))
    assert not (dense / "curve.json").exists()


@pytest.mark.parametrize(
    ("look", "section"),
    [
        (["what=latency", "benchmark.batch_sizes=[4]"], "<h2>Time</h2>"),
        (["what=throughput", "benchmark.train_batch_size=4"], "<h2>Training</h2>"),
        (["what=depth", "depth.samples=8"], "<h2>Depth</h2>"),
    ],
    ids=lambda part: str(part[0]),
)
def test_what_is_measured_later_is_in_the_report_too(
    dense: Path, look: list[str], section: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the texts stay in it."""
    before = (dense / "report.html").read_text()
    assert section not in before
    quick = ["benchmark.samples=8", "benchmark.repeats=1"]
    evaluate(asked(dense, *look, *quick, "max_samples=96"))  # as many as the run had
    after = (dense / "report.html").read_text()
    assert section in after
    texts = [page.split("<h2>Skimmed texts</h2>")[1].split("<h2>")[0] for page in (before, after)]
    assert texts[0] == texts[1]
    assert str(dense / "report.html") in capsys.readouterr().out.replace("\n", "")


def test_metrics_name_the_file_that_they_are_in(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(asked(dense, "what=metrics"))
    said = capsys.readouterr().out
    assert str(dense / "evaluation.json") in said
    assert "results.json" not in said
    assert "report.html" not in said


@pytest.mark.parametrize("inside", ["model", "checkpoints", "checkpoints/last.ckpt", "."])
def test_what_is_in_a_runs_folder_stands_for_the_run(dense: Path, inside: str) -> None:
    assert loaded.run_of(dense / inside)[0].resolve() == dense


def test_a_model_without_its_run_says_what_can_be_done(dense: Path, tmp_path: Path) -> None:
    shutil.copytree(dense / "model", tmp_path / "elsewhere" / "alone")
    with pytest.raises(SkimError, match=r"is a model without its run.*\n.*skim\.from_pretrained\('"):
        evaluate(asked(tmp_path / "elsewhere" / "alone"))


def test_no_run_at_all_asks_for_one() -> None:
    with pytest.raises(SkimError, match=r"Which run\? Name its folder: ckpt="):
        evaluate(composed("what=metrics", config="evaluate"))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("+overrides.task.batchsize=1", r"task.batchsize is not an option. Did you mean task.batch_size\?"),
        ("+overrides.train.learning_rate=1", r"Did you mean train.lr\?"),
        ("+overrides.method.target=0.5", "method.target is not an option"),  # of the dense model
        ("+overrides.train.lr=5", "overrides.train.lr would change nothing: it is for training"),
        ("+overrides.callbacks.patience=1", "would change nothing"),
        ("+overrides.task.eval_batch_size=4", "write batch_size=<value>"),
    ],
)
def test_an_option_that_the_run_has_not_cannot_be_overridden(dense: Path, override: str, says: str) -> None:
    with pytest.raises(SkimError, match=says):
        evaluate(asked(dense, override))


def test_advice_is_in_words_that_this_command_takes(dense: Path, tmp_path: Path) -> None:
    """The task would say ``task.files.test=...``, as in a training; what it says here can be typed here."""
    run = tmp_path / "run"
    shutil.copytree(dense, run)
    text = ["task=text", "task.files.train=a.csv", "task.label_names=[no,yes]"]
    OmegaConf.save(composed("backbone=tiny", "method=dense", *text), run / "config.yaml", resolve=True)
    with pytest.raises(SkimError) as caught:
        evaluate(asked(run, "what=predict"))
    advice = re.search(r"(\S+\.files\.test)=", str(caught.value))
    assert advice is not None
    assert advice[1] == "overrides.task.files.test"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        typed = compose("evaluate", settle(["ckpt=x", f"{advice[1]}=b.csv"], "evaluate"))
    assert typed.overrides.task.files.test == "b.csv"


def test_layers_left_out_of_a_dense_run(dense: Path) -> None:
    """Each set of layers gives what a model has that runs them; the run's own method is back afterwards."""
    layers = 4
    evaluate(asked(dense, "what=skip"))
    found = json.loads((dense / "results.json").read_text())["skip"]
    cases = {case["case"]: case for case in found["cases"]}
    assert (found["metric"], found["layers"], len(cases)) == ("accuracy", layers, 1 + layers + 2 * (layers - 1))
    assert cases["without 1"]["layers"] == [0, 2, 3]
    assert cases["last 2"]["layers"] == [2, 3]
    for name, other in (("without 3", "first 3"), ("without 0", "last 3")):
        assert cases[name] == cases[other] | {"case": name}
    for case in cases.values():
        assert case["relative_flops"] == pytest.approx(len(case["layers"]) / layers, abs=1e-6)
    there = load(asked(dense))
    assert cases["all"]["score"] == measured(there, "", trainer_of(there, Console())).metrics["accuracy"]
    for name in ("first 1", "without 1"):
        skim.compress(skim.decompress(there.parts.model), skim.LayerDrop(cases[name]["layers"]))
        assert cases[name]["score"] == measured(there, "", trainer_of(there, Console())).metrics["accuracy"]
    assert all((dense / f"skip.{suffix}").stat().st_size > 1000 for suffix in ("png", "svg"))


def test_layers_are_left_out_of_dense_runs_only(folder: Path) -> None:
    with pytest.raises(SkimError, match=r"what=skip leaves layers out of a dense model, .*method=transkimmer"):
        evaluate(asked(folder, "what=skip"))


def test_options_of_a_run_are_overrides_but_not_where_another_one_is_trained() -> None:
    said = of_the_run("method.target=2 is above 1.\nTrain it for a range, method.target=[0.25,1.0].")
    assert said == "overrides.method.target=2 is above 1.\nTrain it for a range, method.target=[0.25,1.0]."
