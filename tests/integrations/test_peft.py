"""An adapter and its method: trained in either order, saved and loaded together."""

from __future__ import annotations

import copy
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import skim
from skim.compression import walk_of
from skim.errors import SkimError
from tests.families import batch_of, labels_of, plain
from tests.ragged import assert_same

LEARNED = ("transkimmer", "ltp", "act")
BATCH = batch_of("bert") | labels_of("classification", batch_of("bert"))
INPUTS = batch_of("bert")


def lora(*modules_to_save: str, **options) -> peft.LoraConfig:
    saved = ["classifier", *modules_to_save]
    return peft.LoraConfig(target_modules=["query", "value"], r=2, modules_to_save=saved, **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain model in a folder."""
    folder = tmp_path_factory.mktemp("base")
    plain("bert").save_pretrained(folder)
    return folder


def loaded(base: Path) -> torch.nn.Module:
    return AutoModelForSequenceClassification.from_pretrained(base)


def in_order(first: str, model: torch.nn.Module, method: skim.Method | str) -> peft.PeftModel:
    if first == "adapter":
        return skim.compress(peft.get_peft_model(model, lora()), method)
    return peft.get_peft_model(skim.compress(model, method), lora("method"))


def train(model: torch.nn.Module, steps: int = 3) -> None:
    """A plain loop."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for step in range(steps):
        loss = model(**BATCH).loss
        model.method.step(step / steps, model.trace)
        (loss + model.method.loss(model.trace)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.mark.parametrize("first", ["adapter", "skim"])
@pytest.mark.parametrize("name", LEARNED)
def test_either_order_trains_both(name: str, first: str) -> None:
    model = in_order(first, plain("bert"), name)
    method = walk_of(model).method
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train(model)
    moved = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    own = [k for k, _ in method.named_parameters()]
    assert own
    assert {k for k in own if any(place.endswith(k) and "method" in place for place in moved)} == set(own)
    assert any("lora_B" in place for place in moved)
    assert not any("base_layer" in place or "original_module" in place for place in moved)
    assert method.progress > 0


@pytest.mark.parametrize("name", LEARNED)
def test_a_method_that_an_adapter_has_frozen_is_refused_in_training(name: str) -> None:
    model = peft.get_peft_model(skim.compress(plain("bert"), name), lora())
    model.eval()(**INPUTS)
    with pytest.raises(SkimError, match=r"(?s)frozen while others train.*modules_to_save=\['method'\]"):
        model.train()(**BATCH)
    model.method.requires_grad_(False)  # on purpose
    model(**BATCH).loss.backward()
    model.method.requires_grad_(True)
    train(model)


def test_whoever_freezes_everything_else_is_left_alone() -> None:
    model = skim.compress(plain("bert"), "transkimmer").train()
    model.requires_grad_(False)
    model(**BATCH)  # nothing is trained at all
    model.classifier.requires_grad_(True)
    with pytest.raises(SkimError, match="frozen"):
        model(**BATCH)
    model.method.predictors["0"].requires_grad_(True)  # a part of it
    model(**BATCH).loss.backward()


@pytest.mark.parametrize("way", ["skim", "peft"])
@pytest.mark.parametrize("first", ["adapter", "skim"])
def test_saved_and_loaded_together(base: Path, tmp_path: Path, first: str, way: str) -> None:
    model = in_order(first, loaded(base), skim.Transkimmer(margin=0.3, target=0.5))
    train(model)
    with torch.no_grad():
        wanted, kept = model(**INPUTS).logits, model.trace.counts()
    assert 0 < kept.sum() < 3 * model.trace.lengths.sum()
    if way == "skim":
        skim.save_pretrained(model, tmp_path)
    elif first == "adapter":
        model.save_pretrained(tmp_path)
    else:
        says = r"no compressed model(.|\n)*save with skim\.save_pretrained"
        with pytest.raises(SkimError, match=says):  # PEFT has its weights, and not what it is
            model.save_pretrained(tmp_path), skim.from_pretrained(tmp_path)
        return
    again = skim.from_pretrained(tmp_path)
    assert isinstance(again, peft.PeftModel)
    with torch.no_grad():
        assert_same(again(**INPUTS).logits, wanted)
    assert again.trace.counts().equal(kept)
    assert float(again.method.budget.coefficient) == float(model.method.budget.coefficient) != 0
    assert not (tmp_path / "model.safetensors").exists()  # the base model is where it was
    skim.save_pretrained(again, tmp_path / "again")
    with torch.no_grad():
        assert_same(skim.from_pretrained(tmp_path / "again")(**INPUTS).logits, wanted)


def test_without_skim_the_folder_is_an_adapter(base: Path, tmp_path: Path) -> None:
    model = skim.compress(peft.get_peft_model(loaded(base), lora()), "transkimmer")
    train(model)
    skim.save_pretrained(model, tmp_path)
    found = peft.PeftModel.from_pretrained(loaded(base), tmp_path).eval()
    with skim.uncompressed(model), torch.no_grad():
        assert_same(found(**INPUTS).logits, model(**INPUTS).logits)


def test_several_adapters_have_a_method_each(base: Path, tmp_path: Path) -> None:
    model = in_order("skim", loaded(base), skim.Transkimmer(margin=0.3))
    model.add_adapter("other", lora("method"))
    outputs = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        train(model, 2 if name == "other" else 4)
        with torch.no_grad():
            outputs[name] = model(**INPUTS).logits
    assert not torch.allclose(*outputs.values(), atol=1e-3)
    skim.save_pretrained(model, tmp_path)
    again = skim.from_pretrained(tmp_path)
    assert again.active_adapter == "other"
    for name in ("other", "default"):
        again.set_adapter(name)
        with torch.no_grad():
            assert_same(again(**INPUTS).logits, outputs[name], what=name)


def test_disabled_and_merged(base: Path, tmp_path: Path) -> None:
    """Without its adapter a model decides as before the adapter; merged, as with it, and it is a plain model again."""
    model = in_order("skim", loaded(base), skim.Transkimmer(margin=0.3))
    before = model.eval()(**INPUTS).logits.detach()
    train(model)
    with torch.no_grad():
        wanted = model(**INPUTS).logits
        with model.disable_adapter():
            assert_same(model(**INPUTS).logits, before)
        assert not torch.allclose(wanted, before, atol=1e-3)
        merged = model.merge_and_unload()
        assert_same(merged(**INPUTS).logits, wanted)
    skim.save_pretrained(merged, tmp_path)
    with torch.no_grad():
        assert_same(skim.from_pretrained(tmp_path)(**INPUTS).logits, wanted)
    skim.decompress(merged)
    assert "save_pretrained" not in vars(merged)


def test_an_adapter_without_a_known_base_says_so(tmp_path: Path) -> None:
    model = skim.compress(peft.get_peft_model(plain("bert"), lora()), "transkimmer").eval()
    skim.save_pretrained(model, tmp_path)
    with pytest.raises(SkimError, match=r"(?s)does not say which model.*base=model"):
        skim.from_pretrained(tmp_path)
    again = skim.from_pretrained(tmp_path, base=plain("bert"))
    with torch.no_grad():
        assert_same(again(**INPUTS).logits, model(**INPUTS).logits)


def test_adapters_without_the_model_around_them_are_not_saved(tmp_path: Path) -> None:
    model = skim.compress(peft.get_peft_model(plain("bert"), lora()), "dense")
    with pytest.raises(SkimError, match=r"(?s)get_peft_model returned.*merge"):
        skim.save_pretrained(model.get_base_model(), tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PromptEncoderConfig"])
def test_virtual_tokens_are_tokens(kind: str) -> None:
    """They enter in front, where the head reads, and what the head reads stays."""
    options = {"task_type": "SEQ_CLS", "num_virtual_tokens": 3}
    model = peft.get_peft_model(plain("bert"), getattr(peft, kind)(**options)).eval()
    with torch.no_grad():
        wanted = model(**INPUTS).logits
    dense = skim.compress(copy.deepcopy(model), "dense")
    with torch.no_grad():
        assert_same(dense(**INPUTS).logits, wanted)
    compressed = skim.compress(model, skim.TopK(token_keep_rate=0.5, start=1))
    outputs = {}
    for execution in ("masked", "packed"):
        with skim.execution(compressed, execution), torch.no_grad():
            outputs[execution] = compressed(**INPUTS).logits
    assert_same(outputs["packed"], outputs["masked"])
    assert compressed.trace.lengths.tolist() == [16, 12, 9, 14]
    assert compressed.trace.alive()[:, :, 0].all()
    learned = skim.compress(peft.get_peft_model(plain("bert"), getattr(peft, kind)(**options)), "transkimmer")
    train(learned)
