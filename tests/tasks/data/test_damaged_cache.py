"""Tables that are made once: one that is cut or damaged on the disk is named and made anew."""

from __future__ import annotations

import logging
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tasks.data.cache import cached, mapped


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path / "skim"


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: data.replace(b"text", b"texd")])
def test_a_damaged_table_of_a_file_is_made_anew(damage, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = []

    def make():
        made.append(1)
        return pa.table({"text": ["a text", "another"]}), []

    for _ in range(2):
        assert cached("key", make)["text"] == ["a text", "another"]
    assert len(made) == 1
    file = cache / "files" / "key.arrow"
    file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert cached("key", make)["text"] == ["a text", "another"]
    assert len(made) == 2
    assert "key.arrow is not as it was written" in caplog.text
    assert cached("key", make)["text"] == ["a text", "another"]
    assert len(made) == 2


def test_damaged_tokens_are_made_anew_and_an_old_cache_without_a_sum_is_taken(cache: Path) -> None:
    words = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]})
    rows._fingerprint = "rows"
    calls = []

    def encode(some):
        calls.append(1)
        return {"ids": [[len(text)] for text in some["text"]]}

    def once():
        return mapped(rows, encode, tokenizer, ["key"])

    first, from_cache = once()
    assert (first["ids"][:], from_cache, first.column_names) == ([[1], [1]], False, ["ids"])
    again, from_cache = once()
    assert (again["ids"][:], from_cache, again._fingerprint) == ([[1], [1]], True, first._fingerprint)
    (file,) = cache.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-50])
    again, from_cache = once()
    assert (again["ids"][:], from_cache, len(calls)) == ([[1], [1]], False, 2)
    Path(f"{file}.sum").unlink()
    assert once()[1]
    assert sorted(path.suffix for path in cache.iterdir()) == [".arrow", ".lock"], "nothing is left beside it"


def test_no_rows_need_no_file(cache: Path) -> None:
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")))
    table, from_cache = mapped(datasets.Dataset.from_dict({"text": []}), lambda some: {"ids": []}, words, [])
    assert (len(table), from_cache) == (0, False)
