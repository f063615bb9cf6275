"""The length filter: exact counts on both sides of its bounds, in every part, before truncation and subsampling."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from skim import hub
from skim.errors import SkimError
from skim.lightning.check import check
from tasks.base import Task
from tasks.builtin import Builtin, examples
from tasks.text import Text

CONF = Path(__file__).resolve().parents[2] / "conf"


def write(path: Path, lengths: list[int]) -> str:
    """A csv file of texts of that many tokens, special ones included; every other one is good."""
    rows = [f"{'a ' * (tokens - 2)},{'good' if i % 2 else 'bad'}" for i, tokens in enumerate(lengths)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return str(path)


def make(folder: Path, tokenizer: Any, train: list[int], validation: list[int], **settings: Any) -> Text:
    """A task on files of texts of those lengths."""
    files = {"train": write(folder / "train.csv", train), "validation": write(folder / "validation.csv", validation)}
    return made(tokenizer, **{"files": files, **settings})


def made(tokenizer: Any, **settings: Any) -> Text:
    """A task, ready for its loaders."""
    task = Text(name="text", **settings)
    task.setup_tokenizer(tokenizer)
    task.setup("fit")
    return task


def lengths(loader: Any) -> list[int]:
    """Tokens of every row that a loader gives, in order of size."""
    return sorted(n for batch in loader for n in batch["attention_mask"].sum(1).tolist())


TRAIN, VALIDATION = [3, 4, 5, 6, 7, 8, 9, 20], [2, 5, 5, 8, 12]


@pytest.mark.parametrize(
    ("bounds", "train", "validation"),
    [
        ({}, TRAIN, VALIDATION),
        ({"length_min": 5}, [5, 6, 7, 8, 9, 20], [5, 5, 8, 12]),
        ({"length_max": 8}, [3, 4, 5, 6, 7, 8], [2, 5, 5, 8]),
        ({"length_min": 5, "length_max": 8}, [5, 6, 7, 8], [5, 5, 8]),
        ({"length_min": 5, "length_max": 5}, [5], [5, 5]),
        ({"length_min": 1, "length_max": 1000}, TRAIN, VALIDATION),
    ],
)
def test_bounds_belong_to_what_is_kept(
    tmp_path: Path,
    tokenizer: Any,
    caplog: pytest.LogCaptureFixture,
    bounds: dict[str, int],
    train: list[int],
    validation: list[int],
) -> None:
    with caplog.at_level(logging.WARNING):
        task = make(tmp_path, tokenizer, TRAIN, VALIDATION, **bounds)
    assert lengths(task.train_dataloader()) == train
    assert lengths(task.val_dataloader()) == validation
    left_out = {"train": 8 - len(train), "validation": 5 - len(validation)}
    assert task.report["left_out"] == left_out
    assert task.report["rows"] == {"train": len(train), "validation": len(validation)}
    shown = ", ".join(f"task.{key}={bound}" for key, bound in bounds.items())
    for part, of in (("train", 8), ("validation", 5)):
        line = f"{part}: {left_out[part]} of {of} texts were left out ({shown})"
        assert (line in caplog.messages) == (left_out[part] > 0)


def test_labels_stay_with_their_rows(tmp_path: Path, tokenizer: Any) -> None:
    task = make(tmp_path, tokenizer, TRAIN, TRAIN, length_min=5, length_max=9)
    assert task.label_names == ["bad", "good"]
    batch = next(iter(task.val_dataloader()))
    assert torch.equal(batch["labels"], (batch["attention_mask"].sum(1) + 1) % 2)  # texts of 4, 6, 8 tokens are good
    assert sorted(len(text.split()) + 2 for text in task.example_texts(9)) == [5, 6, 7, 8, 9]


def test_tokens_are_counted_before_truncation(tmp_path: Path, tokenizer: Any) -> None:
    short = make(tmp_path, tokenizer, TRAIN, [*TRAIN, 100], length_max=8, max_length=4)
    assert lengths(short.train_dataloader()) == [3, 4, 4, 4, 4, 4]
    assert short.report["left_out"] == {"train": 2, "validation": 3}
    assert short.report["truncated"] == {"train": 4, "validation": 4}  # of the rows that are left
    long = make(tmp_path, tokenizer, TRAIN, [*TRAIN, 100], length_min=9, max_length=4)
    assert lengths(long.val_dataloader()) == [4, 4, 4]
    beyond = make(tmp_path, tokenizer, [3, 4, 65, 66], [3, 66], length_min=66)  # the tokenizer's own maximum is 64
    assert beyond.report["rows"] == {"train": 1, "validation": 1}


def test_a_call_that_leaves_truncation_behind_changes_no_count(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer("a a a", truncation=True, padding="max_length", max_length=4)
    assert lengths(make(tmp_path, tokenizer, TRAIN, VALIDATION, length_min=8).train_dataloader()) == [8, 9, 20]


def test_pairs_are_counted_together(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "pairs.csv").write_text("one,two,label\na good film,soup,0\na,bad film,1\na,bad,0\n")
    file = str(tmp_path / "pairs.csv")  # 7, 6 and 5 tokens, with one [CLS] and two [SEP]
    files = {"train": file, "validation": file}
    task = made(tokenizer, files=files, text_columns=["one", "two"], length_min=6, length_max=6)
    assert lengths(task.val_dataloader()) == [6]
    assert task.example_texts(3) == [("a", "bad film")]


def test_every_part_is_filtered_and_no_other_is_loaded(tmp_path: Path, tokenizer: Any) -> None:
    test = write(tmp_path / "test.csv", [4, 10])
    task = make(tmp_path, tokenizer, TRAIN, VALIDATION, length_max=8)
    task.files["test"] = test
    task.setup("test")
    assert lengths(task.test_dataloader()) == [4]
    assert task.report["left_out"] == {"train": 2, "validation": 1, "test": 1}
    alone = Text(name="text", files=task.files, length_min=9)
    alone.setup_tokenizer(tokenizer)
    alone.setup("validate")
    assert lengths(alone.val_dataloader()) == [12]
    assert alone.report["left_out"] == {"validation": 4}


def test_subsamples_are_of_the_rows_that_fit(tmp_path: Path, tokenizer: Any) -> None:
    many = list(range(3, 63))
    bounds: dict[str, Any] = {"length_min": 10, "length_max": 29}
    found = [
        make(tmp_path, tokenizer, many, many, max_train_samples=12, max_eval_samples=8, seed=seed, **bounds)
        for seed in (1, 2)
    ]
    train, validation = lengths(found[0].train_dataloader()), lengths(found[0].val_dataloader())
    assert (len(train), len(validation)) == (12, 8)
    assert set(train) | set(validation) <= set(range(10, 30))
    assert lengths(found[1].train_dataloader()) == train
    assert found[0].report["left_out"] == {"train": 40, "validation": 40}
    more = make(tmp_path, tokenizer, many, many, max_train_samples=50, **bounds)  # more than are left: all of them
    assert lengths(more.train_dataloader()) == list(range(10, 30))


def test_bounds_move_no_row_from_one_part_of_a_holdout_to_the_other(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "all.csv", list(range(3, 63)))

    def parts(**bounds: int) -> list[set[int]]:
        task = made(tokenizer, files={"train": file}, holdout=0.25, **bounds)
        return [set(lengths(task.train_dataloader())), set(lengths(task.val_dataloader()))]

    for bounds in ({"length_max": 40}, {"length_min": 41}):
        wanted = set(range(3, 41)) if "length_max" in bounds else set(range(41, 63))
        assert parts(**bounds) == [rows & wanted for rows in parts()]


def test_caches_hold_what_their_bounds_let_through(tmp_path: Path, tokenizer: Any) -> None:
    files = {"train": write(tmp_path / "train.csv", TRAIN), "validation": write(tmp_path / "dev.csv", VALIDATION)}

    def cached(**bounds: int) -> tuple[bool, list[int]]:
        task = made(tokenizer, files=files, **bounds)
        return task.report["from_cache"]["train"], lengths(task.train_dataloader())

    for _ in range(2):  # made, then found again
        assert cached()[1] == TRAIN
        assert cached(length_max=8)[1] == [3, 4, 5, 6, 7, 8]
        assert cached(length_max=7)[1] == [3, 4, 5, 6, 7]
        assert cached(length_min=8)[1] == [8, 9, 20]
    assert cached(length_max=8)[0]
    assert not cached(length_max=6)[0]
    tokenizer.add_tokens(["a a"])  # other tokens, other counts
    assert cached(length_max=7) == (False, [3, 3, 4, 4, 5, 5, 6])


def test_lengths_are_counted_once_whatever_the_bounds(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    count = Text.count
    monkeypatch.setattr(Text, "count", lambda self, rows: counted.append(len(rows["text"])) or count(self, rows))
    files = {"train": write(tmp_path / "train.csv", TRAIN), "validation": write(tmp_path / "dev.csv", VALIDATION)}
    made(tokenizer, files=files)
    assert not counted
    for bound in (8, 7, 8):
        made(tokenizer, files=files, length_max=bound)
    assert sorted(counted) == [5, 8]


def test_builtin() -> None:
    def builtin(**bounds: int) -> Builtin:
        task = Builtin(train_rows=300, eval_rows=100, **bounds)
        task.setup_tokenizer(task.own_tokenizer())
        task.setup("fit")
        return task

    # one token per word, [CLS] and [SEP]
    sizes = {"train": 300, "validation": 100}
    words = {part: sorted(len(row["text"].split()) + 2 for row in examples(n, part)) for part, n in sizes.items()}
    middle = words["train"][150]
    short, long = builtin(length_max=middle), builtin(length_min=middle + 1)
    for part, loader in (("train", "train_dataloader"), ("validation", "val_dataloader")):
        assert lengths(getattr(short, loader)()) == [n for n in words[part] if n <= middle]
        assert lengths(getattr(long, loader)()) == [n for n in words[part] if n > middle]
        assert short.report["left_out"][part] == long.report["rows"][part] > 0
    assert next(iter(long.val_dataloader()))["salient"].any(1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length_min": 9, "length_max": 8}, r"task\.length_min=9 is above task\.length_max=8.*Lower.*raise.*null"),
        ({"length_min": 0}, r"length_min=0.*at least 1"),
        ({"length_max": -3}, r"length_max=-3.*at least 1"),
        ({"length_min": 21}, r"train\.csv: task\.length_min=21 leaves no rows; its texts have 3 to 20 tokens.*Change"),
        ({"length_min": 10, "length_max": 11}, r"train\.csv: task\.length_min=10, task\.length_max=11 leaves no rows"),
        ({"length_min": 13}, r"validation\.csv: task\.length_min=13 leaves no rows; its texts have 2 to 12 tokens"),
    ],
)
def test_wrong_bounds(tmp_path: Path, tokenizer: Any, settings: dict[str, int], message: str) -> None:
    with pytest.raises(SkimError, match=f"(?s){message}"):
        make(tmp_path, tokenizer, TRAIN, VALIDATION, **settings)


@pytest.mark.parametrize("key", ["length_min", "length_max"])
@pytest.mark.parametrize("value", [0, 2.5, "short", True])
def test_bounds_of_a_config_are_whole_numbers(key: str, value: Any) -> None:
    own = {"_target_": "tasks.text.Text", "name": "own"}
    with pytest.raises(SkimError, match=rf"(?i)task\.{key}={value} must be a whole number, at least 1"):
        check(OmegaConf.create({"task": {**own, key: value}}))
    check(OmegaConf.create({"task": {**own, key: None}}))


@pytest.mark.skipif(not os.environ.get("SKIM_MIRROR"), reason="needs real data: set SKIM_MIRROR")
def test_the_robustness_experiment_trains_on_the_shorter_half_of_mrpc() -> None:
    median = int(OmegaConf.load(CONF / "experiment" / "ltp_length_robustness.yaml").task.length_max)
    backbone = OmegaConf.load(CONF / "backbone" / "minilm.yaml")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["task=mrpc", f"task.length_max={median}"])
    task: Task = instantiate(cfg.task)
    task.setup_tokenizer(transformers.AutoTokenizer.from_pretrained(hub.model_path(backbone.hub_id)))
    task.setup("fit")
    assert max(lengths(task.train_dataloader())) == median
    assert task.report["rows"] == {"train": 1851, "validation": 209}
    assert task.report["left_out"] == {"train": 1817, "validation": 199}
