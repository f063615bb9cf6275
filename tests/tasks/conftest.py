"""A small tokenizer with token types, and caches that no other test has filled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import BertTokenizer

# streams of parquet end without the seconds of sleep in which datasets waits for a server's threads; for the whole
# process, because a stream ends when it is collected, and that may be in a later test
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0

WORDS = "a good bad film soup the was not very and it is".split()


@pytest.fixture
def tokenizer() -> Any:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={name: i for i, name in enumerate(names)}, model_max_length=64)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def in_order(task: Any) -> dict[str, torch.Tensor]:
    """All validation rows as one batch, in the file's order."""
    (batch,) = task.val_dataloader()
    order = batch["row"].argsort()
    return {name: tensor[order] for name, tensor in batch.items()}
