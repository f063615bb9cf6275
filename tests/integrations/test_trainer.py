"""transformers' own Trainer trains a compressed model: to its target, through checkpoints, with all penalties."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

import skim
from skim.compression import walk_of
from skim.errors import SkimError
from skim.integrations import SkimCallback
from skim.integrations.rates import OwnRate
from skim.methods import METHODS, method_class
from tests.families import batch_of, labels_of, plain
from tests.integrations.builtin import fresh, rows, tokenizer, trainer

QUICK = {"max_steps": 4, "per_device_train_batch_size": 32, "logging_steps": 1}
TARGET = 0.4


def tiny(method: Any) -> torch.nn.Module:
    return skim.compress(fresh(hidden_size=32, num_hidden_layers=2, intermediate_size=32), method)


@pytest.mark.parametrize("name", ["transkimmer", "ltp"])
def test_sixty_steps_reach_a_target_and_a_resumed_run_ends_the_same(tmp_path: Path, name: str) -> None:
    batches = DataLoader(rows("validation", 200), batch_size=100, collate_fn=DataCollatorWithPadding(tokenizer()))

    def run(resume: Path | None = None) -> Any:
        learned = name == "transkimmer"
        method = skim.Transkimmer(target=TARGET, margin=2.0) if learned else skim.LTP(target=TARGET)
        callback = SkimCallback(method_lr=3e-3 if learned else None, calibrate_on=list(batches)[:1])
        made = trainer(
            skim.compress(fresh(), method),
            tmp_path / ("again" if resume else "first"),
            [callback],
            learning_rate=3e-4,
            **({} if resume else {"save_strategy": "steps", "save_steps": 40}),
        )
        made.train(resume_from_checkpoint=None if resume is None else str(resume))
        return made

    first = run()
    model = first.model
    metrics = first.evaluate()
    assert metrics["eval_relative_flops"] == pytest.approx(TARGET, abs=0.05)
    assert model.trace.execution == "packed"
    assert model.method.progress == pytest.approx(19 / 20 if name == "transkimmer" else 29 / 30)  # of the hard stage
    assert not model.method.stages or model.method.stage == "hard"
    logged = [entry for entry in first.state.log_history if "loss" in entry]
    assert all({"relative_flops"} <= set(entry) for entry in logged)
    assert len({entry["relative_flops"] for entry in logged}) > 3
    batch = {k: v for k, v in next(iter(batches)).items() if k != "labels"}
    first.save_model(str(tmp_path / "saved"))
    loaded = skim.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        wanted = model.eval()(**batch).logits
        assert torch.equal(loaded(**batch).logits, wanted)
    assert loaded.trace.counts().equal(model.trace.counts())
    halfway = skim.from_pretrained(tmp_path / "first" / "checkpoint-40")
    assert halfway.method.stage == ("soft" if name == "transkimmer" else "hard")  # which ends at 40 of 60, or at 30
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")  # plain transformers

    again = run(tmp_path / "first" / "checkpoint-40").model
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert again.method.progress == model.method.progress


def test_without_the_callback_it_is_missed(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="SkimCallback"):
        trainer(tiny(skim.Transkimmer(target=TARGET)), tmp_path, [], **QUICK).train()
    model = tiny(skim.Transkimmer(target=TARGET))
    made = trainer(model, tmp_path, [SkimCallback()], **QUICK)
    made.train()
    assert model.method.stepped
    assert made.predict(rows("test", 8)).metrics["test_relative_flops"] == pytest.approx(
        float(model.trace.relative_flops())
    )


def test_the_loss_carries_the_penalties_in_the_share_of_its_labels(tmp_path: Path) -> None:
    """Of a step of accumulated batches; outside the Trainer's training the model's loss is the head's again."""
    model = skim.compress(plain("bert"), skim.Transkimmer(coefficient=3.0, warmup=0.0, noise_until=0.0)).train()
    batch = batch_of("bert") | labels_of("classification", batch_of("bert"))
    bare = float(model(**batch).loss)
    callback = SkimCallback()
    now = TrainingArguments(str(tmp_path), use_cpu=True), TrainerState(max_steps=10), TrainerControl()
    parts = {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=5e-5)}
    callback.on_train_begin(*now, **parts)
    whole = bare + 3.0 * float(model.trace.keep_ratio().mean())
    assert float(model(**batch).loss) == pytest.approx(whole) != bare
    assert float(model(**batch, num_items_in_batch=torch.tensor(8)).loss) == pytest.approx(whole / 2)
    assert float(model(**batch, return_dict=False)[0]) == pytest.approx(whole)
    model(**batch).loss.backward()
    assert all(parameter.grad is not None for parameter in model.method.parameters())
    callback.on_train_end(*now, **parts)
    assert float(model(**batch).loss) == pytest.approx(bare)


def test_a_loss_computed_outside_needs_the_penalties_added(tmp_path: Path) -> None:
    for options in ({"label_smoothing_factor": 0.1}, {}):
        made = trainer(tiny(skim.Transkimmer(target=TARGET)), tmp_path, [SkimCallback()], **QUICK | options)
        if not options:
            made.compute_loss_func = lambda out, labels, num_items_in_batch=None: F.cross_entropy(out.logits, labels)
        with pytest.raises(SkimError, match=r"(?s)outside the model.*callback\.penalty\(\)"):
            made.train()
    callback = SkimCallback()
    model = tiny(skim.Transkimmer(target=TARGET))
    before = model.method.predictors["0"][1].weight.detach().clone()
    made = trainer(model, tmp_path, [callback], **QUICK)
    made.compute_loss_func = lambda out, labels, **_: F.cross_entropy(out.logits, labels) + callback.penalty()
    made.train()
    assert not torch.equal(model.method.predictors["0"][1].weight, before)


def test_a_rate_of_its_own_is_the_optimizers_step_stretched() -> None:
    torch.manual_seed(0)
    for make in (lambda groups: torch.optim.AdamW(groups, weight_decay=0.1), torch.optim.SGD):
        pairs = [torch.nn.Parameter(torch.randn(6)) for _ in range(2)]
        twins = [torch.nn.Parameter(p.detach().clone()) for p in pairs]
        one = make([{"params": pairs, "lr": 1e-3}])
        two = make([{"params": twins[:1], "lr": 1e-3}, {"params": twins[1:], "lr": 2e-2}])
        schedules = [torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 5) for o in (one, two)]
        rate = OwnRate(pairs[1:], one, base=1.0)
        assert not rate.has_group
        for _ in range(6):
            for some in (pairs, twins):
                sum((p - 0.3).pow(4).sum() for p in some).backward()
            rate.before_step()
            one.step(), two.step()
            rate.after_step(2e-2)
            one.zero_grad(), two.zero_grad()
            for schedule in schedules:
                schedule.step()
        for own, twin in zip(pairs, twins, strict=True):
            torch.testing.assert_close(own, twin, rtol=1e-4, atol=1e-6)
    assert OwnRate(twins[1:], two, base=1.0).has_group
    with pytest.raises(SkimError, match=r"has 0 of the method's 1 parameters"):
        OwnRate([torch.nn.Parameter(torch.ones(1))], two, base=1.0)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "chain"])  # a chain's are its members'
def test_rates_are_those_of_the_configs(name: str) -> None:
    conf = OmegaConf.load(Path(__file__).parents[2] / "conf" / "method" / f"{name}.yaml")
    common = OmegaConf.load(Path(__file__).parents[2] / "conf" / "train.yaml").train.method_lr
    stages = {"": {"method_lr": None}} if "stages" not in conf else conf.stages
    given = {stage: options["method_lr"] for stage, options in stages.items()}
    wanted = {"" if rate is None else stage: common if rate is None else rate for stage, rate in given.items()}
    assert dict(method_class(name).learning_rates) == wanted


@pytest.mark.parametrize("first", ["adapter", "skim"])
def test_an_adapter_and_its_method_go_through_checkpoints(tmp_path: Path, first: str) -> None:
    base = fresh(hidden_size=32, num_hidden_layers=2, intermediate_size=32)
    base.save_pretrained(tmp_path / "base")

    def made(folder: str) -> Any:
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
        saved = ["classifier"] if first == "adapter" else ["classifier", "method"]
        lora = peft.LoraConfig(target_modules=["query"], r=2, modules_to_save=saved)
        method = skim.Transkimmer(target=0.7, margin=1.0)
        torch.manual_seed(0)
        if first == "adapter":
            model = skim.compress(peft.get_peft_model(model, lora), method)
        else:
            model = peft.get_peft_model(skim.compress(model, method), lora)
        return trainer(model, tmp_path / folder, [SkimCallback()], save_strategy="steps", save_steps=2, **QUICK)

    whole = made("whole")
    whole.train()
    resumed = made("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    method, other = walk_of(whole.model).method, walk_of(resumed.model).method
    assert (method.stage, method.progress) == (other.stage, other.progress) == ("hard", 0), "one step of four"
    for key, value in method.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    whole.save_model(str(tmp_path / "saved"))
    loaded, batch = skim.from_pretrained(tmp_path / "saved"), batch_of("bert")
    batch = {name: value.clamp_max(1) if name == "token_type_ids" else value for name, value in batch.items()}
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, whole.model.eval()(**batch).logits)


def test_the_best_model_comes_back_with_its_method(tmp_path: Path) -> None:
    model = tiny(skim.Transkimmer(target=0.8, margin=1.0))
    options = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1, "eval_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_relative_flops", "greater_is_better": True}
    made = trainer(model, tmp_path, [SkimCallback()], **QUICK | options | best)
    made.train()
    kept = skim.from_pretrained(made.state.best_model_checkpoint).method.predictors.state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in model.method.predictors.state_dict().items())
    seen = [entry["eval_relative_flops"] for entry in made.state.log_history if "eval_relative_flops" in entry]
    assert made.state.best_metric == max(seen)


def test_mixed_precision_and_accumulated_batches(tmp_path: Path) -> None:
    model = tiny(skim.Transkimmer(target=0.6, margin=1.0))
    made = trainer(model, tmp_path, [SkimCallback()], bf16=True, gradient_accumulation_steps=2, **QUICK)
    made.train()
    assert made.state.global_step == 4
    assert (model.method.stage, model.method.progress) == ("hard", 0), "its one step of four"
    assert torch.isfinite(model.method.budget.multiplier)
    assert "skim.integrations" not in type(vars(model)["forward"]).__module__


def test_what_cannot_be_is_said_before_the_first_step(tmp_path: Path) -> None:
    def fails(callback: SkimCallback, match: str, method: Any = "ltp") -> None:
        with pytest.raises(SkimError, match=match):
            trainer(tiny(method), tmp_path, [callback], **QUICK).train()

    fails(SkimCallback(stages={"sofd": 1}), "Did you mean 'soft'")
    fails(SkimCallback(stages={"soft": 0}), "is not a share of the training")
    fails(SkimCallback(stages={"soft": 1, "hard": 1e-3}), "Stage hard gets none of the 4 steps")
    with pytest.raises(SkimError, match="not compressed"):
        trainer(fresh(), tmp_path, [SkimCallback()], **QUICK).train()


def test_calibrate_lands_a_model_without_a_trainer_on_any_target() -> None:
    model = skim.compress(plain("bert"), skim.TopK(start=1))
    batches = [batch_of("bert", seed=seed) for seed in range(3)]
    assert skim.calibrate(model, iter(batches), target=0.8) == pytest.approx(0.8, abs=0.05)
    with pytest.raises(SkimError, match="Calibrate to what"):
        skim.calibrate(model, batches)
    with pytest.raises(SkimError, match="not a share"):
        skim.calibrate(model, batches, target=1.5)
    with pytest.raises(SkimError, match=r"'0\.5' is not a share"):
        skim.calibrate(model, batches, target="0.5")  # type: ignore[arg-type]
    with pytest.raises(SkimError, match="got a str among them"):
        skim.calibrate(model, batches[0], target=0.5)  # type: ignore[arg-type]
    with pytest.raises(SkimError, match="used up"):
        skim.calibrate(model, [], target=0.5)
    with pytest.raises(SkimError, match="not calibrated"):
        skim.calibrate(skim.compress(plain("bert"), "dense"), batches, target=0.5)


def test_a_target_that_is_missed_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="asked for relative FLOPs 0.1, ended at"):
        trainer(tiny(skim.TopK(target=0.1, start=1)), tmp_path, [SkimCallback()], **QUICK).train()
