"""Both entry points: readable errors, Hydra jobs that survive DDP. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from skim.errors import SkimError, message, shortened, visible
from skim.options.settle import settle
from skim.options.teach import teach
from skim.options.words import quoted
from skim.resume import check_named, inherited, recorded
from skim.signals import Stopped
from skim.started import command, remember, repeated

WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR", "0") != "0"  # before run() sets it
TYPED_BY = "command-line"  # Hydra's name for a folder that --config-dir brings
DISTRIBUTED = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run(main: Callable[[], object], conf: Path, name: str | None = None) -> None:
    """Run a Hydra main; what a user can mend ends in a few lines on stderr and exit code 2.

    Args:
        main: the decorated function.
        conf: the config folder.
        name: of the primary config, to hold options against; ``None`` for a main that reads none.
    """
    with readable():
        os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through instead of printing and leaving with 1
        remember(sys.argv)
        if name is not None:
            sys.argv[1:] = settled(sys.argv[1:], conf, name)
        main()


def settled(arguments: list[str], conf: Path, name: str) -> list[str]:
    """A command line as Hydra shall get it, with options that exist; see :func:`skim.options.settle.settle`.

    Raises:
        SkimError: a flag that there is not, or an option.
    """
    from hydra import initialize_config_dir
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    arguments = [verbatim(undashed(argument, parser._option_string_actions)) for argument in arguments]
    given = parser.parse_intermixed_args(arguments)
    folder = conf.parent / given.config_path if given.config_path else conf
    if given.help:
        print(teach(folder, given.config_name or name, given.overrides))
        raise SystemExit(0)
    if given.hydra_help or given.shell_completion:
        return arguments
    if (started := agree()) and given.multirun:
        raise SkimError(
            f"-m: {started} has started this process as one of a run's, and a sweep is many runs.\n"
            f"Start each run with {started}, or leave the jobs to a launcher: hydra/launcher=slurm."
        )
    search = [f"hydra.searchpath=['{Path(given.config_dir).resolve()}']"] if given.config_dir else []
    with initialize_config_dir(str(folder.resolve()), version_base="1.3"):
        overrides = inherited(given.overrides, given.config_name or name, search)
        if "sweep=wandb" in overrides:
            from skim.sweeps import agents

            wanted, jobs = agents.split(overrides)
            check_jobs(settle(jobs, given.config_name or name, search, sweeps=True), given.config_name or name, search)
            print(agents.write(wanted, jobs))
            raise SystemExit(0)
        if given.multirun:
            from skim import sweeps

            plan = sweeps.planned(overrides, given.config_name or name, search)
            for grid in plan.grids:
                check_jobs(list(grid), given.config_name or name, search)
            sweeps.register(plan, command())
            overrides = list(plan.grids[0])  # the sweeper knows the others
        else:
            check_named(overrides)
            overrides = settle(overrides, given.config_name or name, search)
    flags = list(arguments)
    for override in given.overrides:
        flags.remove(override)
    return [*flags, *overrides]


def undashed(argument: str, flags: Collection[str]) -> str:
    """``--method.target=0.4`` as ``method.target=0.4``: so W&B's sweep agents write options.

    Args:
        argument: of the command line.
        flags: Hydra's own, which stay as they are.

    Raises:
        SkimError: a flag that there is not, without a value.
    """
    flag, equals, value = argument.partition("=")
    dashed = flag.startswith("--") or (flag.startswith("-") and equals)
    if not dashed or flag in flags:
        return argument
    option = flag.lstrip("-")
    if not equals:
        raise SkimError(f"{argument} is not a flag. Options have a value: {option}=<value>, or {argument}=<value>.")
    return f"{option}={value}"


def agree() -> str | None:
    """Let the processes of a run agree on the stamp of its folder; says who has started them if it was not the run.

    The one that a run is given by itself is the time, which is another for each of them.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        from torch.distributed import rendezvous

        store, rank, _ = next(rendezvous("env://"))
        key = f"skim/stamp/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        if rank == 0:
            store.set(key, f"{datetime.now():%Y%m%d-%H%M%S-%f}")
        os.environ["SKIM_STAMP"] = store.get(key).decode()
        return "torchrun"
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in os.environ:
        os.environ["SKIM_STAMP"] = f"slurm-{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_STEP_ID', 0)}"
        return "srun"
    return None


def check_jobs(overrides: list[str], name: str, search: list[str]) -> None:
    """Refuse a sweep over a value that no run can use before its first job, and not when its turn comes.

    Each value is looked at in one of its jobs: beside the first values of whatever else is swept over.

    Args:
        overrides: settled ones; to be called where Hydra is initialised.
        name: of the primary config.
        search: overrides of Hydra's that say where config files are.

    Raises:
        SkimError: what is wrong, as the job itself would say it.
    """
    from hydra import compose
    from hydra.core.override_parser.overrides_parser import OverridesParser

    jobs: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides(overrides):
        line = override.input_line or ""
        if override.is_sweep_override():
            drawn: Any = override.value()  # of an interval, of which a search draws, both ends have to be of use
            discrete = override.is_discrete_sweep()
            values: Iterable[Any] = override.sweep_string_iterator() if discrete else (drawn.start, drawn.end)
            jobs[line] = [f"{override.get_key_element()}={value}" for value in values]
        elif not override.is_hydra_override():
            jobs[line] = [line]
    if all(len(lines) == 1 for lines in jobs.values()):
        return
    from skim.lightning.check import check  # heavy, and needed by the jobs in any case

    first = {line: lines[0] for line, lines in jobs.items()}
    for line, lines in jobs.items():
        for other in lines if len(lines) > 1 else ():
            check(compose(name, [*search, *{**first, line: other}.values()]))


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """End in a few lines and exit code 2 on what a user can mend; a traceback only if HYDRA_FULL_ERROR asks for it."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(128 + stopped.number) from None
    except (SkimError, HydraException, OmegaConfBaseException) as error:
        if WANTS_TRACEBACK:
            raise
        rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
        print(f"error{f' on rank {rank}' if rank else ''}: {message(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:  # a name that no file can have, of which the system says what is wrong
        if WANTS_TRACEBACK or error.errno != errno.ENAMETOOLONG:
            raise
        print(f"error: {shortened(visible(str(error.filename)))}: {error.strerror}.", file=sys.stderr)
        raise SystemExit(2) from None


def verbatim(argument: str) -> str:
    """``text=it's (really) good, no?`` as one string: Hydra would read quotes, brackets and commas as its own."""
    name, equals, value = argument.partition("=")
    if name != "text" or not equals or value[:1] in ("'", '"', "["):
        return argument
    return f"text={quoted(value)}"


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
def one_job() -> Iterator[None]:
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
            *(f"--config-dir={source.path}" for source in config.runtime.config_sources if source.provider == TYPED_BY),
            *config.overrides.task,
            "hydra.mode=RUN",
            f"hydra.run.dir='{config.runtime.output_dir}'",
            f"hydra.job.name=rank{local_rank}",
        ]
        # which the first rank may have found by itself, or not
        resume = recorded(Path(config.runtime.output_dir)).get("resume")
        arguments.append("resume=null" if resume is None else f"resume={quoted(resume)}")
        return [*repeated(), *arguments], config.runtime.cwd

    before = launcher._hydra_subprocess_cmd
    saved = {name: os.environ.get(name) for name in (*DISTRIBUTED, "HYDRA_FULL_ERROR")}
    os.environ["HYDRA_FULL_ERROR"] = str(int(WANTS_TRACEBACK))  # ranks inherit what the user said, not what run() set
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
