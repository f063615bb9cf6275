"""The door for names: mirror first, then cache, then hub; errors that help; no waiting for a hub out of reach."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from skim import hub
from skim.errors import SkimError
from skim.hub import data, door, fetch, listing
from skim.hub.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
ROWS = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [0, 1]})


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, an empty cache, no mirror; tests put back what they need."""

    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", unreachable)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.delenv("SKIM_MIRROR", raising=False)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mirror"
    path = folder / "datasets/nyu-mll/glue/sst2/train.parquet"
    path.parent.mkdir(parents=True)
    ROWS.to_parquet(path)
    monkeypatch.setenv("SKIM_MIRROR", str(folder))
    return folder


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_split_from_the_mirror(mirror: Path) -> None:
    assert hub.dataset("nyu-mll/glue", "sst2", "train").to_dict() == ROWS.to_dict()


def test_a_read_only_mirror_is_enough(mirror: Path) -> None:
    for folder, _, files in os.walk(mirror):
        for file in files:
            os.chmod(Path(folder) / file, 0o444)
        os.chmod(folder, 0o555)
    before = sorted(mirror.rglob("*"))
    rows = hub.dataset("nyu-mll/glue", "sst2", "train")
    assert len(rows) == 2
    assert rows.cache_files
    assert sorted(mirror.rglob("*")) == before
    for folder, *_ in os.walk(mirror):
        os.chmod(folder, 0o755)


def test_a_model_from_the_mirror_or_a_folder(mirror: Path, tmp_path: Path) -> None:
    folder = write_model(mirror / "models/google-bert/bert-base-uncased")
    assert hub.model_path("google-bert/bert-base-uncased") == str(folder)
    assert hub.model_path(str(tmp_path)) == str(tmp_path)


def test_a_data_set_to_be_had_nowhere(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SkimError) as error:
        hub.dataset("nyu-mll/glue", "sst2", "validation", "task=sst2")
    what, looked, command = str(error.value).splitlines()
    assert what == "Data set nyu-mll/glue (config sst2, split validation) was found nowhere."
    assert f"the mirror has no {mirror}/datasets/nyu-mll/glue/sst2/validation.parquet (there: train)" in looked
    assert "the cache has none" in looked
    assert "the hub: cannot be reached (Name or service not known)" in looked
    assert command.endswith("python -m skim.hub fetch task=sst2")
    monkeypatch.delenv("SKIM_MIRROR")
    with pytest.raises(SkimError, match="SKIM_MIRROR is not set; the cache has none"):
        hub.dataset("nyu-mll/glue", "sst2", "validation")


def test_a_model_to_be_had_nowhere(mirror: Path) -> None:
    with pytest.raises(SkimError) as error:
        hub.model_path("google-bert/bert-base-uncased", "backbone=bert_base")
    what, looked, command = str(error.value).splitlines()
    assert what == "Model google-bert/bert-base-uncased was found nowhere."
    assert f"the mirror's {mirror}/models/google-bert/bert-base-uncased is not there; the cache has none" in looked
    assert command.endswith("python -m skim.hub fetch backbone=bert_base")
    folder = mirror / "models/google-bert/bert-base-uncased"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    with pytest.raises(SkimError, match=r"is incomplete \(needs config.json and \*.safetensors\)"):
        hub.model_path("google-bert/bert-base-uncased")


def test_a_name_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise huggingface_hub.errors.RepositoryNotFoundError.__new__(huggingface_hub.errors.RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", unknown)
    with pytest.raises(SkimError, match="it knows no dataset of this name"):
        hub.dataset("no/such", "default", "train")
    with pytest.raises(SkimError, match="it knows no model of this name"):
        hub.model_path("no/such")
    with pytest.raises(SkimError, match="was found nowhere"):
        hub.model_path("not a name")


def test_a_split_from_the_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    ROWS.to_parquet(tmp_path / "rows.parquet")
    datasets.load_dataset("parquet", data_files={"train": str(tmp_path / "rows.parquet")})
    # as `datasets` lays out what it got from the hub
    (loaded,) = cache.glob("parquet/*/0.0.0/*/")
    as_from_hub = cache / "some___set/default/0.0.0" / loaded.name
    as_from_hub.parent.mkdir(parents=True)
    loaded.rename(as_from_hub)
    (as_from_hub / "parquet-train.arrow").rename(as_from_hub / "set-train.arrow")
    assert hub.dataset("some/set", "default", "train").to_dict() == ROWS.to_dict()
    assert not datasets.config.HF_HUB_OFFLINE
    with pytest.raises(SkimError, match='the cache: Unknown split "test"'):
        hub.dataset("some/set", "default", "test")


def test_a_split_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(hub_id: str, config: str, split: str) -> datasets.Dataset:
        if datasets.config.HF_HUB_OFFLINE:
            raise ConnectionError("offline")
        return ROWS

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *args, **kwargs: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert hub.dataset("some/set", "default", "train") is ROWS
    assert not datasets.config.HF_HUB_OFFLINE


def test_a_download_that_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object, **kwargs: object) -> None:
        if datasets.config.HF_HUB_OFFLINE:
            raise ConnectionError("offline")
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from OSError("connection lost")

    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *args, **kwargs: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(SkimError, match="the hub: connection lost"):
        hub.dataset("some/set", "default", "train")
    with pytest.raises(SkimError, match=r"nyu-mll/glue cannot be fetched\. The hub: connection lost"):
        main(["fetch", "task=mrpc"])


def test_a_parquet_file_that_is_none(mirror: Path) -> None:
    path = mirror / "datasets/nyu-mll/glue/sst2/train.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SkimError, match=r"train\.parquet cannot be read as parquet"):
        hub.dataset("nyu-mll/glue", "sst2", "train")


@pytest.mark.parametrize("ask", [lambda: hub.dataset("a/b", "c", "train"), lambda: hub.model_path("a/b")])
def test_a_hub_that_never_answers(monkeypatch: pytest.MonkeyPatch, ask: Callable[[], object]) -> None:
    """It is asked once or twice, and briefly."""
    monkeypatch.undo()
    monkeypatch.delenv("SKIM_MIRROR", raising=False)
    monkeypatch.setattr(door, "PROBE_SECONDS", 0.3)
    came = 0
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(SkimError, match="the hub: cannot be reached"):
            ask()
        silent.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # nobody else has come
            while True:
                silent.accept()[0].close()
                came += 1
    assert 1 <= came <= 2  # loaders would ask five times


def test_fetch_fills_the_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def load(hub_id: str, config: str) -> datasets.DatasetDict:
        assert (hub_id, config) == ("nyu-mll/glue", "mrpc")
        return datasets.DatasetDict(train=ROWS, validation=ROWS)

    def download(name: str, local_dir: Path, allow_patterns: list[str]) -> None:
        (local_dir / "config.json").write_text("{}")
        (local_dir / "model.safetensors").write_bytes(b"weights")
        assert not any("bin" in pattern for pattern in allow_patterns)

    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path / "new"))
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *args, **kwargs: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    main(["fetch", "task=mrpc", "backbone=bert_base"])
    main(["fetch", "task=mrpc", "backbone=bert_base"])
    assert capsys.readouterr().out.count("is there") == 2
    monkeypatch.undo()
    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path / "new"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert len(hub.dataset("nyu-mll/glue", "mrpc", "validation")) == 2
    assert Path(hub.model_path("google-bert/bert-base-uncased")).is_relative_to(tmp_path / "new")
    monkeypatch.setattr(listing, "choices", lambda group: [])
    main(["list"])
    out = capsys.readouterr().out
    assert "mrpc" in out
    assert "train (2)" in out


def test_an_interrupted_fetch_leaves_no_half_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, local_dir: Path, allow_patterns: list[str]) -> None:
        (local_dir / "config.json").write_text("{}")
        raise OSError("connection lost")

    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *args, **kwargs: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(SkimError, match="connection lost"):
        main(["fetch", "backbone=bert_base"])
    assert not (tmp_path / "models/google-bert/bert-base-uncased").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "fetch task="),
        (["fetch"], "Nothing to fetch"),
        (["fetch", "task=sst3"], "Unknown task 'sst3'. Did you mean 'sst2'"),
        (["fetch", "task=sst2"], "cannot be fetched. The hub: cannot be reached"),
        (["fetch", "backbone=bert_base"], "cannot be fetched. The hub: cannot be reached"),
    ],
)
def test_wrong_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path))
    with pytest.raises(SkimError, match=message):
        main(arguments)


def test_fetch_and_list_want_a_mirror() -> None:
    for arguments in (["fetch", "task=sst2"], ["list"]):
        with pytest.raises(SkimError, match="SKIM_MIRROR is not set"):
            main(arguments)


def test_the_command_ends_with_code_2_and_imports_nothing_heavy() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "SKIM_MIRROR"}
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "skim.hub", "list"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert "error: SKIM_MIRROR is not set." in run.stderr
    assert "Traceback" not in run.stderr
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert not imported & {"torch", "datasets", "transformers", "huggingface_hub", "pytorch_lightning"}


def test_a_split_in_several_files_as_the_hub_has_them(mirror: Path) -> None:
    folder = mirror / "datasets/some/set/default"
    folder.mkdir(parents=True)
    for part in range(2):
        more = datasets.Dataset.from_dict({"sentence": [f"{part}a", f"{part}b"], "label": [0, 1]})
        more.to_parquet(folder / f"train-0000{part}-of-00002.parquet")
    ROWS.to_parquet(folder / "test-00000-of-00001.parquet")
    assert hub.dataset("some/set", "default", "train")["sentence"][:] == ["0a", "0b", "1a", "1b"]
    assert hub.dataset("some/set", "default", "test").to_dict() == ROWS.to_dict()
    with pytest.raises(SkimError, match=r"the mirror has no .*validation\.parquet \(there: test, train\)"):
        hub.dataset("some/set", "default", "validation")
    (folder / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(SkimError, match="holds 1 of the 2 parquet files of train; copy all"):
        hub.dataset("some/set", "default", "train")
    assert hub.dataset("some/set", "default", "test").to_dict() == ROWS.to_dict()  # which is whole
    ROWS.to_parquet(folder / "train.parquet")
    assert hub.dataset("some/set", "default", "train").to_dict() == ROWS.to_dict()


def test_fetch_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a validation split that the hub lacks; parts of a split that is not whole are replaced."""
    folder = tmp_path / "datasets/some/set/default"
    folder.mkdir(parents=True)
    mine = datasets.Dataset.from_dict({"sentence": ["mine"], "label": [1]})
    for name in ("validation", "train-00001-of-00002"):
        mine.to_parquet(folder / f"{name}.parquet")
    (folder / "README.md").write_text("whose it is")
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *args, **kwargs: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: datasets.DatasetDict(train=ROWS, validation=ROWS))
    fetch.fetch_dataset(tmp_path, "some/set", "default", ["train", "validation"])
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "train.parquet", "validation.parquet"]
    assert datasets.Dataset.from_parquet(str(folder / "validation.parquet")).to_dict() == mine.to_dict()
    assert datasets.Dataset.from_parquet(str(folder / "train.parquet")).to_dict() == ROWS.to_dict()


def script(*args: object, **kwargs: object) -> None:
    raise RuntimeError("Dataset scripts are no longer supported, but found set.py")


def test_a_data_set_that_is_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *args, **kwargs: None)
    monkeypatch.setattr(datasets, "load_dataset", script)
    said = r"the hub: Dataset scripts .*; it is a script there, and the hub has not converted it: look for a copy"
    with pytest.raises(SkimError, match=f"(?i){said}"):
        hub.dataset("some/set", "default", "train")
    with pytest.raises(SkimError, match=f"(?i)nyu-mll/glue cannot be fetched. {said}"):
        main(["fetch", "task=mrpc"])
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_script_that_the_hub_has_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*args: object, **kwargs: object) -> datasets.Dataset:
        asked.append((args, kwargs))
        return datasets.Dataset.from_dict({"text": ["a"]}) if "revision" in kwargs else script()

    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *args, **kwargs: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert data.from_hub("some/set", "small", split="train")["text"] == ["a"]
    converted = {"data_dir": "small", "revision": "refs/convert/parquet", "split": "train"}
    assert asked == [(("some/set", "small"), {"split": "train"}), (("some/set",), converted)]


def test_fetch_takes_several_names_and_completes_a_partial_mirror(
    mirror: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def load(hub_id: str, config: str) -> datasets.DatasetDict:
        asked.append(config)
        return datasets.DatasetDict(train=ROWS, validation=ROWS)

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *args, **kwargs: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    # of sst2 the mirror holds the training split alone
    main(["fetch", "task=sst2,mrpc,builtin,builtin_text,text", "backbone=tiny"])
    assert asked == ["sst2", "mrpc"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        *(f"task={name}" for name in ("sst2", "mrpc", "builtin", "builtin_text", "text")),
        "backbone=tiny",
    ]
    assert all(line.endswith(fetch.NOTHING) for line in lines[2:])
    assert set(hub.held(mirror / "datasets/nyu-mll/glue/sst2")) == {"train", "validation"}
    main(["fetch", "task=sst2,mrpc"])
    assert asked == ["sst2", "mrpc"]
    assert capsys.readouterr().out.count("is there") == 2
    with pytest.raises(SkimError, match=r"config mnli\) has no split validation_matched .*, only train, validation\."):
        main(["fetch", "task=mnli"])
    assert not (mirror / "datasets/nyu-mll/glue/mnli").exists()
    with pytest.raises(SkimError, match="Unknown task 'sst3'"):
        main(["fetch", "task=mrpc,sst3"])


def test_list_says_what_is_complete(
    mirror: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"task": ["builtin", "cola", "mrpc", "newsgroups", "sst2", "text"], "backbone": ["minilm", "tiny"]}
    monkeypatch.setattr(listing, "choices", names.get)
    monkeypatch.setenv("COLUMNS", "200")
    for folder, splits in {
        "nyu-mll/glue/mrpc": ["train", "validation-00000-of-00001"],
        "nyu-mll/glue/cola": ["train-00000-of-00002"],
        "SetFit/20_newsgroups/default": ["train", "test"],  # without validation: a share of train, or test
    }.items():
        for split in splits:
            (mirror / "datasets" / folder).mkdir(parents=True, exist_ok=True)
            ROWS.to_parquet(mirror / "datasets" / folder / f"{split}.parquet")
    (mirror / "models/sentence-transformers/all-MiniLM-L6-v2").mkdir(parents=True)
    main(["list"])
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    state = {row[0]: row[2] for row in rows if len(row) == 3}
    assert state["task=mrpc"] == state["task=newsgroups"] == "complete"
    assert state["task=sst2"] == "INCOMPLETE: no validation"
    assert state["task=cola"].startswith("INCOMPLETE: ")
    assert state["task=builtin"] == state["task=text"] == state["backbone=tiny"] == fetch.NOTHING
    assert state["backbone=minilm"] == "INCOMPLETE: no *.safetensors"


def test_every_choice_is_listed() -> None:
    assert {"sst2", "text", "mnli"} <= set(listing.choices("task"))
    assert not any(name.startswith("_") for name in listing.choices("task"))
    assert fetch.data_of("mnli", [])[2] == ["train", "validation_matched", "validation_mismatched"]
    assert fetch.data_of("mnli", ["task.holdout=0.1"])[2] == ["train"]
    assert fetch.data_of("sst2", ["task.eval_split=test"]) == ("nyu-mll/glue", "sst2", ["train", "test"])
