"""Stages: which one a step is in and how fast it learns, and LTP's soft and hard one through the real recipe."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

import skim
from skim.errors import SkimError
from skim.lightning import recipe
from skim.lightning.build import build
from skim.lightning.check import check, method_of
from skim.lightning.module import SkimModule
from skim.lightning.stages import stages_of
from skim.stages import KINDS, Plan, Stage, check_bounds
from tests.runs import small, watched_by

# ---- the plan ----

SOFT = Stage("soft", epochs=1, lr=4e-3, method_lr=8e-2, weight_decay=0.3, method_weight_decay=0.7, warmup=0.5)
HARD = Stage("hard", epochs=3, lr=1e-3, method_lr=0.0, weight_decay=0.1, warmup=0.0)


def test_a_plan_gives_every_step_its_stage_and_its_learning_rate() -> None:
    """Written out by hand: 4 steps of a stage that warms up over two of them, then 12 of one that does not."""
    plan = Plan([SOFT, HARD], 16)
    assert plan.bounds == [0, 4, 16]
    assert [plan.at(step)[0].name for step in range(17)] == ["soft"] * 4 + ["hard"] * 13
    assert [plan.at(step)[1:] for step in (0, 3, 4, 15, 99)] == [(0, 4), (0, 4), (4, 12), (4, 12), (4, 12)]
    soft = [1 / 2, 1, 1, 1 / 2]
    hard = [left / 12 for left in (12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1)]
    lr = [4e-3 * share for share in soft] + [1e-3 * share for share in hard]
    for kind in ("decay", "plain"):
        assert [plan.rate(kind, step) for step in range(16)] == pytest.approx(lr)
    assert [plan.rate("method", step) for step in range(16)] == pytest.approx(
        [8e-2 * share for share in soft] + [0] * 12
    )
    assert plan.rate("plain", 16) == 0  # the scheduler asks for it after the last step


def test_weight_decay_is_of_a_kind_and_of_a_stage() -> None:
    assert [SOFT.decay(kind) for kind in KINDS] == [0.3, 0.0, 0.7]
    assert [HARD.decay(kind) for kind in KINDS] == [0.1, 0.0, 0.0]


@pytest.mark.parametrize(
    ("epochs", "steps", "bounds"),
    [
        ([1], 7, [0, 7]),
        ([1, 1], 7, [0, 4, 7]),
        ([2, 1], 30, [0, 20, 30]),
        ([1, 9], 2, [0, 0, 2]),
        ([1, 1], 1, [0, 0, 1]),
    ],
)
def test_stages_share_a_fixed_number_of_steps_by_their_epochs(epochs: list[int], steps: int, bounds: list[int]) -> None:
    plan = Plan([Stage(str(i), epochs=count) for i, count in enumerate(epochs)], steps)
    assert plan.bounds == bounds
    for step in range(steps):  # a stage without any step is skipped
        stage, first, count = plan.at(step)
        assert first <= step < first + count
        assert stage is plan.stages[max(i for i, bound in enumerate(bounds[:-1]) if bound <= step)]


def test_one_step_learns() -> None:
    assert Plan([Stage(lr=1e-3)], 1).rate("decay", 0) == 1e-3


# ---- from a config ----


def stage(name: str, *options: float) -> Stage:
    names = ("epochs", "lr", "method_lr", "weight_decay", "method_weight_decay", "warmup")
    return Stage(name, **dict(zip(names, options, strict=True)))


def test_an_option_left_out_is_that_of_training() -> None:
    cfg = small(
        "method=ltp",
        "train.epochs=3",
        "train.lr=1e-3",
        "train.method_lr=2e-3",
        "train.weight_decay=0.3",
        "train.method_weight_decay=0.4",
        "train.warmup=0.2",
        "method.stages.hard.epochs=5",
        "method.stages.hard.lr=7e-4",
        "method.stages.soft.method_lr=null",
        "method.stages.soft.warmup=0",
        "method.stages.hard.weight_decay=0",
    )
    assert stages_of(cfg, method_of(cfg)) == [
        stage("soft", 3, 1e-3, 2e-3, 0.3, 0.4, 0),
        stage("hard", 5, 7e-4, 0.0, 0, 0.0, 0.2),
    ]
    cfg = small("method=dense", "train.lr=1e-3", "train.method_weight_decay=0.4")
    assert stages_of(cfg, method_of(cfg)) == [stage("", 1, 1e-3, 1e-3, 0.01, 0.4, 0.1)]


def test_shares_divide_the_epochs_of_training_among_the_stages_that_are_left() -> None:
    def epochs(*overrides: str) -> dict[str, float]:
        cfg = small(*overrides)
        return {stage.name: round(stage.epochs, 6) for stage in stages_of(cfg, method_of(cfg))}

    assert epochs("method=transkimmer", "train.epochs=3") == {"soft": 2.01, "hard": 0.99}
    assert epochs("method=transkimmer", "method.stages.hard=null", "train.epochs=3") == {"soft": 3}
    assert epochs("method=transkimmer", "method.preset=paper", "train.epochs=3") == {"soft": 3}
    assert epochs("method=transkimmer", "method.stages.hard.epochs=1", "train.epochs=3") == {"soft": 3, "hard": 1}
    assert epochs("method=ltp", "method.stages.hard.epochs=0.5", "train.epochs=3") == {"soft": 3, "hard": 3}
    assert epochs("method=chain", "train.epochs=3") == {"soft": 2.01, "hard": 0.99}


def test_stages_left_out_and_their_order() -> None:
    def names(*overrides: str) -> list[str]:
        cfg = small(*overrides)
        return [stage.name for stage in stages_of(cfg, method_of(cfg))]

    assert names("method=ltp_soft") == ["soft"]
    assert names("method=ltp_hard") == ["hard"]
    assert names("method=ltp", "method.stages={hard:{},soft:{}}") == ["soft", "hard"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method=ltp", "+method.stages.sotf.lr=1"], "'soft'"),
        (["method=ltp", "+method.stages.soft.epoch=1"], "'epochs'"),
        (["method=ltp_soft", "method.stages.soft=null"], "leaves every stage out"),
        (["method=ltp", "method.stages.hard.lr=-1"], "method.stages.hard.lr=-1 must be a number, at least 0"),
        (["method=ltp", "method.stages.soft.epochs=0"], "method.stages.soft.epochs=0 must be a whole number"),
        (["method=ltp", "method.stages.soft.epochs=1.5"], "method.stages.soft.epochs=1.5 must be a whole number"),
        (["method=ltp", "method.stages.soft.method_lr=fast"], "method.stages.soft.method_lr=fast must be a number"),
        (["method=ltp", "method.stages.hard.warmup=2"], "method.stages.hard.warmup=2 must be a number, from 0 to 1"),
        (["method=ltp", "method.stages.hard.weight_decay=-1"], "method.stages.hard.weight_decay=-1"),
        (["method=ltp", "method.stages.soft.method_weight_decay=-1"], "method.stages.soft.method_weight_decay=-1"),
        (["method=ltp", "method.stages.hard=off"], "null to leave the stage out"),
        (["method=ltp", "method.stages=soft"], "must be a group of stages"),
        (["method=ltp", "method.stages=null"], "leaves every stage out"),
        (["method=topk", "+method.stages.soft.lr=1"], "stage"),
        (["train.method_weight_decay=-1"], "train.method_weight_decay=-1"),
        (["formulas=[lpt]"], "any of ltp"),
        (["formulas=ltp"], "formulas=ltp must be a list"),
        # what is known before training only once the model has been built
        (["method=ltp_hard"], "init_from=<a run of method=ltp>"),
        (["method=ltp_manual", "method.final_token_threshold=0.99"], "retires every token"),
        (["method=ltp", "method.final_token_threshold=0.99", "method.target=0.5"], "retires every token"),
        (["method=ltp", "method.target=0.001"], "cannot be reached"),
        (["method=topk", "method.start=1", "method.target=0.1"], "cannot be reached"),
        (["method=topk", "method.start=4"], "method.start=2"),
    ],
)
def test_refusals(tmp_path: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(SkimError) as caught:
        recipe.train(small(*overrides), tmp_path / "run", "")
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
    assert not (tmp_path / "run").exists()


def test_what_would_retire_all_is_welcome_with_a_target() -> None:
    """It is scaled to the target before the first step."""
    parts = build(small("method=ltp_manual", "method.final_token_threshold=0.99", "method.target=0.6"))
    recipe.check_survivors(parts.model, parts.task.sample_batches(32, 64))
    with pytest.raises(SkimError, match="retires every token"):
        recipe.check_survivors(parts.model, parts.task.sample_batches(32, 64), calibrates=False)


@pytest.mark.parametrize("layers", [3, 4])
def test_what_is_left_is_counted_behind_all_decisions_of_the_first_half(layers: int) -> None:
    """The ramp's first layer is whole, and its second one retires all, between its halves."""
    parts = build(
        small(
            "method=ltp_manual", "method.final_token_threshold=0.99", f"backbone.overrides.num_hidden_layers={layers}"
        )
    )
    with pytest.raises(SkimError, match="halfway through the layers nothing"):
        recipe.check_survivors(parts.model, parts.task.sample_batches(32, 64))


def test_the_last_layers_may_be_left_with_nothing_and_one_look_is_enough() -> None:
    parts = build(small("method=ltp_manual", "method.final_token_threshold=0"))
    seen: list[int] = []

    class Late(type(parts.model.method)):  # type: ignore[misc]
        def wants_received(self, i: int) -> bool:
            seen.append(i)
            return i == 3

        def keep(self, i: int, score: Tensor, occupancy: Any) -> Tensor:
            return torch.zeros_like(score, dtype=torch.bool)

    parts.model.method.__class__ = Late
    parts.model.train()
    recipe.check_survivors(parts.model, parts.task.sample_batches(32, 64))
    assert seen == [0, 1, 2, 3], "one batch has a survivor"
    assert parts.model.training


def test_a_stage_that_is_left_out_is_no_group_of_options() -> None:
    check(small("method=ltp", "method.stages.soft=null"))


# ---- one run ----


@dataclass
class Seen:
    """One optimizer step, as it was taken: before the optimizer moved anything."""

    step: int
    stage: str
    execution: str
    flops: float
    shift: float
    delta: Tensor | None
    weight: Tensor
    rates: list[float]
    decays: list[float]
    moments: int


class Recorder(pl.Callback):
    """Writes down every optimizer step, and keeps the checkpoints that an interrupted run would have left."""

    def __init__(self, folder: Path | None = None, keep: tuple[int, ...] = ()) -> None:
        self.steps: list[Seen] = []
        self.folder, self.keep = folder, keep

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.folder is not None and trainer.global_step in self.keep:
            shutil.copytree(self.folder, self.folder.parent / f"at_{trainer.global_step}")

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        method = pl_module.method
        weight = pl_module.model.get_parameter("bert.encoder.layer.1.attention.self.query.weight")
        self.steps.append(
            Seen(
                trainer.global_step,
                method.stage,
                pl_module.trace.execution,
                float(pl_module.trace.relative_flops().detach()),
                float(method.shift),
                method.delta.detach().clone() if hasattr(method, "delta") else None,
                weight.detach().clone(),
                [group["lr"] for group in optimizer.param_groups],
                [group["weight_decay"] for group in optimizer.param_groups],
                len(optimizer.state),
            )
        )


def watched(folder: Path, *overrides: str, keep: tuple[int, ...] = ()) -> tuple[recipe.Run, list[Seen]]:
    """A run of the recipe, and every step of it."""
    recorder = Recorder(folder, keep)
    return watched_by(recorder, small(*QUIET, *overrides), folder), recorder.steps


def method_state(folder: Path) -> dict[str, Tensor]:
    return skim.from_pretrained(folder / "model").method.state_dict()


def weights(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


QUIET = ["backbone.overrides.hidden_dropout_prob=0", "callbacks.log_every=1"]  # the same run again is the same run
LTP = [
    "method.target=0.6",
    "method.final_token_threshold=0.005",
    "train.lr=1e-3",
    "method.stages.soft.method_lr=4e-4",
    "train.warmup=0.25",
    "train.weight_decay=0.02",
    "train.method_weight_decay=0.03",
    "method.stages.soft.epochs=1",
]
WHOLE = [
    "method=ltp",
    *LTP,
    "method.stages.hard.epochs=2",
    "method.stages.hard.lr=5e-4",
    "method.stages.hard.warmup=0",
    "method.stages.hard.weight_decay=0.05",
    "formulas=[ltp]",
]


@dataclass
class Whole:
    folder: Path
    run: recipe.Run
    steps: list[Seen]

    @property
    def soft(self) -> list[Seen]:
        return self.steps[:8]

    @property
    def hard(self) -> list[Seen]:
        return self.steps[8:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """LTP in one command: an epoch of 8 steps soft, two of them hard."""
    folder = tmp_path_factory.mktemp("stages") / "whole"
    return Whole(folder, *watched(folder, *WHOLE, keep=(8, 16)))


@pytest.fixture(scope="module")
def soft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first half alone."""
    folder = tmp_path_factory.mktemp("stages") / "soft"
    watched(folder, "method=ltp_soft", *LTP)
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages") / "dense"
    recipe.train(small("method=dense", "train.max_steps=1"), folder, "")
    return folder


def test_the_soft_stage_learns_thresholds_and_the_hard_one_leaves_them_alone(whole: Whole) -> None:
    assert [seen.step for seen in whole.steps] == list(range(24))
    assert [seen.stage for seen in whole.steps] == ["soft"] * 8 + ["hard"] * 16
    assert (whole.soft[0].delta == 0).all()
    assert (whole.soft[-1].delta != 0).all(), "the first layer learns, too"
    boundary = whole.hard[0].delta
    assert (boundary - whole.soft[-1].delta).abs().max() > 0, "the last soft step moves them as well"
    assert all(torch.equal(seen.delta, boundary) for seen in whole.hard)
    assert torch.equal(method_state(whole.folder)["delta"], boundary)


def test_soft_trains_masked_and_hard_trains_packed(whole: Whole) -> None:
    assert {seen.execution for seen in whole.soft} == {"masked"}
    assert {seen.execution for seen in whole.hard} == {"packed"}
    assert len({seen.shift for seen in whole.soft}) == 1, "the ramp is scaled to the target once, before training"
    assert whole.soft[0].shift != 0.0
    assert whole.soft[0].flops == pytest.approx(0.6, abs=0.2), "so the first step is at the target, not dense"
    assert whole.hard[0].shift != whole.soft[0].shift, "and again where the hard stage begins"
    assert sum(seen.flops for seen in whole.hard[:8]) / 8 == pytest.approx(0.6, abs=0.05)


def test_transkimmer_learns_to_skim_and_then_to_live_with_it(tmp_path: Path) -> None:
    """One epoch of 8 steps: predictors learn in 5; in 3 they stay, and tokens are gone at the target."""
    predictors: list[Tensor] = []
    values: list[Tensor] = []

    class Watching(Recorder):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, *rest: Any) -> None:
            super().on_before_optimizer_step(trainer, pl_module, *rest)
            predictors.append(torch.cat([p.detach().clone().flatten() for p in pl_module.method.parameters()]))
            value = pl_module.model.get_parameter("bert.encoder.layer.1.attention.self.value.weight")
            values.append(value.detach().clone())

    watching = Watching()
    options = ["method=transkimmer", "method.target=0.6", "method.margin=0.5", "train.lr=1e-3", "train.warmup=0"]
    watched_by(watching, small(*QUIET, *options), tmp_path / "run")
    seen = watching.steps
    assert [(one.stage, one.execution) for one in seen] == [("soft", "masked")] * 5 + [("hard", "packed")] * 3
    moved = [not torch.equal(one, other) for one, other in pairwise(predictors)]
    assert moved == [True] * 5 + [False] * 2
    assert [one.shift == 0 for one in seen] == [True] * 5 + [False] * 3
    assert all(not torch.equal(one, other) for one, other in pairwise(values)), "weights learn in both"
    assert skim.from_pretrained(tmp_path / "run" / "model").method.stage == "hard"


def test_a_stage_without_a_step_is_refused(tmp_path: Path) -> None:
    cfg = small("method=ltp", "train.max_steps=2", "method.stages.hard.epochs=8")
    with pytest.raises(SkimError, match="Stage soft gets none of the 2 steps"):
        recipe.train(cfg, tmp_path / "run", "")


def test_thresholds_learn_whatever_execution_is_asked_for(tmp_path: Path) -> None:
    """``execution`` is about evaluation: a token that is gone has no gradient."""
    cfg = small("method=ltp_soft", "execution=packed", "train.max_steps=2", "train.calibrate=0")
    recipe.train(cfg, tmp_path / "run", "")
    assert method_state(tmp_path / "run")["delta"].abs().max() > 0


def test_a_saved_model_knows_its_stage(whole: Whole, soft: Path) -> None:
    assert skim.from_pretrained(whole.folder / "model").method.stage == "hard"
    assert skim.from_pretrained(soft / "model").method.stage == "soft"


def test_what_was_learned_in_other_units_is_refused(soft: Path) -> None:
    with pytest.raises(SkimError, match=r"method\.score_norm=fixed, this run has length"):
        build(small("method=ltp_hard", "method.score_norm=length", f"init_from={soft}"))


def test_the_methods_gradients_are_clipped_apart(soft: Path) -> None:
    """A threshold's gradient can be a hundred times the weights', which must not scale theirs away."""
    parts = build(small("method=ltp_soft"))
    module = SkimModule(parts.model, parts.task, parts.stages)
    own = {id(parameter) for parameter in module.method.parameters()}
    for parameter in parts.model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0 if id(parameter) in own else 1e-6)
    module.configure_gradient_clipping(None, 1.0, None)
    assert module.method.delta.grad.norm() == pytest.approx(1.0, rel=1e-4)
    assert all((p.grad == 1e-6).all() for p in parts.model.parameters() if id(p) not in own)


def test_the_backbone_learns_in_both_stages(whole: Whole) -> None:
    for before, after in zip(whole.steps, whole.steps[1:], strict=False):
        assert not torch.equal(before.weight, after.weight), f"nothing was learned in step {before.step}"


def test_the_optimizer_follows_the_plan(whole: Whole) -> None:
    soft = [1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    for i, seen in enumerate(whole.soft):
        assert seen.rates == pytest.approx([1e-3 * soft[i], 1e-3 * soft[i], 4e-4 * soft[i]])
        assert seen.decays == [0.02, 0.0, 0.03]
    for i, seen in enumerate(whole.hard):
        assert seen.rates == pytest.approx([5e-4 * (16 - i) / 16, 5e-4 * (16 - i) / 16, 0.0])
        assert seen.decays == [0.05, 0.0, 0.0]
    assert [seen.step for seen in whole.steps if not seen.moments] == [0, 8], "a new stage starts with new moments"


def test_the_first_half_alone_is_the_first_half(whole: Whole, soft: Path) -> None:
    """The same steps, learning rates and steering: a stage does not know what comes after it."""
    assert torch.allclose(method_state(soft)["delta"], whole.hard[0].delta, atol=1e-7)


@pytest.mark.parametrize("step", [8, 16], ids=["at the boundary", "in the hard stage"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(whole: Whole, tmp_path: Path, step: int) -> None:
    last = whole.folder.parent / f"at_{step}" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == step
    run, steps = watched(tmp_path / "run", *WHOLE, f"resume={last}")
    assert [seen.step for seen in steps] == list(range(step, 24))
    for again, before in zip(steps, whole.steps[step:], strict=True):
        assert (again.stage, again.execution, again.shift) == (before.stage, before.execution, before.shift)
        assert (again.rates, again.decays) == (before.rates, before.decays)
        assert bool(again.moments) == bool(before.moments)
        assert again.flops == pytest.approx(before.flops, abs=1e-6)
    for name, tensor in weights(whole.folder).items():
        assert torch.allclose(weights(tmp_path / "run")[name], tensor, rtol=0, atol=1e-6), name
    assert run.results.metrics == pytest.approx(whole.run.results.metrics, abs=1e-5)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.max_steps=12", r"stages begin at steps \[0, 8\] of 24, this run's at \[0, 4\] of 12"),
        ("task.batch_size=16", r"\[0, 8\] of 24, this run's at \[0, 16\] of 48"),
    ],
)
def test_resuming_refuses_to_move_where_stages_change(whole: Whole, tmp_path: Path, override: str, says: str) -> None:
    """Or a run in its hard stage would find itself in the soft one again, without a word."""
    last = whole.folder.parent / "at_16" / "checkpoints" / "last.ckpt"
    with pytest.raises(SkimError, match=says):
        watched(tmp_path / "run", *WHOLE, f"resume={last}", override)


def test_the_last_stage_may_end_elsewhere() -> None:
    check_bounds([0, 8, 24], [0, 8, 32])
    check_bounds([0, 8], [0, 3])


def test_results_tell_formulas_and_readings_apart_from_metrics(whole: Whole) -> None:
    results = json.loads((whole.folder / "results.json").read_text())
    assert set(results["metrics"]) == set(results["masked_metrics"]) == {"accuracy", "loss"}
    assert results["masked_metrics"]["accuracy"] == results["metrics"]["accuracy"]
    assert len(results["keep_ratio"]) == 4
    # thresholds as they are used: scaled to the budget
    state = method_state(whole.folder)
    used = (state["base"] + state["delta"]) * torch.exp(-state["shift"])
    assert list(results["readings"]) == ["shift", *(f"threshold/layer_{i}" for i in range(4))]
    assert list(results["readings"].values()) == pytest.approx([float(state["shift"]), *used.tolist()], rel=1e-5)
    # 2 D n^2 + 4 D^2 n + 8 D^2 n' per layer, two FLOPs each, of the dense model on the same rows
    parts = build(small(*WHOLE))
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in parts.task.sample_batches(32, 96)]).double()
    by_hand = 4 * 2 * (2 * 64 * lengths**2 + 12 * 64**2 * lengths).mean() / 1e9
    formula = results["formulas"]["ltp"]
    assert formula["baseline_gflops"] == pytest.approx(float(by_hand), rel=1e-4)
    assert formula["gflops"] == pytest.approx(formula["relative_flops"] * formula["baseline_gflops"], rel=1e-4)
    assert formula["relative_flops"] == pytest.approx(results["relative_flops"], abs=0.05)
    assert formula["relative_flops"] != results["relative_flops"]


def test_the_log_shows_thresholds_and_formulas(whole: Whole) -> None:
    lines = (whole.folder / "metrics.csv").read_text().splitlines()
    header = lines[0].split(",")
    assert {"train/method/threshold/layer_3", "val/method/threshold/layer_0"} <= set(header)
    assert {"train/relative_flops", "train/relative_flops_weight", "val/formula/ltp/relative_flops"} <= set(header)


@pytest.mark.parametrize("name", ["ltp_soft", "ltp_hard"])
def test_half_a_method_has_the_name_of_the_whole(name: str) -> None:
    assert recipe.Results.of(small(f"method={name}"), "builtin", "").method == "ltp"


# ---- two runs ----


def test_the_hard_stage_alone_starts_from_what_was_learned(soft: Path, tmp_path: Path) -> None:
    before = method_state(soft)
    _, steps = watched(tmp_path / "hard", "method=ltp_hard", f"init_from={soft}", "train.max_steps=2", "train.lr=1e-3")
    assert [(seen.stage, seen.execution) for seen in steps] == [("hard", "packed")] * 2
    assert all(torch.equal(seen.delta, before["delta"]) for seen in steps)
    assert {seen.shift for seen in steps} == {float(before["shift"])}  # there is no target to set it to
    assert not torch.equal(steps[0].weight, steps[1].weight)


def test_steering_starts_anew(soft: Path) -> None:
    assert method_state(soft)["budget.multiplier"] != 0
    method = build(small("method=ltp", "method.target=0.5", f"init_from={soft}")).model.method
    assert float(method.budget.multiplier) == float(method.budget.last) == 0
    assert torch.equal(method.delta, method_state(soft)["delta"])


def test_the_hard_stage_refuses_a_run_that_has_no_thresholds(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(SkimError, match=r"init_from=<a run of method=ltp>, or train both stages: method=ltp\."):
        recipe.train(small("method=ltp_hard", f"init_from={dense}"), tmp_path / "run", "")
    assert not (tmp_path / "run").exists()


def test_weight_decay_of_the_method_pulls_thresholds_to_their_ramp(soft: Path, tmp_path: Path) -> None:
    """Next to no learning rate, and much decay: thresholds shrink by a known factor."""
    overrides = [
        "method.stages.soft.method_lr=1e-6",
        "train.method_weight_decay=1e5",
        "train.max_steps=4",
        "train.warmup=0",
    ]
    _, steps = watched(tmp_path / "run", "method=ltp_soft", f"init_from={soft}", *overrides)
    before = method_state(soft)["delta"]
    left = 1.0
    for seen, share in zip(steps, (1, 3 / 4, 2 / 4, 1 / 4), strict=True):
        assert torch.allclose(seen.delta, before * left, atol=5e-6)
        left *= 1 - 1e-6 * share * 1e5
    after = method_state(tmp_path / "run")["delta"]
    assert torch.allclose(after, before * left, atol=5e-6)
    assert (after.abs() < 0.85 * before.abs()).all()


# ---- early stopping, and budgets ----


@pytest.mark.parametrize(
    ("overrides", "epochs"),
    # the first evaluation of the last stage sets the mark, the second does not pass it
    [
        (["method=ltp", "method.stages.soft.epochs=3", "method.stages.hard.epochs=4"], 3 + 2),
        (["method=dense", "train.epochs=4"], 2),
    ],
    ids=["two stages", "one"],
)
def test_early_stopping_waits_for_the_last_stage(tmp_path: Path, overrides: list[str], epochs: int) -> None:
    quick = ["train.lr=0", "train.method_lr=0", "callbacks.patience=1", "task.max_train_samples=32"]
    recipe.train(small(*overrides, *quick), tmp_path / "run", "")
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == epochs


@pytest.mark.parametrize("name", ["ltp_manual", "topk"])
def test_methods_that_learn_nothing_train_at_their_budget(tmp_path: Path, name: str) -> None:
    options = ["method.start=1", "method.token_keep_rate=0.9"] if name == "topk" else []
    options += ["method.target=0.6", "train.max_steps=3"]
    run, steps = watched(tmp_path / "run", f"method={name}", *options)
    assert {seen.execution for seen in steps} == {"packed"}
    assert [seen.flops for seen in steps] == pytest.approx([0.6] * 3, abs=0.03)
    assert len({seen.shift for seen in steps}) == 1
    assert run.results.relative_flops == pytest.approx(0.6, abs=0.03)
    assert run.results.method == name
    assert run.results.target == 0.6
    assert run.results.notes == []


def test_ltp_ends_on_its_budget(whole: Whole) -> None:
    results = whole.run.results
    assert results.relative_flops == pytest.approx(0.6, abs=0.03)
    assert results.calibration is not None
    assert results.calibration["relative_flops_before"] == pytest.approx(0.6, abs=0.1)
    assert results.readings
    assert results.notes == []


@pytest.mark.parametrize("calibrate", [0, 64])
def test_calibration_before_hard_training_can_be_turned_off(calibrate: int, tmp_path: Path) -> None:
    overrides = ["method=ltp_manual", "method.target=0.6", f"train.calibrate={calibrate}", "train.max_steps=1"]
    _, steps = watched(tmp_path / "run", *overrides)
    assert (steps[0].shift != 0) == bool(calibrate)


def test_each_member_learns_at_its_own_rate_and_is_frozen_where_it_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By stage and by optimizer group, as printed and logged: LTP's thresholds do not move a bit in its hard stage."""
    seen: list[list[Tensor]] = []

    class Watching(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
            members = module.method.by_label.values()
            seen.append([torch.cat([p.detach().clone().flatten() for p in one.parameters()]) for one in members])

    given = ("method=chain", "method.methods=[{method: transkimmer, target: 0.6},ltp]", "task.train_rows=48")
    cfg = small(*given, "train.method_lr=3e-3", "train.warmup=0", "callbacks.log_every=1", "train.calibrate=0")
    stages = stages_of(cfg, method_of(cfg))
    rates = [(one.name, *(one.peak(kind) for kind in ("method.transkimmer", "method.ltp"))) for one in stages]
    assert rates == [("soft", 3e-3, 1e-5), ("hard", 0.0, 0.0)]
    watched_by(Watching(), cfg, tmp_path / "run")
    soft = round(len(seen) * 0.67)
    moved = [[not torch.equal(a, b) for a, b in zip(one, other, strict=True)] for one, other in pairwise(seen)]
    assert moved == [[True, True]] * soft + [[False, False]] * (len(seen) - soft - 1)
    said = capsys.readouterr().out
    assert "steps, transkimmer learns at 0.003, ltp learns at 1e-05" in said
    assert "steps, transkimmer is frozen, ltp is frozen" in said
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]
    kinds = [group["kind"] for group in state["param_groups"]]
    assert kinds == ["decay", "plain", "method.transkimmer", "method.ltp"]
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    logged = [(row["train/method_lr/transkimmer"], row["train/method_lr/ltp"]) for row in rows if row["train/lr"]]
    assert [float(value) for value in logged[0]] == pytest.approx([3e-3, 1e-5])
    assert [float(value) for value in logged[soft]] == [0.0, 0.0]


def test_stages_of_a_chain_are_its_members() -> None:
    cfg = small("method=chain", "method.methods=[ltp,topk,{method: ltp, coefficient: 0.2}]", "train.method_lr=0.5")
    soft, hard = stages_of(cfg, method_of(cfg))
    assert [stage.peak(f"method.{label}") for stage in (soft, hard) for label in ("ltp", "topk", "ltp_2")] == [
        *(1e-5, 0.5, 1e-5),
        *(0.0, 0.5, 0.0),
    ]
