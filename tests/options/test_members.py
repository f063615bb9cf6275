"""Members of a chain on the command line: a list of methods, and options of each as a group of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from skim.cli import check_jobs
from skim.errors import SkimError
from skim.lightning.check import check, method_of
from skim.lightning.stages import stages_of
from skim.options.members import numbered
from skim.options.settle import settle
from skim.resume import changes, inherited
from tests.runs import CONF
from tests.test_conf import composed as conf_of

TYPED = ["method=[layer_drop,ltp]", "method.layer_drop.layers=4", "method.ltp.target=0.3"]


def settled(*overrides: str, sweeps: bool = False, conf: Path = CONF) -> list[str]:
    with initialize_config_dir(str(conf), version_base="1.3"):
        return settle(list(overrides), "train", sweeps=sweeps)


def test_a_list_of_methods_is_a_chain_whose_members_have_their_files_options() -> None:
    cfg = conf_of(*settled(*TYPED, "method.ltp.stages.soft.epochs=3", "method.ltp.stages.hard.method_lr=2e-6"))
    chain = method_of(cfg)
    assert [member.name for member in chain.members] == ["layer_drop", "ltp"]
    assert (chain.members[0].layers, chain.target, chain.adapting) == (4, 0.3, chain.members[1])
    assert {key: cfg.method.ltp[key] for key in ("coefficient", "preset")} == {"coefficient": 0.1, "preset": "default"}
    stages = stages_of(cfg, chain)
    assert [(stage.name, stage.epochs, stage.peak("method.ltp")) for stage in stages] == [
        ("soft", 3, 1e-5),
        ("hard", 1, 2e-6),
    ]


def test_the_same_twice_is_numbered_and_other_words_for_it_mean_the_same() -> None:
    assert numbered(["ltp", "topk", "ltp", "ltp"]) == ["ltp", "topk", "ltp_2", "ltp_3"]
    cfg = conf_of(*settled("method=chain", "method.methods=[transkimmer,transkimmer]", "method.transkimmer_2.margin=3"))
    assert [member.margin for member in method_of(cfg).members] == [5.0, 3.0]
    once = settled(*TYPED)
    assert conf_of(*settled(*once)) == conf_of(*once)  # as a rank of DDP is told it
    half = conf_of(*settled("method=[topk,ltp_soft]"))  # a file by another name than its method's
    assert [stage.name for stage in stages_of(half, method_of(half))] == ["soft"]


def test_a_members_option_is_swept_over_and_each_value_is_looked_at() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        lines = settle([*TYPED[:2], "method.ltp.target=0.3,0.5"], "train", sweeps=True)
        assert "method.ltp.target=0.3,0.5" in lines
        check_jobs(lines, "train", [])
        wrong = settle([*TYPED[:2], "method.ltp.target=0.3,7"], "train", sweeps=True)
        with pytest.raises(SkimError, match=r"^method\.ltp\.target=7 must be"):
            check_jobs(wrong, "train", [])
        both = settle(["method=[layer_drop,ltp],[layer_drop,topk]", "method.topk.start=1"], "train", sweeps=True)
        for methods in ("[layer_drop,ltp]", "[layer_drop,topk]"):
            lines = [f"method.methods={methods}" if "method.methods" in line else line for line in both]
            assert len(method_of(compose("train", lines)).members) == 2
        with pytest.raises(SkimError, match="over single methods, or over chains"):
            settle(["method=ltp,[ltp,topk]"], "train", sweeps=True)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method=[layer_drop,ltp]", "method.ltp.target=7"], r"^method\.ltp\.target=7 must be"),
        (["method=[layer_drop,ltp]", "method.target=0.5"], r"Did you mean method\.ltp\.target\?"),
        (["method=[layer_drop,ltp]", "method.lpt.target=0.5"], r"Did you mean method\.ltp\.target\?"),
        (["method=[layer_drop,lpt]"], "Did you mean 'ltp'"),
        (["method=[layer_drop,ltp]", "method.ltp.stages.soft.epochs=0"], r"^method\.ltp\.stages\.soft\.epochs=0 must"),
        (["method=[topk,ltp]", "method.ltp.stages={soft:null,hard:null}"], "leaves every stage out"),
        (
            ["method=[ltp,ltp]", "method.ltp.stages.soft.epochs=2", "method.ltp_2.stages.soft.epochs=3"],
            "the same stage",
        ),
        (["method=[layer_drop,ltp]", "+method@method.topk=topk"], "one place"),
    ],
)
def test_what_is_wrong_with_a_member_is_said_by_its_name(overrides: list[str], says: str) -> None:
    def make() -> None:
        cfg = conf_of(*settled(*overrides))
        check(cfg)
        stages_of(cfg, method_of(cfg))

    with pytest.raises(SkimError, match=says):
        make()


def test_what_an_experiment_says_of_members_holds(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /method: chain\n"
        "method:\n  methods: [layer_drop, ltp]\n  ltp:\n    target: 0.3\n    coefficient: 0.2\n"
    )
    search = [f"hydra.searchpath=['{tmp_path}']"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*settle(["experiment=mine", "method.ltp.target=0.4"], "train", search), *search])
    assert (cfg.method.ltp.target, cfg.method.ltp.coefficient) == (0.4, 0.2)
    assert method_of(cfg).target == 0.4


def test_a_run_goes_on_with_its_members_options(tmp_path: Path) -> None:
    cfg = conf_of(*settled(*TYPED, "task=builtin", "backbone=tiny"))
    (tmp_path / "checkpoints").mkdir()
    torch.save({}, tmp_path / "checkpoints" / "last.ckpt")
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        again = compose(
            "train", settle(inherited([f"resume={tmp_path}", "method.ltp.stages.hard.epochs=2"], "train"), "train")
        )
    assert changes(again) == ["method.ltp.stages.hard.epochs: null -> 2"]
