"""What ``skim.compress`` takes and refuses, beside what the laws say of it: methods, and models that change after."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

import skim
from skim.engine.trace import Trace
from skim.methods import Method
from tests.families import FAMILIES, batch_of, config_of, plain
from tests.ragged import assert_same


class Hasty(Method):
    """Of a user who forgot one line."""

    def __init__(self) -> None:
        self.positions = 3


class Unweighed(Method):
    """Of a user who has penalties, and has not said what they weigh."""

    def penalties(self, trace: Trace) -> dict[str, torch.Tensor]:
        return {"spent": trace.relative_flops()}


def test_a_penalty_without_a_weight_is_named() -> None:
    model = skim.compress(plain("bert"), Unweighed())
    model(**batch_of("bert"))
    with pytest.raises(skim.SkimError, match=r"Unweighed\.penalties has 'spent', and its weights\(\)"):
        model.method.loss(model.trace)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (skim.Transkimmer, r"Transkimmer is a class of them: Transkimmer\(\)"),
        (Method, "Method is a class"),
        (Method(), "Method is what methods derive from"),
        (Hasty(), r"Hasty\.__init__ does not call super\(\)"),
        (None, "got None"),
        (0.5, r"got 0\.5"),
        ({"name": "topk"}, "got {'name': 'topk'}"),
        (torch.nn.Linear(2, 2), "got Linear"),
        ("transkimer", "Did you mean 'transkimmer'"),
        ("", "Unknown method ''"),
    ],
)
def test_what_is_no_method_is_refused_and_the_model_left_as_it_was(method: Any, says: str) -> None:
    model = plain("bert")
    with pytest.raises(skim.SkimError, match=says) as refused:
        skim.compress(model, method)
    assert str(refused.value).count("\n") <= 2
    assert vars(model).keys() == vars(plain("bert")).keys()


def test_a_method_goes_on_with_what_it_learned_on_a_model_that_is_alike() -> None:
    batch = batch_of("bert")
    model = skim.compress(plain("bert"), skim.Transkimmer(margin=0.5))
    method = model.method
    with torch.no_grad():
        wanted = model(**batch).logits
    skim.decompress(model)
    for other in (model, plain("bert")):
        skim.compress(other, method)
        with torch.no_grad():
            assert torch.equal(other(**batch).logits, wanted)
        skim.decompress(other)


def test_a_method_in_use_or_built_for_another_backbone_says_which_it_is() -> None:
    model = skim.compress(plain("bert"), skim.TopK(start=0))
    method = model.method
    with pytest.raises(skim.SkimError, match="serves another model already"):
        skim.compress(plain("bert"), method)
    with pytest.raises(skim.SkimError, match="serves another model already"):
        skim.compress(plain("bert"), copy.deepcopy(model).method)
    skim.decompress(model)
    with pytest.raises(skim.SkimError, match=r"another backbone \(layers was 3 and is 2\)"):
        skim.compress(plain("bert", num_hidden_layers=2), method)
    skim.compress(model, method)


def test_a_method_whose_building_failed_is_built_when_it_fits() -> None:
    """Half of it is there after the first try."""
    method = skim.Transkimmer(layers=(2,))
    with pytest.raises(skim.SkimError, match="layers outside"):
        skim.compress(plain("bert", num_hidden_layers=2), method)
    model = skim.compress(plain("bert"), method).eval()
    model(**batch_of("bert"))


@pytest.mark.parametrize("family", [name for name in FAMILIES if FAMILIES[name].packs])
def test_another_attention_is_refused_in_words_and_taken_back(family: str) -> None:
    model, batch = plain(family, "tokens").eval(), batch_of(family)
    wanted = model(**batch).logits
    skim.compress(model, "dense")
    model.set_attn_implementation("eager")
    with pytest.raises(skim.SkimError, match=r"'eager' after skim\.compress.*\n.*decompress"):
        model(**batch)
    model.set_attn_implementation("skim")
    assert_same(model(**batch).logits, wanted, batch["attention_mask"])
    model.set_attn_implementation("eager")
    skim.decompress(model)
    assert_same(model(**batch).logits, wanted, batch["attention_mask"])


@pytest.mark.parametrize("family", [name for name in FAMILIES if not FAMILIES[name].packs])
def test_where_attention_is_the_familys_own_the_choice_changes_nothing(family: str) -> None:
    model, batch = plain(family, "tokens").eval(), batch_of(family)
    wanted = model(**batch).logits
    skim.compress(model, "dense")
    model.set_attn_implementation("eager")
    assert_same(model(**batch).logits, wanted, batch["attention_mask"])


@pytest.mark.parametrize("what", [None, "bert-base-uncased", config_of("bert"), transformers.BertModel])
def test_a_model_that_is_none_is_refused(what: Any) -> None:
    with pytest.raises(skim.SkimError, match="takes a model of transformers, loaded, and got "):
        skim.compress(what, "dense")


def test_a_part_of_a_model_is_none() -> None:
    model = plain("bert")
    with pytest.raises(skim.SkimError, match="BertEncoder is a part of a transformers model"):
        skim.compress(model.bert.encoder, "dense")


def test_compressing_around_or_inside_a_compressed_model_is_refused() -> None:
    inner = plain("bert")
    skim.compress(inner.bert, "dense")
    with pytest.raises(skim.SkimError, match="already, by itself"):
        skim.compress(inner, "topk")
    outer = skim.compress(plain("bert"), "dense")
    with pytest.raises(skim.SkimError, match="already"):
        skim.compress(outer.bert, "topk")
    other = plain("bert", "tokens")
    other.bert = outer.bert
    with pytest.raises(skim.SkimError, match="under another head"):
        skim.compress(other, "topk")
    layers = plain("bert")
    layers.bert.encoder = outer.bert.encoder
    with pytest.raises(skim.SkimError, match="under another head"):
        skim.compress(layers, "dense")
    with torch.no_grad():
        wanted = outer(**batch_of("bert")).logits
        skim.decompress(outer)
        assert_same(skim.compress(outer, "dense")(**batch_of("bert")).logits, wanted)
