"""PEFT swaps leaf modules under the walk, before or after compression: both give what the adapter alone gives."""

from __future__ import annotations

import copy

import peft
import pytest
import torch

import skim
from skim.errors import SkimError
from tests.families import plain


def adapted(model: torch.nn.Module) -> torch.nn.Module:
    """The model with a LoRA adapter on its queries, with weights that do something."""
    torch.manual_seed(0)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"], r=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model.eval()


@pytest.mark.parametrize("first", ["adapter", "skim"])
def test_adapters_and_compression_compose(first: str) -> None:
    torch.manual_seed(0)
    model = plain("bert", "classification").eval()
    ids = torch.randint(5, 50, (2, 9))
    without = model(input_ids=ids).logits
    expected = adapted(copy.deepcopy(model))(input_ids=ids).logits
    assert not torch.allclose(without, expected, atol=1e-3), "the adapter does nothing, so nothing is shown"
    if first == "adapter":
        model = skim.compress(adapted(model), "dense")
    else:
        model = adapted(skim.compress(model, "dense"))
    assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-5)


def test_saving_with_an_adapter_inside_is_refused(tmp_path) -> None:
    model = skim.compress(adapted(plain("bert", "classification")), "dense")
    with pytest.raises(SkimError, match="merge"):
        skim.save_pretrained(model, tmp_path / "never")
    assert not (tmp_path / "never").exists()
