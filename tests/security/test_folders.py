"""Folders of models and runs lead nowhere else: not by an option, by the name of a file in one, or by a link."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import skim
from skim.errors import SkimError
from skim.lightning.looks.loaded import check_links, load
from skim.lightning.start import load_backbone
from skim.methods import METHODS, method_class
from skim.options.declared import arguments, places
from skim.published import ltp
from tasks.text import Text
from tests.runs import looking, small

OUTSIDE = ["../elsewhere.safetensors", "/elsewhere.safetensors", "a/../../x", "..\\x", "C:\\x", "\\\\host\\x"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of skim's whose method is a chain with one that can read a report."""
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    chain = skim.Chain([{"method": "layer_drop", "layers": 2}, "ltp"])
    folder = tmp_path_factory.mktemp("saved") / "model"
    skim.save_pretrained(skim.compress(transformers.BertForSequenceClassification(config), chain), folder)
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def rewritten(file: Path, change: Callable[[Any], Any]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def alone(report: str) -> dict[str, Any]:
    return {"method": "layer_drop", "options": {"report": report, "delta": 1.0}}


def within(report: str, depth: int = 1) -> dict[str, Any]:
    """A chain in a chain is refused too, but only once its members are made."""
    members: Any = [{"method": "layer_drop", "report": report}, "topk"]
    for _ in range(depth - 1):
        members = [{"method": "chain", "methods": members}, "topk"]
    return {"method": "chain", "options": {"methods": members}}


@pytest.mark.parametrize("told", [alone, within, lambda report: within(report, 2)], ids=["alone", "chain", "chains"])
def test_no_option_of_a_saved_method_names_a_file_that_is_read(
    model: Path, tmp_path: Path, told: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skim.methods.layer_drop.suggested", lambda *_: pytest.fail("read a file of the saved config"))
    rewritten(model / "skim.json", lambda about: about | told(str(tmp_path / "elsewhere.json")))
    with pytest.raises(SkimError, match=r"'report' of layer_drop names the file .*\n.*Save the model again"):
        skim.from_pretrained(model)


def test_every_option_that_names_a_file_is_known_to_do_so() -> None:
    """A new option that may be a text is looked at here: one that names a file is declared as a Place."""
    classes = {name: method_class(name) for name in METHODS}
    assert {name: found for name, kind in classes.items() if (found := places(kind))} == {"layer_drop": ("report",)}
    texts = {
        f"{name}.{option}"
        for name, kind in classes.items()
        for option, one in arguments(kind).items()
        if "str" in str(one.annotation)
    }
    assert texts == {"layer_drop.report", "stop_words.words"}


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_file_beside_a_model_names_one_outside_its_folder(model: Path, name: str) -> None:
    about = json.loads((model / "skim.json").read_text())
    for told in ({"checksums": {name: "0"}}, {"adapters": {"names": ["default", name], "active": ["default"]}}):
        (model / "skim.json").write_text(json.dumps(about | told))
        with pytest.raises(SkimError, match="outside its folder"):
            skim.from_pretrained(model)


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_index_of_weights_names_a_shard_outside_the_folder(model: Path, name: str) -> None:
    """Whoever loads it: transformers would follow the name."""
    weights = model / "model.safetensors"
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(weights), name)}
    weights.rename(model.parent / "elsewhere.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    rewritten(model / "skim.json", lambda about: {key: about[key] for key in about if key != "checksums"})
    readers: list[Callable[[], Any]] = [
        lambda: skim.from_pretrained(model),
        lambda: skim.from_pretrained(model, model_class=transformers.BertForSequenceClassification),
        lambda: load_backbone(Text(), ltp.model_config(model), model),
    ]
    for read in readers:
        with pytest.raises(SkimError, match="outside its folder"):
            read()
    (model / "skim.json").unlink()
    with pytest.raises(SkimError, match="outside its folder"):
        skim.pipeline("text-classification", model)


def test_weights_in_shards_are_loaded(model: Path) -> None:
    state = load_file(model / "model.safetensors")
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for shard, own in shards.items():
        save_file({name: state[name] for name in own}, model / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, own in shards.items() for name in own}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "model.safetensors").unlink()
    rewritten(model / "skim.json", lambda about: {key: about[key] for key in about if key != "checksums"})
    loaded = skim.from_pretrained(model).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_a_model_in_the_cache_of_the_hub_is_one_of_links(model: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(model.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert skim.from_pretrained(snapshot).method.name == "chain"


def run_of(folder: Path) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": {}}, folder / "checkpoints" / "last.ckpt")
    OmegaConf.save(small("method=dense"), folder / "config.yaml")
    return folder


@pytest.mark.parametrize("name", ["results.json", "peers.json", "tokens.html", "redundancy", "model/README.md"])
@pytest.mark.parametrize("there", [True, False])
def test_no_look_at_a_run_writes_through_a_link(tmp_path: Path, name: str, there: bool) -> None:
    run, elsewhere = run_of(tmp_path / "run"), tmp_path / "elsewhere"
    (run / "model").mkdir()
    if there:
        elsewhere.write_text("mine")
    if name == "redundancy" and there:
        elsewhere.unlink()
        elsewhere.mkdir()
    (run / name).symlink_to(elsewhere)
    with pytest.raises(SkimError, match=r"is a link to .*elsewhere"):
        load(looking(run))


def test_a_run_whose_large_folders_are_on_another_disk_can_be_looked_at(tmp_path: Path) -> None:
    run, disk = run_of(tmp_path / "run"), tmp_path / "disk"
    disk.mkdir()
    for name in ("checkpoints", "model", "data"):
        (run / name).exists() and (run / name).rename(disk / name)
        (disk / name).mkdir(exist_ok=True)
        (run / name).symlink_to(disk / name)
    (run / "results.json").write_text("{}")
    (run / "newest.json").symlink_to(run / "results.json")
    (tmp_path / "link").symlink_to(run)
    check_links(run)
    check_links(tmp_path / "link")
