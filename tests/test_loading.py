"""Saved models: what a damaged folder says, hub ids, classes of a user's own, and how transformers' options arrive."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from torch import nn

import skim
from skim.engine import dtype
from skim.engine.dtype import _fastest as fastest
from skim.methods import Method
from tests.families import batch_of, enliven, plain
from tests.ragged import assert_same

BATCH = batch_of("bert")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Transkimmer with options that are not the defaults."""
    folder = tmp_path_factory.mktemp("saved")
    model = skim.compress(plain("bert"), skim.Transkimmer(layers=(0, 2), margin=1.0)).eval()
    enliven(model.method, 0)
    skim.save_pretrained(model, folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**BATCH).logits


# --- damage -----------------------------------------------------------------------------------------------------------

FILES = ("skim.json", "method.safetensors", "config.json", "model.safetensors")


def refused(folder: Path) -> str:
    with pytest.raises(skim.SkimError) as error:
        skim.from_pretrained(folder)
    assert len(str(error.value).splitlines()) <= 3
    return str(error.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [None, 0.0, 0.3, 0.98])
def test_a_file_that_is_missing_or_cut_is_named(folder: Path, name: str, share: float | None) -> None:
    file = folder / name
    whole = file.read_bytes()
    file.unlink()
    if share is not None:
        file.write_bytes(whole[: int(len(whole) * share)])
    said = refused(folder)
    assert str(folder) in said
    if name != "model.safetensors":  # whose loading transformers words
        assert name in said


@pytest.mark.parametrize(
    "text", [b"[]", b"null", b"3", b"{", b"\xff\xfe", b'{"format": 1}', b'{"format": 99, "method": "topk"}']
)
def test_a_skim_json_that_is_none(folder: Path, text: bytes) -> None:
    (folder / "skim.json").write_bytes(text)
    assert f"{folder}/skim.json" in refused(folder)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("method", "transkimer", "Did you mean 'transkimmer'"),
        ("method", "topk", "is not an option of TopK"),
        ("method", None, "'method' is null"),
        ("options", {"taget": 0.5}, "Did you mean 'target'"),
        ("options", {"margin": "5"}, r"margin='5'): must be a number."),
        ("options", [1], "'options' is [1]"),
        ("options", {"layers": [0]}, "method.safetensors does not fit"),
        ("options", {"layers": [7]}, "names layers outside 0 to 2"),
        ("stage", "lukewarm", "Unknown stage 'lukewarm'"),
        ("stage", 3, "'stage' is 3"),
        ("class", "os.path", "trust_modules=('os',)"),
        ("class", 1, "'class' is 1"),
        ("class", "skim.methods.nowhere.First", "cannot be imported"),
        ("class", "skim.errors.SkimError", "which is not a method"),
        ("adapters", {}, "cannot be read as"),
        ("adapters", {"names": ["default"], "active": ["default"]}, "cannot be read as"),
        ("adapters", [1], "'adapters' is [1]"),
        ("model_class", "First", "not imported unless you say so"),
    ],
)
def test_what_skim_json_cannot_say(folder: Path, key: str, value: Any, says: str) -> None:
    about = json.loads((folder / "skim.json").read_text())
    (folder / "skim.json").write_text(json.dumps(about | {key: value}))
    assert says in refused(folder)


@pytest.mark.parametrize(
    "architectures", [None, [], "BertModel", ["Nothing"], [3], ["BertModel", "BertModel"], ["logging"]]
)
def test_a_config_that_names_no_model(folder: Path, architectures: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": architectures}))
    assert "names no transformers class" in refused(folder)


def test_a_config_that_does_not_fit_the_weights(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for changes in ({"num_hidden_layers": 4}, {"hidden_size": 16}, {"num_hidden_layers": 2}, {"model_type": "nothing"}):
        (folder / "config.json").write_text(json.dumps(config | changes))
        refused(folder)


@pytest.mark.parametrize("name", ["method.safetensors", "model.safetensors"])
def test_weights_in_which_a_bit_has_changed_are_refused(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-3] ^= 16  # of a number, which no format minds
    (folder / name).write_bytes(data)
    assert f"{name} is damaged, or was replaced since it was saved" in refused(folder)
    about = json.loads((folder / "skim.json").read_text())
    del about["checksums"]  # as versions before wrote it
    (folder / "skim.json").write_text(json.dumps(about))
    skim.from_pretrained(folder)


def test_where_nothing_is_and_where_a_file_is(tmp_path: Path, saved: Path) -> None:
    assert "There is no folder" in refused(tmp_path / "nowhere")
    assert "there is no skim.json" in refused(tmp_path)
    with pytest.raises(skim.SkimError, match="is a file"):
        skim.save_pretrained(skim.from_pretrained(saved), saved / "skim.json")


# --- the hub, and transformers' options -------------------------------------------------------------------------------


def test_a_hub_id_in_the_mirror(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(saved, tmp_path / "models/me/skimmed")
    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path))
    assert torch.equal(logits(skim.from_pretrained("me/skimmed")), logits(skim.from_pretrained(saved)))


def test_a_hub_id_on_the_hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for with revision, token and cache as given, and for skim's files as well."""
    asked = []

    def download(name: str, local_files_only: bool = False, allow_patterns: Any = None, **options: Any) -> str:
        asked.append((name, local_files_only, options))
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("none")
        for file in saved.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                shutil.copy(file, tmp_path)
        return str(tmp_path)

    (tmp_path / "mirror/models/me/skimmed").mkdir(parents=True)
    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *args, **kwargs: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    options = {"revision": "v2", "token": "secret", "cache_dir": tmp_path / "cache"}
    loaded = skim.from_pretrained("me/skimmed", **options)
    assert asked == [("me/skimmed", True, options), ("me/skimmed", False, options)]
    assert torch.equal(logits(loaded), logits(skim.from_pretrained(saved)))


def test_a_hub_id_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(skim.SkimError, match=r"found nowhere[\s\S]*hf download me/none --local-dir") as error:
        skim.from_pretrained("me/none", revision="v1")
    assert "a mirror knows no revisions" in str(error.value)


def test_dtype_device_and_execution(saved: Path) -> None:
    model = skim.from_pretrained(saved, dtype=torch.bfloat16, execution="masked")
    assert model.dtype == torch.bfloat16
    assert model.method.predictors["0"][1].weight.dtype == torch.bfloat16
    logits(model)
    assert model.trace.execution == "masked"
    assert not model.training
    with pytest.raises(skim.SkimError, match="Unknown execution 'packt'"):
        skim.from_pretrained(saved, execution="packt")
    with pytest.raises(skim.SkimError, match=r"cannot be read as BertForSequenceClassification: .*nothing"):
        skim.from_pretrained(saved, nothing=1)


def test_dtype_auto_is_the_fastest_here(
    saved: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Thresholds of the method stay as they are, whatever is chosen; and it says why."""
    fastest.cache_clear()
    monkeypatch.setattr(dtype, "half_precision", lambda: True)
    monkeypatch.setattr(dtype, "measured", lambda: 1.5)
    with caplog.at_level("INFO", "skim"):
        model = skim.from_pretrained(saved, dtype="auto")
    assert model.dtype == model.method.predictors["0"][1].weight.dtype == torch.bfloat16
    said = [record.getMessage() for record in caplog.records if record.name == "skim"]  # others may warn meanwhile
    assert said == ["dtype=auto: bfloat16, bfloat16 measured 1.50 times as fast as float32 on this CPU"]
    fastest.cache_clear()
    monkeypatch.setattr(dtype, "measured", lambda: 1.05)
    assert skim.from_pretrained(saved, dtype="auto").dtype == torch.float32
    fastest.cache_clear()


def test_a_model_that_is_loaded_already(saved: Path) -> None:
    wanted = logits(skim.from_pretrained(saved))
    base = transformers.AutoModelForSequenceClassification.from_pretrained(saved)
    assert skim.from_pretrained(saved, base=base, execution="narrowed") is base
    assert_same(logits(base), wanted)
    assert base.trace.execution == "narrowed"
    with pytest.raises(skim.SkimError, match="load it with dtype yourself"):
        skim.from_pretrained(saved, base=base, dtype=torch.bfloat16)


def test_device_map(saved: Path) -> None:
    pytest.importorskip("accelerate")
    wanted = logits(skim.from_pretrained(saved))
    assert torch.equal(logits(skim.from_pretrained(saved, device_map="cpu")), wanted)
    if not torch.cuda.is_available():
        with pytest.raises(skim.SkimError, match=r"cannot be read as BertForSequenceClassification: "):
            skim.from_pretrained(saved, device_map="cuda")


# --- classes of a user's own ------------------------------------------------------------------------------------------


class First(Method):
    """Keeps the first tokens; the README's example."""

    def __init__(self, positions: int = 8, layer: int = 2) -> None:
        super().__init__()
        self.positions, self.layer = positions, layer

    def before_layer(self, i, tokens):
        if i != self.layer:
            return tokens
        return tokens.retire((tokens.occupancy.position < self.positions).float())


class Skimmer(skim.Transkimmer):
    """Has its parent's name, and is not it."""


class TwoHeads(transformers.BertPreTrainedModel):
    """A model class that transformers does not have."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.first, self.second = nn.Linear(config.hidden_size, 2), nn.Linear(config.hidden_size, 3)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None):
        hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state[:, 0]
        return self.first(hidden), self.second(hidden)


@pytest.mark.parametrize("method", [First(positions=4, layer=1), Skimmer(margin=0.1)], ids=["First", "Skimmer"])
def test_a_method_of_ones_own_is_loaded_when_its_class_or_module_is_named(tmp_path: Path, method: Method) -> None:
    kind = type(method)
    model = skim.compress(plain("bert"), method).eval()
    skim.save_pretrained(model, tmp_path)
    with pytest.raises(skim.SkimError) as error:
        skim.from_pretrained(tmp_path)
    assert f"Pass method={kind.__name__} (the class), or trust_modules=('{__name__}',)" in str(error.value)
    for allowed in ({"method": kind}, {"trust_modules": (__name__,)}, {"trust_modules": "tests"}):
        loaded = skim.from_pretrained(tmp_path, **allowed)
        assert type(loaded.method) is kind
        assert loaded.method.options() == method.options()
        assert torch.equal(logits(loaded), logits(model))


def test_no_module_is_imported_that_was_not_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one whose name begins alike."""
    (tmp_path / "mine_bad.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    skim.save_pretrained(skim.compress(plain("bert"), First()), tmp_path / "model")
    about = json.loads((tmp_path / "model/skim.json").read_text())
    (tmp_path / "model/skim.json").write_text(json.dumps(about | {"class": "mine_bad.First"}))
    with pytest.raises(skim.SkimError, match="mine_bad"):
        skim.from_pretrained(tmp_path / "model", trust_modules=("mine",))
    assert "mine_bad" not in sys.modules


def test_a_class_that_is_not_that_of_the_folder(saved: Path) -> None:
    with pytest.raises(skim.SkimError, match="holds method 'transkimmer', and method=First is 'first'"):
        skim.from_pretrained(saved, method=First)
    with pytest.raises(skim.SkimError, match="is not a method's class"):
        skim.from_pretrained(saved, method="transkimmer")  # type: ignore[arg-type]
    with pytest.raises(skim.SkimError, match="model_class='First' is not a model's class"):
        skim.from_pretrained(saved, model_class="First")  # type: ignore[arg-type]


def test_a_model_class_of_ones_own(tmp_path: Path) -> None:
    model = TwoHeads(plain("bert").config).eval()
    enliven(model, 0)
    batch = {name: BATCH[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    skim.save_pretrained(skim.compress(model, skim.TopK(start=0)), tmp_path)
    with pytest.raises(skim.SkimError, match=r"Pass model_class=TwoHeads \(the class\), or trust_modules="):
        skim.from_pretrained(tmp_path)
    with torch.no_grad():
        wanted = model(**batch)
        for allowed in ({"model_class": TwoHeads}, {"trust_modules": __name__}):
            loaded = skim.from_pretrained(tmp_path, **allowed)
            assert type(loaded) is TwoHeads
            for one, other in zip(loaded(**batch), wanted, strict=True):
                assert_same(one, other)


def test_what_no_file_can_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Forgets(Method):
        def __init__(self, share: float = 0.5) -> None:
            super().__init__()

    class Holds(Method):
        def __init__(self, script: Any = None) -> None:
            super().__init__()
            self.script = script

    with pytest.raises(skim.SkimError, match="does not keep share"):
        skim.save_pretrained(skim.compress(plain("bert"), Forgets()), tmp_path / "model")
    with pytest.raises(skim.SkimError, match="no file can hold"):
        skim.save_pretrained(skim.compress(plain("bert"), Holds(torch.ones(2))), tmp_path / "model")
    assert not (tmp_path / "model/skim.json").exists()
