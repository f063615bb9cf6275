"""Laws 1 to 3 and 5 under masks of every kind: padding on the other side, holes, rows of nothing.

A head that reads all positions goes on working. One that reads a position whose token is not real is refused, in every
execution, because its answer would come from a row that nobody computes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

import skim
from skim.methods import Method
from skim.methods.early_exit import EarlyExit
from tests.engine.test_laws_threads import METHODS
from tests.families import FAMILIES, PAIRS, batch_of, config_of, enliven, labels_of, plain
from tests.ragged import assert_flops, assert_same, is_ragged, logits_of, pruner, transkimmer

STEERED: dict[str, Callable[[], Method]] = {
    "transkimmer": lambda: skim.Transkimmer(target=0.5),
    "ltp": lambda: skim.LTP(target=0.5),
    "act": lambda: skim.ACT(target=0.5),
}
KINDS = ("other side", "holes", "empty row")
everywhere = pytest.mark.parametrize(("family", "head"), PAIRS)


def masked(family: str, kind: str, seed: int = 0) -> dict[str, Tensor]:
    """A batch whose mask is of some kind; row 1 of the empty kind has no token at all."""
    lengths = (13, 0, 6, 11) if kind == "empty row" else (13, 9, 6, 11)
    batch = batch_of(family, lengths, seed=seed)
    if kind == "other side":
        return {name: value.flip(1) for name, value in batch.items()}
    if kind == "holes":
        holes = torch.rand(batch["input_ids"].shape, generator=torch.Generator().manual_seed(seed)) < 0.3
        holes[:, [0, -1]] = False  # where heads read
        batch["attention_mask"] = batch["attention_mask"] * ~holes
    return batch


def reads(model: nn.Module) -> str | None:
    """Where the head reads: what a compressed model knows of it."""
    return skim.compress(copy.deepcopy(model), "dense").skim_walk.head.reads


def pools(family: str, head: str) -> bool:
    """Whether the head averages over the tokens, as its config here says."""
    return family in ("modernbert", "eurobert") and head in ("classification", "regression")


def some(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Its rows that have a token."""
    rows = batch["attention_mask"].bool().any(1)
    return {name: value[rows] for name, value in batch.items()}


@everywhere
def test_heads_are_known_by_what_they_read(family: str, head: str) -> None:
    """One position for a class of the sequence, unless the head averages; every position for tokens and answers."""
    model = plain(family, head)
    one = head in ("classification", "regression") and not pools(family, head)
    assert reads(model) == (("last" if family == "xlnet" else "first") if one else None)
    if pools(family, head):
        alone = {"modernbert": "cls", "eurobert": "bos"}[family]
        assert reads(plain(family, head, classifier_pooling=alone)) == "first"


@everywhere
@pytest.mark.parametrize("kind", KINDS)
def test_any_mask(family: str, head: str, kind: str) -> None:
    """The plain model's outputs if nothing is dropped; masked, packed and narrowed alike; each row as if alone."""
    model, batch = plain(family, head), masked(family, kind)
    compressed = transkimmer(model, masked(family, "holes"))  # whose ragged drops are known
    if kind == "other side" and reads(model) is not None:
        for execution in FAMILIES[family].executions:
            with (
                skim.execution(compressed, execution),
                pytest.raises(skim.SkimError, match="padding_side"),
            ):
                compressed(**batch)
        return
    mask = batch["attention_mask"]
    with torch.no_grad():
        dense, full = skim.compress(copy.deepcopy(model), "dense"), some(batch)
        wanted = logits_of(model(**full))
        outputs = {}
        for execution in FAMILIES[family].executions:
            with skim.execution(dense, execution):
                for name, value in logits_of(dense(**full)).items():
                    assert_same(value, wanted[name], full["attention_mask"], what=f"identity {execution} {name}")
            with skim.execution(compressed, execution):
                outputs[execution] = logits_of(compressed(**batch))
                trace = compressed.trace
                assert trace.lengths.tolist() == mask.sum(1).tolist()
                if kind == "holes":
                    assert is_ragged(trace.counts(), trace.lengths)
                for name, value in outputs[execution].items():
                    if pools(family, head):  # over no token, a mean is not a number: in transformers, too
                        value, rest = value[mask.bool().any(1)], outputs["masked"][name][mask.bool().any(1)]
                        assert_same(value, rest, what=f"{execution} {name}")
                    else:
                        assert_same(value, outputs["masked"][name], mask, what=f"{execution} {name}")
                alone = logits_of(compressed(**{name: value[2:3] for name, value in batch.items()}))
                for name, value in alone.items():
                    assert_same(value, outputs[execution][name][2:3], mask[2:3], what=f"alone {execution} {name}")


@pytest.mark.parametrize("family", ["bert", "modernbert", "albert", "mpnet", "xlnet"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_mask_for_methods_that_prune_by_attention(family: str, kind: str) -> None:
    batch = masked(family, kind)
    compressed = pruner(plain(family, "tokens"), masked(family, "holes"), "ltp")
    outputs = {}
    with torch.no_grad():
        for execution in FAMILIES[family].executions:
            with skim.execution(compressed, execution):
                outputs[execution] = compressed(**batch).logits
            assert_same(outputs[execution], outputs["masked"], batch["attention_mask"], what=execution)


@pytest.mark.parametrize("family", ["bert", "deberta-v3", "xlnet"])
def test_a_masked_first_position_is_refused_by_row(family: str) -> None:
    """Also with the pooler of a model without a head; which one without a pooler, or with one for tokens, is not."""
    batch = batch_of(family)
    place = -1 if FAMILIES[family].left else 0
    batch["attention_mask"][2, place] = 0
    side = "left" if FAMILIES[family].left else "right"
    with pytest.raises(skim.SkimError, match=rf"row 2 (.|\n)*padding_side = '{side}'"):
        skim.compress(plain(family), "dense")(**batch)
    skim.compress(plain(family, "tokens"), "dense")(**batch)
    if family == "bert":
        with pytest.raises(skim.SkimError, match="row 2"):
            skim.compress(transformers.BertModel(config_of("bert")), "dense")(**batch)
        model = transformers.BertModel(config_of("bert"), add_pooling_layer=False).eval()
        wanted = model(**batch).last_hidden_state
        assert_same(skim.compress(model, "dense")(**batch).last_hidden_state, wanted, batch["attention_mask"])


# --- nothing at all ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["bert", "esm-absolute", "mpnet"])
@pytest.mark.parametrize("lengths", [(5, 0, 3), (0, 0)])
def test_texts_of_nothing_leave_a_training_finite(family: str, name: str, lengths: tuple[int, ...]) -> None:
    """Losses, gradients, steering and, in double precision without gradients, outputs."""
    if name == "act" and not FAMILIES[family].packs:
        return
    head = "classification" if "exit" in name else "tokens"
    method = STEERED[name]() if name in STEERED else METHODS[name]()
    model, batch = skim.compress(plain(family, head), method).train(), batch_of(family, lengths, width=5)
    output = model(**batch, **labels_of(head, batch))
    assert torch.isfinite(output.logits).all()
    method.step(0.3, model.trace)
    assert all(torch.isfinite(buffer).all() for buffer in method.buffers())
    penalty = method.loss(model.trace)
    assert torch.isfinite(penalty)
    (output.logits.sum() + penalty).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    if not any(lengths):
        assert model.trace.relative_flops() == 1
        assert (model.trace.keep_ratio() == 1).all()
    with torch.no_grad():
        assert torch.isfinite(model.double().eval()(**batch).logits).all()


# --- gradient checkpointing -------------------------------------------------------------------------------------------


def test_reentrant_checkpointing_is_refused_where_gradients_pass_through_masks() -> None:
    batch = batch_of("bert")
    inputs = batch | labels_of("classification", batch)
    for name, learns in (("transkimmer", True), ("topk", False)):
        model = skim.compress(plain("bert"), METHODS[name]()).train()
        wanted = torch.autograd.grad(model(**inputs).loss, model.bert.embeddings.LayerNorm.weight)[0]
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        if learns:
            with pytest.raises(skim.SkimError, match="'use_reentrant': False"):
                model(**inputs)
        else:
            model(**inputs).loss.backward()
            assert_same(model.bert.embeddings.LayerNorm.weight.grad, wanted)


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["attention_mask", "token_type_ids", "position_ids"])
def test_shapes_broadcast_as_in_transformers(name: str) -> None:
    batch = batch_of("bert", (9, 9, 9))
    value = {"attention_mask": batch["attention_mask"], "token_type_ids": batch["token_type_ids"]}.get(name)
    value = torch.arange(9).flip(0).expand(3, 9) if value is None else value
    model = skim.compress(plain("bert"), "dense")
    with torch.no_grad():
        wanted = model(**(batch | {name: value})).logits
        assert_same(model(**(batch | {name: value[:1]})).logits, wanted)
        assert model(**(batch | {name: value[:, :1]})).logits.shape == (3, 3)


@pytest.mark.parametrize("name", ["attention_mask", "token_type_ids", "position_ids"])
@pytest.mark.parametrize("shape", [(2, 13), (4, 9), (4, 20), (5, 13), (13,), (4, 13, 1)])
def test_shapes_of_other_batches_are_refused_with_both(name: str, shape: tuple[int, ...]) -> None:
    for family in ("bert", "mpnet") if name != "token_type_ids" else ("bert", "xlnet"):
        model = skim.compress(plain(family), "dense")
        with pytest.raises(skim.SkimError) as error:
            model(**{**batch_of(family), name: torch.ones(shape, dtype=torch.long)})
        assert name in str(error.value)
        assert str(shape) in str(error.value)
        assert "(4, 13)" in str(error.value)


@pytest.mark.parametrize("shape", [(2, 0), (0, 5), (5,), (2, 3, 4)])
def test_ids_that_are_no_batch_are_refused(shape: tuple[int, ...]) -> None:
    model = skim.compress(plain("bert"), "dense")
    with pytest.raises(skim.SkimError, match="input_ids has shape"):
        model(input_ids=torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize(
    ("head", "labels"),
    [
        ("classification", {"labels": torch.zeros(1, dtype=torch.long)}),
        ("regression", {"labels": torch.zeros(3)}),
        ("tokens", {"labels": torch.zeros(4, 12, dtype=torch.long)}),
        ("tokens", {"labels": torch.zeros(1, 13, dtype=torch.long)}),
        ("answers", {"start_positions": torch.zeros(2, dtype=torch.long), "end_positions": torch.ones(2).long()}),
    ],
)
def test_labels_of_another_batch_are_refused(head: str, labels: dict[str, Tensor]) -> None:
    model = skim.compress(plain("bert", head), "dense")
    name, value = next(iter(labels.items()))
    with pytest.raises(skim.SkimError, match=name) as error:
        model(**batch_of("bert"), **labels)
    assert str(tuple(value.shape)) in str(error.value)
    assert "(4, 13)" in str(error.value)
    assert torch.isfinite(model(**batch_of("bert"), **labels_of(head, batch_of("bert"))).loss)


class OwnHead(transformers.BertPreTrainedModel):
    """A head of a user's own, which reads states in the way that its config says."""

    def __init__(self, config: transformers.BertConfig) -> None:
        super().__init__(config)
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Tensor) -> SequenceClassifierOutput:
        states = self.bert(input_ids, attention_mask=attention_mask, **kwargs)[0]
        real = attention_mask[..., None].to(states)
        mean = (states * real).sum(1) / real.sum(1).clamp_min(1)
        read = {
            "mean of real": lambda: mean,
            "mean of all": lambda: states.mean(1),
            "largest of all": lambda: states.amax(1),
            "first and mean": lambda: states[:, 0] + mean,
            "second": lambda: states[:, 1],
        }[self.config.reading]()
        return SequenceClassifierOutput(logits=self.classifier(read))


@pytest.mark.parametrize(
    ("reading", "known"),
    [
        ("mean of real", None),
        ("mean of all", "every"),
        ("largest of all", "every"),
        ("first and mean", "first"),
        ("second", "every"),
    ],
)
def test_a_head_of_ones_own_that_reads_padding_is_refused_where_padding_has_no_state(
    reading: str, known: str | None
) -> None:
    """And says what it says in transformers everywhere else."""
    model = OwnHead(config_of("bert", reading=reading)).eval()
    enliven(model, 0)
    compressed = skim.compress(copy.deepcopy(model).train(), "dense").eval()  # dropout must not be taken for a reading
    assert compressed.skim_walk.head.reads == known
    kept = [value.clone() for value in compressed.state_dict().values()]
    for batch in (batch_of("bert"), masked("bert", "other side"), batch_of("bert", (9, 9))):
        refused = {
            None: False,
            "first": not batch["attention_mask"][:, 0].all(),
            "every": not batch["attention_mask"].all(),
        }[known]
        for execution in ("masked", "packed", "narrowed"):
            with skim.execution(compressed, execution), torch.no_grad():
                if refused and not (known == "every" and execution == "masked"):
                    says = "row 1" if known == "every" and batch["attention_mask"][0].all() else "row"
                    with pytest.raises(skim.SkimError, match=rf"head (reads|does not leave out) (.|\n)*{says}"):
                        compressed(**batch)
                else:
                    assert_same(compressed(**batch).logits, model(**batch).logits, what=f"{reading} {execution}")
    assert all(torch.equal(a, b) for a, b in zip(kept, compressed.state_dict().values(), strict=True))


# --- one encoder, one method ------------------------------------------------------------------------------------------


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


# --- FLOPs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("types", [True, False])
@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_5_flops_of_short_inputs_with_and_without_segments(length: int, types: bool) -> None:
    """XLNet looks at segments only if it is given some, and a product over one row counts, or does not, like any."""
    for family in FAMILIES:
        batch = batch_of(family, (length,))
        if not types:
            batch.pop("token_type_ids", None)
        elif "token_type_ids" not in batch:
            continue
        compressed = skim.compress(plain(family), "dense")
        assert_flops(compressed, batch)


def test_5_flops_of_a_head_that_maps_every_token_leave_pads_out() -> None:
    """EuroBERT's head on a padded batch, asked behind every layer, computes what each sequence alone would."""
    batch = batch_of("eurobert")
    compressed = skim.compress(plain("eurobert"), EarlyExit("entropy", threshold=1e-6)).eval()
    assert compressed.skim_walk.head.token_flops
    assert_flops(compressed, batch)
    together = compressed.trace.flops()
    for i in range(4):
        length = int(batch["attention_mask"][i].sum())
        assert_flops(compressed, {name: value[i : i + 1, :length] for name, value in batch.items()})
        assert_same(compressed.trace.flops(), together[i : i + 1])
