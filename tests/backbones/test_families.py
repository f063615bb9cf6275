"""What is particular to a family, and what is refused: inputs by other doors, positions, inexact configs."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

import skim
from skim import backbones
from skim.compression import keeping_states
from skim.engine.inputs import Inputs
from skim.engine.walk import walk_of
from skim.errors import SkimError
from skim.lightning.optim import freeze
from skim.methods.transkimmer import Transkimmer
from tests.families import FAMILIES, batch_of, config_of, plain
from tests.methods.table import METHODS
from tests.ragged import assert_same, ragged

families = pytest.mark.parametrize("family", FAMILIES)


def assert_like_transformers(family: str, inputs: dict, mask: torch.Tensor) -> None:
    """Dense, in every execution, equals the plain model on these inputs."""
    model = plain(family, "tokens")
    compressed = skim.compress(copy.deepcopy(model), "dense")
    with torch.no_grad():
        wanted = model(**inputs).logits
        for execution in FAMILIES[family].executions:
            with skim.execution(compressed, execution):
                assert_same(compressed(**inputs).logits, wanted, mask, what=execution)


@families
def test_what_is_frozen_of_a_family_needs_no_gradient(family: str) -> None:
    """Nothing that enters the layers, and nothing up to the last frozen layer; all above learns."""
    model = skim.compress(plain(family, "tokens"), "dense").train()
    walk = walk_of(model)
    freeze(model, "embeddings")
    assert not walk.backbone.embed(walk.base, Inputs(**batch_of(family))).requires_grad
    if family == "albert-shared":  # see the next test
        return
    freeze(model, 2)
    with keeping_states(model):
        model(**batch_of(family))
    assert [tokens.hidden.requires_grad for tokens in model.trace.states][:3] == [False, False, True]
    assert all(parameter.requires_grad for parameter in walk.backbone.layers(walk.base)[2].parameters())


@pytest.mark.parametrize(("layers", "says"), [(4, "this backbone has 3 layers"), (1, "1 of these with layers above")])
def test_layers_that_cannot_be_frozen_are_refused(layers: int, says: str) -> None:
    model = skim.compress(plain("albert", num_hidden_groups=1, inner_group_num=1, num_hidden_layers=3), "dense")
    with pytest.raises(SkimError, match=says):
        freeze(model, layers)
    assert all(parameter.requires_grad for parameter in model.parameters())


# --- inputs by other doors --------------------------------------------------------------------------------------------


@families
def test_without_an_attention_mask(family: str) -> None:
    """Everything counts as real, pad ids included, as in transformers."""
    batch = batch_of(family)
    everything = torch.ones_like(batch.pop("attention_mask"))
    assert_like_transformers(family, batch, everything)


@families
def test_embeddings_instead_of_ids(family: str) -> None:
    batch = batch_of(family)
    ids = batch.pop("input_ids")
    embeddings = plain(family, "tokens").get_input_embeddings()(ids).detach()
    assert_like_transformers(family, batch | {"inputs_embeds": embeddings}, batch["attention_mask"])


@families
def test_position_ids(family: str) -> None:
    """Where a family takes them, learned positions and rotations follow them."""
    batch = batch_of(family)
    shape = batch["input_ids"].shape
    for position in (torch.arange(shape[1])[None] + 2, torch.arange(shape[1]).flip(0).expand(shape) * 2):
        assert_like_transformers(family, batch | {"position_ids": position}, batch["attention_mask"])


@families
def test_position_ids_when_tokens_leave(family: str) -> None:
    """Rotations go by the given ids of whoever is left."""
    model, batch = plain(family, "tokens"), batch_of(family)
    compressed = ragged(model, batch, METHODS["transkimmer"])
    batch["position_ids"] = torch.arange(batch["input_ids"].shape[1]).flip(0)[None] * 3
    outputs = []
    for execution in FAMILIES[family].executions:
        with torch.no_grad(), skim.execution(compressed, execution):
            outputs.append(compressed(**batch).logits)
        assert (compressed.trace.counts()[-1] < compressed.trace.lengths).any()
    for output in outputs[1:]:
        assert_same(output, outputs[0], batch["attention_mask"])


@families
def test_training_without_drops_gives_the_plain_gradients(family: str) -> None:
    """In masked execution with a mask that keeps everything: attention goes the differentiable way."""
    model, batch = plain(family, "tokens").train(), batch_of(family)
    batch["labels"] = (batch["input_ids"] % 5).masked_fill(batch["attention_mask"] == 0, -100)
    compressed = skim.compress(copy.deepcopy(model), Transkimmer(margin=100.0, noise_until=0.0)).train()
    wanted = model(**batch).loss
    found = compressed(**batch).loss
    assert compressed.trace.layers[-1].kept().requires_grad
    assert compressed.trace.relative_flops() > 1  # everything, and the predictors on top
    assert_same(found, wanted)
    wanted.backward()
    found.backward()
    gradients = dict(compressed.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert_same(gradients[name].grad, parameter.grad, what=name)


@families
def test_paper_preset(family: str) -> None:
    """The mask after the softmax works wherever the one inside does, differs from it, and runs masked only."""
    model, batch = plain(family, "tokens"), batch_of(family)
    inside = ragged(model, batch, METHODS["transkimmer"])
    after = skim.compress(copy.deepcopy(model), Transkimmer(preset="paper", eval_noise=False)).eval()
    after.method.load_state_dict(inside.method.state_dict())
    with torch.no_grad(), skim.execution(inside, "masked"):
        first, second = inside(**batch).logits, after(**batch).logits
    assert after.trace.execution == "masked"
    assert (first - second)[batch["attention_mask"].bool()].abs().max() > 1e-3
    with pytest.raises(skim.SkimError, match="after the softmax"), skim.execution(after, "narrowed"):
        pass


# --- particulars ------------------------------------------------------------------------------------------------------


def test_albert_runs_its_shared_layers_as_often_as_transformers_does() -> None:
    model = plain("albert")
    runs = backbones.find(model).layers(model.base_model)
    assert len(runs) == 4
    assert len({id(layer) for layer in runs}) == 4
    model = plain("albert", num_hidden_layers=6, num_hidden_groups=2, inner_group_num=1)
    first, second = (group.albert_layers[0] for group in model.base_model.encoder.albert_layer_groups)
    assert backbones.find(model).layers(model.base_model) == [first] * 3 + [second] * 3


def test_modernbert_windows_go_by_input_positions() -> None:
    """A gap stays a distance: two survivors that were far apart do not become neighbours."""
    model = plain("modernbert", "tokens", layer_types=["sliding_attention"] * 3)
    compressed = skim.compress(model, Transkimmer(layers=(0,))).eval()
    batch = batch_of("modernbert", (13,))
    decide = torch.zeros(1, 13)
    decide[:, [0, 12]] = 1  # only the ends survive, 12 positions apart; the window is 2
    compressed.method.before_layer = lambda i, tokens: (
        tokens.retire(tokens.occupancy.rows(decide)) if i == 0 else tokens
    )
    with torch.no_grad():
        one = compressed(**batch).logits[0, 0]
        batch["input_ids"][0, 12] = 7
        assert torch.equal(compressed(**batch).logits[0, 0], one)
        assert compressed.trace.counts().tolist() == [[2]] * 3


def test_xlnet_reads_token_types_and_does_without() -> None:
    model, batch = plain("xlnet", "tokens"), batch_of("xlnet")
    compressed = skim.compress(copy.deepcopy(model), "dense")
    with torch.no_grad():
        typed = compressed(**batch).logits
        del batch["token_type_ids"]
        untyped = compressed(**batch).logits
        assert (typed - untyped).abs().max() > 1e-3
        assert_same(untyped, model(**batch).logits, batch["attention_mask"])


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_the_table_of_tests_is_the_list_of_families() -> None:
    """But for Funnel, which takes no method that drops tokens: test_funnel.py has its laws."""
    assert set(backbones.families()) - {"funnel"} == {config_of(name).model_type for name in FAMILIES}


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("FNetConfig", {}),
        ("ConvBertConfig", {}),
        ("DebertaConfig", {}),
        ("GPT2Config", {"n_embd": 32, "n_layer": 1, "n_head": 2}),
    ],
)
def test_other_families_are_refused_with_the_list(config: str, options: dict) -> None:
    small = {"vocab_size": 20, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(transformers, config)(**(options or small))
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(skim.SkimError, match=rf"'{config.model_type}'") as error:
        skim.compress(model, "dense")
    assert "Supported: albert, bert," in str(error.value)
    assert not hasattr(model, "skim_walk")


def test_what_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(skim.SkimError, match="'Linear'"):
        skim.compress(torch.nn.Linear(2, 2), "dense")


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("bert", {"is_decoder": True}, "decoder"),
        ("deberta-v2", {"conv_kernel_size": 3}, "convolves"),
        ("xlnet", {"attn_type": "uni"}, "pretraining"),
        ("xlnet", {"bi_data": True}, "pretraining"),
    ],
)
def test_configs_that_cannot_be_exact_are_refused(family: str, options: dict, words: str) -> None:
    with pytest.raises(skim.SkimError, match=words):
        skim.compress(plain(family, "tokens", **options), "dense")


def test_xlnet_padded_on_the_right_is_refused() -> None:
    """Its classification head would read a pad."""
    model, batch = skim.compress(plain("xlnet"), "dense"), batch_of("bert")
    with pytest.raises(skim.SkimError, match="padding_side"):
        model(**batch)


@pytest.mark.parametrize("words", [{"perm_mask": torch.zeros(4, 13, 13)}, {"use_mems": True}, {"mems": []}])
def test_xlnet_pretraining_inputs_are_refused(words: dict) -> None:
    model = skim.compress(plain("xlnet"), "dense")
    with pytest.raises(skim.SkimError, match=next(iter(words))):
        model(**batch_of("xlnet"), **words)


def test_deberta_without_relative_attention() -> None:
    model, batch = plain("deberta-v2", relative_attention=False, position_biased_input=True), batch_of("deberta-v2")
    compressed = skim.compress(copy.deepcopy(model), "dense")
    with torch.no_grad():
        assert_same(compressed(**batch).logits, model(**batch).logits)
