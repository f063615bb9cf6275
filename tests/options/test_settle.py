"""An option that does not exist is never taken, whatever is written in front of it, wherever it is written."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from skim import cli, started
from skim.errors import SkimError
from skim.lightning.check import check, method_of
from skim.methods import Method
from skim.options.kinds import Fraction
from skim.options.settle import check_value, composed, settle
from skim.options.tree import ALIASES, OPEN, Chosen, leaves, node_at
from skim.options.words import written
from tests.runs import CONF
from tests.test_conf import GROUPS, OPTIONS

SIGNS = ("", "+", "++", "~")


def settled(overrides: list[str], name: str = "train", conf: Path = CONF, sweeps: bool = False) -> list[str]:
    with initialize_config_dir(str(conf), version_base="1.3"):
        return settle(overrides, name, sweeps=sweeps)


def made(overrides: list[str], name: str = "train", conf: Path = CONF) -> DictConfig:
    """What a command line composes."""
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose(name, settle(overrides, name))


def chosen_by(overrides: list[str], name: str = "train") -> Chosen:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return composed(name, overrides)


def refuse(override: str, chosen: Chosen) -> str:
    with pytest.raises(SkimError) as caught:
        check_value(OverridesParser.create().parse_override(override), chosen)
    return str(caught.value)


def misspelled(key: str, chosen: Chosen) -> str:
    """A slip of the finger in the last word, or in a longer one, that makes no other option."""
    known = {path for path, _ in leaves(chosen.tree)}
    *above, last = key.split(".")
    middle = len(last) // 2
    slips = (last[:middle] + last[middle + 1 :], last + "s", last[:middle] + last[middle:][::-1], last + "_")
    return next(path for slip in slips if slip if (path := ".".join([*above, slip])) not in known | set(chosen.tree))


@pytest.mark.parametrize("each", [1, pytest.param(len(SIGNS), marks=pytest.mark.slow)])
@pytest.mark.parametrize("group", ["train", "evaluate", *GROUPS])
def test_every_option_misspelled_is_refused_with_any_sign(group: str, each: int) -> None:
    """Every option of every file of every group, and those of the primary configs; with one sign in turn, or each."""
    files = [option for where, option in OPTIONS if where == group] or [None]
    seen: set[str] = set()
    for file in files:
        chosen = chosen_by([f"{group}={file}"] if file else [], group if file is None else "train")
        keys = {key for key, _ in leaves(chosen.tree) if file is None or key.startswith(f"{group}.")} - seen
        for number, key in enumerate(sorted(keys)):
            if key.startswith(tuple(f"{place}." for place in OPEN)):
                continue
            wrong = misspelled(key, chosen)
            for sign in (*SIGNS, *SIGNS)[number % len(SIGNS) :][:each]:
                said = refuse(f"~{wrong}" if sign == "~" else f"{sign}{wrong}=1", chosen)
                assert said.startswith(f"{wrong} is not an option"), said
        seen |= keys
    assert seen or group in ("experiment", "debug", "recipe")  # whose files have no options of their own


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        (["trainer.limit_val_batches=5"], "trainer.limit_val_batches", 5),
        (["trainer.profiler._target_=a.B", "trainer.profiler.c=1"], "trainer.profiler", {"_target_": "a.B", "c": 1}),
        (["callbacks.mine._target_=a.B", "callbacks.mine.c=1"], "callbacks.mine", {"_target_": "a.B", "c": 1}),
        (["callbacks.mine={_target_:a.B,c:1}"], "callbacks.mine", {"_target_": "a.B", "c": 1}),
        (["callbacks.early_stopping=null"], "callbacks.early_stopping", None),
        (["+logger.wandb._target_=a.B"], "logger.wandb", {"_target_": "a.B"}),
        (["optimizer._target_=torch.optim.SGD", "optimizer.momentum=0.9"], "optimizer.momentum", 0.9),
        (["optimizer=sgd", "optimizer.nesterov=true"], "optimizer.nesterov", True),
    ],
)
def test_parts_of_ones_own_and_arguments_of_their_classes_need_no_sign(typed: list[str], key: str, value: Any) -> None:
    cfg = OmegaConf.to_container(made(typed, "train"))
    assert node_at(key, cfg) == value  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_every_option_that_exists_is_taken_with_the_value_that_it_has(name: str) -> None:
    whole = chosen_by([], name)
    given = [f"{key}={written(value)}" for key, value in leaves(whole.tree) if value != "???"]
    given = [override.replace("backbone.overrides", "++backbone.overrides") for override in given]
    assert settled(given, name) == given
    assert OmegaConf.to_container(made(given, name)) == whole.tree


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("train.learning_rate=0.1", "train.lr"),
        ("+train.learning_rate=0.1", "train.lr"),
        ("++train.learning_rate=0.1", "train.lr"),
        ("~train.epoch", "train.epochs"),
        ("lr=0.1", "train.lr"),
        ("+lambda=0.1", "method.coefficient"),
        ("batch_size=8", "task.batch_size"),
        ("train.batch_size=8", "task.batch_size"),
        ("threads=1", "hardware.threads"),
        ("trian.lr=1", "train.lr"),
        ("method.targt=0.5", "method.target"),
        ("+task.files.tset=x.csv", "task.files.test"),
        ("dataset=sst2", "task"),
        ("train={epochs:1,lrr:2}", "train.lr"),
    ],
)
def test_the_nearest_that_exists_is_named(override: str, near: str) -> None:
    with pytest.raises(SkimError, match=rf"is not an option.* Did you mean {near}\?\n") as caught:
        settled([override])
    assert len(str(caught.value).splitlines()) == 2


def test_what_there_is_stands_beside_it() -> None:
    assert "method has: preset, target, coefficient" in refuse("+method.foo=1", chosen_by([]))
    assert refuse("hardware.profiler=simple", chosen_by(["hardware=cpu"])) == (
        "hardware.profiler is not an option of hardware=cpu.\n"
        "hardware has: accelerator, devices, num_nodes, precision, strategy, timeout, threads, num_workers."
    )


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("~train.lr", "cannot be taken away"),
        ("train=5", "train is a group of options: epochs"),
        ("train=null", "train is a group of options: epochs"),
        ("~logger", "a run needs its logger. Choose one: csv, mlflow, tensorboard, wandb"),
        ("method=null", "Unknown method 'null'"),
        ("task@other=sst2", "write task=sst2"),
        ("+task@other=sst2", "write task=sst2"),
        ("seed", "seed=<value>"),
        ("optimizr=adam", "optimizr is not an option"),
        ("+optimizr@train=adam", "optimizr is not an option"),
        ("optimizer=adam", "Unknown optimizer 'adam'. Did you mean 'adamw'?"),
        ("trainer.limit_val_batch=5", "Did you mean trainer.limit_val_batches?"),
        ("callbacks.mine.x=1", "callbacks.mine.x is not an option"),
        ("callbacks.early_stoping._target=x", "is not an option"),
        ("optimizer.momentum=0.9", "optimizer.momentum is not an option"),
    ],
)
def test_what_hydra_would_take_and_no_run_could_use(override: str, says: str) -> None:
    with pytest.raises(SkimError) as caught:
        settled([override])
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.learning_rate=1,2"],
        ["method=ltp,dense", "method.coefficient=0.1"],  # the second job has none
        ["method=glob(l*)", "method.bottleneck=8"],
        ["+nothing=choice(1,2)"],
        ["nothing=range(1,3)"],
    ],
)
def test_a_sweep_is_refused_before_its_first_job(overrides: list[str]) -> None:
    with pytest.raises(SkimError, match="is not an option"):
        settled(overrides, sweeps=True)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.lr=1e-4,abc"], "train.lr=abc must be a number"),
        (["seed=1,2,-3", "method=dense,topk"], "seed=-3 must be a whole number"),
        (["method.target=choice(0.3,2)"], "method.target=2 must be a number"),
        (["method=dense,topk", "hydra.searchpath=[]", "task.batch_size=range(-1,3)"], "task.batch_size=-1"),
    ],
)
def test_a_value_that_no_run_can_use_is_refused_before_the_first_job(overrides: list[str], words: str) -> None:
    with pytest.raises(SkimError, match=re.escape(words)):
        cli.settled(["-m", "task=builtin", "backbone=tiny", *overrides], CONF, "train")
    good = ["-m", "train.lr=1e-4,1e-3", "method=dense,transkimmer", "seed=range(1,3)"]
    assert cli.settled(good, CONF, "train")[0] == "-m"


def test_places_of_others_are_open() -> None:
    """A model's config, and the run that is looked at, say themselves what they know; no sign is needed."""
    assert settled(["backbone.overrides.hidden_dropout_prob=0"]) == ["++backbone.overrides.hidden_dropout_prob=0"]
    cfg = made(["ckpt=x", "overrides.task.files.test=a.csv", "+overrides.seed=2"], "evaluate")
    assert cfg.overrides == {"task": {"files": {"test": "a.csv"}}, "seed": 2}


def test_a_plus_in_front_of_a_group_changes_nothing() -> None:
    assert settled(["+experiment=demo", "+method=topk"]) == ["experiment=demo", "method=topk"]
    assert made(["+experiment=demo"]).train.epochs == 3


def test_of_a_group_that_is_typed_twice_the_last_counts_as_of_an_option() -> None:
    assert made(["task=builtin", "seed=1", "task=text", "seed=2"]).task.name == "text"


class Mine:
    """What a user's own method would be."""

    def __init__(self, depth: int = 1) -> None: ...


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A config folder of a user's own, who adds files to it."""
    folder = tmp_path / "conf"
    shutil.copytree(CONF, folder)
    return folder


def test_a_users_own_method_takes_its_arguments(own: Path) -> None:
    (own / "method" / "mine.yaml").write_text("_target_: tests.options.test_settle.Mine\n")
    assert made(["method=mine", "+method.depth=3"], conf=own).method.depth == 3
    with pytest.raises(SkimError, match=r"method.width is not an option of method=mine"):
        settled(["method=mine", "+method.width=3"], conf=own)


class Starting(Method):
    """A user's own: ``start`` is a share here, and a layer of top-k's."""

    def __init__(self, start: Fraction = 0.5) -> None:
        super().__init__()
        self.start = start


def test_a_word_of_another_method_is_free_for_a_users_own(own: Path) -> None:
    (own / "method" / "mine.yaml").write_text("_target_: tests.options.test_settle.Starting\nstart: 0.5\n")
    cfg = made(["method=mine", "method.start=0.7"], conf=own)
    assert method_of(cfg).start == 0.7
    for value in ("1.5", "abc"):
        with pytest.raises(SkimError, match=rf"^method\.start={value} must be a number, from 0 to 1\.$"):
            check(made(["method=mine", f"method.start={value}"], conf=own))
    assert method_of(made(["method=topk", "method.start=2"], conf=own)).start == 2


@pytest.mark.parametrize("file", ["experiment/mine.yaml", "local/default.yaml"])
def test_files_of_a_users_own_bring_no_option_either(own: Path, file: str) -> None:
    (own / file).parent.mkdir(exist_ok=True)
    (own / file).write_text("# @package _global_\ntrain:\n  learning_rate: 0.1\n")
    chosen = ["experiment=mine"] if "experiment" in file else []
    with pytest.raises(SkimError, match=rf"conf/{file}: train.learning_rate is not an option. Did you mean train.lr\?"):
        settled(chosen, conf=own)
    (own / file).write_text("# @package _global_\ntrain:\n  lr: 0.1\n")
    assert made(chosen, conf=own).train.lr == 0.1


def test_a_file_whose_options_another_method_has(own: Path) -> None:
    with pytest.raises(
        SkimError, match=r"experiment/sst2_transkimmer.yaml: method.bottleneck is not an option of method=ltp"
    ):
        settled(["experiment=sst2_transkimmer", "method=ltp"], conf=own)


# --------------------------------------------------------------------------- lambda
@pytest.mark.parametrize("method", ["ltp", "transkimmer", "ltp_soft"])
@pytest.mark.parametrize("sign", ["", "++"])
def test_lambda_is_the_coefficient(method: str, sign: str) -> None:
    cfg = made([f"method={method}", f"{sign}method.lambda=0.25"])
    assert cfg.method.coefficient == 0.25
    assert "lambda" not in cfg.method


@pytest.mark.parametrize("values", ["0.1,0.2", "choice(0.1,0.2)", "range(0.1,0.3,0.1)", "0.1"])
def test_lambda_is_swept_over_as_the_coefficient(values: str) -> None:
    assert settled([f"method.lambda={values}"], sweeps=True) == [f"method.coefficient={values}"]


def test_lambda_in_an_experiment(own: Path) -> None:
    (own / "experiment" / "mine.yaml").write_text("# @package _global_\nmethod:\n  lambda: 0.3\n")
    cfg = made(["experiment=mine"], conf=own)
    assert cfg.method.coefficient == 0.3
    assert "lambda" not in cfg.method
    typed = made(["experiment=mine", "method.coefficient=0.4"], conf=own)
    assert typed.method.coefficient == 0.4


def test_lambda_among_what_an_experiment_sweeps_over(own: Path) -> None:
    sweep = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: 1,2\n      method.lambda: 0.1,0.2\n"
    (own / "experiment" / "mine.yaml").write_text(sweep)
    assert settled(["experiment=mine"], conf=own, sweeps=True) == [
        "seed=1,2",
        "method.coefficient=0.1,0.2",
        "experiment=mine",
        "hydra.sweeper.params=null",
    ]
    (own / "experiment" / "mine.yaml").write_text(sweep.replace("lambda", "lambada"))
    with pytest.raises(SkimError, match=r"method.lambada is not an option"):
        settled(["experiment=mine"], conf=own, sweeps=True)


def test_lambda_of_a_run_that_is_looked_at() -> None:
    assert settled(["ckpt=x", "overrides.method.lambda=1"], "evaluate")[-1] == "++overrides.method.coefficient=1"


def test_a_method_without_it_says_so() -> None:
    with pytest.raises(
        SkimError, match=r"method.coefficient \(also called method.lambda\) is not an option of method=topk"
    ):
        settled(["method=topk", "method.lambda=0.1"])


def test_aliases_lead_somewhere_and_stand_nowhere() -> None:
    for alias, name in ALIASES.items():
        for path in (CONF / "method").glob("*.yaml"):
            assert alias.partition(".")[2] not in OmegaConf.load(path)
        assert any(name.partition(".")[2] in OmegaConf.load(path) for path in (CONF / "method").glob("*.yaml"))


# --------------------------------------------------------------------------- the command line
def test_options_may_be_written_as_sweep_agents_pass_them() -> None:
    """Agents of W&B put dashes before names, and write values as Python does."""
    given = ["--train.lr=0.1", "--method=topk", "-m", "-seed=3", "--callbacks.progress=False", "--config-name=train"]
    assert cli.settled([*given, "--benchmark.batch_sizes=[1, 32]"], CONF, "train") == [
        *("-m", "--config-name=train"),
        *("method=topk", "train.lr=0.1", "seed=3", "callbacks.progress=False", "benchmark.batch_sizes=[1, 32]"),
    ]
    with pytest.raises(SkimError, match=r"train\.rl is not an option"):
        cli.settled(["--train.rl=0.1"], CONF, "train")
    with pytest.raises(SkimError, match=r"^--fast is not a flag\. .* fast=<value>, or --fast=<value>\."):
        cli.settled(["--fast"], CONF, "train")


@pytest.mark.parametrize(("launcher", "extra"), [("joblib", "sweep"), ("submitit_slurm", "slurm")])
def test_a_launcher_that_is_not_installed_names_its_extra(
    launcher: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    hidden = lambda name, *more: None if name.startswith("hydra_plugins.hydra") else find(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    with pytest.raises(SkimError, match=rf"needs hydra-\w+-launcher, .*: pip install \"skim\[{extra}\]\"$"):
        settled([f"hydra/launcher={launcher}"], sweeps=True)


@pytest.mark.parametrize(
    ("override", "written_so"),
    [
        ("task.label_separator=,", """ "task.label_separator=','"."""),
        ("train.lr=[1", """ "train.lr='[1'"."""),
        ("seed=1,", """ "seed='1,'"."""),
        ('init_from=say("', """ 'init_from="""),
    ],
)
def test_what_hydra_cannot_read_is_told_how_to_be_written(override: str, written_so: str) -> None:
    with pytest.raises(SkimError) as caught:
        settled([override])
    assert str(caught.value).startswith(f"{override} cannot be read: ")
    assert written_so in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


def test_a_text_of_one_comma_is_taken_as_it_is_told() -> None:
    assert made(["task=text", "task.label_separator=','"]).task.label_separator == ","


def test_flags_and_their_values_stay(own: Path) -> None:
    other = own.parent / "more"
    (other / "experiment").mkdir(parents=True)
    (other / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    given = ["method=topk", "-m", f"--config-dir={other}", "experiment=mine", "seed=1,2"]
    assert cli.settled(given, CONF, "train") == [
        "-m",
        f"--config-dir={other}",
        "method=topk",
        "experiment=mine",
        "seed=1,2",
    ]


def test_the_command_is_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "method.lambda=0.1"])
    monkeypatch.setattr(started, "TYPED", [])
    monkeypatch.setattr(started, "started", list)  # pytest may have been started with -m
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # run() sets it, and later tests start processes
    said: list[list[str]] = []
    cli.run(lambda: said.append([started.command(), *sys.argv[1:]]), CONF, "train")
    assert said == [["python train.py method.lambda=0.1", "method.coefficient=0.1"]]
