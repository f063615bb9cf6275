"""A SentenceTransformer and a CrossEncoder are compressed by their transformer; what is around it stays as it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import skim
from skim.engine.walk import walk_of
from tests.families import PAD, config_of, enliven

sentences = pytest.importorskip("sentence_transformers")

TEXTS = ["a b c d e f g h", "i j", "k l m n o p q r s t u", "v w x y z"]
WORDS = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]


def folder_of(folder: Path, kind: str, **options: Any) -> str:
    """A tiny BERT with a tokenizer of letters, as transformers saves them."""
    model = getattr(transformers, kind)(config_of("bert", **options))
    enliven(model, 0)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    assert WORDS.index("[PAD]") == PAD
    transformers.BertTokenizer(str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return sentences.SentenceTransformer(folder_of(tmp_path_factory.mktemp("st"), "BertModel"), device="cpu")


def encoded(model: Any) -> np.ndarray:
    return model.encode(TEXTS, batch_size=3, show_progress_bar=False)


def test_dense_gives_the_same_embeddings_and_decompress_undoes_it(embedder: Any) -> None:
    model = copy.deepcopy(embedder)
    wanted, names = encoded(model), set(model.state_dict())
    assert skim.compress(model, "dense") is model
    np.testing.assert_allclose(encoded(model), wanted, atol=1e-5)
    assert model.trace.execution == "packed"
    assert model.trace.relative_flops() == 1
    skim.decompress(model)
    assert not hasattr(model, "trace")
    assert set(model.state_dict()) == names
    np.testing.assert_array_equal(encoded(model), wanted)


def test_packed_equals_masked_while_tokens_leave(embedder: Any, tmp_path: Path) -> None:
    model = skim.compress(copy.deepcopy(embedder), skim.TopK(start=0, token_keep_rate=0.2))
    wanted = encoded(model)
    assert model.trace.relative_flops() < 0.8
    assert np.abs(wanted - encoded(embedder)).max() > 1e-3
    with skim.execution(model, "masked"):
        np.testing.assert_allclose(encoded(model), wanted, atol=1e-5)
        assert model.trace.execution == "masked"
    with skim.uncompressed(model):
        np.testing.assert_allclose(encoded(model), encoded(embedder), atol=1e-5)


def test_saved_and_loaded(embedder: Any, tmp_path: Path) -> None:
    """Both of its own ``save_pretrained`` and skim's; the plain library reads the folder as well."""
    model = skim.compress(copy.deepcopy(embedder), skim.Transkimmer(margin=0.1))
    enliven(walk_of(model).method, 1)
    skim.save_pretrained(model, tmp_path / "one")
    model.save_pretrained(str(tmp_path / "two"))
    for folder in (tmp_path / "one", tmp_path / "two"):
        plain = sentences.SentenceTransformer(str(folder), device="cpu")
        np.testing.assert_allclose(encoded(plain), encoded(embedder), atol=1e-6)
        loaded = skim.from_pretrained(folder, base=plain)
        assert loaded is plain
        np.testing.assert_allclose(encoded(loaded), encoded(model), atol=1e-6)
        assert type(skim.from_pretrained(folder)) is transformers.BertModel


def test_a_cross_encoder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "BertForSequenceClassification", num_labels=1)
    model = sentences.CrossEncoder(folder, device="cpu")
    pairs = [("a b c", "d e f g"), ("h", "i")]
    wanted = model.predict(pairs, show_progress_bar=False)
    skim.compress(model, "dense")
    np.testing.assert_allclose(model.predict(pairs, show_progress_bar=False), wanted, atol=1e-5)
    assert model.trace.lengths.tolist() == [10, 5]


def test_what_has_no_transformer_first_is_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(skim.SkimError, match="'Sequential'"):
        skim.compress(model, "dense")
