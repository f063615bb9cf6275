"""What every test starts from: one thread, a fixed seed, a quiet transformers, and a device to run on."""

from __future__ import annotations

import pytest
import torch
import transformers

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> str:
    """Every device that there is."""
    return request.param
