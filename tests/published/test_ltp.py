"""Runs that start from what LTP's published code saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

import skim
from skim.errors import SkimError
from skim.lightning.build import build
from skim.lightning.recipe import train
from tests.runs import small

LEARNED = [0.0, 0.0035, -0.0004]
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}


def saved(folder: Path, form: str, **changes: Any) -> dict[str, Tensor]:
    """A tiny RoBERTa as that code writes it, and the weights that it has."""
    folder.mkdir()
    tokenizer = build(small("method=dense")).tokenizer
    tokenizer.save_pretrained(folder)
    config = transformers.RobertaConfig(
        **SIZES, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, type_vocab_size=1
    )
    torch.manual_seed(1)
    weights = transformers.RobertaForSequenceClassification(config).state_dict()
    state = {name.replace("roberta.", "ibert."): tensor.clone() for name, tensor in weights.items()}
    for i, value in enumerate(LEARNED):
        layer = f"ibert.encoder.layer.{i}.attention.self"
        state[f"{layer}.pruner.keep_threshold"] = torch.tensor(value)
        state[f"{layer}.query.weight_integer"] = torch.zeros(32, 32)  # of I-BERT's quantisation, which is off
    if form == "safetensors":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(state, folder / "pytorch_model.bin")
    told = {**config.to_dict(), "model_type": "ltp", "architectures": ["LTPForSequenceClassification"]}
    told |= {"prune_mode": "absolute_threshold", "final_token_threshold": 0.02, **changes}
    (folder / "config.json").write_text(json.dumps(told))
    return weights


def options(folder: Path, *more: str) -> list[str]:
    return ["backbone=roberta_base", f"init_from={folder}", "method.final_token_threshold=0.02", *more]


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("method", ["ltp", "ltp_hard"])
def test_weights_and_thresholds_are_taken_over(form: str, method: str, tmp_path: Path) -> None:
    weights = saved(tmp_path / "published", form)
    model = build(small(f"method={method}", *options(tmp_path / "published"))).model
    assert type(model) is transformers.RobertaForSequenceClassification
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    assert model.method.delta.tolist() == pytest.approx(LEARNED)
    assert model.method.thresholds().tolist() == pytest.approx([0.0, 0.02 / 3 + 0.0035, 0.04 / 3 - 0.0004])


def test_a_run_goes_on_and_what_it_leaves_loads_anywhere(tmp_path: Path) -> None:
    saved(tmp_path / "published", "safetensors", final_token_threshold=0.005)
    more = ("method.final_token_threshold=0.005", "train.max_steps=1")
    cfg = small("method=ltp_hard", *options(tmp_path / "published", *more))
    run = train(cfg, tmp_path / "run", "")
    assert run.results.status == "done"
    ours = skim.from_pretrained(tmp_path / "run" / "model")
    assert ours.method.delta.tolist() == pytest.approx(LEARNED)
    plain, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "run" / "model", output_loading_info=True
    )
    assert type(plain) is transformers.RobertaForSequenceClassification
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


@pytest.mark.parametrize(
    ("changes", "more", "says"),
    [
        ({"final_token_threshold": 0.03}, [], r"Use method\.final_token_threshold=0\.03"),
        ({}, ["method.score_norm=length"], r"Use method\.score_norm=fixed"),
        ({"num_hidden_layers": 2}, [], "3 thresholds for a backbone of 2 layers"),
    ],
)
def test_thresholds_that_mean_something_else_are_refused(
    changes: dict[str, Any], more: list[str], says: str, tmp_path: Path
) -> None:
    saved(tmp_path / "published", "bin", **changes)
    with pytest.raises(SkimError, match=says):
        build(small("method=ltp_hard", *options(tmp_path / "published", *more)))


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    saved(tmp_path / "published", "bin")
    torch.save({"ibert.x": Path("code")}, tmp_path / "published" / "pytorch_model.bin")
    with pytest.raises(SkimError, match="holds more than tensors"):
        build(small("method=ltp", *options(tmp_path / "published")))
