"""Batches are padded where the family's head does not read, whatever the tokenizer's config says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from skim.lightning.build import build
from tasks.builtin import Builtin
from tests.runs import small

XLNET = [
    "backbone.overrides.model_type=xlnet",
    "~backbone.overrides.max_position_embeddings",
    "+backbone.overrides.d_inner=64",
]


@pytest.mark.parametrize(("overrides", "side"), [([], "right"), (XLNET, "left")])
@pytest.mark.parametrize("said", ["left", "right"])
def test_a_tokenizers_side_is_not_what_decides(
    overrides: list[str], side: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Builtin.own_tokenizer

    def tokenizer(self: Builtin) -> Any:
        found = own(self)
        found.padding_side = said
        return found

    monkeypatch.setattr(Builtin, "own_tokenizer", tokenizer)
    parts = build(small("method=dense", *overrides))
    read = 0 if side == "right" else -1
    batches = [next(iter(parts.task.train_dataloader())), *parts.sampled(32, 64)]
    assert any((batch["attention_mask"] == 0).any() for batch in batches)
    for batch in batches:
        assert batch["attention_mask"][:, read].all()
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            parts.model.eval()(**inputs)
    assert parts.tokenizer.padding_side == side  # what is exported, too


def test_a_head_that_reads_another_position_than_the_others_of_its_family() -> None:
    """RoFormer's for multiple choice reads the last one, where BERT's habits would put padding and retire tokens."""
    parts = build(
        small("method=topk", "method.start=1", "task=builtin_choices", "backbone.overrides.model_type=roformer")
    )
    batch = next(iter(parts.task.train_dataloader()))
    assert batch["attention_mask"][..., -1].all()
    assert not batch["attention_mask"].all()
    with torch.no_grad():
        parts.model.eval()(**{name: batch[name] for name in ("input_ids", "attention_mask")})
    assert parts.model.trace.alive()[-1, :, -1].all()
    assert parts.tokenizer.padding_side == "left"
