"""Published Funnel models: their numbers (law 7), their switches, FLOPs, heads, and what they refuse."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import FunnelBaseModel, FunnelConfig, FunnelModel

import skim
from skim.backbones import funnel
from skim.methods.transkimmer import Transkimmer
from tests.families import enliven
from tests.ragged import assert_flops, assert_same, logits_of

GOLDEN = Path(__file__).parents[1] / "golden"
ABOUT = json.loads((GOLDEN / "funnel.json").read_text())
SMALL = {"vocab_size": 60, "block_sizes": [2, 1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64}
HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MaskedLM", "PreTraining")
READS_ALL = HEADS[1:]


def model_of(name: str, **options: Any) -> nn.Module:
    """A tiny Funnel without dropout whose every weight matters."""
    quiet = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    model = getattr(transformers, name)(FunnelConfig(**SMALL | quiet | options))
    enliven(model, 0, 1.0)
    return model.eval()


def batch_of(*lengths: int, width: int | None = None) -> dict[str, Tensor]:
    """Random texts, two segments each, padded on the right; a text depends on its own length only."""
    width = width or max(lengths)
    ids, types, mask = (torch.zeros(len(lengths), width, dtype=torch.long) for _ in range(3))
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(length)
        ids[row, :length] = torch.randint(4, 60, (length,), generator=generator)
        types[row, length // 2 : length] = 1
        types[row, 0], mask[row, :length] = 2, 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def run(model: nn.Module, batch: dict[str, Tensor], **options: Any) -> Any:
    """A copy of the model through skim."""
    compressed = skim.compress(copy.deepcopy(model), "dense")
    for name, value in options.items():
        setattr(compressed.config, name, value)
    with torch.no_grad():
        return compressed(**batch, output_hidden_states=True)


# --- law 7: the published numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ABOUT["cases"])
@pytest.mark.parametrize("kind", ["base", "full"])
def test_7_golden(case: str, kind: str) -> None:
    """The published code's outputs, and those of transformers with ``hf_compat``."""
    about = dict(ABOUT["cases"][case])
    attention = {"rel_shift": "relative_shift", "factorized": "factorized"}[about.pop("attn_type")]
    inputs = about.pop("inputs")
    tensors = load_file(GOLDEN / "funnel.safetensors")
    config = FunnelConfig(**ABOUT["config"], **about, attention_type=attention, block_sizes=[2, 2, 2])
    model = {"base": FunnelBaseModel, "full": FunnelModel}[kind](config).eval()
    weights = {name.removeprefix("weights."): x for name, x in tensors.items() if name.startswith("weights.")}
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    batch = {name.rpartition(".")[2]: x for name, x in tensors.items() if name.startswith(f"inputs.{inputs}.")}
    published = run(model, batch).last_hidden_state
    stock = run(model, batch, hf_compat=True).last_hidden_state
    assert_same(published, tensors[f"outputs.{case}.{kind}"], what="published")
    assert_same(stock, tensors[f"outputs.{case}.stock_{kind}"], what="stock")


def test_the_mask_fix_matters_in_the_golden_cases() -> None:
    """Else test_7_golden could not tell ``hf_compat`` from its absence."""
    tensors = load_file(GOLDEN / "funnel.safetensors")
    pairs = ((tensors[f"outputs.{case}.base"], tensors[f"outputs.{case}.stock_base"]) for case in ABOUT["cases"])
    assert sum((one - other).abs().max() > 1e-3 for one, other in pairs) >= 4


# --- law 1 and 6: as in transformers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_1_identity_with_hf_compat(head: str) -> None:
    """Every head's loss, logits and hidden states, with layers that run twice and windows that are not full."""
    model, batch = model_of(f"FunnelFor{head}", block_repeats=[1, 2, 1]), batch_of(14, 9, 12)
    labels = torch.tensor([0, 1, 0]) if head == "SequenceClassification" else batch["input_ids"] % 2
    if head != "QuestionAnswering":
        batch["labels"] = labels
    found, wanted = run(model, batch, hf_compat=True), model(**batch, output_hidden_states=True)
    assert type(found) is type(wanted)
    assert set(found) == set(wanted)
    for name, value in logits_of(wanted).items():
        assert_same(found[name], value, what=name)
    if "labels" in batch:
        assert_same(found.loss, wanted.loss, what="loss")
    for i, (one, other) in enumerate(zip(found.hidden_states, wanted.hidden_states, strict=True)):
        assert_same(one, other, what=f"hidden_states[{i}]")


def test_multiple_choice() -> None:
    model, batch = model_of("FunnelForMultipleChoice"), batch_of(14, 9, 12, 5)
    batch = {name: value.view(2, 2, -1) for name, value in batch.items()}
    assert_same(run(model, batch, hf_compat=True).logits, model(**batch).logits)


def test_6_round_trip(tmp_path: Path) -> None:
    """The switches are saved with the config; transformers loads the same folder; compress can be undone."""
    model, batch = model_of("FunnelForTokenClassification"), batch_of(13, 9)
    model.config.pool_pads = False
    with torch.no_grad():
        plainly = model(**batch).logits
        compressed = skim.compress(model, "dense")
        wanted = compressed(**batch).logits
        skim.save_pretrained(compressed, tmp_path)
        loaded = skim.from_pretrained(tmp_path)
        assert loaded.config.pool_pads is False
        assert torch.equal(loaded(**batch).logits, wanted)
        assert torch.equal(type(model).from_pretrained(tmp_path)(**batch).logits, plainly)
        assert torch.equal(skim.decompress(compressed)(**batch).logits, plainly)


@pytest.mark.parametrize("options", [{}, {"pool_q_only": False}, {"separate_cls": False}, {"hidden_act": "relu"}])
def test_4_gradients_are_those_of_transformers(options: dict) -> None:
    model, batch = model_of("FunnelForTokenClassification", **options), batch_of(14, 9)
    batch["labels"] = batch["input_ids"] % 2
    compressed = skim.compress(copy.deepcopy(model), "dense").train()
    compressed.config.hf_compat = True
    model.train()(**batch).loss.backward()
    compressed(**batch).loss.backward()
    for (name, one), other in zip(compressed.named_parameters(), model.parameters(), strict=True):
        assert_same(one.grad, other.grad, what=name)


def test_dropout_reaches_the_distances() -> None:
    """In training the table of distances is dropped from as well, as published; in evaluation nothing is."""
    model = skim.compress(model_of("FunnelBaseModel", hidden_dropout=0.5), "dense")
    rows = funnel.Rows.start(torch.zeros(1, 6, 32), skim.engine.tokens.Sequences(*torch.ones(2, 1, 6).bool()))
    types = torch.zeros(1, 6)
    whole = funnel.Geometry(model.eval(), rows, rows, types, types).table
    dropped = funnel.Geometry(model.train(), rows, rows, types, types).table
    assert (whole == 0).float().mean() < 0.1
    assert 0.3 < (dropped == 0).float().mean() < 0.7


# --- law 3: what depends on the padding -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["FunnelForSequenceClassification", "FunnelForTokenClassification"])
def test_3_batch_invariance_is_a_choice(kind: str) -> None:
    """As published, pads and the batch's length change a text's output; with ``pool_pads=False`` nothing does."""
    model, texts = model_of(kind), {"alone": batch_of(9), "padded": batch_of(9, width=20), "mates": batch_of(9, 15)}

    def logits(**options: Any) -> dict[str, Tensor]:
        found = {name: run(model, batch, **options).logits[:1] for name, batch in texts.items()}
        return {name: value[:, :9] for name, value in found.items()}

    real = logits(pool_pads=False)
    assert_same(real["padded"], real["alone"])
    assert_same(real["mates"], real["alone"])
    published = logits()
    assert (published["padded"] - published["alone"]).abs().max() > 1e-3


# --- short inputs, token types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"truncate_seq": False}, {"separate_cls": False}, {"pool_q_only": False}])
@pytest.mark.parametrize("kind", ["FunnelBaseModel", "FunnelModel"])
def test_short_inputs(kind: str, options: dict) -> None:
    """One position and more; transformers' other form of attention, which has no table to end, says the same."""
    model, other = (model_of(kind, attention_type=form, **options) for form in ("relative_shift", "factorized"))
    crashes = 0
    for length in range(1, 9):
        batch = batch_of(length)
        wanted = other(**batch).last_hidden_state
        assert_same(run(model, batch).last_hidden_state, wanted, what=f"{length} positions")
        try:
            model(**batch)
        except RuntimeError:
            crashes += 1
    assert crashes  # transformers' table still ends too early


def test_token_types_that_are_not_given() -> None:
    """The tokenizer gives none unless asked: [CLS] gets its own, and what is behind [SEP] is the second text."""
    options = {"separate_cls": False}
    model, batch = model_of("FunnelBaseModel", **options), batch_of(12, 9)
    ids, types = batch["input_ids"], batch.pop("token_type_ids")
    ids[0, 5], ids[0, 11], ids[1, 3], ids[1, 8] = 3, 3, 3, 3
    pair = {"token_type_ids": torch.zeros_like(types)}
    pair["token_type_ids"][0, 6:], pair["token_type_ids"][1, 4:9] = 1, 1
    pair["token_type_ids"][:, 0] = 2
    given = run(model, batch | pair).last_hidden_state
    assert_same(run(model, batch, sep_token_id=3).last_hidden_state, given)
    one = {"token_type_ids": one_segment(types)}
    assert_same(run(model, batch).last_hidden_state, run(model, batch | one).last_hidden_state)
    assert (run(model, batch).last_hidden_state - given).abs().max() > 1e-3
    assert_same(run(model, batch, hf_compat=True).last_hidden_state, model(**batch).last_hidden_state)


def one_segment(types: Tensor) -> Tensor:
    return torch.zeros_like(types).index_fill(1, torch.tensor([0]), 2)


# --- law 5: FLOPs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"pool_q_only": False}, {"truncate_seq": False}, {"block_repeats": [1, 2, 1]}])
@pytest.mark.parametrize("kind", ["FunnelBaseModel", "FunnelModel"])
@pytest.mark.parametrize("length", [1, 13, 64, 150])
def test_5_flops_are_true(kind: str, options: dict, length: int) -> None:
    """The formula equals torch's counter, several chunks of queries included."""
    compressed = skim.compress(model_of(kind, **options), "dense")
    assert_flops(compressed, batch_of(length))
    assert compressed.trace.relative_flops() == 1


def test_flops_do_not_count_pads() -> None:
    compressed = skim.compress(model_of("FunnelModel", truncate_seq=False), "dense")
    with torch.no_grad():
        compressed(**batch_of(21, 70))
        both = compressed.trace.flops()
        for row, length in enumerate((21, 70)):
            compressed(**batch_of(length))
            assert compressed.trace.flops() == both[row]


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_methods_that_shorten_are_refused() -> None:
    for method in (Transkimmer(), "ltp", "act", "funnel"):
        with pytest.raises(skim.SkimError, match="by itself"):
            skim.compress(model_of("FunnelBaseModel"), method)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"hf_compat": True, "pool_pads": False}, "hf_compat"), ({"num_decoder_layers": 0}, "decoder")],
)
def test_configs_that_make_no_sense_are_refused(options: dict, words: str) -> None:
    model = model_of("FunnelModel", **options)
    with pytest.raises(skim.SkimError, match=words):
        skim.compress(model, "dense")


def test_inputs_that_make_no_sense_are_refused() -> None:
    model, batch = model_of("FunnelBaseModel"), batch_of(9, 6)
    left = {name: value.flip(1) for name, value in batch.items()}
    with pytest.raises(skim.SkimError, match="padding_side"):
        run(model, left, pool_pads=False)
    with pytest.raises(skim.SkimError, match="token types"):
        run(model, batch | {"token_type_ids": batch["token_type_ids"] + 1})
