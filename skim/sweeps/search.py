"""Search of the front of quality and cost: Optuna draws the jobs of a sweep, and reads what they have measured.

    <sweep>/study.db     Optuna's study: every trial, with the number of its job
    <sweep>/<job>/       the runs, as of any sweep

What is drawn follows from the seed and from the trials before, and not from when the search was killed or how often.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from skim.errors import SkimError
from skim.report.runs import speedups
from skim.signals import Stopped
from skim.sweeps.folder import Asked, Job, Sweep
from skim.sweeps.job import Recorded
from skim.sweeps.launch import launch
from skim.sweeps.plan import Plan

STUDY = "study.db"
PADDED = "padded_hf"  # the candidate that time is divided by
COSTS = {"flops": "relative FLOPs", "time": "time / padded"}


class Search(Sweeper):
    """Trials of a study with two objectives, the task's metric and what it costs.

    Args:
        plan: what the command asks for.
        command: as typed.
    """

    def __init__(self, plan: Plan, command: str) -> None:
        self.plan, self.options, self.command = plan, plan.options, command

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=Recorded.here(task_function), config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that are left, and print the front.

        Raises:
            SkimError: nothing to draw, or to measure; the folder is another sweep's; no trial has finished.
        """
        optuna = imported()
        assert self.config is not None
        assert self.launcher is not None
        folder = Path(self.config.hydra.sweep.dir)
        space, fixed = self.space(arguments)
        sweep = Sweep(folder)
        console = Console()
        with sweep.claimed(self.command, self.plan.typed, self.plan.resumed):
            study = optuna.create_study(
                storage=f"sqlite:///{folder.resolve() / STUDY}",
                study_name="search",
                directions=["maximize", "minimize"],
                load_if_exists=True,
            )
            check_drawn(study, space, folder)
            try:
                for trials in self.batches(study, space):
                    jobs = [self.job_of(trial, fixed, sweep) for trial in trials]
                    alone = list({job.number: job for job in jobs}.values())
                    launch(self.launcher, self.config.hydra.launcher, alone, console)
                    for trial, job in zip(trials, jobs, strict=True):
                        conclude(study, trial, Job.at(job.folder), self.options.cost)
            except (KeyboardInterrupt, SystemExit, Stopped):
                console.print(f"The search was interrupted; sweep.resume={folder} goes on with it.", soft_wrap=True)
                raise
        self.show(study, sweep, console)

    def space(self, arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Read what is drawn, by the option's path, and the overrides that all trials share.

        Raises:
            SkimError: nothing is drawn; time shall be the cost and is not measured; there are several grids.
        """
        if len(self.plan.grids) > 1:
            raise SkimError("A search draws from one space; sweep.grids has several lines. Start one search for each.")
        parsed = OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(list(arguments))
        own = [override for override in parsed if not override.is_hydra_override()]
        drawn = {override.get_key_element(): distribution(override) for override in own if override.is_sweep_override()}
        if not drawn:
            raise SkimError(
                "A search needs values to draw: method.target=interval(0.3,0.9), method.blocks=choice([2,2,2],[4,2]), "
                "train.epochs=range(1,4)."
            )
        fixed = [override.input_line or "" for override in own if not override.is_sweep_override()]
        if self.options.cost == "time" and not self.config.benchmark.enabled:
            raise SkimError("sweep.cost=time is measured by the benchmark of each run: set benchmark.enabled=true.")
        return drawn, fixed

    def batches(self, study: Any, space: dict[str, Any]) -> Iterator[list[Any]]:
        """Draw trials, as many at a time as run side by side; first come those of a search that was killed."""
        optuna, options = imported(), self.options
        states = optuna.trial.TrialState
        left = [optuna.trial.Trial(study, one._trial_id) for one in study.get_trials(states=(states.RUNNING,))]
        for half in [trial for trial in left if trial.params.keys() != space.keys()]:  # killed while it was drawn
            study.tell(half, state=states.FAIL)
            left.remove(half)
        finished = len(study.get_trials(states=(states.COMPLETE, states.PRUNED)))
        wanted = (options.trials or 0) - finished - len(left)
        if left:
            yield left
        while wanted > 0:
            trials = []
            for _ in range(min(options.jobs, wanted)):
                study.sampler = optuna.samplers.TPESampler(
                    # of the trial: a search that goes on draws on
                    seed=(options.seed * 1_000_003 + len(study.trials)) % 2**32,
                    n_startup_trials=options.random,
                    constant_liar=options.jobs > 1,
                )
                trials.append(study.ask(space))
            wanted -= len(trials)
            yield trials

    def job_of(self, trial: Any, fixed: Sequence[str], sweep: Sweep) -> Job:
        """Find or make the job of a trial; two that draw alike have one."""
        lines = [*fixed, *(f"{key}={value}" for key, value in trial.params.items())]
        if self.options.prune is not None:
            stops = {"folder": sweep.folder.resolve(), "margin": self.options.prune}
            target = "skim.sweeps.pruning.StopsDominated"
            lines += [f"++callbacks.prune.{key}={value}" for key, value in {"_target_": target, **stops}.items()]
        assert self.hydra_context is not None
        composed = self.hydra_context.config_loader.load_sweep_config(cast(DictConfig, self.config), lines)
        (job,) = sweep.enlist([Asked(tuple(lines), composed)])
        return job

    def show(self, study: Any, sweep: Sweep, console: Console) -> None:
        """Print the trials on the front, and what has not finished.

        Raises:
            SkimError: no trial has finished.
        """
        states = imported().trial.TrialState
        trials = study.get_trials()
        for trial in trials:
            if trial.state == states.FAIL:
                said = trial.user_attrs.get("error", "it was killed while it was drawn")
                console.print(Text(f"trial {trial.number}, job {trial.user_attrs.get('job')}: {said}", "bold red"))
        if not any(trial.state == states.COMPLETE for trial in trials):
            raise SkimError(f"No trial of the search in {sweep.folder} has finished.\nIts jobs say why, in job.json.")
        front = sorted(study.best_trials, key=lambda trial: (trial.values[1], trial.number))
        names = list(front[0].params)
        table = Table("job", *names, "metric", COSTS[self.options.cost], title="front", box=None)
        for trial in front:
            drawn = [value if isinstance(value, str) else f"{value:.4g}" for value in trial.params.values()]
            table.add_row(str(trial.user_attrs["job"]), *drawn, f"{trial.values[0]:.4f}", f"{trial.values[1]:.3f}")
        console.print(table)
        kinds = {"finished": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}
        counts = {name: sum(trial.state == state for trial in trials) for name, state in kinds.items()}
        console.print(", ".join(f"{count} {name}" for name, count in counts.items() if count), highlight=False)
        console.print(f"study: {sweep.folder / STUDY}", highlight=False, soft_wrap=True)
        console.print(f"python -m skim.report {sweep.folder}", highlight=False, soft_wrap=True)


def imported() -> Any:
    """Optuna, when it is needed.

    Raises:
        SkimError: it is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise SkimError('A search needs Optuna, which is not installed: pip install "skim[sweep]"') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def distribution(override: Override) -> Any:
    """Make the distribution of a sweep in Hydra's words: interval(), choice() or a,b, range(); tag(log, ...)."""
    kinds, value = imported().distributions, override.value()
    if isinstance(value, IntervalSweep):
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        kind = kinds.IntDistribution if whole else kinds.FloatDistribution
        return kind(value.start, value.end, log="log" in value.tags)
    if isinstance(value, RangeSweep) and not value.shuffle:
        steps: list[Any] = list(override.sweep_iterator())
        kind = kinds.IntDistribution if isinstance(steps[0], int) else kinds.FloatDistribution
        return kind(steps[0], steps[-1], step=value.step)
    return kinds.CategoricalDistribution(list(override.sweep_string_iterator()))


def check_drawn(study: Any, space: dict[str, Any], folder: Path) -> None:
    """Refuse to go on drawing from other values than the trials before; a wider interval is what a study can take.

    Raises:
        SkimError: what is drawn from other values, and from which.
    """
    compatible = imported().distributions.check_distribution_compatibility
    for trial in study.get_trials(deepcopy=False):
        for name, before in trial.distributions.items():
            if (now := space.get(name)) is None:
                continue
            try:
                compatible(before, now)
            except ValueError:
                raise SkimError(
                    f"sweep.resume={folder}: the trials there draw {name} from {values(before)}, and this command from "
                    f"{values(now)}.\nGo on with the same values, or start a new search without sweep.resume."
                ) from None


def values(drawn: Any) -> str:
    """Write a distribution as it is typed."""
    choices = getattr(drawn, "choices", None)
    return f"interval({drawn.low},{drawn.high})" if choices is None else f"choice({','.join(map(str, choices))})"


def conclude(study: Any, trial: Any, job: Job, cost: str) -> None:
    """Tell a study what has become of a trial's job."""
    states, results = imported().trial.TrialState, job.results()
    trial.set_user_attr("job", job.number)
    values = objectives(results, cost) if results is not None else ()
    if job.state == "done" and all(map(math.isfinite, values)):
        study.tell(trial, values)
    elif job.state == "pruned":
        study.tell(trial, state=states.PRUNED)
    else:
        trial.set_user_attr("error", job.error or f"it is {job.state}, with objectives {values}")
        study.tell(trial, state=states.FAIL)


def objectives(results: dict[str, Any], cost: str) -> tuple[float, float]:
    """The metric of a run, and what it cost."""
    metric = float(results["metrics"].get(results["monitor"], math.nan))
    if cost == "flops":
        return metric, float(results["relative_flops"])
    ratios = speedups(results)
    sizes = [size for size, baseline in ratios if baseline == PADDED]
    return metric, 1 / ratios[max(sizes), PADDED] if sizes else math.nan
