"""Models without what never runs: plain transformers loads them, and they answer as the compressed model did."""

from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import skim
from skim.errors import SkimError
from skim.merging import merged, parameters_of
from tests.families import FAMILIES, HEADS, batch_of, has, plain
from tests.ragged import assert_same

SHARED = "albert-shared"
HEAD = {name: next(head for head in ("tokens", *HEADS) if has(name, head)) for name in FAMILIES}


def loaded(folder: Path, head: str) -> nn.Module:
    """The model as transformers alone reads it; every weight is there, and none is too many."""
    model, found = getattr(transformers, HEADS[head][0]).from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    return model.eval()


@torch.no_grad()
def answers(model: nn.Module, batch: dict) -> torch.Tensor:
    return model(**batch)[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("last", [False, True], ids=["first", "first-and-last"])
def test_a_plain_model_with_fewer_layers(family: str, last: bool, tmp_path: Path) -> None:
    head, batch = HEAD[family], batch_of(family)
    whole = plain(family, head)
    layers = whole.config.num_hidden_layers * getattr(whole.config, "inner_group_num", 1)
    weights = sum(weight.numel() for weight in whole.parameters())
    model = skim.compress(whole, skim.LayerDrop((0, layers - 1) if last else (0,))).eval()
    wanted = answers(model, batch)
    skim.save_pretrained(model, tmp_path, merged=True)
    assert not (tmp_path / "skim.json").exists()
    small = loaded(tmp_path, head)
    assert_same(answers(small, batch), wanted, batch["attention_mask"])
    config = small.config
    assert config.num_hidden_layers * getattr(config, "inner_group_num", 1) == 1 + last
    assert sum(weight.numel() for weight in small.parameters()) < weights or family == SHARED
    running = sum(weight.numel() for weight in small.parameters())
    assert 0 <= parameters_of(model) - running <= 8, "ESM's head has a weight for each layer of the whole"
    assert torch.equal(answers(model, batch), wanted)  # what was saved is as it was
    assert sum(weight.numel() for weight in model.parameters()) == weights


@pytest.mark.parametrize(
    ("family", "kept", "groups"),
    [
        # runs a, b of the first group, then c, d of the second
        ("albert", (0, 1), (2, 1, 2)),
        ("albert", (1, 2, 3), (3, 1, 3)),
        ("albert", (0, 1, 2, 3), (2, 2, 2)),
        (SHARED, (0, 3, 4), (1, 1, 3)),
    ],
)
def test_layers_that_are_shared_stay_so(family: str, kept: tuple, groups: tuple, tmp_path: Path) -> None:
    batch = batch_of(family)
    model = skim.compress(plain(family), skim.LayerDrop(kept)).eval()
    skim.save_pretrained(model, tmp_path, merged=True)
    small = loaded(tmp_path, "classification")
    config = small.config
    assert (config.num_hidden_groups, config.inner_group_num, config.num_hidden_layers) == groups
    assert_same(answers(small, batch), answers(model, batch))


def test_a_shared_layer_is_stored_twice_where_no_rule_runs_it_again(tmp_path: Path) -> None:
    options = {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 1}  # runs a, a, b, b
    batch = batch_of("albert")
    model = skim.compress(plain("albert", **options), skim.LayerDrop((0, 1, 3))).eval()  # a, a, b: the rule says so too
    small = merged(model)
    assert (small.config.num_hidden_groups, small.config.num_hidden_layers) == (2, 3)
    model = skim.compress(plain("albert", **options), skim.LayerDrop((0, 2, 3))).eval()  # a, b, b: it does not
    skim.save_pretrained(model, tmp_path, merged=True)
    small = loaded(tmp_path, "classification")
    assert (small.config.num_hidden_groups, small.config.inner_group_num) == (1, 3)
    assert_same(answers(small, batch), answers(model, batch))


def test_modernbert_keeps_its_first_layer_and_each_layers_kind(tmp_path: Path) -> None:
    model = skim.compress(plain("modernbert"), skim.LayerDrop((1, 2)))
    with pytest.raises(SkimError, match="ModernBERT without its first layer does not exist"):
        skim.save_pretrained(model, tmp_path / "refused", merged=True)
    assert not (tmp_path / "refused").exists()
    model = skim.compress(plain("modernbert"), skim.LayerDrop((0, 2)))
    skim.save_pretrained(model, tmp_path, merged=True)
    assert loaded(tmp_path, "classification").config.layer_types == ["full_attention"] * 2


def test_esm_keeps_the_contact_weights_of_the_layers_that_stay() -> None:
    model = skim.compress(plain("esm", "masked_lm"), skim.LayerDrop((0, 2)))
    before = model.esm.contact_head.regression.weight
    after = merged(model).esm.contact_head.regression.weight
    heads = model.config.num_attention_heads
    assert torch.equal(after, torch.cat([before[:, :heads], before[:, 2 * heads :]], 1))


def chained(*others: skim.Method) -> nn.Module:
    model = skim.compress(plain("bert"), [skim.LayerDrop((0, 2)), *others]).eval()
    for name, buffer in model.method.named_buffers():
        if name.endswith("shift"):
            buffer.fill_(-0.3)
    return model


def test_the_rest_of_a_chain_counts_the_layers_that_are_left(tmp_path: Path) -> None:
    batch = batch_of("bert")
    model = chained(skim.LTP(target=0.4, final_token_threshold=0.1))
    wanted = answers(model, batch)
    spent = float(model.trace.relative_flops())
    assert spent < 0.6
    skim.save_pretrained(model, tmp_path, merged=True)
    small = skim.from_pretrained(tmp_path)
    assert (type(small.method), small.config.num_hidden_layers) == (skim.LTP, 2)
    assert_same(answers(small, batch), wanted)
    assert float(small.trace.relative_flops()) == pytest.approx(spent * 3 / 2, rel=1e-5)  # of fewer layers
    assert small.method.target == pytest.approx(0.6)
    assert model.method.target == 0.4  # the one that was saved is as it was
    loaded(tmp_path, "classification")
    assert torch.equal(answers(model, batch), wanted)


def test_a_range_counts_the_layers_that_are_left(tmp_path: Path) -> None:
    batch = batch_of("bert")
    model = skim.compress(plain("bert"), [skim.LayerDrop((0, 2)), skim.TopK(start=0, target=(0.3, 0.6))]).eval()
    model.method.table.shifts.copy_(torch.linspace(-1.5, -0.5, len(model.method.table.shifts)))
    model.budget = 0.4
    wanted = answers(model, batch)
    skim.save_pretrained(model, tmp_path, merged=True)
    small = skim.from_pretrained(tmp_path)
    assert small.method.target == pytest.approx((0.45, 0.9))
    assert small.budget == pytest.approx(0.6)
    assert_same(answers(small, batch), wanted)
    model.budget = 0.55
    assert_same(answers(skim.from_pretrained(tmp_path, budget=0.825), batch), answers(model, batch))
    assert model.method.target == (0.3, 0.6)


def test_several_that_are_left_are_a_chain(tmp_path: Path) -> None:
    batch = batch_of("bert")
    model = chained(skim.TopK(start=1, token_keep_rate=0.6), skim.LTP(final_token_threshold=0.1))
    skim.save_pretrained(model, tmp_path, merged=True)
    small = skim.from_pretrained(tmp_path)
    assert [one.name for one in small.method.members] == ["topk", "ltp"]
    assert_same(answers(small, batch), answers(model, batch))


def test_a_chain_keeps_its_stage(tmp_path: Path) -> None:
    model = chained(skim.LTP(target=0.4), skim.TopK(start=1))
    model.method.enter("hard")
    skim.save_pretrained(model, tmp_path, merged=True)
    assert skim.from_pretrained(tmp_path).method.stage == "hard"


def test_adapters_join_the_weights(tmp_path: Path) -> None:
    batch = batch_of("bert")
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], init_lora_weights=False)
    model = skim.compress(peft.get_peft_model(plain("bert"), lora), skim.LayerDrop(2)).eval()
    wanted = answers(model, batch)
    skim.save_pretrained(model, tmp_path, merged=True)
    small = loaded(tmp_path, "classification")
    assert small.config.num_hidden_layers == 2
    assert_same(answers(small, batch), wanted)
    assert_same(answers(model, batch), wanted)
    skim.save_pretrained(model, tmp_path / "adapter")
    with pytest.raises(SkimError, match="holds a PEFT adapter"):
        skim.save_pretrained(model, tmp_path / "adapter", merged=True)


def test_what_decides_by_its_inputs_is_not_merged(tmp_path: Path) -> None:
    model = skim.compress(plain("bert"), "transkimmer")
    with pytest.raises(SkimError, match=r"merged=True has nothing to merge: method=transkimmer decides by each input"):
        skim.save_pretrained(model, tmp_path / "refused", merged=True)
    assert not (tmp_path / "refused").exists()


def test_a_folder_of_a_compressed_model_becomes_a_plain_one(tmp_path: Path) -> None:
    model = skim.compress(plain("bert"), skim.LayerDrop(2))
    skim.save_pretrained(model, tmp_path)
    before = (tmp_path / "model.safetensors").stat().st_size
    skim.save_pretrained(model, tmp_path, merged=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert (tmp_path / "model.safetensors").stat().st_size < before
    assert not any(".layer.2." in name for name in load_file(tmp_path / "model.safetensors"))
    again = skim.compress(loaded(tmp_path, "classification"), skim.LayerDrop(1))  # as any other
    assert len(again.skim_walk.costs) == 2
