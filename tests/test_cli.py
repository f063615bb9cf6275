"""The real entry points, as a user calls them: help, names that do not exist, and what they cost to import."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from skim import cli
from skim.errors import SkimError
from skim.options.settle import composed
from skim.options.teach import teach
from skim.options.tree import leaves
from tests.runs import CONF, SMALL
from tests.test_conf import OPTIONS

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "pytorch_lightning", "datasets", "wandb", "matplotlib")


def call(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Run a script in this process, which spares seconds of imports: the lines of the error that it ends with."""

    def run(script: str, *arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.chdir(ROOT)
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        assert left.value.code == 2
        said = capfd.readouterr().err
        assert said.startswith("error: ")
        assert "Traceback" not in said
        return said.strip().splitlines()

    return run


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_help_teaches(script: str) -> None:
    done = call(script, "--help")
    assert done.returncode == 0
    assert f"python {script}" in done.stdout
    for word in ("method=", "task=", "backbone=") if script == "train.py" else ("ckpt=", "what=tokens", "what=curve"):
        assert word in done.stdout


def test_help_names_every_choice_and_nothing_internal() -> None:
    said = teach(CONF, "train").split()
    for group, option in OPTIONS:
        assert f"{group}=" in said
        assert {option, f"{option},"} & set(said)
    assert not [word for word in said if word.startswith("_")]


def test_help_shows_what_a_ready_sweep_runs() -> None:
    said = teach(CONF, "train", ["sweep=sst2_frontier"])
    assert "  sweep.grids=\n    - method=transkimmer method.bottleneck=96 method.target=" in said
    assert "  sweep.common=task=sst2 backbone=minilm seed=1 " in said


@pytest.mark.parametrize(
    ("name", "asked", "group"),
    [
        ("evaluate", [], ""),
        ("train", ["method=ltp_hard"], "method."),
        ("train", ["hardware=cpu"], "hardware."),
        ("train", ["task=builtin"], "task."),
    ],
)
def test_help_explains_every_option_of_a_file(name: str, asked: list[str], group: str) -> None:
    said = teach(CONF, name, asked).rpartition("Options of")[2].splitlines()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        keys = [key for key, _ in leaves(composed(name, asked).tree) if key.startswith(group) and "._" not in key]
    places = {key: [i for i, line in enumerate(said) if line.startswith(f"  {key}=")] for key in keys}
    shown_with_others = ("task.name", "method.stages.", "task.files.")
    for key in keys:
        if key != "method.stages.soft":  # which ltp_hard leaves out
            (place,) = places[key]
            assert key.startswith(shown_with_others) or said[place + 1].startswith("      "), f"{key} is not explained"


@pytest.mark.parametrize("module", ["skim", "train", "evaluate", "skim.cli", "skim.hub.__main__"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    """What makes an import slow is what it loads; counted in modules, not in seconds."""
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert call("-c", code).stdout.strip() == "[]"


def test_public_names_survive_the_import_of_their_modules() -> None:
    code = "import skim.compression, skim; print(callable(skim.compress), callable(skim.compress), skim.Dense.name)"
    assert call("-c", code).stdout.split() == ["True", "True", "dense"]


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("method=transkimer", "transkimmer"),
        ("task=sst", "sst2"),
        ("backbone=minlm", "minilm"),
        ("hardware=gpuu", "gpu"),
    ],
)
def test_unknown_names_get_the_nearest_one(
    tmp_path: Path, override: str, nearest: str, refused: Callable[..., list[str]]
) -> None:
    lines = refused("train.py", override, f"paths.runs={tmp_path / 'runs'}")
    assert f"'{nearest}'" in "\n".join(lines)
    assert len(lines) <= 5
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epoch=3", "epoch"),
        ("method.targt=0.5", "targt"),
        ("seed", "seed"),
        ("train.lr=fast", "fast"),
    ],
)
def test_unknown_keys_and_values_end_in_a_few_lines(
    tmp_path: Path, override: str, says: str, refused: Callable[..., list[str]]
) -> None:
    lines = refused("train.py", "task=builtin", override, f"paths.runs={tmp_path / 'runs'}")
    assert says in "\n".join(lines)
    assert len(lines) <= 8
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method=ltp_manual", "method.final_token_threshold=0.99"], "retires every token"),
        (["method=topk", "method.token_keep_rate=1.5"], "method.token_keep_rate=1.5 must be a number, from -1 to 1"),
        (["method=ltp_hard"], "Set init_from="),
        (["method=ltp", "method.temperature=0"], "method.temperature=0 must be a number, above 0"),
        (["method=ltp", "method.stages.hard.epochs=0"], "method.stages.hard.epochs=0 must be a whole number"),
        (["method=ltp", "+method.stages.hrad.lr=1"], "method.stages.hard.lr"),
        (["method=ltp", "formulas=[nope]"], "formulas=[nope] must be a list of any of ltp"),
        (["method=ltp", "method.preset=paper", "method.target=0.5"], "method.preset=default"),
    ],
)
def test_what_a_method_cannot_do_ends_in_a_few_lines_and_leaves_nothing(
    tmp_path: Path, overrides: list[str], says: str, refused: Callable[..., list[str]]
) -> None:
    (tmp_path / "mine").touch()  # so that this folder stays
    lines = refused("train.py", *SMALL, *overrides, f"paths.runs={tmp_path / 'runs'}")
    assert says in "\n".join(lines)
    assert len(lines) <= 4
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a bash to complete in")
def test_bash_completes_groups_choices_and_options() -> None:
    """By Hydra's own script, as the help says to install it; cli.py lets its flags through."""
    lines = ["method=tr", "debug=", "train.lr_f", "method=ltp method.stages.soft.meth"]
    script = """
        eval "$(python train.py -sc install=bash)"
        for line in "$@"; do
            COMP_LINE="python train.py $line"; COMP_POINT=${#COMP_LINE}; COMP_WORDS=($COMP_LINE)
            COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); hydra_bash_completion; echo "${COMPREPLY[*]}"
        done"""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    bash = ["bash", "-c", script, "bash", *lines]
    done = subprocess.run(bash, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "method=transkimmer method=truncate",
        "debug=fast debug=overfit debug=profile",
        "train.lr_find=",
        "method.stages.soft.method_lr= method.stages.soft.method_weight_decay=",
    ]
    assert done.stderr == ""


def test_evaluating_nothing_says_what_to_name(tmp_path: Path, refused: Callable[..., list[str]]) -> None:
    assert "config.yaml" in "\n".join(refused("evaluate.py", f"ckpt={tmp_path / 'nothing'}"))


@pytest.mark.parametrize(
    "text",
    ["a gripping , funny film", "it's a film (really)", "50% off: [best] {of} all = 1", "back\\slash", "'quoted'"],
)
def test_any_text_reaches_the_config_as_it_is(text: str) -> None:
    from hydra import compose, initialize_config_dir

    from skim.cli import verbatim

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        read = compose("evaluate", ["ckpt=x", verbatim(f"text={text}")]).text
    assert read == (text if text != "'quoted'" else "quoted")


@pytest.mark.parametrize("wanted", [True, False])
def test_other_ranks_show_tracebacks_only_if_the_user_asked(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as run() leaves it, for Hydra
    monkeypatch.setattr(cli, "WANTS_TRACEBACK", wanted)
    monkeypatch.setattr(HydraConfig, "get", lambda: None)
    with cli.one_job():
        assert os.environ["HYDRA_FULL_ERROR"] == str(int(wanted))
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


@pytest.mark.parametrize(("rank", "begins"), [("0", "error: lost"), ("1", "error on rank 1: lost")])
def test_an_error_says_which_rank_met_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, begins: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(cli, "WANTS_TRACEBACK", False)
    with pytest.raises(SystemExit), cli.readable():
        raise SkimError("lost")
    assert capsys.readouterr().err == f"{begins}\n"
