"""Configs in folders of runs and models that name code: none of it runs, on whichever way they are read."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from skim.errors import SkimError
from skim.lightning.build import build
from skim.lightning.looks import evaluate
from skim.options.targets import CLASSES, NAMED, UNTRUSTED, instantiated, known, marked, targets
from skim.resume import recorded
from tests.runs import CONF, ROOT, SMALL, Refused, composed, looking


def touching(file: Path) -> dict[str, Any]:
    """A part of a config that makes a file, if it is made."""
    return {"_target_": "os.system", "command": f"touch {file}"}


def put(tree: Any, place: str, value: Any) -> None:
    *above, last = place.split(".")
    for key in above:
        tree = tree.setdefault(key, {})
    tree[last] = value


@pytest.fixture(scope="module")
def config() -> Any:
    return OmegaConf.to_container(composed(*SMALL, "method=topk", "method.target=0.5"), resolve=False)


def stored(folder: Path, config: Any, changes: dict[str, Any]) -> Path:
    """The folder of a run whose config was tampered with."""
    tree = copy.deepcopy(config)
    for place, value in changes.items():
        put(tree, place, value)
    return begun(folder, OmegaConf.to_yaml(OmegaConf.create(tree)))


def begun(folder: Path, config: str) -> Path:
    """The folder of a run, with a checkpoint of nothing."""
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"global_step": 1}, folder / "checkpoints" / "last.ckpt")
    (folder / "config.yaml").write_text(config)
    return folder


PLACES = ["method", "task", "optimizer", "scheduler", "trainer", "callbacks.mine", "logger.csv", "trainer.profiler"]


@pytest.mark.parametrize("place", PLACES)
def test_resume_makes_nothing_that_a_stored_config_names(
    tmp_path: Path, config: Any, place: str, refused: Refused
) -> None:
    run = stored(tmp_path / "run", config, {place: touching(tmp_path / "ran")})
    said = refused("train.py", f"resume={run}")
    assert "os.system" in said or "no file of conf" in said
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["method", "task", "task.files", "method.stages"])
def test_evaluate_makes_nothing_that_a_stored_config_names(
    tmp_path: Path, config: Any, place: str, refused: Refused
) -> None:
    run = stored(tmp_path / "run", config, {place: touching(tmp_path / "ran")})
    assert "os.system" in refused("evaluate.py", f"ckpt={run}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "named",
    [
        "os.system",
        "skim.results.subprocess.run",
        "skim.results.write_json",
        "skim.methods.base.torch.load",
        "skim.methods.import_module",
        "tasks.data.source.os.system",
        "pytorch_lightning.LightningModule.load_from_checkpoint",
        "pytorch_lightning.callbacks.checkpoint.os.system",
        "torch.optim.lr_scheduler.partial",
        "torch.hub.load",
        "builtins.eval",
        "${tags.0}",
        "untrusted:os.system",
        "os",
        ["os.system"],
    ],
)
def test_what_is_no_class_of_a_config_is_not_called(tmp_path: Path, config: Any, named: Any) -> None:
    """Also by the way of a module of skim's that imports it, and by an interpolation."""
    run = stored(tmp_path / "run", config, {"task._target_": named, "tags": ["os.system"]})
    with pytest.raises(SkimError):
        build(recorded(run), "validate")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hydra": {"launcher": touching(Path("ran"))}}, "hydra"),
        ({"hydra.launcher._target_": "os.system"}, "hydra"),
        ({"seed=1,tags": [1]}, "seed=1,tags"),
        ({"tags": ["${oc.create:'{_target_: os.system}'}"]}, "oc.create"),
        ({"tags": ["${oc.decode:'{_target_: os.system}'}"]}, "oc.decode"),
        ({"tags": ["${oc.env:WANDB_API_KEY}"]}, "WANDB_API_KEY"),
        ({"tags": ["${oc.env:${paths.run}}"]}, "oc.env"),
        ({"tags": ["${hydra:runtime.cwd}"]}, "hydra:"),
    ],
)
def test_a_stored_config_sets_nothing_but_options(
    tmp_path: Path, config: Any, change: dict[str, Any], says: str, refused: Refused
) -> None:
    run = begun(tmp_path / "run", yaml.safe_dump(copy.deepcopy(config) | change))
    assert says in refused("train.py", f"resume={run}")


def test_a_stored_config_may_refer_to_its_own_options_and_to_variables() -> None:
    from skim.options.stored import check_text

    for text in ("${train.lr}", "${paths.run}/a", "${oc.env:DATA}/x.csv", "${oc.env:DATA,/tmp}", "${a.b[0]}", "$5 {x}"):
        check_text(text, Path("config.yaml"))
    for name in ("TOKENIZED_DATA", "TOKENIZER_DIR", "KEYWORDS", "AUTHOR"):
        check_text(f"${{oc.env:{name}}}/x.csv", Path("config.yaml"))


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "HF_TOKEN", "hf_token", "TOKENS", "AWS_SECRET", "DB_PASSWORD", "GCP_CREDENTIALS", "AUTH"]
)
def test_a_stored_config_asks_for_no_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the variable is set, and where a default stands behind it."""
    from skim.options.stored import check_text

    monkeypatch.setenv(name, "hidden")
    for text in (f"${{oc.env:{name}}}", f"a/${{oc.env:{name},x}}"):
        with pytest.raises(SkimError, match="hold no secret"):
            check_text(text, Path("config.yaml"))


def test_a_config_of_aliases_of_aliases_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(SkimError, match="more than 100,000 values"):
        recorded(tmp_path)


def test_trust_is_what_this_command_line_says_and_not_the_stored_config(
    tmp_path: Path, config: Any, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_of_a_run.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(tmp_path / 'imported')!r}).touch()\n"
        "from skim.methods.topk import TopK\n"
        "class Mine(TopK):\n    name = 'mine'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run = stored(
        tmp_path / "run", config, {"method._target_": "mine_of_a_run.Mine", "trust_modules": ["mine_of_a_run"]}
    )
    said = refused("evaluate.py", f"ckpt={run}")
    assert "trust_modules=[mine_of_a_run]" in said
    assert not (tmp_path / "imported").exists()
    with pytest.raises(SkimError, match="cannot be read"):  # its checkpoint holds no weights: the class was made
        evaluate(looking(run, "trust_modules=[mine_of_a_run]"))
    assert (tmp_path / "imported").exists()


def test_what_a_file_of_conf_names_is_the_users_own(
    tmp_path: Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "conf" / "method"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("_target_: mine_of_conf.Mine\n")
    run = stored(tmp_path / "run", config, {"method._target_": "mine_of_conf.Mine"})
    assert recorded(run).method._target_ == "untrusted:mine_of_conf.Mine"
    monkeypatch.setattr("skim.options.targets.CONF", tmp_path / "conf")
    assert recorded(run).method._target_ == "mine_of_conf.Mine"


def test_files_of_conf_are_read_once_however_many_classes_a_config_names(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[None] = []
    monkeypatch.setattr("skim.options.targets.named_by_files", lambda: reads.append(None) or {"mine.Own"})
    tree = marked([{"_target_": f"strange.C{i}"} for i in range(1000)] + [{"_target_": "mine.Own"}])
    assert [one["_target_"] for one in tree][-2:] == ["untrusted:strange.C999", "mine.Own"]
    assert len(reads) == 1


def test_every_class_of_the_projects_own_files_is_known_without_a_search() -> None:
    named = {
        str(one) for file in CONF.rglob("*.yaml") for _, one in targets(OmegaConf.to_container(OmegaConf.load(file)))
    }
    beyond = {one for one in named if not known(one, ()) or not one.startswith((*CLASSES, *NAMED, "hydra_plugins."))}
    assert not beyond
    assert len(named) > 40


def test_everything_is_made_by_the_one_gate() -> None:
    """Hydra's own functions are called in one file, and stored configs are read in one."""
    gate = re.compile(r"hydra\.utils import|hydra\.utils\.|OmegaConf\.load\(|yaml\.(unsafe_|full_)?load\(")
    sources = [*(ROOT / "skim").rglob("*.py"), *(ROOT / "tasks").rglob("*.py"), ROOT / "train.py", ROOT / "evaluate.py"]
    found = {str(file.relative_to(ROOT)) for file in sources if gate.search(file.read_text())}
    # the last two read files of conf, for the help and for the comments in them
    assert found == {
        "skim/options/targets.py",
        "skim/options/stored.py",
        "skim/options/teach.py",
        "skim/options/comments.py",
    }


def test_a_marked_class_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    node = OmegaConf.create({"_target_": "torch.optim.SGD", "deep": [{"x": {"_target_": f"{UNTRUSTED}os.system"}}]})
    with pytest.raises(SkimError, match=r"os\.system"):
        instantiated(node, "optimizer")
