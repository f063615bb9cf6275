"""The nine tasks: on a small mirror in their hub schema, and on the real data if ``SKIM_MIRROR`` is set."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from skim import hub
from skim.errors import SkimError
from tasks.base import Task
from tasks.glue import AX, SPECS, Glue

CONF = Path(__file__).resolve().parents[2] / "conf"
TASKS = sorted(path.stem for path in (CONF / "task").glob("*.yaml") if not path.stem.startswith("_"))
TRAINED = [name for name in SPECS if name != AX]
real_data = pytest.mark.skipif(not os.environ.get("SKIM_MIRROR"), reason="needs real data: set SKIM_MIRROR")


def config(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides)).task


def small_mirror(folder: Path, name: str) -> None:
    """Six rows per split of a task, with the hub's columns, class labels, split names and withheld labels."""
    spec = SPECS[name]
    label = datasets.ClassLabel(names=list(spec.label_names)) if spec.label_names else datasets.Value("float32")
    columns = {column: datasets.Value("string") for column in spec.text_columns}
    features = datasets.Features({**columns, "label": label, "idx": datasets.Value("int32")})
    suffixes = ("_matched", "_mismatched") if name == "mnli" else ("",)
    for split in ("train", *(f"{part}{suffix}" for part in ("validation", "test") for suffix in suffixes)):
        labels = [-1] * 6 if split.startswith("test") else [i % max(len(spec.label_names), 5) for i in range(6)]
        if spec.label_names:
            labels = [min(value, len(spec.label_names) - 1) for value in labels]
        texts = {
            column: ["a good film", "it is not bad", "", "soup", "the soup was good", "very"] for column in columns
        }
        rows = datasets.Dataset.from_dict({**texts, "label": labels, "idx": range(6)}, features=features)
        path = folder / "datasets/nyu-mll/glue" / name / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(path)


@pytest.mark.parametrize("name", TRAINED)
def test_every_task_in_its_hub_schema(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    small_mirror(tmp_path, name)
    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path))
    task: Task = instantiate(config(f"task={name}"), seed=1, num_workers=0)
    task.setup_tokenizer(tokenizer)
    task.setup("fit")
    task.setup("test")
    settings = {"vocab_size": len(tokenizer), "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    bert = transformers.BertConfig(**settings, intermediate_size=8, **task.model_kwargs())
    model = task.auto_class().from_config(bert)
    assert model.config.num_labels == task.num_labels
    assert torch.isfinite(model(**next(iter(task.train_dataloader()))).loss)
    metrics = task.metrics()
    for batch in task.val_dataloader():
        metrics.update(task.predict(model(**batch).logits), batch["labels"])
    assert task.monitor in metrics.compute()
    assert "labels" not in next(iter(task.test_dataloader()))
    assert len(task.example_texts(3)) == 3


def test_the_other_split_of_mnli(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small_mirror(tmp_path, "mnli")
    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path))
    file = tmp_path / "datasets/nyu-mll/glue/mnli/validation_mismatched.parquet"
    hub.parquet(file).select(range(4)).to_parquet(file)
    task = Glue(name="mnli")
    task.setup_tokenizer(tokenizer)
    task.setup("fit")
    assert task.report["rows"] == {"train": 6, "validation": 6}
    (other,) = task.others().values()
    assert other.report["rows"] == {"validation": 4}
    assert (len(task.val_dataloader().dataset), len(other.val_dataloader().dataset)) == (6, 4)
    for settings in ({"eval_split": "validation_mismatched"}, {"holdout": 0.5}):
        task = Glue(name="mnli", **settings)
        task.setup_tokenizer(tokenizer)
        task.setup("fit")
        assert task.others() == {}, "whoever chooses the split means that split"


def test_own_files_stand_in_for_the_hub_s_splits(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "mine.csv").write_text("premise,hypothesis,label\na,soup,neutral\nit,film,entailment\n")
    file = str(tmp_path / "mine.csv")
    overrides = ["task=mnli", f"task.files.train={file}", f"task.files.validation={file}"]
    task: Task = instantiate(config(*overrides))
    task.setup_tokenizer(tokenizer)
    task.setup("fit")
    (batch,) = task.val_dataloader()
    assert sorted(batch["labels"].tolist()) == [0, 1]


def test_unknown_task() -> None:
    with pytest.raises(SkimError, match=r"Unknown GLUE task 'sst'\. Did you mean 'sst2'"):
        Glue(name="sst")


def stated(name: str) -> set[str]:
    """The keys that a file, or one that it starts from, states for its data: all but those of _defaults."""
    file = OmegaConf.load(CONF / "task" / f"{name}.yaml")
    named = [entry for entry in file.get("defaults", []) if isinstance(entry, str) and entry != "_self_"]
    parents = {entry.partition("@")[0].removeprefix("/task/") for entry in named} - {"_defaults"}
    return set(file.get("task", file)).union(*(stated(parent) for parent in parents))


@pytest.mark.parametrize("name", TASKS)
def test_keys_are_arguments_with_the_same_defaults(name: str) -> None:
    cfg = config(f"task={name}")
    parameters = inspect.signature(get_class(cfg._target_)).parameters
    for key, value in cfg.items():
        if key.startswith("_"):
            continue
        assert key in parameters, f"{name}: {key}"
        if key == "files":
            assert OmegaConf.to_container(value) == dict.fromkeys(("train", "validation", "test"))
        elif key not in stated(name):
            assert value == parameters[key].default, f"{name}: {key}"
    assert cfg.name == name, "python -m skim.hub fetch task=<name> is told to the user"


@real_data
@pytest.mark.parametrize(
    "name",
    [
        "mrpc",
        "stsb",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("cola", "rte", "sst2", "wnli", "rotten_tomatoes")),
    ],
)
def test_real_data(name: str) -> None:
    minilm = transformers.AutoTokenizer.from_pretrained(hub.model_path("sentence-transformers/all-MiniLM-L6-v2"))
    rows = {"cola": 8551, "mrpc": 3668, "rte": 2490, "sst2": 67349, "stsb": 5749, "wnli": 635, "rotten_tomatoes": 8530}
    for _ in range(2):
        task: Task = instantiate(config(f"task={name}"))
        task.setup_tokenizer(minilm)
        task.setup("fit")
        assert task.report["rows"]["train"] == rows[name]
    assert task.report["from_cache"] == {"train": True, "validation": True}
    real = padded = 0
    for batch in task.train_dataloader():
        real, padded = real + int(batch["attention_mask"].sum()), padded + batch["attention_mask"].numel()
    assert real / padded > 0.9
    text = task.example_texts(1)[0]
    assert text == tuple(text) if len(task.text_columns) == 2 else isinstance(text, str)
    task.setup("predict")
    assert ("labels" in next(iter(task.predict_dataloader()))) == (name in ("mrpc", "rotten_tomatoes"))
