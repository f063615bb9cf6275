"""A kernel that does not run is told to the log once, and plain operations give the same."""

from __future__ import annotations

import logging

import pytest
import torch

from skim.engine.kernels import cuda, fused
from skim.engine.kernels.cpu import packed_attention
from skim.engine.mask import AttentionMask
from tests.engine.test_attention import packed


@pytest.fixture(autouse=True)
def _nothing_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "REFUSED", set())


@pytest.mark.parametrize("sums", [False, True])
def test_a_kernel_that_does_not_run_is_replaced(sums: bool, caplog: pytest.LogCaptureFixture) -> None:
    """None for a GPU runs on a CPU: half precision by FlashAttention and sums by Triton both end in a rectangle."""
    occupancy = packed([5, 9, 1], gaps=True).occupancy
    query, key, value = torch.randn(3, 1, 2, len(occupancy.index), 16).bfloat16()
    mask = AttentionMask(occupancy, wants_received=sums)
    with torch.no_grad(), caplog.at_level(logging.WARNING, "skim"):
        found, received = cuda.packed_attention(query, key, value, mask, None, 0.0)
        cuda.packed_attention(query, key, value, mask, None, 0.0)
        wanted, given = packed_attention(query, key, value, mask, None, 0.0)
    torch.testing.assert_close(found, wanted)
    if sums:
        torch.testing.assert_close(received, given)
    kernel = "attention" if sums else "varlen_attn"
    (record,) = caplog.records  # once, though it was asked twice
    assert f"Kernel {kernel} does not run here for torch.bfloat16 and width 16, so plain" in record.getMessage()
    assert record.exc_info is None


def test_without_triton(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(fused.KERNELS, "retire", "skim.no_such_module")
    assert fused.fused("retire", torch.zeros(1, 2, 3)) is None
    assert "No module named 'skim.no_such_module'" in caplog.text


def test_one_number_per_row_has_one_width(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """However many rows there are: a capacity that is new is no new reason to tell."""
    monkeypatch.setitem(fused.KERNELS, "rank", "skim.no_such_module")
    for rows in (64, 128):
        assert fused.fused("rank", torch.zeros(1, rows)) is None
    assert len(caplog.records) == 1


def test_memory_that_is_out_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "retire", full, raising=False)
    monkeypatch.setitem(fused.KERNELS, "retire", "torch")
    with pytest.raises(torch.OutOfMemoryError):
        fused.fused("retire", torch.zeros(1, 2, 3))
    assert not fused.REFUSED
