"""What every test starts from: one thread, a fixed seed, a quiet transformers, and a device to run on."""

from __future__ import annotations

import pytest
import torch
import transformers

LONGEST = (
    *("test_learning.py", "test_ddp.py", "test_stages.py", "test_trainer.py", "test_resume_exactly.py"),
    *("test_tagging.py", "test_submission.py", "test_method_after.py", "test_2_executions.py", "test_early_exit.py"),
    *("test_docs.py", "test_readme.py", "test_question_answering.py", "test_4_gradients.py"),
)

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--laws=full`` runs the laws over every method on every family, and on a GPU if there is one; see tests/laws."""
    choices = ["quick", "default", "full"]
    parser.addoption("--laws", choices=choices, default="default", help="how many pairs the laws run over")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks of this project."""
    config.addinivalue_line("markers", "where(tells, heads=False): the cases of tests/laws that a law holds for")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes a ``device`` every one that there is; without ``--laws=full`` that is the CPU."""
    if "device" in metafunc.fixturenames:
        cuda = metafunc.config.getoption("laws") == "full" and torch.cuda.is_available()
        metafunc.parametrize("device", ["cpu", "cuda"] if cuda else ["cpu"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that train for long come first, so that no worker is left with one when the others are done."""
    long = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: long.get(item.path.name, len(long)))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
