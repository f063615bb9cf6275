"""What a method's options may not be ends in a few words, before anything is loaded; null where it means something."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from transformers import FunnelConfig

import skim
from skim.backbones.funnel import compatible, pools_pads
from skim.errors import SkimError, unknown
from skim.lightning.build import build
from skim.lightning.check import check
from skim.lightning.looks import load
from skim.lightning.recipe import train
from skim.methods import Method
from skim.options.check import PLACES
from skim.options.declared import declared
from tests.runs import CONF, composed, looking, small


def test_one_block_merges_nothing() -> None:
    with pytest.raises(SkimError, match="merges nothing"):
        build(small("method=funnel", "method.blocks=[4]"))


def test_null_is_a_name_like_any_other() -> None:
    assert str(unknown("colour", None, ["red"])).startswith("Unknown colour 'null'.")


def test_method_after_null_is_from_the_beginning(tmp_path) -> None:
    run = train(
        small("method=topk", "method.start=1", "train.method_after=null", "train.max_steps=1"), tmp_path / "run", ""
    )
    assert run.results.status == "done"


def test_funnels_own_options_compose_and_are_as_published_unless_asked() -> None:
    for path in (CONF / "backbone").glob("funnel_*.yaml"):
        said = composed(f"backbone={path.stem}", "backbone.overrides.hf_compat=true").backbone.overrides
        assert said == {"hf_compat": True, "pool_pads": True}
        config = FunnelConfig()
        for name, value in composed(f"backbone={path.stem}").backbone.overrides.items():
            setattr(config, name, value)
        assert (compatible(config), pools_pads(config)) == (compatible(FunnelConfig()), pools_pads(FunnelConfig()))


class Own(Method):
    """A user's: ``start`` is a share here, whatever top-k means by it."""

    def __init__(self, start=0.5, places: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.start, self.places = start, places


def test_an_option_of_a_users_own_method_is_its_own_affair() -> None:
    own = ["method=dense", f"method._target_={__name__}.Own"]
    check(composed(*own, "+method.start=0.5", "+method.places=[1,2]"))
    with pytest.raises(SkimError, match=r"^method\.places=\[1, a\] must be a list of whole numbers\.$"):
        check(composed(*own, "+method.places=[1,a]"))


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nowhere.First", r"cannot be imported: .*nowhere[\s\S]*PYTHONPATH"),
        (f"{__name__}.Nothing", "cannot be imported: .*Nothing"),
        ("First", "cannot be imported"),
        ("collections.OrderedDict", "makes a OrderedDict, and not a skim.Method"),
    ],
)
def test_what_is_no_method_of_ones_own(target: str, says: str) -> None:
    with pytest.raises(SkimError, match=f"^method._target_={target} {says}"):
        check(composed("method=dense", f"method._target_={target}"))


def test_a_method_of_ones_own_is_trained_evaluated_gone_on_with_and_loaded(tmp_path: Path) -> None:
    """On the command line it is the user's word; a folder that names it has to be allowed to, each time."""
    own = ["method=dense", f"method._target_={__name__}.Own", "+method.places=[1,2]", "train.max_steps=1"]
    run = tmp_path / "run"
    train(small(*own), run, "")
    with pytest.raises(SkimError, match="trust_modules="):
        load(looking(run))
    loaded = load(looking(run, f"trust_modules=[{__name__}]"))
    assert type(loaded.parts.model.method) is Own
    assert loaded.parts.model.method.places == (1, 2)
    assert type(build(small(*own, f"init_from={run}")).model.method) is Own
    assert type(skim.from_pretrained(run / "model", method=Own).method) is Own
    with pytest.raises(SkimError, match="trust_modules="):
        skim.from_pretrained(run / "model")


def test_an_option_that_there_is_not_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(SkimError, match=r"method\.startt=1 is not an option of TopK\. Did you mean 'start'\?\nOptions"):
        check(composed("method=topk", "+method.startt=1"))


def test_what_a_backbone_refuses_is_told_in_the_words_of_the_command_line() -> None:
    with pytest.raises(SkimError, match=r"^method\.layers=\[9\] names layers outside 0 to 3 of this backbone\.$"):
        build(small("method=transkimmer", "method.layers=[9]"))
    with pytest.raises(SkimError, match=r"^method\.start=null leaves .*\nUse method\.start=1, or a deeper backbone\.$"):
        build(small("method=topk", "backbone.overrides.num_hidden_layers=3"))


@pytest.mark.parametrize("option", ["logger.csv=abc", "benchmark.batch_sizes=[]", "task.train_rows=null"])
def test_what_no_option_of_a_run_can_be(option: str) -> None:
    with pytest.raises(SkimError) as caught:
        check(small("method=topk", option))
    assert str(caught.value).startswith(f"{option.partition('=')[0]}=")
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("task", sorted(path.stem for path in (CONF / "task").glob("[a-z]*.yaml")))
def test_every_task_passes_as_it_is(task: str) -> None:
    check(composed(f"task={task}"))


def test_null_where_it_is_said_to_stand_for_something() -> None:
    default = small("method=topk")
    meant = [
        f"{place}.{name}=null"
        for place, owner in PLACES["train"].items()
        for name, adapter in declared(owner).items()
        if place and OmegaConf.select(default, place) is not None  # sweep.agents stands in sweep=wandb alone
        if {"type": "null"} in adapter.json_schema().get("anyOf", ())
    ]
    assert {"train.clip=null", "hardware.threads=null", "callbacks.patience=null"} <= set(meant)
    check(small("method=topk", *meant))
