"""Early exit: its three rules by hand, exits that are the truncated model's, the loss at every exit, and real runs."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

import skim
from skim.errors import SkimError
from skim.lightning.looks import evaluate
from skim.lightning.recipe import train
from skim.methods.early_exit import (
    EarlyExit,
    entropy,
    log_exit_distribution,
    sequence_losses,
    truncated_geometric,
    unchanged,
)
from tests.families import LAYERS, batch_of, labels_of, plain
from tests.methods.table import METHODS, depths
from tests.ragged import assert_same, ragged
from tests.runs import looking, small

# ---- the rules, by hand ----


def test_entropy_of_certainty_and_of_no_idea() -> None:
    found = entropy(torch.tensor([[50.0, 0.0, 0.0], [1.0, 1.0, 1.0], [math.log(3.0), 0.0, -50.0]]))
    wanted = [0.0, math.log(3), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))]
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)


def test_answers_that_are_alike() -> None:
    before = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert unchanged(torch.tensor([[9.0, 8.0], [0.0, 0.1]]), before, 0.1).tolist() == [True, False]
    numbers = torch.tensor([[1.0], [1.0]])
    assert unchanged(torch.tensor([[1.09], [0.9]]), numbers, 0.1).tolist() == [True, False]


def test_probabilities_of_the_exits() -> None:
    """lambda = 0.5, 0.2, then the last layer takes the rest."""
    units = torch.logit(torch.tensor([[0.5, 0.1], [0.2, 0.9]]))
    found = log_exit_distribution(units).exp()
    assert torch.allclose(found, torch.tensor([[0.5, 0.1], [0.1, 0.81], [0.4, 0.09]]))
    assert torch.allclose(log_exit_distribution(torch.zeros(0, 2)), torch.zeros(1, 2))
    assert truncated_geometric(0.5, 3).tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_losses_of_sequences() -> None:
    numbers = sequence_losses(torch.tensor([[1.0], [3.0]]), torch.tensor([2.0, 3.0]))
    assert numbers.tolist() == [1.0, 0.0]
    classes = sequence_losses(torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]]), torch.tensor([0, 1]))
    assert classes.tolist() == pytest.approx([math.log(2), -math.log(0.75)])


def answers(*classes: list[int]) -> list[Tensor]:
    """Logits of two sequences in each layer."""
    return [torch.nn.functional.one_hot(torch.tensor(layer), 3).float() for layer in classes]


@pytest.mark.parametrize(("patience", "left"), [(1, [2, 4]), (2, [3, 5]), (3, [6, 6]), (6, [6, 6])])
def test_patience_counts_layers_in_a_row(patience: int, left: list[int]) -> None:
    """The first sequence answers 1 1 1 2 2 2, the second 0 1 2 2 2 0; told by a head that says so."""
    said = answers([1, 0], [1, 1], [1, 2], [2, 2], [2, 2], [2, 0])
    model = skim.compress(plain("bert", num_hidden_layers=6), EarlyExit(patience=patience)).eval()
    head, turn = model.skim_walk.head, iter(said)

    def of(running: Tensor, hidden: Tensor, inputs: object) -> Tensor:
        return next(turn) * running[:, None]

    head.of = of
    with torch.no_grad():
        model(**batch_of("bert", (5, 7)))
    assert depths(model.trace).tolist() == left


# ---- exits ----


def exiting(family: str, halting: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a model whose sequences leave at different layers, and the batch on which they do."""
    batch = batch_of(family)
    return ragged(plain(family), batch, METHODS[f"exit_{halting}"]), batch


def truncated(model: nn.Module, layers: int) -> nn.Module:
    """The plain model with its first layers only."""
    short = skim.decompress(copy.deepcopy(model))
    short.bert.encoder.layer = short.bert.encoder.layer[:layers]
    return short


@pytest.mark.parametrize("halting", ["patience", "entropy", "pondernet"])
def test_who_leaves_gets_the_answer_of_the_model_without_the_layers_above(halting: str) -> None:
    model, batch = exiting("bert", halting)
    with torch.no_grad():
        found = model(**batch).logits
        left = depths(model.trace)
        for layers in left.unique().tolist():
            rows = left == layers
            assert_same(found[rows], truncated(model, layers)(**batch).logits[rows], what=f"{layers} layers")


@pytest.mark.parametrize("head", ["classification", "regression"])
def test_the_loss_is_that_of_every_exit(head: str) -> None:
    batch = batch_of("bert") | labels_of(head, batch_of("bert"))
    model = skim.compress(plain("bert", head), EarlyExit()).train()
    exits = [truncated(model, layers)(**batch).loss for layers in range(1, LAYERS + 1)]
    found = model(**batch)
    assert_same(found.loss, sum(k * loss for k, loss in enumerate(exits, 1)) / 6)
    assert model(**batch, return_dict=False)[0] == found.loss
    assert_same(
        model.eval()(**batch).loss,
        nn.functional.mse_loss(model(**batch).logits.squeeze(-1), batch["labels"])
        if head == "regression"
        else nn.functional.cross_entropy(model(**batch).logits, batch["labels"]),
    )


def test_a_regression_of_deberta_trains() -> None:
    """With labels its head answers ``(B,)``, and without ``(B, 1)``."""
    batch = batch_of("deberta-v3") | labels_of("regression", batch_of("deberta-v3"))
    model = skim.compress(plain("deberta-v3", "regression"), EarlyExit()).train()
    found = model(**batch)
    exits = [*(logits.squeeze(-1) for logits in model.trace.carry.logits), found.logits]
    wanted = [nn.functional.mse_loss(logits, batch["labels"]) for logits in exits]
    assert_same(found.loss, sum(k * loss for k, loss in enumerate(wanted, 1)) / 6)


def test_pondernet_weighs_the_exits_by_their_probability() -> None:
    batch = batch_of("bert") | labels_of("classification", batch_of("bert"))
    model = skim.compress(plain("bert"), EarlyExit("pondernet", prior=0.3, beta=2.0)).train()
    for unit in model.method.units:
        nn.init.zeros_(unit.weight)
    losses = torch.stack(
        [sequence_losses(truncated(model, k)(**batch).logits, batch["labels"]) for k in range(1, LAYERS + 1)]
    )
    found = model(**batch)
    p = truncated_geometric(0.3, LAYERS)
    assert_same(found.loss, (p @ losses).mean())
    assert model.method.penalties(model.trace)["prior_distance"].abs() < 1e-6, "it begins as the prior"
    nn.init.constant_(model.method.units[0].bias, 0.0)
    model(**batch)
    rest = p[2] / (p[1] + p[2])
    q = torch.tensor([0.5, 0.5 * (1 - rest), 0.5 * rest])
    wanted = (q * (q / p).log()).sum()
    assert_same(model.method.penalties(model.trace)["prior_distance"], wanted)
    assert_same(model.method.loss(model.trace), 2.0 * wanted)


def test_gradients_are_the_same_with_checkpointing() -> None:
    batch = batch_of("bert") | labels_of("classification", batch_of("bert"))
    grads = []
    for checkpointing in (False, True):
        model = skim.compress(plain("bert"), EarlyExit()).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**batch).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert set(grads[0]) == set(grads[1])
    for name, grad in grads[0].items():
        assert_same(grads[1][name], grad, what=name)


@pytest.mark.parametrize("execution", ["masked", "packed", "narrowed"])
def test_layers_that_nobody_enters_do_not_run(execution: str) -> None:
    model, batch = exiting("bert", "pondernet")
    model.method.shift.fill_(-1e4)
    ran: list[int] = []
    for i, layer in enumerate(model.bert.encoder.layer):
        layer.intermediate.register_forward_hook(lambda *_, i=i: ran.append(i))
    with skim.execution(model, execution):
        with torch.no_grad():
            found = model(**batch).logits
        assert ran == ([0, 1, 2] if execution == "masked" else [0])
        assert model.trace.counts().sum(1).tolist() == [sum((13, 9, 6, 11)), 0, 0]
        assert torch.equal(model.trace.layers[1].flops(), torch.zeros(4, dtype=torch.float64))
        assert_same(found, truncated(model, 1)(**batch).logits)
        assert_same(model(**batch).logits, found, what="with gradients")


def test_the_shift_moves_thresholds_one_way() -> None:
    for halting in ("entropy", "pondernet"):
        model, batch = exiting("bert", halting)
        spent = []
        for shift in (-1e4, -0.5, 0.0, 0.5, 1e4):
            model.method.shift.fill_(shift)
            with torch.no_grad():
                model(**batch)
            spent.append(int(depths(model.trace).sum()))
        assert spent == sorted(spent)
        assert (spent[0], spent[-1]) == (4, 4 * LAYERS)


def test_an_adapter_around_it_trains_every_exit() -> None:
    """PEFT calls the inner model's forward, and no hook of it."""
    batch = batch_of("bert") | labels_of("classification", batch_of("bert"))
    lora = peft.LoraConfig(target_modules=["query"], r=2, modules_to_save=["classifier"])
    model = skim.compress(peft.get_peft_model(plain("bert"), lora), EarlyExit()).train()
    inner = model.get_base_model()
    loss = model(**batch).loss
    assert_same(loss, inner.method.task_loss(model(**batch).logits, batch["labels"], inner.trace))
    assert len(inner.trace.carry.logits) == LAYERS - 1


def test_a_copy_reads_its_own_head() -> None:
    model, batch = exiting("bert", "patience")
    other = copy.deepcopy(model)
    with torch.no_grad():
        wanted = model(**batch).logits
        model.classifier.weight.zero_()
        assert torch.equal(other(**batch).logits, wanted)


def test_uncompressed_has_no_exits() -> None:
    batch = batch_of("bert") | labels_of("classification", batch_of("bert"))
    model, wanted = skim.compress(plain("bert"), EarlyExit()).train(), plain("bert").train()(**batch).loss
    with skim.uncompressed(model):
        assert_same(model(**batch).loss, wanted)
    assert (model(**batch).loss - wanted).abs() > 1e-3


# ---- what it refuses ----


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"halting": "patients"}, "'patience'"),
        ({"patience": 0}, "at least 1"),
        ({"patience": 1.5}, "whole number"),
        ({"tolerance": 0.0}, "above 0"),
        ({"halting": "entropy", "threshold": 0.0}, "above 0"),
        ({"halting": "pondernet", "prior": 1.0}, "below 1"),
        ({"halting": "pondernet", "prior": 0.0}, "above 0"),
        ({"halting": "pondernet", "beta": -1.0}, "at least 0"),
        ({"halting": "entropy", "target": 1.5}, "at most 1"),
        ({"target": 0.5}, "counts whole layers"),
    ],
)
def test_refusals(options: dict, says: str) -> None:
    with pytest.raises(SkimError, match=says):
        EarlyExit(**options)


@pytest.mark.parametrize("head", ["tokens", "answers", "masked_lm"])
def test_a_head_without_one_answer_is_refused_and_the_model_left_as_it_was(head: str) -> None:
    model = plain("bert", head)
    with pytest.raises(SkimError, match="no single prediction"):
        skim.compress(model, EarlyExit())
    assert "forward" not in vars(model.bert)
    assert not hasattr(model, "skim_walk")


def test_other_models_without_one_answer_are_refused() -> None:
    config = plain("bert").config
    for model in (transformers.BertModel(config), transformers.BertForMultipleChoice(config)):
        with pytest.raises(SkimError, match="no single prediction"):
            skim.compress(model, EarlyExit())
    config.problem_type = "multi_label_classification"
    with pytest.raises(SkimError, match="several labels"):
        skim.compress(transformers.BertForSequenceClassification(config), EarlyExit())
    with pytest.raises(SkimError, match="needs classes"):
        skim.compress(plain("bert", "regression"), EarlyExit("entropy"))


@pytest.mark.parametrize("halting", ["patience", "pondernet"])
def test_several_labels_are_refused_where_only_the_labels_tell(halting: str) -> None:
    """transformers learns of them in the first forward."""
    model = skim.compress(plain("bert"), EarlyExit(halting)).train()
    batch = batch_of("bert")
    several = torch.ones(len(batch["input_ids"]), model.config.num_labels)
    with pytest.raises(SkimError, match="one class for each sequence"):
        model(**batch, labels=several)


# ---- runs ----


@pytest.fixture(scope="module", params=["entropy", "pondernet"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exit") / request.param
    overrides = ["method=early_exit", f"method.halting={request.param}", "method.target=0.7", "train.calibrate=96"]
    overrides += ["train.lr=1e-3", "train.epochs=6", "callbacks.log_every=1"]  # or all sequences look alike
    overrides += ["backbone.overrides.hidden_size=128", "backbone.overrides.intermediate_size=128"]  # likewise
    train(small(*overrides), folder, "")
    return folder


def test_a_run_lands_on_its_target_and_as_masked(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["relative_flops"] == pytest.approx(0.7, abs=0.03)
    assert results["masked_metrics"]["accuracy"] == results["metrics"]["accuracy"]
    assert results["keep_ratio"][0] == 1.0 > results["keep_ratio"][-1]
    header = (run / "metrics.csv").read_text().splitlines()[0]
    assert ("train/prior_distance" in header) is (run.name == "pondernet")


def test_its_curve(run: Path) -> None:
    evaluate(looking(run, "what=curve", "targets=[0.5]"))
    (point,) = json.loads((run / "curve.json").read_text())
    assert point["relative_flops"] == pytest.approx(0.5, abs=0.05)


def test_patience_runs_and_has_no_curve(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = train(small("method=early_exit", "method.patience=1", "train.max_steps=2"), folder, "")
    assert done.results.relative_flops < 1
    with pytest.raises(SkimError, match="none that could be moved"):
        evaluate(looking(folder, "what=curve", "targets=[0.5]"))
    with pytest.raises(Exception, match="counts whole layers"):
        train(small("method=early_exit", "method.target=0.5"), tmp_path / "never", "")
