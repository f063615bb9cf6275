"""What every test starts from: one thread, a fixed seed, a quiet transformers, and a device to run on.

torch and transformers are imported where tests run, and not in the process that only hands tests to workers, for which
the workers would wait.
"""

from __future__ import annotations

import copy
import faulthandler
import logging
import os
import runpy
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

LONGEST = (
    *("test_learning.py", "laws", "test_docs.py", "test_ddp.py", "test_stages.py", "test_resume_exactly.py"),
    *("test_trainer.py", "test_recipe.py", "test_chains.py", "test_adapters.py", "test_early_exit.py"),
    *("test_tagging.py", "test_method_after.py", "test_submission.py", "test_readme.py"),
    *("test_question_answering.py", "test_looks.py", "test_parts.py", "test_triton.py"),
)
# what libraries set once for the whole process, and pytest for each test
KEPT = ("PYTEST_", "PL_GLOBAL_SEED", "PL_SEED_WORKERS")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # those that a run listens to


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say how much is run: ``--laws=full`` every method on every family, and on a GPU; ``--share`` of slow tests."""
    choices = ["quick", "default", "full"]
    parser.addoption(
        "--laws",
        choices=choices,
        default="default",
        help="pairs that the laws run over; by default a sample, the others are slow",
    )

    parser.addoption("--share", type=float, default=1.0, help="share of the cases, steps or seconds of slow tests")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks of this project."""
    config.addinivalue_line(
        "markers",
        "where(tells, heads=(), once=False, dear=none): the cases of tests/laws that a law holds for; which are slow",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Quieten transformers and take one thread, where tests are run."""
    if session.config.pluginmanager.has_plugin("dsession"):  # xdist's, which runs none
        return
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes a ``device`` every one that there is; without ``--laws=full`` that is the CPU."""
    if "device" in metafunc.fixturenames:
        import torch

        cuda = metafunc.config.getoption("laws") == "full" and torch.cuda.is_available()
        metafunc.parametrize("device", ["cpu", "cuda"] if cuda else ["cpu"])


def takes_slow(config: pytest.Config) -> bool:
    """Tell whether slow tests may have been asked for: by ``-m``, or by name."""
    return bool(config.option.markexpr) or any("::" in argument for argument in config.args)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out unless some are asked for, by ``-m`` or by name; what takes long comes first.

    So that no worker is left with it when the others are done.
    """
    if not takes_slow(config):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    long = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: long.get(item.path.name, long.get(item.path.parent.name, len(long))))


@pytest.fixture(autouse=True, scope="session")
def _files_are_parsed_once() -> Iterator[None]:
    """Parse a config file's text once per process: tests compose thousands of configs of the same few files."""
    import yaml

    whole, parsed = yaml.load, {}

    def load(stream: Any, Loader: Any) -> Any:
        if Loader.__name__ != "OmegaConfLoader" or not hasattr(stream, "seek"):
            return whole(stream, Loader)
        text = stream.read()
        if text not in parsed:
            stream.seek(0)  # and not the text, as errors name the file
            parsed[text] = whole(stream, Loader)
        return copy.deepcopy(parsed[text])

    with mock.patch.object(yaml, "load", load):
        yield


@pytest.fixture(autouse=True, scope="session")
def _nothing_waits_for_the_disk() -> Iterator[None]:
    """Leave files to the system: bringing them to the disk takes 9 ms each, and no test cuts the power.

    That they are brought there is in ``tests/test_files.py``.
    """
    with mock.patch.object(os, "fsync"):
        yield


@pytest.fixture(autouse=True)
def _patience(request: pytest.FixtureRequest) -> None:
    """Give a slow test two hours, in place of the time after which others are taken to hang."""
    if request.node.get_closest_marker("slow"):
        faulthandler.dump_traceback_later(7200, exit=True, file=sys.__stderr__)


@pytest.fixture
def share(request: pytest.FixtureRequest) -> float:
    """The share of its cases that a slow test shall run; ``--share=0.1``."""
    return float(request.config.getoption("share"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Put back what a test has changed of its process, and tell which test that was.

    A process group that is left open fails it: later trainings in the same worker would join.
    """
    import torch

    folder, names = os.getcwd(), {name: value for name, value in os.environ.items() if not name.startswith(KEPT)}
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    known = [log for log in logging.root.manager.loggerDict.values() if isinstance(log, logging.Logger)]
    ours = [log for log in known if log.name.partition(".")[0] in ("skim", "tasks")]
    logs = [(log, vars(log).copy()) for log in (logging.getLogger(), *ours)]
    quiet = logging.root.manager.disable
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    left = []
    for number, handler in handlers.items():
        if signal.getsignal(number) != handler:
            left.append(f"a handler of {number.name}")
            signal.signal(number, handler)
    if os.getcwd() != folder:
        left.append(f"the folder {os.getcwd()}")
        os.chdir(folder)
    now = {name: value for name, value in os.environ.items() if not name.startswith(KEPT)}
    for name in sorted(name for name in {*names, *now} if names.get(name) != now.get(name)):
        left.append(name)
        os.environ.pop(name, None)
        if name in names:
            os.environ[name] = names[name]
    after = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    if after != before:
        left.append(f"threads, dtype, gradients {after}")
        torch.set_num_threads(before[0])
        torch.set_default_dtype(before[1])
        torch.set_grad_enabled(before[2])
    for log, was in logs:
        if any(vars(log)[name] != was[name] for name in ("level", "disabled", "propagate")):
            left.append(f"the log {log.name} at {logging.getLevelName(log.level)}, disabled: {log.disabled}")
            log.setLevel(was["level"])
            log.disabled, log.propagate = was["disabled"], was["propagate"]
    if logging.root.manager.disable != quiet:
        left.append(f"logs disabled up to {logging.root.manager.disable}")
        logging.disable(quiet)
    if left:
        warnings.warn(f"{request.node.nodeid} leaves {', '.join(left)}", stacklevel=1)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        pytest.fail("leaves a process group open", pytrace=False)


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The error with which a script ends in this process: exit code 2, and no traceback."""
    root = Path(__file__).parents[1]

    def run(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.chdir(root)
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(root / script), run_name="__main__")
        said = capfd.readouterr().err
        assert left.value.code == 2, said
        assert "Traceback" not in said
        return said

    return run
