"""Law 6: saved and loaded, by skim and by plain transformers, a model says the same; and compress can be undone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers

import skim
from tests.laws.cases import THREE, Case
from tests.ragged import logits_of, on_real


@pytest.mark.where(lambda case: True, heads=THREE, once=True)
def test_6_round_trip(case: Case, tmp_path: Path) -> None:
    compressed, batch = case.compressed(), case.some(case.batch())
    mask, method = batch["attention_mask"], compressed.method
    plainly = skim.decompress(copy.deepcopy(compressed))
    names = set(plainly.state_dict())
    assert type(compressed) is type(plainly)
    assert {name for name in compressed.state_dict() if not name.startswith("method.")} == names
    for name, buffer in method.named_buffers():  # what calibration has set is kept as well
        if name in method.state_dict():
            buffer.add_(0.01 if buffer.is_floating_point() else 1)
    skim.save_pretrained(compressed, tmp_path)
    loaded = skim.from_pretrained(tmp_path)
    assert type(loaded.method) is type(method)
    assert loaded.method.options() == method.options()
    state, again = method.state_dict(), loaded.method.state_dict()
    assert set(again) == set(state)
    assert all(torch.equal(again[name], value) for name, value in state.items())
    theirs, report = type(plainly).from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs).__module__.startswith(transformers.__name__)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        wanted = compressed(**batch)
        found = loaded(**batch)
        assert torch.equal(loaded.trace.counts(), compressed.trace.counts())
        for name, value in logits_of(wanted).items():
            assert torch.equal(found[name], value)
        undone = skim.decompress(compressed)
        assert undone is compressed
        assert not {"forward", "method", "skim_walk"} & set(vars(undone))
        assert not hasattr(undone, "method")
        for model in (undone, theirs.eval()):
            for name, value in logits_of(plainly(**batch)).items():
                assert torch.equal(on_real(logits_of(model(**batch))[name], mask), on_real(value, mask))
    assert set(undone.state_dict()) == names
