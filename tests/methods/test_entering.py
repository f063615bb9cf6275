"""Truncation, random tokens and stop words: what they keep, and that it is gone before the first layer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import skim
from skim.benchmark.comparison import plain_twin
from skim.calibration import calibrate, spend
from skim.methods.random_tokens import lots
from skim.methods.truncate import truncation_order
from tests.families import CLS, SEP, batch_of, plain
from tests.ragged import assert_same

WORDS = "the of movie fine ##rapy ##ever what was , ' don t The".split()


def tokenizer_of(kind: str) -> Any:
    """A small tokenizer: of pieces behind ``##``, or of pieces that begin with a space."""
    if kind == "wordpiece":
        pieces = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *WORDS]
        made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    else:
        pieces = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *"theofrapymviwas,Ċ", "th", "the", "Ġt", "Ġth", "Ġthe", "ra", "Ġ"]
        pieces = list(dict.fromkeys(pieces))
        merges = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("t", "h"), ("th", "e"), ("r", "a")]
        made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="[UNK]" if kind == "wordpiece" else None,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def left(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Tokens that enter the first layer, ``(B, N)`` bool."""
    with torch.no_grad():
        model(**batch)
    assert model.trace.execution == "packed"
    alive = model.trace.alive()
    assert all(torch.equal(alive[0], layer) for layer in alive)
    return alive[0]


# --- truncation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [(9, 0), (2, 9), (9, 2), (6, 6), (7, 6), (6, 7), (3, 3), (1, 1)])
def test_truncation_keeps_what_the_tokenizer_keeps(first: int, second: int) -> None:
    tokenizer = tokenizer_of("wordpiece")
    texts = [" ".join(["movie", "fine", "was"][i % 3] for i in range(length)) for length in (first, second) if length]
    ids = torch.tensor([tokenizer(*texts).input_ids])
    special = (ids == 2) | (ids == 3)
    order = truncation_order(torch.ones_like(ids).bool(), special)
    for tokens in range(int(special.sum()) + len(texts), ids.shape[1] + 1):
        wanted = tokenizer(*texts, truncation="longest_first", max_length=tokens).input_ids
        assert ids[order < tokens].tolist() == wanted, tokens


def test_truncation_is_a_plain_model_on_the_truncated_text() -> None:
    """The same logits, where the last [SEP] is told the position that it has."""
    model = skim.compress(plain("bert", "classification"), skim.Truncate(tokens=6)).eval()
    ids = torch.randint(10, 50, (2, 12))
    ids[:, 0], ids[:, -1] = CLS, SEP
    kept = [0, 1, 2, 3, 4, 11]
    with torch.no_grad():
        found = model(input_ids=ids).logits
        wanted = plain_twin(model)(input_ids=ids[:, kept], position_ids=torch.tensor([kept])).logits
        whole = plain_twin(model)(input_ids=ids).logits
    assert_same(found, wanted)
    assert (found - whole).abs().max() > 1e-3
    assert model.trace.counts().tolist() == [[6.0, 6.0]] * 3


def test_short_inputs_lose_nothing_and_states_of_tokens_that_are_gone_are_their_embeddings() -> None:
    model = skim.compress(plain("bert", "tokens"), skim.Truncate(tokens=8)).eval()
    batch = batch_of("bert", (5, 14))
    entered = left(model, batch)
    assert entered.sum(1).tolist() == [5, 8]
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    gone = batch["attention_mask"].bool() & ~entered
    assert torch.equal(states[-1][gone], states[0][gone])


@pytest.mark.parametrize("make", [lambda: skim.Truncate(tokens=2), lambda: skim.RandomTokens(share=0.1)])
def test_a_target_is_met(make: Any) -> None:
    model = skim.compress(plain("bert", "classification"), make())
    batches = [batch_of("bert", (20, 25, 30, 30, 28, 12), seed=seed) for seed in range(3)]
    assert spend(model, batches) < 0.2
    assert calibrate(model, batches, 0.5) == pytest.approx(0.5, abs=0.02)


def test_embeddings_alone_are_refused() -> None:
    model = skim.compress(plain("bert", "classification"), skim.Truncate()).eval()
    with pytest.raises(skim.SkimError, match="needs input_ids"):
        model(inputs_embeds=torch.zeros(1, 4, 32))


# --- random tokens ----------------------------------------------------------------------------------------------------


def test_the_same_text_loses_the_same_tokens_wherever_it_stands() -> None:
    model = skim.compress(plain("bert", "classification"), skim.RandomTokens(share=0.5)).eval()
    batch = batch_of("bert", (9, 30, 30))
    alone = {name: value[:1, :9] for name, value in batch.items()}
    other = alone["input_ids"].clone()
    other[0, 4] = 9 + (other[0, 4] == 9)
    first, again, changed = left(model, batch)[0, :9], left(model, alone)[0], left(model, alone | {"input_ids": other})
    assert torch.equal(first, again)
    assert first.sum() == 4  # half of nine, to even; [CLS] among them
    assert first[0]
    assert not torch.equal(first, changed[0])


def test_every_place_has_its_chance() -> None:
    torch.manual_seed(0)
    ids = torch.randint(5, 30_000, (4000, 20))
    ids[:, 0] = CLS
    drawn = lots(ids, torch.ones_like(ids).bool()).double() / 2**31
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert (drawn.mean(0) - 0.5).abs().max() < 0.02
    assert (torch.corrcoef(drawn.T) - torch.eye(20)).abs().max() < 0.08


# --- stop words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "stays"),
    [
        ("wordpiece", "the movie was fine", "movie fine"),
        ("wordpiece", "The therapy whatever", "the ##rapy"),
        ("wordpiece", "what movie whatever", "what movie"),
        ("wordpiece", "fine , the ' t", "fine , ' t"),
        ("bpe", "the movie", "Ġ m o v i e"),
        ("bpe", "a therapy, the", "a Ġthe ra p y ,"),
        ("bpe", "a\nthe", "a Ċ"),
    ],
)
def test_stop_words_go_as_whole_words(kind: str, text: str, stays: str) -> None:
    tokenizer = tokenizer_of(kind)
    model = plain("bert", "classification")
    method = skim.StopWords(words=("the", "was", "whatever") if kind == "wordpiece" else ("the",))
    method.read(tokenizer)
    batch = tokenizer(text, return_tensors="pt")
    entered = left(skim.compress(model, method).eval(), {"input_ids": batch.input_ids})
    kept = tokenizer.convert_ids_to_tokens(batch.input_ids[entered].tolist())
    assert kept == ["[CLS]", *stays.split(), "[SEP]"]


def test_it_is_saved_with_what_it_has_read(tmp_path: Path) -> None:
    method = skim.StopWords(words=("the", "whatever"))
    model = skim.compress(plain("bert", "classification"), method).eval()
    ids = {"input_ids": tokenizer_of("wordpiece")("the movie whatever", return_tensors="pt").input_ids}
    with pytest.raises(skim.SkimError, match=r"model\.method\.read\(tokenizer\)"):
        model(**ids)
    method.read(tokenizer_of("wordpiece"))
    skim.save_pretrained(model, tmp_path)
    assert left(skim.from_pretrained(tmp_path), ids).tolist() == left(model, ids).tolist() == [[1, 0, 1, 0, 0, 1]]


def test_a_word_that_is_none_is_refused() -> None:
    with pytest.raises(skim.SkimError, match="'don't' is none"):
        skim.StopWords(words=("the", "don't")).read(tokenizer_of("wordpiece"))


def test_the_english_ones_are_those_of_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"):
        monkeypatch.setenv(name, "True")  # which scikit-learn sets
    text = pytest.importorskip("sklearn.feature_extraction.text")
    method = skim.StopWords()
    method.read(tokenizer_of("wordpiece"))
    assert {"the", "of", "whatever", "what", "was"} <= text.ENGLISH_STOP_WORDS
    known = [method.code_of(word, tokenizer_of("wordpiece")) for word in ("the", "The", "of", "whatever", "what")]
    assert set(known) <= set(method.codes.tolist())
    assert method.code_of("movie", tokenizer_of("wordpiece")) not in method.codes.tolist()
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(skim.SkimError, match=r"skim\[stop-words\]"):
        method.read(tokenizer_of("wordpiece"))


def test_a_chain_hands_the_tokenizer_on() -> None:
    chain = skim.Chain([skim.LayerDrop(2), skim.StopWords(words=("the",))])
    chain.read(tokenizer_of("wordpiece"))
    assert len(chain.members[1].codes) == 2  # the, The
