"""What every test starts from: one thread, a fixed seed, a quiet transformers, and a device to run on."""

from __future__ import annotations

import pytest
import torch
import transformers

LONGEST = ("test_learning.py", "test_ddp.py", "test_stages.py", "test_trainer.py", "test_resume_exactly.py")

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that train for long come first, so that no worker is left with one when the others are done."""
    long = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: long.get(item.path.name, len(long)))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> str:
    """Every device that there is."""
    return request.param
