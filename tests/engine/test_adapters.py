"""Adapters come and go in a compressed model's layers: outputs, executions and FLOPs follow them."""

from __future__ import annotations

import copy

import peft
import pytest
import torch

import skim
from skim import backbones
from skim.errors import SkimError
from tests.backbones.test_funnel import model_of as funnel_of
from tests.families import FAMILIES, batch_of, enliven, plain
from tests.methods.table import METHODS
from tests.ragged import assert_flops, assert_same, count, ragged

LINEAR = {
    "bert": ["query", "value", "intermediate.dense"],
    "modernbert": ["Wo", "Wi"],
    "deberta-v2": ["query_proj", "output.dense"],
    "albert": ["key", "ffn"],
    "xlnet": ["layer_1"],
}
KINDS = {
    "lora": lambda names: peft.LoraConfig(target_modules=names, r=3, lora_dropout=0.1),
    "dora": lambda names: peft.LoraConfig(target_modules=names, r=3, use_dora=True),
    "ia3": lambda names: peft.IA3Config(target_modules=names, feedforward_modules=names[-1:]),
    "loha": lambda names: peft.LoHaConfig(target_modules=names, r=2),
    "adalora": lambda names: peft.AdaLoraConfig(target_modules=names, total_step=9),
    "norms": lambda names: peft.LNTuningConfig(target_modules=["LayerNorm"]),
}


def adapted(model: torch.nn.Module, kind: str = "lora", family: str = "bert", **options) -> peft.PeftModel:
    """The model with an adapter whose weights do something, in evaluation mode."""
    config = KINDS[kind](LINEAR[family])
    for name, value in options.items():
        setattr(config, name, value)
    torch.manual_seed(1)
    model = peft.get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not {"method", "classifier"} & set(name.split(".")):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("first", ["adapter", "skim"])
@pytest.mark.parametrize("kind", KINDS)
def test_laws_1_and_5_with_every_kind_of_adapter(kind: str, first: str) -> None:
    """In one sequence: what an adapter computes once per call is charged to each, as tables of positions are."""
    model, batch = plain("bert"), batch_of("bert", lengths=(13,))
    dense = skim.compress(copy.deepcopy(model), "dense")
    dense(**batch)
    without, plain_flops = dense(**batch).logits, dense.trace.flops()
    expected = adapted(copy.deepcopy(model), kind)(**batch).logits
    assert not torch.allclose(without, expected, atol=1e-3), "the adapter does nothing, so nothing is shown"
    if first == "adapter":
        outer = skim.compress(adapted(model, kind), "dense")
        compressed = outer.get_base_model()
    else:
        compressed = skim.compress(model, "dense")
        outer = adapted(compressed, kind)
    assert_flops(compressed, batch)  # its first forward with the adapter is under the counter
    assert_same(outer(**batch).logits, expected)
    assert compressed.trace.relative_flops() == 1.0
    assert (compressed.trace.flops() > plain_flops).item() is (kind not in ("ia3", "norms"))


# what DoRA spends per call of a map besides: on plain maps, and on families that call some of theirs in other ways
CALLED = ("bert", "deberta-v2", "deberta-v3", "xlnet", "funnel")


@pytest.mark.parametrize(
    ("kind", "family"),
    [*(("lora", family) for family in (*FAMILIES, "funnel")), *(("dora", family) for family in CALLED)],
)
def test_5_flops_of_adapters_on_every_map_of_every_family(kind: str, family: str) -> None:
    """Per row, and per call: a map that also projects a table of positions is called twice."""
    if family == "funnel":
        model, batch = funnel_of("FunnelForTokenClassification"), batch_of("bert", lengths=(13,))
    else:
        model, batch = plain(family), batch_of(family, lengths=(13,))
    known = backbones.find(model)
    maps = {id(part) for layer in known.layers(model.base_model) for part in layer.modules()}
    names = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and id(part) in maps]
    outer = skim.compress(peft.get_peft_model(model, KINDS[kind](names)).eval(), "dense")
    with torch.no_grad():
        assert_flops(outer.get_base_model(), batch)
        with_adapters = outer.trace.flops()
        outer.unload()(**batch)
    assert with_adapters > outer.trace.flops()


@pytest.mark.parametrize("family", LINEAR)
def test_laws_2_and_5_in_ragged_batches(family: str) -> None:
    model, batch = plain(family), batch_of(family)
    compressed = ragged(model, batch, METHODS["transkimmer"])
    outer = adapted(compressed, "lora", family)
    outputs, kept = {}, {}
    with torch.no_grad():
        for execution in FAMILIES[family].executions:
            with skim.execution(outer, execution):
                outputs[execution] = outer(**batch).logits
            kept[execution] = compressed.trace.counts().tolist()
        if FAMILIES[family].packs:
            assert_flops(compressed, batch)
    assert kept["masked"] != [compressed.trace.lengths.tolist()] * len(kept["masked"])
    for execution, output in outputs.items():
        assert_same(output, outputs["masked"], what=execution)
        assert kept[execution] == kept["masked"], execution


def test_flops_follow_an_adapter_that_is_merged_disabled_switched_and_taken_out() -> None:
    batch = batch_of("bert")
    compressed = skim.compress(plain("bert"), "dense")

    def flops() -> float:
        with torch.no_grad():
            assert_flops(compressed, batch)
        return compressed.trace.flops().sum().item()

    bare = flops()
    outer = adapted(compressed)
    small = flops()
    outer.add_adapter("large", peft.LoraConfig(target_modules=["query"], r=16))
    assert flops() == small  # it is there, and does not run
    outer.set_adapter("large")
    large = flops()
    assert bare < small != large > bare
    outer.delete_adapter("large")
    outer.add_adapter("large", peft.LoraConfig(target_modules=["query"], r=8))
    outer.set_adapter("large")
    assert flops() - bare == (large - bare) / 2  # another of the same name
    outer.set_adapter("default")
    outer.merge_adapter()
    assert flops() == bare
    outer.unmerge_adapter()
    with outer.disable_adapter():
        assert flops() == bare
    assert flops() == small
    merged = outer.merge_and_unload()
    assert merged is compressed
    assert flops() == bare


def test_the_price_of_reading_a_head_follows_its_adapter() -> None:
    """And is not taken for a part of the forward by who counts one."""
    batch = batch_of("bert")
    compressed = skim.compress(plain("bert"), skim.EarlyExit(halting="entropy", threshold=1e-6)).eval()
    with torch.no_grad():
        _, before = count(lambda: compressed(**batch))
        bare = compressed.trace.flops().sum()
        outer = peft.get_peft_model(compressed, peft.LoraConfig(target_modules=["pooler.dense"], r=2)).eval()
        _, after = count(lambda: outer(**batch))
    readings = sum(compressed.method.wants_reading(i) for i in range(3))
    one = len(batch["input_ids"]) * 2 * 2 * (32 + 32)  # B sequences, rank 2, width 32
    assert readings
    assert compressed.trace.flops().sum() - bare == readings * one
    assert after - before == (readings + 1) * one  # and the model's own, at the end


def test_an_adapter_inside_the_method_is_refused() -> None:
    compressed = skim.compress(plain("bert"), "transkimmer")
    outer = peft.get_peft_model(compressed, peft.LoraConfig(target_modules="all-linear", r=2))
    with pytest.raises(SkimError, match=r"(?s)inside the method.*exclude_modules=r'\.\*method"):
        outer(**batch_of("bert"))
    compressed = skim.compress(plain("bert"), "transkimmer")
    spared = peft.LoraConfig(target_modules="all-linear", r=2, exclude_modules=r".*method\..*")
    peft.get_peft_model(compressed, spared).eval()(**batch_of("bert"))


def test_a_copied_model_looks_at_its_own_modules() -> None:
    batch = batch_of("bert")
    first = skim.compress(plain("bert"), "dense")
    second = copy.deepcopy(first)
    enliven(second, 1)
    adapted(second)
    with torch.no_grad():
        first(**batch), second(**batch)
    assert first.trace.flops().sum() < second.trace.flops().sum()
