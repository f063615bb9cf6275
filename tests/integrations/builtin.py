"""The built-in texts as a Trainer's user has them: a tokenizer, two data sets, a tiny model from scratch."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

from tasks.data.builtin import tokenizer_of
from tasks.data.grammar import examples


@cache
def tokenizer() -> Any:
    return tokenizer_of({word for row in examples(2000, "train") for word in row["text"].split()})


@cache
def rows(split: str, count: int) -> Dataset:
    return Dataset.from_list(
        [{**tokenizer()(row["text"]), "labels": row["labels"]} for row in examples(count, split)],
    )


def fresh(**options: Any) -> BertForSequenceClassification:
    set_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96} | options
    return BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer()), pad_token_id=0, **sizes))


def trainer(model: Any, folder: Path, callbacks: list, **options: Any) -> Trainer:
    settings = {
        "max_steps": 60,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "learning_rate": 2e-3,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
    }
    arguments = TrainingArguments(str(folder), **settings | options)
    return Trainer(
        model,
        arguments,
        # no more than are trained on: with a target, as many as there are, up to 512, are calibrated on
        train_dataset=rows("train", arguments.max_steps * arguments.per_device_train_batch_size),
        eval_dataset=rows("validation", 200),
        processing_class=tokenizer(),
        callbacks=callbacks,
    )
