"""``dtype="auto"``: half precision where it measures faster, and the reason in one line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from skim.engine import dtype
from skim.engine.dtype import fastest


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    """What is kept for the process is forgotten, before and after."""
    dtype._fastest.cache_clear()
    yield
    dtype._fastest.cache_clear()


@pytest.mark.parametrize(
    ("has", "ratio", "chosen", "why"),
    [
        (True, 2.0, torch.bfloat16, "bfloat16 measured 2.00 times as fast"),
        (True, 1.05, torch.float32, "bfloat16 measured 1.05 times as fast"),
        (False, 2.0, torch.float32, "neither AMX nor AVX512-BF16"),
    ],
)
def test_a_cpu_is_measured_where_it_has_the_instructions(
    has: bool, ratio: float, chosen: torch.dtype, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: the second time it is known, and said no more."""
    asked = []
    monkeypatch.setattr(dtype, "half_precision", lambda: has)
    monkeypatch.setattr(dtype, "measured", lambda: asked.append(None) or ratio)
    for _ in range(2):
        choice = fastest("cpu")
    assert choice.dtype == chosen
    assert why in str(choice)
    assert len(asked) == has


@pytest.mark.parametrize(("has", "chosen"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_is_asked(has: bool, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    assert fastest("cuda:1").dtype == chosen
    assert fastest("meta").dtype == torch.float32


def test_the_measurement_gives_a_ratio_and_leaves_nothing_behind() -> None:
    state = torch.get_rng_state()
    assert dtype.measured() > 0
    assert torch.equal(torch.get_rng_state(), state)
