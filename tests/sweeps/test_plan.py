import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import initialize_config_dir

from skim.errors import SkimError
from skim.places import CONF
from skim.results import SCHEMA
from skim.sweeps.plan import Plan, planned

# wandb is for W&B's agents, and never planned here
READY = sorted(path.stem for path in (CONF / "sweep").glob("*.yaml") if path.stem != "wandb")
NEEDS_JOBLIB = pytest.mark.skipif(
    find_spec("hydra_plugins") is None or find_spec("hydra_plugins.hydra_joblib_launcher") is None, reason="no joblib"
)


def asked(*overrides: str) -> Plan:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return planned(overrides, "train")


def sweep(folder: Path, *overrides: str) -> Path:
    folder.mkdir(parents=True)
    about = {"schema": SCHEMA, "command": " ".join(["python train.py -m", *overrides]), "overrides": overrides}
    (folder / "sweep.json").write_text(json.dumps(about))
    return folder


def refusal(*overrides: str) -> str:
    with pytest.raises(SkimError) as refused:
        asked(*overrides)
    assert len(str(refused.value).splitlines()) <= 3
    return str(refused.value)


def test_what_is_typed_is_one_grid_in_this_projects_words():
    found = asked("method=ltp", "method.lambda=0.1,0.2", "hydra.sweep.dir=here")
    assert found.typed == ("method=ltp", "method.lambda=0.1,0.2")
    assert found.grids == (("method=ltp", "method.coefficient=0.1,0.2", "hydra.sweep.dir=here"),)
    assert not found.resumed


def test_a_file_brings_grids_and_what_is_typed_holds_for_each_before_what_it_says():
    found = asked("sweep=sst2_frontier", "train.epochs=3", "init_from=runs/dense", "seed=1,2")
    assert len(found.grids) == 6
    ltp = found.grids[1]
    assert "method=ltp" in ltp
    assert "method.target=0.35,0.5,0.65" in ltp
    assert "seed=1,2" in ltp
    assert [line for line in ltp if line.startswith("train.epochs=")] == ["train.epochs=3"]
    assert not any("sweep" in line for grid in found.grids for line in grid)


@NEEDS_JOBLIB
def test_jobs_side_by_side_are_joblibs():
    assert asked("seed=1,2", "sweep.jobs=3").hydra == ("hydra/launcher=joblib", "hydra.launcher.n_jobs=3")


def test_jobs_side_by_side_name_the_extra_where_it_is_missing(monkeypatch):
    monkeypatch.setattr("skim.options.settle.installed", lambda module: False)
    assert 'pip install "skim[sweep]"' in refusal("seed=1,2", "sweep.jobs=2")


def test_another_sweeper_is_not_given_what_it_does_not_know():
    assert asked("seed=1,2", "hydra/sweeper=basic").grids == (("seed=1,2", "hydra/sweeper=basic"),)
    assert "Leave hydra/sweeper away" in refusal("sweep=sst2_frontier", "hydra/sweeper=basic")


def test_values_of_the_sweep_itself_are_held_against_their_declaration():
    assert "sweep.jobs=0 must be a whole number, at least 1" in refusal("seed=1,2", "sweep.jobs=0")
    assert "sweep.job is not an option" in refusal("seed=1,2", "sweep.job=2")
    assert "seed=[1,2 cannot be read" in refusal("seed=[1,2")


def test_resume_finds_the_newest_sweep_of_the_same_overrides(tmp_path):
    runs = f"paths.runs={tmp_path}"
    grid = ["method=ltp", "seed=1,2"]
    sweep(tmp_path / "sweeps" / "20260101", *grid)
    same = sweep(tmp_path / "sweeps" / "20260102", *reversed(grid))
    sweep(tmp_path / "sweeps" / "20260103", "method=ltp", "seed=1,2,3")
    found = asked(*grid, runs, "sweep.resume=true", "sweep.jobs=1")
    assert found.hydra == (f"hydra.sweep.dir='{same}'",)
    assert found.resumed
    said = refusal("method=topk", runs, "sweep.resume=true")
    assert said.startswith(f"sweep.resume=true: no sweep in {tmp_path / 'sweeps'} is of this command.")
    assert "python train.py -m method=ltp seed=1,2,3" in said


def test_a_sweep_that_is_to_go_on_by_itself_begins_if_there_is_none(tmp_path):
    runs, grid = f"paths.runs={tmp_path}", ["method=ltp", "seed=1,2"]
    found = asked(*grid, runs, "resume=auto")
    assert (found.typed, found.resumed) == (tuple(grid), False)
    before = sweep(tmp_path / "sweeps" / "20260102", *grid)
    sweep(tmp_path / "sweeps" / "20260103", "method=ltp", "seed=1,2,3")
    found = asked(*grid, runs, "resume=auto")
    assert (found.hydra, found.resumed) == ((f"hydra.sweep.dir='{before}'",), True)
    assert not any("resume" in override for override in found.grids[0]), "each job has a checkpoint of its own"
    assert "Leave hydra/sweeper away" in refusal(*grid, "resume=auto", "hydra/sweeper=basic")


def test_resume_by_name_needs_no_other_word(tmp_path):
    runs = f"paths.runs={tmp_path}"
    folder = sweep(tmp_path / "sweeps" / "20260101", "method=ltp", "seed=1,2")
    for name in (folder, folder.name):
        found = asked(f"sweep.resume={name}", runs, "sweep.jobs=1")
        assert found.hydra == (f"hydra.sweep.dir='{folder}'",)
        assert found.grids == (("method=ltp", "seed=1,2", runs, f"hydra.sweep.dir='{folder}'"),)
    found = asked(f"sweep.resume={folder}", runs, "seed=3", "hardware=cpu")
    assert found.typed == ("method=ltp", "seed=3", "hardware=cpu"), "what is typed takes the place of what was"
    assert "sweep.resume=nowhere is not the folder of a sweep" in refusal("sweep.resume=nowhere", runs)


@pytest.mark.parametrize("name", READY)
def test_ready_sweeps_compose(name):
    assert all(asked(f"sweep={name}").grids) or name == "default"  # for what is typed
