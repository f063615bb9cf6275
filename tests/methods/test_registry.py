"""Methods from outside the package: by name in Python, by the dotted name of their class on the command line."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import pytorch_lightning.strategies.launchers.subprocess_script as subprocess_script
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

import skim
from skim.lightning import recipe
from skim.methods import METHODS, REGISTERED, method_class, method_name
from tests.families import batch_of, plain
from tests.runs import ROOT, SMALL

POWER = '''
from torch import Tensor, nn

import skim
from skim.engine.tokens import TokenBatch


class Power(skim.Method):
    """Tokens whose learned score is low leave behind a share of the layers."""

    name = "power_of_mine"

    def __init__(self, start: float = 0.5) -> None:
        super().__init__()
        self.start = start

    def build(self, spec):
        super().build(spec)
        self.score = nn.Linear(spec.width, 1)

    def before_layer(self, i: int, tokens: TokenBatch) -> TokenBatch:
        if i < self.start * self.spec.layers:
            return tokens
        score = self.score(tokens.hidden)[..., 0]
        return tokens.retire((score > 0).float() + score.sigmoid() - score.sigmoid().detach())
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package ``mypackage`` and a config folder, as a user has them, beside nothing of skim's."""
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "__init__.py").touch()
    (tmp_path / "mypackage" / "power.py").write_text(POWER)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "power.yaml").write_text("_target_: mypackage.power.Power\nstart: 0.5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for module in ("mypackage.power", "mypackage"):
        sys.modules.pop(module, None)
    REGISTERED.clear()


def run(script: str, *arguments: str) -> None:
    """``python train.py ...`` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *arguments])
        patch.setenv("HYDRA_FULL_ERROR", "0")
        runpy.run_path(str(ROOT / script), run_name="__main__")


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**batch_of("bert"))[0]


def test_it_trains_by_its_yaml_and_is_loaded_and_evaluated(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has an option of top-k's name and of another kind, a parameter, and a name that is not its module's."""
    given = ["method=power", "method.start=0.3", "train.max_steps=2", "hydra.run.dir=run", "callbacks.progress=false"]
    run("train.py", "--config-dir=conf", *SMALL, *given)
    results = json.loads(Path("run/results.json").read_text())
    assert (results["status"], results["method"]) == ("done", "power_of_mine")
    assert results["config"]["method"]["start"] == 0.3

    with pytest.raises(skim.SkimError, match=r"trust_modules=\('mypackage.power',\)"):
        skim.from_pretrained("run/model")
    model = skim.from_pretrained("run/model", trust_modules=("mypackage",))
    assert model.method.options() == {"start": 0.3}
    skim.register("power_of_mine", "mypackage.power.Power")
    assert type(skim.from_pretrained("run/model").method) is type(model.method)

    capsys.readouterr()
    run("evaluate.py", "ckpt=run", "what=metrics", "hardware.accelerator=cpu", "hardware.threads=1")
    shown = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("power_of_mine"))
    kept = sum(results["keep_ratio"]) / len(results["keep_ratio"])
    numbers = [f"{results['metrics']['accuracy']:.4f}", f"{kept:.3f}", f"{results['relative_flops']:.3f}"]
    assert shown.split()[1:] == numbers
    assert kept < 1


def test_another_rank_finds_its_yaml_as_well(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning starts the other ranks of a job by a command line, which has to name the folder again."""
    commands = []

    def train(cfg: DictConfig, folder: Path, *_: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, folder / "config.yaml")
        commands.append(subprocess_script._hydra_subprocess_cmd(1)[0])
        raise skim.SkimError("seen")

    monkeypatch.setattr(recipe, "train", train)
    with pytest.raises(SystemExit):
        run("train.py", "--config-dir=conf", *SMALL, "method=power")
    assert f"--config-dir={outside / 'conf'}" in commands[0]
    assert "method=power" in commands[0]


def test_an_option_of_its_own_is_refused_by_its_own_kind(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run("train.py", "--config-dir=conf", *SMALL, "method=power", "method.start=early")
    assert left.value.code == 2
    assert "method.start=early must be a number" in capsys.readouterr().err


def test_a_registered_class_is_known_everywhere_by_its_name(outside: Path) -> None:
    @skim.register
    class Half(skim.Method):
        """Keeps every other token."""

        def before_layer(self, i, tokens):
            return tokens.retire((tokens.occupancy.position % 2 == 0).float())

    model = skim.compress(plain("bert"), "half").eval()
    assert type(model.method) is Half
    skim.save_pretrained(model, outside / "half")
    assert json.loads((outside / "half" / "skim.json").read_text())["class"].endswith("<locals>.Half")
    assert torch.equal(logits(skim.from_pretrained(outside / "half")), logits(model))
    assert skim.register(Half) is Half  # a notebook's cell runs again
    REGISTERED.clear()
    with pytest.raises(skim.SkimError, match="Pass method=Half"):
        skim.from_pretrained(outside / "half")


def test_a_registered_path_is_imported_when_it_is_asked_for(outside: Path) -> None:
    skim.register("power_of_mine", "mypackage.power.Power")
    assert "mypackage" not in sys.modules
    assert skim.compress(plain("bert"), "power_of_mine").method.start == 0.5
    assert method_name("mypackage.power.Power") == "power_of_mine"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("topk", "mypackage.power.Power"), "The name 'topk' is that of skim.methods.topk.TopK already"),
        (("power_of_mine", "mypackage.other.Power"), "'power_of_mine' is that of mypackage.power.Power already"),
        (("power",), "the second is the dotted path of the class"),
        (("power", "Power"), "the second is the dotted path of the class"),
        ((torch.nn.Linear,), "takes a class of methods"),
    ],
)
def test_what_cannot_be_registered(outside: Path, arguments: tuple[object, ...], says: str) -> None:
    skim.register("power_of_mine", "mypackage.power.Power")
    with pytest.raises(skim.SkimError) as error:
        skim.register(*arguments)  # type: ignore[call-overload]
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("mypackage.power.Nothing", "mypackage.power.Nothing cannot be imported"),
        ("mypackage.nowhere.Power", "mypackage.nowhere.Power cannot be imported"),
        ("mypackage.power.Power", "which is a method named 'power_of_mine'"),
        ("mypackage.power.TokenBatch", "which is not a method"),
    ],
)
def test_what_a_registered_path_does_not_lead_to(outside: Path, path: str, says: str) -> None:
    skim.register("wrong", path)
    with pytest.raises(skim.SkimError, match=says):
        skim.compress(plain("bert"), "wrong")


def test_an_unknown_name_is_told_those_that_are_registered() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REGISTERED, "power_of_mine", "mypackage.power.Power")
        with pytest.raises(skim.SkimError, match="Did you mean 'power_of_mine'"):
            method_class("power_mine")
    assert all(method_class(name).name == name for name in METHODS)
