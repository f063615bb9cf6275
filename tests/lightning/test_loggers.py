"""Loggers: what each is told of one training, read back from its files; and how a run ends on a dashboard."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from skim.errors import SkimError
from skim.lightning.assembly import made
from skim.lightning.check import check
from skim.lightning.loggers import told
from skim.lightning.module import SkimModule
from skim.lightning.recipe import train
from skim.report.heatmap import SkimmedText
from skim.results import Results
from tests.runs import CONF, small, typed

wandb = pytest.importorskip("wandb")
SHORT = ["logger=wandb", "train.max_steps=2", "callbacks.log_every=1", "task.max_train_samples=96"]
OTHERS = [name for name in ("tensorboard", "mlflow") if find_spec(name)]  # extras
LAYERS = 4
SOFT = ("temperature", "goal", "relative_flops_weight", "train/relative_flops")  # of the first stage alone


@pytest.fixture(scope="module")
def no_account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    home = str(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
            patch.delenv(name)
        for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            patch.setenv(name, home)
        patch.delenv("NETRC", raising=False)
        wandb.teardown()  # what it may have read of the real home in this process
        yield
        wandb.teardown()


def written(log: Path) -> dict[str, list[Any]]:
    """Records of an offline run's file by their kind; in LevelDB's format of logs, blocks of 32 KiB with chunks."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = log.read_bytes(), 7, b""  # behind the file's own header
    found: dict[str, list[Any]] = {}
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # too little of the block for a chunk's header
            place += left
            continue
        length, part = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if part in (1, 4):  # a whole record, or its last part
            record = Record()
            record.ParseFromString(whole)
            kind, whole = record.WhichOneof("record_type"), b""
            found.setdefault(kind, []).append(getattr(record, kind))
    return found


@dataclass
class Logged:
    """A training that every logger was told of."""

    runs: Path
    results: Results
    records: dict[str, list[Any]]  # of the offline run of W&B

    @property
    def folder(self) -> Path:
        return self.runs / "run"

    def history(self, key: str) -> list[Any]:
        """Values of a curve on W&B, or the files of a table in the place of its versions."""
        items = [item for row in self.records["history"] for item in row.item]
        if values := [json.loads(item.value_json) for item in items if list(item.nested_key) == [key]]:
            return values
        paths = [json.loads(item.value_json) for item in items if list(item.nested_key) == [key, "path"]]
        return [json.loads((self.files / path).read_text()) for path in paths]

    @property
    def files(self) -> Path:
        """Where tables and pictures of the offline run of W&B lie."""
        return next((self.folder / "wandb").glob("offline-run-*")) / "files"


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, no_account: None) -> Logged:
    runs = tmp_path_factory.mktemp("runs")
    timed = ["benchmark.enabled=true", "benchmark.samples=4", "benchmark.batch_sizes=[2]", "benchmark.repeats=1"]
    method = ["method=ltp", "method.target=0.6", "train.max_steps=4", "train.eval_every=2", "callbacks.sentences=2"]
    kept = ["logger.wandb.artifacts=all", "tags=[mine]", f"paths.runs={runs}"]
    loggers = f"logger=[csv,wandb{''.join(f',{name}' for name in OTHERS)}]"
    cfg = small(*SHORT[2:], "task.max_eval_samples=8", *timed, *method, *kept, loggers)
    results = train(cfg, runs / "run", "train.py").results
    wandb.teardown()  # its service writes in blocks
    (log,) = (runs / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    return Logged(runs, results, written(log))


def test_wandb_gets_a_run_of_the_job_offline(logged: Logged) -> None:
    (run, *_) = logged.records["run"]
    assert (run.run_group, run.job_type) == ("builtin", "train")
    assert list(run.tags) == ["builtin", "ltp", "tiny", "mine"]
    assert [record.exit_code for record in logged.records["exit"]] == [0]
    kept = {one.type: {file.path for file in one.manifest.contents} for one in logged.records["artifact"]}
    assert {"config.json", "model.safetensors", "skim.json"} <= kept["model"]
    assert "last.ckpt" in kept["checkpoints"]


def test_every_option_is_an_axis_of_its_own(logged: Logged) -> None:
    config = {item.key: item.value_json for record in logged.records["config"] for item in record.update}
    config = {name: json.loads(value) for name, value in config.items()}
    assert config["method.target"] == 0.6
    assert config["train.lr"] == 5e-5
    assert config["seed"] == 1
    assert (config["method.name"], config["task.name"], config["backbone.name"]) == ("ltp", "builtin", "tiny")
    assert config["benchmark.batch_sizes"] == "[2]"
    assert not any(isinstance(value, (dict, list)) for name, value in config.items() if name != "_wandb")
    assert yaml.safe_load((logged.folder / "hparams.yaml").read_text())["method.target"] == 0.6  # the CSV logger's


CURVES = [
    *(f"train/method/{name}" for name in ("shift", "goal", "temperature", "threshold/layer_0")),
    *("train/relative_flops", "train/relative_flops_weight"),  # a penalty by its name, and what weighs it
    *("train/loss", "train/lr", "train/method_lr", "train/flops", "train/grad_norm"),
    *("val/accuracy", "val/relative_flops", *(f"val/keep_ratio/layer_{i}" for i in range(LAYERS))),
]


def test_wandb_gets_every_curve(logged: Logged) -> None:
    for name in CURVES:
        points = len(logged.history(name))
        assert points >= 2 if name.endswith(SOFT) else points == (2 if name.startswith("val/") else 4), name
    shifts = logged.history("train/method/shift")
    assert shifts[-1] == pytest.approx(logged.results.calibration["shift"])  # type: ignore[index]


def test_wandb_gets_the_same_sentences_at_each_evaluation_and_at_the_end(logged: Logged) -> None:
    tables = logged.history("sentences")
    assert tables[0]["columns"] == ["sentence", "prediction", "tokens", "keep ratio", "shades"]
    lengths = [[row[2] for row in table["data"]] for table in tables]
    assert len(lengths[0]) == 2
    assert lengths == [lengths[0]] * 3
    first, _ = tables[-1]["data"]
    assert first[0].startswith("[CLS] ")
    assert 0 < first[3] < 1
    # pictures within a table are what its artifact holds
    pictured = [one for one in logged.records["artifact"] if one.name.endswith("-sentences")]
    assert len(pictured) == 3
    staged = {file.path: Path(file.local_path) for file in pictured[-1].manifest.contents}
    (cell, _) = (row[4] for row in json.loads(staged["sentences.table.json"].read_text())["data"])
    assert "computed in 4 of 4 layers" in staged[cell["path"]].read_text()


def test_wandb_summarises_what_the_results_say(logged: Logged) -> None:
    results = json.loads((logged.folder / "results.json").read_text())
    summary = {item.key: item.value_json for record in logged.records["summary"] for item in record.update}
    summary = {name: json.loads(value) for name, value in summary.items() if name}
    assert summary["val/accuracy"] == summary["metric"] == results["metrics"]["accuracy"]
    assert summary["status"] == "done"
    assert summary["val/keep_ratio/layer_3"] == results["keep_ratio"][3]
    assert summary["calibration/relative_flops_before"] == results["calibration"]["relative_flops_before"]
    assert summary["calibration/relative_flops_after"] == pytest.approx(0.6, abs=0.05)
    ms = {name: timing["median_ms"] for name, timing in results["latency"]["2"].items()}
    assert summary["latency/batch_2/ms"] == summary["latency/batch_2/packed_ms"] == ms["packed"]
    assert summary["latency/batch_2/speedup_over_padded_hf"] == pytest.approx(ms["padded_hf"] / ms["packed"])
    (table,) = logged.history("latency")
    assert {row[1]: row[2] for row in table["data"]} == ms


def test_tensorboard_gets_the_same(logged: Logged) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(logged.folder / "tensorboard"))
    events.Reload()
    for name in CURVES:
        assert [event.value for event in events.Scalars(name)] == pytest.approx(logged.history(name)), name
    for name, value in told.numbers(logged.results).items():
        assert events.Scalars(f"final/{name}")[-1].value == pytest.approx(value), name
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("sentences/text_summary")]
    assert len(texts) == 3
    assert all("\\[CLS\\] " in text for text in texts)
    assert "| padded\\_hf |" in events.Tensors("latency/text_summary")[0].tensor_proto.string_val[0].decode()
    began = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    assert began.session_start_info.hparams["method.target"].number_value == 0.6


def test_mlflow_gets_the_same(logged: Logged) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{logged.runs / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("skim")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert (run.data.tags["method"], run.info.run_name) == ("ltp", "builtin-ltp-tiny-1")
    assert (run.data.params["method.target"], run.data.params["seed"]) == ("0.6", "1")
    for name in CURVES:
        found = [metric.value for metric in client.get_metric_history(run.info.run_id, name)]
        assert found[: len(logged.history(name))] == pytest.approx(logged.history(name)), name
    for name, value in told.numbers(logged.results).items():
        assert run.data.metrics[name] == pytest.approx(value), name
    pages = [file.path for file in client.list_artifacts(run.info.run_id, "sentences")]
    assert pages == ["sentences/step-0000002.html", "sentences/step-0000004.html"]


def test_csv_gets_the_curves(logged: Logged) -> None:
    head = (logged.folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert set(CURVES) <= set(head)


class Board:
    """Stands in for a W&B run and writes down what it is told."""

    id = name = "fake"

    def __init__(self, **settings: Any) -> None:
        self.settings, self.history, self.summary = settings, [], {}
        self.config: dict[str, Any] = {}
        self.ended: int | None = None
        self.of_metrics: list[Any] = []

    def log(self, values: dict[str, Any]) -> None:
        self.history.append(values)


@pytest.fixture
def boards(monkeypatch: pytest.MonkeyPatch) -> list[Board]:
    boards: list[Board] = []

    def init(**settings: Any) -> Board:
        boards.append(Board(**settings))
        monkeypatch.setattr(wandb, "run", boards[-1])
        return boards[-1]

    def finish(exit_code: int | None = None) -> None:
        if wandb.run is not None:
            wandb.run.ended = exit_code
        monkeypatch.setattr(wandb, "run", None)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "finish", finish)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return boards


def test_curves_are_those_of_training_and_the_summary_is_that_of_the_results(
    tmp_path: Path, boards: list[Board]
) -> None:
    """After training came three more points of val/*, the last of them in masked execution."""
    overrides = ["method=transkimmer", "method.stages.hard=null", "method.margin=0"]
    overrides += ["train.max_steps=3", "train.eval_every=3"]
    timed = ["benchmark.enabled=true", "benchmark.samples=4", "benchmark.batch_sizes=[2]", "benchmark.repeats=1"]
    results = train(small(*SHORT, *overrides, *timed), tmp_path / "run", "").results
    (board,) = boards
    assert sum("val/accuracy" in row for row in board.history) == 1
    steps = [row for row in board.history if "train/loss" in row]
    assert len(steps) == 3
    assert [row["train/lr"] for row in steps] == pytest.approx([5e-5, 5e-5, 2.5e-5])
    assert [row["train/method_lr"] for row in steps] == pytest.approx([1e-3, 1e-3, 0.5e-3])
    for row in steps:
        assert row["train/grad_norm"] > 0
        assert row["train/method_grad_norm"] > 0
    assert board.summary["val/accuracy"] == results.metrics["accuracy"]
    assert board.summary["val/relative_flops"] == results.relative_flops
    assert board.summary["val/keep_ratio/layer_3"] == results.keep_ratio[3]
    assert results.masked_metrics is not None
    assert board.summary["masked/loss"] == results.masked_metrics["loss"]
    assert results.latency is not None
    measured = {name: ms["median_ms"] for name, ms in results.latency["2"].items()}
    assert board.summary["latency/batch_2/packed_ms"] == measured["packed"]
    speedup = measured["packed_dense"] / measured["packed"]
    assert board.summary["latency/batch_2/speedup_over_packed_dense"] == pytest.approx(speedup)
    assert (board.summary["status"], board.ended) == ("done", 0)


@pytest.mark.parametrize(
    ("error", "noted"), [(RuntimeError("out of luck"), "RuntimeError"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_run_that_ends_by_an_error_ends_so_on_the_dashboard(
    error: BaseException, noted: str, tmp_path: Path, boards: list[Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(SkimModule, "training_step", fail)
        with pytest.raises(type(error)):
            train(small("method=dense", *SHORT), tmp_path / "one", "")
    train(small("method=dense", *SHORT), tmp_path / "two", "")
    one, two = boards
    assert (one.ended, one.summary["status"]) == (1, "failed")
    assert noted in one.summary["notes"]
    assert (two.ended, two.summary["status"]) == (0, "done")


def test_a_run_goes_on_offline_where_wandb_cannot_be_used(
    tmp_path: Path, boards: list[Board], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    init, asked = wandb.init, []

    def unreachable(**settings: Any) -> Board:
        asked.append((settings["mode"], settings["settings"].init_timeout))
        if settings["mode"] != "offline":
            raise wandb.errors.CommError("Timed out while retrying: connection refused\nConsider more time")
        return init(**settings)

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb, "init", unreachable)
    results = train(small("method=dense", *SHORT, "logger.wandb.timeout=7"), tmp_path / "run", "").results
    assert asked == [(None, 7), ("offline", 7)]
    (board,) = boards
    assert (results.status, board.summary["status"], board.ended) == ("done", "done", 0)
    said = capsys.readouterr().err
    assert "W&B cannot be used: Timed out while retrying: connection refused.\nThe run goes on offline" in said


def test_a_run_that_is_queued_again_ends_so_on_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from skim.lightning.loggers.mlflow import MLflow

    logger, ended = object.__new__(MLflow), []
    logger._initialized, logger._run_id, logger.artifacts = True, "one", "none"
    client = SimpleNamespace(set_tag=lambda *_: None, set_terminated=lambda run, status: ended.append((run, status)))
    monkeypatch.setattr(MLflow, "experiment", client)
    monkeypatch.setattr(MLflow, "log_metrics", lambda *_: None)
    logger.conclude(Results("t", "ltp", "tiny", 1, 0.5, "", {}, status="preempted"))
    assert ended == [("one", "KILLED")]


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow")])
def test_a_logger_that_is_not_installed_is_refused_with_its_extra(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(told, "find_spec", lambda asked: None if asked == package else find_spec(asked))
    said = rf'logger={name} needs {package}, which is not installed\.\nInstall it: pip install "skim\[{name}\]"'
    with pytest.raises(SkimError, match=said):
        train(small(f"logger={name}", f"paths.runs={tmp_path}"), tmp_path / "run", "")
    assert list(tmp_path.iterdir()) == []


def test_an_option_of_a_logger_that_cannot_be_is_refused() -> None:
    with pytest.raises(SkimError, match=r"logger\.wandb\.artifacts=some must be one of none, model, all"):
        made(small("logger=wandb", "logger.wandb.artifacts=some"), "logger.wandb")
    with pytest.raises(SkimError, match=r"logger\.wandb=abc must be a group of options"):
        check(small("logger=wandb", "logger.wandb=abc"))


@pytest.mark.parametrize("choice", ["wandb", "[wandb,csv]", "[csv,wandb]"])
def test_loggers_are_a_list_in_any_order(choice: str) -> None:
    cfg = typed(f"logger={choice}", "logger.wandb.project=mine")
    assert set(cfg.logger) == {"csv", "wandb"}
    assert cfg.logger.wandb.project == "mine"
    assert cfg.logger.csv._target_.endswith("Curves")


def test_a_text_stays_a_text_in_a_table() -> None:
    text = SkimmedText(["[CLS]", "<script>", "a|b", "*bold*"], [2, 2, 1, 2], [4, 3], "up_to")
    lines = told.markdown(*told.sentences([text])).splitlines()
    assert lines[2] == r"| \[CLS\] &lt;script&gt; a\|b¹ \*bold\* | up\_to | 4 | 0.875 |"


def test_the_jobs_of_a_sweep_share_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hydra

    found: list[str | None] = [told.sweep()]

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
    def main(cfg: Any) -> None:
        found.append(told.sweep())

    for mode, folder in (("-m", "hydra.sweep.dir"), ("", "hydra.run.dir")):
        arguments = [
            "train.py",
            mode,
            "seed=1",
            "method=dense",
            "hydra/sweeper=basic",
            f"{folder}={tmp_path / 'tuesday'}",
        ]
        monkeypatch.setattr(sys, "argv", [argument for argument in arguments if argument])
        main()
    assert found == [None, "tuesday", None]
