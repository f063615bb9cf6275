"""The grammar is the same everywhere, and its salient tokens decide the label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from skim.errors import SkimError
from tasks.builtin import Builtin
from tasks.data.grammar import BAD, GOOD, NEGATIONS, examples


def make(tokenizer: Any = None, **settings: Any) -> Builtin:
    task = Builtin(**{"train_rows": 300, "eval_rows": 100, **settings})
    task.setup_tokenizer(tokenizer or task.own_tokenizer())
    task.setup("fit")
    return task


def verdict(words: list[str]) -> int:
    """The label, from the salient words alone."""
    return int((words[-1] in GOOD) != (words[0] in NEGATIONS))


def test_the_same_texts_on_every_machine() -> None:
    assert examples(3, "train") == examples(5, "train")[:3]
    first = examples(1, "train")[0]
    assert first["text"] == "it was a cold evening , the story was hardly horrible , and it was a windy morning ."
    assert first["labels"] == 1


def test_splits_share_no_text_and_labels_are_balanced() -> None:
    texts = {split: [row["text"] for row in examples(1000, split)] for split in ("train", "validation", "test")}
    assert len(set().union(*texts.values())) == 3000
    for split in texts:
        assert 0.45 < sum(row["labels"] for row in examples(1000, split)) / 1000 < 0.55


def test_salient_words_decide_the_label_and_the_adjective_alone_does_not() -> None:
    rows = examples(2000, "train")
    words = [[row["text"][a:b] for a, b in row["salient"]] for row in rows]
    assert all(verdict(found) == row["labels"] for found, row in zip(words, rows, strict=True))
    adjective = sum((found[-1] in GOOD) == row["labels"] for found, row in zip(words, rows, strict=True)) / len(rows)
    assert adjective < 0.7
    # nothing else speaks: no adjective or negation of an opinion stands anywhere else in a text
    for found, row in zip(words, rows, strict=True):
        assert [word for word in row["text"].split() if word in {*GOOD, *BAD, *NEGATIONS}] == found


def test_lengths() -> None:
    lengths = [len(row["text"].split()) for row in examples(4000, "train")]
    assert min(lengths) >= 8
    assert max(lengths) <= 60


def test_salient_tokens_of_the_word_level_tokenizer() -> None:
    task = make()
    tokenizer = task.tokenizer
    seen = 0
    for batch in task.val_dataloader():
        assert batch["salient"].shape == batch["input_ids"].shape
        assert not (batch["salient"] & (batch["attention_mask"] == 0)).any()
        for ids, salient, label in zip(batch["input_ids"], batch["salient"], batch["labels"], strict=True):
            assert verdict(tokenizer.convert_ids_to_tokens(ids[salient])) == label
            seen += 1
    assert seen == 100
    assert tokenizer.unk_token_id not in torch.cat([batch["input_ids"].flatten() for batch in task.train_dataloader()])


def test_salient_tokens_of_a_subword_tokenizer(tokenizer: Any) -> None:
    task = make(tokenizer)  # knows few of the words; positions are right all the same
    batch = next(iter(task.val_dataloader()))
    assert batch["salient"].any(1).all()
    assert batch["salient"].sum(1).max() <= 2


def test_the_tokenizer_survives_saving(tmp_path: Any) -> None:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = Builtin().own_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    AutoConfig.for_model("bert").save_pretrained(tmp_path)  # beside a model, as in a run's folder
    text = examples(1, "test")[0]["text"]
    assert AutoTokenizer.from_pretrained(tmp_path)(text) == tokenizer(text)
    assert tokenizer.tokenize(text) == text.split()


def test_second_time_from_the_cache() -> None:
    assert not make().report["from_cache"]["train"]
    assert make().report["from_cache"] == {"train": True, "validation": True}


def test_other_splits() -> None:
    task = make(eval_split="test")
    task.setup("test")
    (text,) = task.example_texts(1)
    assert text == examples(1, "test")[0]["text"]
    assert task.report["rows"] == {"train": 300, "validation": 100, "test": 100}


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(workers: int) -> None:
    batches = list(make(num_workers=workers).train_dataloader())
    expected = list(make().train_dataloader())
    for batch, other in zip(batches, expected, strict=True):
        assert all(torch.equal(batch[name], other[name]) for name in other)


def test_lightning_reshuffles_each_epoch() -> None:
    import pytorch_lightning as pl

    class Order(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.seen: list[list[int]] = [[], []]

        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
            self.seen[self.current_epoch].append(int(batch["input_ids"].sum()))
            return self.weight * 0

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(accelerator="cpu", max_epochs=2, limit_val_batches=0, use_distributed_sampler=False, **quiet)
    order = Order()
    trainer.fit(order, datamodule=make())
    assert sorted(order.seen[0]) != order.seen[0]
    assert order.seen[0] != order.seen[1]


def test_a_budget_of_tokens_bounds_the_batches_of_all_parts() -> None:
    task = make(tokens_per_batch=160, batch_size=1, eval_batch_size=1)
    task.setup("predict")
    for loader in (task.train_dataloader(), task.val_dataloader(), task.predict_dataloader()):
        batches = list(loader)
        assert max(batch["input_ids"].numel() for batch in batches) <= 160
        assert len(batches) == len(loader) < sum(len(batch["row"]) for batch in batches) / 2  # and not by batch_size
    order = torch.cat([batch["row"] for batch in task.predict_dataloader()])
    assert order.tolist() == list(range(100))


def test_files_are_refused_and_not_left_unread(tmp_path: Path) -> None:
    with pytest.raises(SkimError, match=r"reads none of task\.files\.validation=.*\n.*task=text"):
        Builtin(files={"train": None, "validation": str(tmp_path / "mine.csv")})
    Builtin(files={"validation": None})
