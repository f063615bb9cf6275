"""``what=redundancy``: of a run and of a pretrained model, from the states to the files; what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file

from skim.analysis.redundancy import extraction
from skim.checkpoint import add_checksums
from skim.errors import SkimError
from skim.lightning import recipe
from skim.lightning.looks import evaluate
from tests.runs import composed, looking, small

FAST = ["what=redundancy", "redundancy.max_rows=240", "max_samples=96", "redundancy.thresholds=[0.3,0.6]"]
FAST += ["redundancy.deltas=[1,5]", "redundancy.preset=paper", "benchmark.samples=16"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose upper layers skip tokens."""
    folder = tmp_path_factory.mktemp("run")
    cfg = small("method=topk", "method.token_keep_rate=0.3", "method.start=1", "train.calibrate=0")
    recipe.train(cfg, folder, "python train.py")
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def pretrained(folder: Path, *overrides: str) -> DictConfig:
    hardware = ("hardware.accelerator=cpu", "hardware.threads=1")
    return composed("backbone=tiny", "task=builtin", f"folder={folder}", *hardware, *overrides, config="evaluate")


def section(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "redundancy" / "redundancy.json").read_text())


def test_a_compressed_run_says_what_it_does_not_need(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((copy / "results.json").read_text())
    evaluate(looking(copy, *FAST))
    found = section(copy)
    after = json.loads((copy / "results.json").read_text())
    assert after == {**before, "redundancy": found}
    assert "Redundancy" in (copy / "report.html").read_text()
    said = " ".join(capsys.readouterr().out.split())
    assert found["sentence"] in said
    assert "states: 230 train, 26 dev, 96 test rows x 5 layers x 64, float32, 0.4 MiB" in said
    about = {"task": "builtin", "backbone": "tiny", "method": "topk", "weights": str(copy), "pooling": "first"}
    assert {key: found[key] for key in about} == about
    layers = found["layers"]
    assert layers["numbers"] == [0, 1, 2, 3, 4]
    assert found["dev_seen"]
    assert layers["computed"] == [1.0] * 5  # [CLS] is never retired
    assert [one["number"] for one in layers["up_to"]] == layers["numbers"]
    assert layers["up_to"][-1]["dev"] == pytest.approx(layers["oracle"]["dev"], abs=0.1)
    assert found["constant"]["by_layer"][0] == 64  # the embedding of [CLS]
    assert found["similarity"]["degenerate"] == [0]
    assert found["similarity"]["linear"][0] == [None] * 5
    assert [one["step"] for one in found["transfer"]] == ["all layers", "layers", "neurons"]
    assert found["transfer"][0]["extraction_seconds"] > 0
    for one in found["neurons"]:
        assert 0 < len(one["neurons"]) <= 320
        assert max(one["neurons"]) < (one["up_to"] + 1) * 64
    for one in layers["selected"]:
        assert one["up_to"] <= one["layers"] <= 4
        assert one["layers"] >= 1
    assert {path.name for path in (copy / "redundancy").iterdir()} == set(found["files"])  # no states are left


def test_a_pretrained_model_needs_no_run_and_its_states_are_kept(tmp_path: Path) -> None:
    kept = ["redundancy.pooling=mean", "redundancy.keep=true", "redundancy.dtype=float16"]
    evaluate(pretrained(tmp_path / "here", *FAST, *kept, "method=layer_drop", "method.layers=[0,3]"))
    found = section(tmp_path / "here")
    assert (found["pooling"], found["constant"]["by_layer"][0], found["dev_seen"]) == ("mean", 0, False)
    states = tmp_path / "here" / "redundancy" / "states"
    assert sorted(path.name for path in states.iterdir()) == ["dev", "test", "train"]
    assert np.load(states / "dev" / "values.npy").dtype == np.float16
    assert (found["weights"], found["method"]) == ("pretrained", "layer_drop")
    assert (found["layers"]["numbers"], found["layers"]["not_run"]) == ([0, 1, 4], [2, 3])
    results = json.loads((tmp_path / "here" / "results.json").read_text())
    assert (results["status"], results["redundancy"]) == ("done", found)
    assert "Redundancy" in (tmp_path / "here" / "report.html").read_text()


def test_a_look_that_was_killed_goes_on_and_one_at_other_weights_begins_anew(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extraction, "BLOCK", 64)
    seen: list[int] = []
    states_of = extraction.Extraction._states

    def dies(self: Any, batch: Any, *rest: Any) -> Any:
        seen.append(len(batch["row"]))
        if sum(seen) > 180:
            raise KeyboardInterrupt
        return states_of(self, batch, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(extraction.Extraction, "_states", dies)
        with pytest.raises(KeyboardInterrupt):
            evaluate(looking(copy, *FAST))
    assert "redundancy" not in {key for key, value in json.loads((copy / "results.json").read_text()).items() if value}

    def counts(self: Any, batch: Any, *rest: Any) -> Any:
        seen.append(len(batch["row"]))
        return states_of(self, batch, *rest)

    seen.clear()
    monkeypatch.setattr(extraction.Extraction, "_states", counts)
    with monkeypatch.context() as patch:
        patch.setattr("skim.lightning.looks.redundancy.analyse", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(looking(copy, *FAST))
    assert sum(seen) == 230 + 26 + 96 - 128  # two blocks were there
    assert "extracted anew" not in capsys.readouterr().out

    seen.clear()
    weights = load_file(copy / "model" / "model.safetensors")
    weights["bert.encoder.layer.0.output.dense.bias"][0] += 1
    save_file(weights, copy / "model" / "model.safetensors", {"format": "pt"})
    add_checksums(copy / "model")
    monkeypatch.setattr("skim.lightning.looks.redundancy.analyse", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(looking(copy, *FAST))
    assert sum(seen) == 230 + 26 + 96
    assert "train: states of other weights lay there; extracted anew" in " ".join(capsys.readouterr().out.split())


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_broken_weights_are_refused_by_layer_and_row_and_nothing_is_written(copy: Path) -> None:
    weights = load_file(copy / "model" / "model.safetensors")
    weights["bert.encoder.layer.2.output.dense.bias"][5] = torch.nan
    save_file(weights, copy / "model" / "model.safetensors", {"format": "pt"})
    add_checksums(copy / "model")
    before = (copy / "results.json").read_text()
    with pytest.raises(SkimError, match=r"layer 3, row \d+ of train: a state is not a number"):
        evaluate(looking(copy, *FAST))
    assert (copy / "results.json").read_text() == before
    assert not (copy / "redundancy" / "redundancy.json").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["what=redundancy"], "Which run\\?"),
        (["what=redundancy", "task=rte"], "what=redundancy or what=peers with backbone=<name> task=<name>, both"),
        (["what=metrics", "task=builtin", "backbone=tiny"], "Which run\\?"),
        (["what=redundancy", "ckpt=run", "task=builtin"], "task=builtin would change nothing"),
        (["what=redundancy", "ckpt=run", "folder=x"], "folder=x is for a look without a run"),
        (["what=redundancy", "task=builtin", "backbone=tiny", "+overrides.seed=2"], "overrides.seed: there is no run"),
        (["what=redundancy", "task=builtin", "backbone=tiny", "redundancy.max_rows=5"], "5 rows are too few"),
        (["what=redundancy", "task=builtin", "backbone=tiny", "redundancy.dtype=int8"], "one of float32, float16"),
        (
            ["what=redundancy", "task=builtin", "backbone=tiny", "redundancy.metric=pearson"],
            "metric of classes 'pearson'",
        ),
        (["what=redundancy", "task=builtin_labels", "backbone=tiny"], "not one label, or one number"),
        (["what=redundancy", "task=builtin_choices", "backbone=tiny"], "not one label, or one number"),
    ],
)
def test_a_look_at_nothing_or_at_two_things_is_refused(
    overrides: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SkimError, match=said) as error:
        evaluate(composed(*overrides, "hardware.accelerator=cpu", config="evaluate"))
    assert len(str(error.value).splitlines()) <= 2
    assert not list(tmp_path.rglob("redundancy"))  # not even states
