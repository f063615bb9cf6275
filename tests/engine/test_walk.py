"""The walk in real models: what it refuses, what it leaves alone, and the traps of the stack that live in it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

import skim
from skim.backbones.bert import Bert
from skim.methods.transkimmer import Transkimmer
from tests.families import FAMILIES, SEP, batch_of, config_of, labels_of, plain
from tests.methods.table import METHODS
from tests.ragged import Scripted, assert_same, is_ragged, ragged

BATCH = batch_of("bert")
LABELS = labels_of("classification", BATCH)


# --- what it refuses --------------------------------------------------------------------------------------------------


def test_a_layer_called_outside_the_forward_is_an_error() -> None:
    """Its attention would know no mask and attend to padding."""
    model = skim.compress(plain("bert"), "dense")
    with pytest.raises(skim.SkimError, match="outside skim's forward"):
        model.bert.encoder.layer[0](torch.zeros(1, 3, 32))


@pytest.mark.parametrize("extra", ["head_mask", "encoder_hidden_states", "atention_mask"])
def test_a_keyword_that_would_be_ignored_is_an_error(extra: str) -> None:
    """transformers 5 accepts ``head_mask`` and any other name, and does nothing with them."""
    model = skim.compress(plain("bert"), "dense")
    with pytest.raises(skim.SkimError, match=extra):
        model(**BATCH, **{extra: torch.ones(1)})


def test_keywords_of_the_head_and_of_decoders_pass() -> None:
    model = skim.compress(plain("bert"), "dense")
    model(**BATCH, **LABELS, num_items_in_batch=4, use_cache=False)
    model(**BATCH, head_mask=None)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"attention_mask": torch.ones(4, 1, 13, 13)}, "4 dimensions"),
        ({"output_attentions": True}, "output_attentions"),
        ({"input_ids": None}, "exactly one"),
        ({"inputs_embeds": torch.zeros(4, 13, 32)}, "exactly one"),
        ({"input_ids": BATCH}, "input_ids is a dict.*return_tensors"),
        ({"attention_mask": BATCH["attention_mask"].tolist()}, "attention_mask is a list"),
        ({"token_type_ids": BATCH["token_type_ids"].numpy()}, "token_type_ids is a ndarray"),
    ],
)
def test_inputs_that_cannot_be_are_errors(wrong: dict, words: str) -> None:
    model = skim.compress(plain("bert"), "dense")
    with pytest.raises(skim.SkimError, match=words):
        model(**(BATCH | wrong))


def test_an_attention_that_ignores_its_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = skim.compress(plain("bert"), "dense")
    monkeypatch.setattr(Bert, "attend", lambda self, layer, hidden, mask, geometry: hidden)
    with pytest.raises(skim.SkimError, match="ignored its attention mask"):
        model(**BATCH)


def test_a_softmax_that_is_not_the_known_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a family stop calling ``torch.nn.functional.softmax``, it must not run unmasked."""
    model = skim.compress(plain("mpnet"), "dense")
    monkeypatch.setattr(
        transformers.models.mpnet.modeling_mpnet.nn.functional, "softmax", lambda x, dim: x.softmax(dim)
    )
    with pytest.raises(skim.SkimError, match="ignored its attention mask"):
        model(**batch_of("mpnet"))


def test_executions_that_cannot_be_are_errors() -> None:
    with pytest.raises(skim.SkimError, match="cannot run packed"):
        skim.compress(plain("mpnet"), "dense", execution="packed")
    with pytest.raises(skim.SkimError, match="after the softmax cannot run packed"):
        skim.compress(plain("bert"), Transkimmer(preset="paper"), execution="packed")
    with pytest.raises(skim.SkimError, match="Did you mean 'packed'"):
        skim.compress(plain("bert"), "dense", execution="pakced")
    model = skim.compress(plain("bert"), "dense")
    with pytest.raises(skim.SkimError, match="compressed already"):
        skim.compress(model, "dense")
    with pytest.raises(skim.SkimError, match="not compressed"):
        skim.decompress(plain("bert"))


# --- what it leaves alone ---------------------------------------------------------------------------------------------


def test_models_of_one_config_are_not_both_switched() -> None:
    """transformers writes the attention choice into the config, which two models may share."""
    config = BertConfig(**{**config_of("bert").to_dict(), "num_labels": 3})
    one, other = BertForSequenceClassification(config).eval(), BertForSequenceClassification(config).eval()
    wanted = other(**BATCH).logits
    skim.compress(one, "dense")
    assert other.config._attn_implementation != "skim"
    assert torch.equal(other(**BATCH).logits, wanted)
    assert one(**BATCH).logits.shape == (4, 3)


def test_a_base_model_without_a_head() -> None:
    model = BertModel(config_of("bert")).eval()
    names = set(model.state_dict())
    with torch.no_grad():
        wanted = model(**BATCH)
        found = skim.compress(model, "dense")(**BATCH)
    assert_same(found.pooler_output, wanted.pooler_output)
    assert set(skim.decompress(model).state_dict()) == names


def test_a_deep_copy_is_independent() -> None:
    """Also right after a training step, whose trace holds a graph that cannot be copied."""
    model = ragged(plain("bert"), BATCH, METHODS["transkimmer"])
    with torch.no_grad():
        wanted = model(**BATCH).logits
    model.train()(**BATCH, **LABELS).loss.backward()
    other = copy.deepcopy(model.eval())
    assert other.skim_walk.base is other.bert
    assert other.skim_walk.method is other.method
    with pytest.raises(skim.SkimError, match="has run none yet"):
        _ = other.trace
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        other(**BATCH)
        assert torch.equal(model(**BATCH).logits, wanted)
    skim.decompress(other)
    assert hasattr(model, "skim_walk")


def test_a_compressed_model_can_be_pickled() -> None:
    model = ragged(plain("bert"), BATCH, METHODS["transkimmer"])
    with torch.no_grad():
        wanted = model(**BATCH, output_hidden_states=True).logits
        again = pickle.loads(pickle.dumps(model))
        assert torch.equal(again(**BATCH).logits, wanted)


def test_compressing_draws_nothing_but_the_method() -> None:
    """Asking the head what it reads leaves the random numbers that a seed promised."""
    model = plain("bert", classifier_dropout=0.5).train()
    model.dropout.p = 0.5
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    skim.compress(model, "dense")
    assert torch.equal(torch.rand(3), wanted)


def test_tuples_and_positions_as_transformers_has_them() -> None:
    model = plain("bert").eval()
    compressed = skim.compress(copy.deepcopy(model), "dense")
    with torch.no_grad():
        wanted = model(BATCH["input_ids"], BATCH["attention_mask"], return_dict=False, output_hidden_states=True)
        found = compressed(BATCH["input_ids"], BATCH["attention_mask"], return_dict=False, output_hidden_states=True)
        assert_same(found[0], wanted[0])
        assert len(found[1]) == len(wanted[1])
        compressed.config.return_dict = model.config.return_dict = False
        assert isinstance(compressed(**BATCH), tuple)
        assert isinstance(compressed.bert(**BATCH), tuple)
        compressed.config.output_hidden_states = True
        assert len(compressed(**BATCH)[1]) == 4


# --- decisions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("execution", ["masked", "packed", "narrowed"])
def test_a_sequence_never_loses_its_last_token(execution: str) -> None:
    model = skim.compress(plain("bert"), Scripted(torch.zeros(3, 4, 13)), execution=execution)
    output = model(**BATCH)
    assert torch.isfinite(output.logits).all()
    assert model.trace.counts().long().tolist() == [[1, 1, 1, 1]] * 3
    assert model.trace.alive()[-1, :, 0].all()


@pytest.mark.parametrize("execution", ["masked", "packed", "narrowed"])
def test_protected_tokens_stay(execution: str) -> None:
    model = plain("bert", sep_token_id=SEP)
    skim.compress(model, Scripted(torch.zeros(3, 4, 13), protect=("cls", "sep")), execution=execution)
    model(**BATCH)
    special = BATCH["input_ids"] == SEP
    special[:, 0] = True
    assert torch.equal(model.trace.alive()[-1], special)


@pytest.mark.parametrize("execution", ["masked", "narrowed"])
def test_the_last_token_is_what_xlnet_protects(execution: str) -> None:
    batch = batch_of("xlnet")
    skim.compress(model := plain("xlnet"), Scripted(torch.zeros(3, 4, 13), protect=("cls",)), execution=execution)
    model(**batch)
    assert model.trace.alive()[-1].sum() == 4
    assert model.trace.alive()[-1, :, -1].all()


@pytest.mark.parametrize("execution", ["masked", "packed", "narrowed"])
@pytest.mark.parametrize("lengths", [(5, 0, 3), (0, 0)])
def test_a_text_of_zero_tokens_works(lengths: tuple[int, ...], execution: str) -> None:
    batch = batch_of("bert", lengths, width=5)
    model = skim.compress(plain("bert", "tokens"), Scripted(torch.ones(3, len(lengths), 5)), execution=execution)
    with torch.no_grad():
        output = model(**batch)
        assert torch.isfinite(output.logits).all()
        assert model.trace.counts()[-1].long().tolist() == list(lengths)
        if any(lengths):  # and its mates do not notice
            alone = skim.compress(plain("bert", "tokens"), "dense")(**batch_of("bert", (5,)))
            assert_same(output.logits[:1], alone.logits)


@pytest.mark.parametrize("family", ["bert", "modernbert", "albert", "mpnet", "deberta-v3", "xlnet"])
def test_training_without_decisions_to_learn_runs_packed_with_the_masked_gradients(family: str) -> None:
    """Where no gradient passes through decisions, removing tokens is exact in the backward pass, too."""
    batch = batch_of(family)
    script = torch.rand(4, *batch["input_ids"].shape) < 0.7
    inputs = batch | labels_of("tokens", batch)
    gradients = {}
    for execution in FAMILIES[family].executions:
        model = skim.compress(plain(family, "tokens"), Scripted(script, ("cls",)), execution=execution).train()
        model(**inputs, output_hidden_states=True).loss.backward()
        assert is_ragged(model.trace.counts(), model.trace.lengths)
        gradients[execution] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for execution, found in gradients.items():
        assert found.keys() == gradients["masked"].keys()
        for name, value in found.items():
            assert_same(value, gradients["masked"][name], what=f"{execution} {name}")


def test_auto_trains_masked_only_where_decisions_learn() -> None:
    model = skim.compress(plain("bert"), "dense").train()
    model(**BATCH)
    assert model.trace.execution == "packed"
    model = skim.compress(plain("bert"), Transkimmer()).train()
    model(**BATCH)
    assert model.trace.execution == "masked"
    model.eval()(**BATCH)
    assert model.trace.execution == "packed"
    with skim.execution(model, "narrowed"):
        model(**BATCH)
        assert model.trace.execution == "narrowed"
    model(**BATCH)
    assert model.trace.execution == "packed"


# --- gradient checkpointing, half precision, dropout ------------------------------------------------------------------


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.checkpoints])
def test_gradient_checkpointing_takes_each_decision_once_and_gives_the_same_gradients(family: str) -> None:
    batch = batch_of(family)
    inputs = batch | labels_of("tokens", batch)
    start = ragged(plain(family, "tokens"), batch, METHODS["transkimmer"])
    asked = []

    def step(model: nn.Module) -> dict[str, Tensor]:
        asked.clear()
        before = model.method.before_layer
        model.method.before_layer = lambda i, tokens: asked.append(i) or before(i, tokens)
        torch.manual_seed(1)
        loss = model.train()(**inputs).loss
        (loss + model.method.loss(model.trace)).backward()
        assert asked == [0, 1, 2]
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    wanted = step(copy.deepcopy(start))
    start.gradient_checkpointing_enable()
    recomputed = []
    for layer in {id(layer): layer for layer in start.skim_walk.backbone.layers(start.base_model)}.values():
        assert layer.gradient_checkpointing
    original = start.skim_walk.backbone.attend
    start.skim_walk.backbone.attend = lambda *args: recomputed.append(1) or original(*args)
    found = step(start)
    assert len(recomputed) == 6, "a half runs once forward and once more for the backward pass"
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert_same(value, wanted[name], what=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_autocast(family: str) -> None:
    """As close to full precision as transformers' own autocast is, in every execution and in training."""
    model, batch = plain(family, "tokens"), batch_of(family)
    real = batch["attention_mask"].bool()
    compressed = skim.compress(copy.deepcopy(model), "dense")

    def error(run: nn.Module) -> float:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return (run(**batch).logits.float() - wanted)[real].abs().mean().item()

    with torch.no_grad():
        wanted = model(**batch).logits
    theirs = error(model)
    assert theirs > 0
    for execution in FAMILIES[family].executions:
        with skim.execution(compressed, execution):
            assert error(compressed) < 1.5 * theirs + 1e-3, execution
    learning = ragged(model, batch, METHODS["transkimmer"]).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = learning(**batch, **labels_of("tokens", batch)).loss
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in learning.parameters() if p.grad is not None)
    assert all(p.grad.abs().max() > 0 for p in learning.method.parameters())


@pytest.mark.parametrize("family", ["bert", "mpnet", "deberta-v3", "xlnet"])
def test_attention_dropout_is_the_familys(family: str) -> None:
    """In training it acts in every execution; in evaluation it does not."""
    model, batch = plain(family), batch_of(family)
    names = {"bert": "self.dropout", "mpnet": "attn.dropout", "deberta-v3": "self.dropout", "xlnet": "rel_attn.dropout"}
    for name, part in model.named_modules():
        if name.endswith(names[family]):
            part.p = 0.5
    for execution in FAMILIES[family].executions:
        compressed = skim.compress(copy.deepcopy(model), Transkimmer(noise_until=0.0), execution=execution)
        one, other = (compressed.train()(**batch).logits for _ in range(2))
        assert (one - other).abs().max() > 1e-3, execution
        one, other = (compressed.eval()(**batch).logits for _ in range(2))
        assert torch.equal(one, other), execution


def test_reentrant_checkpointing_is_refused_where_gradients_pass_through_masks() -> None:
    batch = batch_of("bert")
    inputs = batch | labels_of("classification", batch)
    for method, learns in ((skim.Transkimmer(), True), (skim.TopK(start=1), False)):
        model = skim.compress(plain("bert"), method).train()
        wanted = torch.autograd.grad(model(**inputs).loss, model.bert.embeddings.LayerNorm.weight)[0]
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        if learns:
            with pytest.raises(skim.SkimError, match="'use_reentrant': False"):
                model(**inputs)
        else:
            model(**inputs).loss.backward()
            assert_same(model.bert.embeddings.LayerNorm.weight.grad, wanted)
