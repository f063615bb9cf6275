"""Depth by kind of token: counted against what a script retires, and through the real command."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import torch
from transformers import BertTokenizerFast

import skim
from skim import hub
from skim.analysis.depth import Depths, by_corruption, by_tag, by_token, survived, tagged
from skim.errors import SkimError
from skim.lightning.looks import evaluate
from skim.lightning.recipe import train
from tests.families import LAYERS, plain
from tests.ragged import Scripted
from tests.runs import composed, small

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "##s", "bark", "loud", "##ly"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> BertTokenizerFast:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS))
    return BertTokenizerFast(vocab=str(path))


def scripted(keep: torch.Tensor):
    """A model whose layer k computes the tokens for which ``keep``, ``(B, N)``, is above k."""
    script = torch.stack([keep > layer for layer in range(LAYERS)])
    return skim.compress(plain("bert"), Scripted(script, ("cls",))).eval()


def test_each_kind_has_the_mean_over_its_tokens(tokenizer: BertTokenizerFast) -> None:
    batch = tokenizer(["a dog bark", "dogs bark"], padding=True, return_tensors="pt")
    keep = torch.tensor([[3, 1, 2, 3, 1], [3, 2, 0, 1, 2]])
    model = scripted(keep)
    assert torch.equal(survived(model, batch), keep.float())
    depths = Depths(LAYERS)
    by_token(model, tokenizer, [batch, batch], depths)
    found = depths.to_dict()["tokens"]
    assert found["all"] == {"mean": keep.sum().item() / 10, "count": 20}
    assert found["[CLS]"] == {"mean": 3.0, "count": 4}
    assert found["[SEP]"] == {"mean": 1.5, "count": 4}
    assert found["words"]["count"] == 12
    assert found["words"]["mean"] == pytest.approx((1 + 2 + 3 + 2 + 0 + 1) / 6)


def test_pads_are_in_no_mean(tokenizer: BertTokenizerFast) -> None:
    batch = tokenizer(["a dog bark", "bark"], padding=True, return_tensors="pt")
    depths = Depths(LAYERS)
    by_token(scripted(torch.full((2, 5), 3)), tokenizer, [batch], depths)
    assert depths.to_dict()["tokens"]["all"] == {"mean": 3.0, "count": 8}


def test_a_word_has_the_mean_of_its_tokens(tokenizer: BertTokenizerFast) -> None:
    sentences = [(["dogs", "bark", "loudly"], ["NOUN", "VERB", "ADV"]), (["bark"], ["VERB"])]
    # [CLS] dog ##s bark loud ##ly [SEP]
    model = scripted(torch.tensor([[3, 3, 1, 1, 2, 1, 3], [3, 2, 3, 0, 0, 0, 0]]))
    depths = Depths(LAYERS)
    by_tag(model, tokenizer, sentences, depths)
    found = depths.to_dict()["tags"]
    assert {tag: (value["mean"], value["count"]) for tag, value in found.items()} == {
        "NOUN": (2.0, 1),
        "VERB": (1.5, 2),
        "ADV": (1.5, 1),
    }


def test_corruption_spares_special_tokens_and_counts_everyone_once(tokenizer: BertTokenizerFast) -> None:
    texts = ["a dog bark loud " * 10] * 30
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    keep = torch.full(batch["input_ids"].shape, 2)
    depths = Depths(LAYERS)
    by_corruption(scripted(keep), tokenizer, [batch], depths)
    found = depths.to_dict()["corrupted"]
    counts = {kind: value["count"] for kind, value in found.items()}
    assert sum(counts.values()) == 30 * 40
    chosen = sum(counts.values()) - counts["untouched"]
    assert 0.1 < chosen / (30 * 40) < 0.2
    assert 0.65 < counts["masked"] / chosen < 0.95
    assert {value["mean"] for value in found.values()} == {2.0}


def test_tagged_files(tmp_path: Path) -> None:
    columns, universal = tmp_path / "some.txt", tmp_path / "some.conllu"
    columns.write_text("dogs NNS\nbark\tVBP\n\n\nloudly RB\n")
    universal.write_text(
        "# text = don't\n1-2\tdon't\t_\t_\t_\t_\t_\t_\t_\t_\n"
        "1\tdo\tdo\tAUX\t_\t_\t_\t_\t_\t_\n2\tn't\tnot\tPART\t_\t_\t_\t_\t_\t_\n"
    )
    assert tagged(str(columns), None, "", "", "") == [(["dogs", "bark"], ["NNS", "VBP"]), (["loudly"], ["RB"])]
    assert tagged(str(universal), None, "", "", "") == [(["do", "n't"], ["AUX", "PART"])]
    columns.write_text("dogs NNS\nbark\n")
    with pytest.raises(SkimError, match="line 2"):
        tagged(str(columns), None, "", "", "")
    with pytest.raises(SkimError, match="no such file"):
        tagged(str(tmp_path / "other.txt"), None, "", "", "")


def test_tagged_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dot in a hub id makes no file of it; each word needs a tag."""
    asked = []

    def dataset(hub_id: str, config: str, split: str) -> datasets.Dataset:
        asked.append(hub_id)
        return datasets.Dataset.from_dict({"tokens": [["a", "dog"], ["bark"]], "upos": [["DET", "NOUN"], tags]})

    monkeypatch.setattr(hub, "dataset", dataset)
    tags = ["VERB"]
    found = tagged("org/ud-2.14", None, "train", "tokens", "upos")
    assert found == [(["a", "dog"], ["DET", "NOUN"]), (["bark"], ["VERB"])]
    assert asked == ["org/ud-2.14"]
    tags = []
    with pytest.raises(SkimError, match=r"row 1: .* a tag for each word"):
        tagged("org/ud-2.14", None, "train", "tokens", "upos")


@pytest.mark.parametrize("samples", ["null", "abc", "-1", "0", "true"])
def test_samples_are_a_number(samples: str, tmp_path: Path) -> None:
    with pytest.raises(SkimError, match="(?i)depth.samples=" + samples):
        evaluate(composed(f"ckpt={tmp_path}", "what=depth", f"depth.samples={samples}", config="evaluate"))


def test_the_command_writes_a_table_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    train(small("method=act", "train.max_steps=1"), folder, "")
    words = tmp_path / "words.txt"
    words.write_text("the DET\nfilm NOUN\n")
    options = [
        "hardware.accelerator=cpu",
        "hardware.threads=1",
        "what=depth",
        "depth.samples=16",
        f"depth.tagged.dataset={words}",
    ]
    evaluate(composed(f"ckpt={folder}", *options, config="evaluate"))
    depth = json.loads((folder / "results.json").read_text())["depth"]
    assert depth["tokens"]["[CLS]"]["count"] == 16
    assert set(depth["tags"]) == {"DET", "NOUN"}
    assert 1 <= depth["tokens"]["all"]["mean"] <= depth["layers"]
    assert (folder / "depth.png").stat().st_size > 0
    assert "NOUN" in capsys.readouterr().out
