"""Files that would run code if anybody unpickled them: a real payload of each kind, and none of it runs."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import skim
from skim import hub
from skim.errors import SkimError
from skim.hub.convert import convert
from skim.lightning.callbacks.resume import check_resumable
from skim.lightning.looks.loaded import load
from skim.lightning.start import load_backbone
from skim.published import ltp
from skim.published.files import tensors_of, unpickled
from tasks.text import Text
from tests.runs import looking, small


class Payload:
    """An object whose unpickling makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    return tmp_path / "ran"


def torch_file(path: Path, ran: Path, **more: Any) -> Path:
    """As ``torch.save`` writes it, with the payload among what a checkpoint holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"w": Payload(ran)}, "optimizer_states": [Payload(ran)], "global_step": 1, **more}, path)
    return path


def bare_pickle(path: Path, ran: Path) -> Path:
    """A pickle without torch's archive around it, as files of before were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(Payload(ran)))
    return path


def test_the_payload_runs_where_it_is_unpickled(tmp_path: Path, ran: Path) -> None:
    """Else the tests below would prove nothing."""
    torch.load(torch_file(tmp_path / "x.ckpt", ran), weights_only=False)
    assert ran.exists()
    ran.unlink()
    pickle.loads(bare_pickle(tmp_path / "x.pkl", ran).read_bytes())
    assert ran.exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of skim's, with a tokenizer, as a run exports it."""
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    made = skim.compress(transformers.BertForSequenceClassification(config), "ltp")
    folder = tmp_path_factory.mktemp("model")
    skim.save_pretrained(made, folder)
    return folder


def copied(model: Path, folder: Path, without: str) -> Path:
    folder.mkdir(parents=True)
    for file in model.iterdir():
        if file.name != without:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


READERS: dict[str, Callable[[Path], object]] = {
    "tensors_of": tensors_of,
    "tensors_of, mapped": lambda path: tensors_of(path, mmap=True),
    "unpickled": unpickled,
    "resume": check_resumable,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("written", [torch_file, bare_pickle])
def test_checkpoints(tmp_path: Path, ran: Path, reader: str, written: Callable[..., Path]) -> None:
    with pytest.raises(SkimError, match="cannot be read as"):
        READERS[reader](written(tmp_path / "last.ckpt", ran))
    assert not ran.exists()


def test_a_checkpoint_to_be_evaluated(tmp_path: Path, ran: Path) -> None:
    from omegaconf import OmegaConf

    run = tmp_path / "run"
    checkpoint = torch_file(run / "checkpoints" / "last.ckpt", ran)
    OmegaConf.save(small("method=dense"), run / "config.yaml")
    with pytest.raises(SkimError, match="cannot be read as"):
        load(looking(run))
    with pytest.raises(SkimError, match="cannot be read as"):
        load(looking(checkpoint))
    assert not ran.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "method.safetensors"])
@pytest.mark.parametrize("written", [torch_file, bare_pickle])
def test_weights_that_are_named_as_if_they_were_safe(
    tmp_path: Path, ran: Path, model: Path, name: str, written: Callable[..., Path]
) -> None:
    folder = copied(model, tmp_path / "model", name)
    written(folder / name, ran)
    with pytest.raises(SkimError):
        skim.from_pretrained(folder)
    assert not ran.exists()


@pytest.mark.parametrize("written", [torch_file, bare_pickle])
def test_weights_in_a_pickle_of_transformers(
    tmp_path: Path, ran: Path, model: Path, written: Callable[..., Path]
) -> None:
    folder = copied(model, tmp_path / "model", "model.safetensors")
    written(folder / "pytorch_model.bin", ran)
    with pytest.raises(SkimError):
        skim.from_pretrained(folder)
    with pytest.raises(SkimError):
        load_backbone(Text(), ltp.model_config(folder), folder)
    (folder / "skim.json").unlink()
    with pytest.raises(SkimError):
        skim.pipeline("text-classification", folder)
    assert not ran.exists()


def test_what_was_trained_beside_a_model(tmp_path: Path, ran: Path) -> None:
    with pytest.raises(SkimError):
        unpickled(bare_pickle(tmp_path / "companion.safetensors", ran))
    assert not ran.exists()


def test_an_adapter_of_peft(tmp_path: Path, ran: Path) -> None:
    peft = pytest.importorskip("peft")
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    plain = transformers.BertForSequenceClassification(config)
    plain.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(plain, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    skim.save_pretrained(skim.compress(adapted, "ltp"), tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    torch_file(tmp_path / "adapter" / "adapter_model.bin", ran)
    base = transformers.BertForSequenceClassification(config)
    with pytest.raises(SkimError):
        skim.from_pretrained(tmp_path / "adapter", base=base)
    assert not ran.exists()


def test_a_published_checkpoint_that_is_converted(tmp_path: Path, ran: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "config.json").write_text('{"model_type": "funnel"}')
    torch_file(tmp_path / "in" / "pytorch_model.bin", ran)
    with pytest.raises(SkimError):
        convert(tmp_path / "in", tmp_path / "out")
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet", "txt", "csv.gz", "pkl", "npy", "pt"])
def test_data(tmp_path: Path, ran: Path, kind: str) -> None:
    file = bare_pickle(tmp_path / f"train.{kind}", ran)
    task = Text(files={"train": str(file), "validation": str(file)})
    with pytest.raises(SkimError):
        task.setup("fit")
    assert not ran.exists()


def test_arrays_of_objects_are_not_loaded(tmp_path: Path, ran: Path) -> None:
    """What the cache of states, and the clock of ridge solvers, are read with."""
    np.save(tmp_path / "x.npy", np.array([Payload(ran)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(tmp_path / "x.npy")
    assert not ran.exists()


def test_a_model_whose_config_names_code_is_loaded_without_it_or_not_at_all(
    tmp_path: Path, ran: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is asked on the terminal either, as transformers would by default."""
    import json

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    folder = copied(model, tmp_path / "model", "")
    (folder / "evil.py").write_text(f"import os\nos.system('touch {ran}')\nclass Config: pass\n")
    about = json.loads((folder / "config.json").read_text())
    maps = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Config"}
    (folder / "config.json").write_text(json.dumps(about | {"auto_map": maps}))
    skim.from_pretrained(folder)  # its class is transformers' own
    (folder / "config.json").write_text(json.dumps(about | {"auto_map": maps, "model_type": "evil"}))
    with pytest.raises(SkimError):
        ltp.model_config(folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["evil.Config", None]}, "tokenizer_class": "Evil"})
    )
    with pytest.raises(SkimError):
        hub.tokenizer_of(folder)
    for architecture in ("AutoModelForSequenceClassification", "pipeline", "BertConfig"):
        (folder / "config.json").write_text(json.dumps(about | {"architectures": [architecture]}))
        with pytest.raises(SkimError, match="names no transformers class"):
            skim.from_pretrained(folder)
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        (folder / "config.json").write_text(json.dumps(about | {key: "someone/kernels"}))
        with pytest.raises(SkimError, match="names code of the hub"):
            skim.from_pretrained(folder)
    assert not ran.exists()


def test_pickles_are_read_in_one_place_and_numpy_reads_none() -> None:
    """Every reader of ``torch.save`` files is :func:`skim.published.files.tensors_of`."""
    from tests.runs import ROOT

    words = ("torch.load(", "pickle.load", "allow_pickle", "joblib.load", "trust_remote_code=True", "shelve", "dill")
    sources = [*(ROOT / "skim").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]
    found = {(file.name, word) for file in sources for word in words if word in file.read_text()}
    assert found == {("files.py", "torch.load(")}
