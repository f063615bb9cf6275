"""What ``train.py`` and ``evaluate.py`` share: readable errors, Hydra jobs that survive DDP. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from skim.errors import SkimError, unknown

WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR", "0") != "0"  # before run() sets it
DISTRIBUTED = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run(main: Callable[[], object], conf: Path) -> None:
    """Run a Hydra main; what a user can mend ends in a few lines on stderr and exit code 2.

    Args:
        main: the decorated function.
        conf: the config folder, to check choices of groups against.
    """
    with readable():
        os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through instead of printing and leaving with 1
        check_choices(sys.argv[1:], conf)
        sys.argv[1:] = [verbatim(argument) for argument in sys.argv[1:]]
        main()


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """End in a few lines and exit code 2 on what a user can mend; a traceback only if HYDRA_FULL_ERROR asks for it."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; resume=<run>/checkpoints/last.ckpt goes on from the last evaluation", file=sys.stderr)
        raise SystemExit(130) from None
    except (SkimError, HydraException, OmegaConfBaseException) as error:
        if WANTS_TRACEBACK:
            raise
        print(f"error: {message(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def verbatim(argument: str) -> str:
    """``text=it's (really) good, no?`` as one string: Hydra would read quotes, brackets and commas as its own."""
    name, equals, value = argument.partition("=")
    if name != "text" or not equals or value[:1] in ("'", '"', "["):
        return argument
    # in Hydra's quoted strings a backslash is itself, except in front of a quote
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return f"text='{escaped}'"


def message(error: BaseException) -> str:
    """A SkimError's words, also from under the exceptions that Hydra wraps round it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SkimError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "\n".join(lines[:6])


def check_choices(overrides: list[str], conf: Path) -> None:
    """Name the nearest option when ``group=choice`` names none; Hydra alone lists them all and leaves with code 1."""
    for override in overrides:
        match = re.fullmatch(r"\+?(\w+)=([\w\-,]+)", override)
        if match is None or not (conf / match[1]).is_dir():
            continue
        options = sorted(path.stem for path in (conf / match[1]).glob("*.yaml") if not path.stem.startswith("_"))
        for choice in match[2].split(","):
            if choice not in options and choice != "null":
                raise unknown(match[1], choice, options)


def command() -> str:
    """What the user typed."""
    return shlex.join(["python", *sys.argv])


@contextlib.contextmanager
def swept(folder: Path) -> Iterator[None]:
    """Take away a job's folder, and the empty ones above it, if the job failed before it wrote anything."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.removedirs(folder)
        raise


@contextlib.contextmanager
def one_job(script: Path) -> Iterator[None]:
    """Keep a Hydra job and Lightning's DDP processes apart from the sweep around them.

    Lightning starts its other ranks by repeating the command line. Under ``-m`` that repeats the whole sweep in every
    rank, and with an unseeded sampler the ranks train with different hyperparameters, silently. Here a rank gets just
    the overrides of this job, in this job's folder; and when the job ends its process group and rank variables go with
    it, so that the next job does not hang on them.
    """
    import pytorch_lightning.strategies.launchers.subprocess_script as launcher
    from hydra.core.hydra_config import HydraConfig

    config = HydraConfig.get()

    def rank_command(local_rank: int) -> tuple[list[str], str]:
        arguments = [
            f"--config-name={config.job.config_name}",
            *config.overrides.task,
            "hydra.mode=RUN",
            f"hydra.run.dir='{config.runtime.output_dir}'",
            f"hydra.job.name=rank{local_rank}",
        ]
        return [sys.executable, str(script), *arguments], config.runtime.cwd

    before = launcher._hydra_subprocess_cmd
    saved = {name: os.environ.get(name) for name in DISTRIBUTED}
    launcher._hydra_subprocess_cmd = rank_command
    try:
        yield
    finally:
        launcher._hydra_subprocess_cmd = before
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
        for name, value in saved.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
