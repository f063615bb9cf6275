"""Learning from a teacher: its logits, its hidden states; the model's own uncompressed self, or a dense model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import FunnelConfig, FunnelForSequenceClassification

import skim
from skim.compression import keeping_states
from skim.engine.inputs import inputs_of
from skim.errors import SkimError
from skim.lightning.build import build
from skim.lightning.check import method_of
from skim.lightning.distill import Distiller, check_states, states_distance, weights_of
from skim.lightning.module import SkimModule
from skim.lightning.recipe import train
from tests import families
from tests.ragged import Scripted
from tests.runs import composed, small


class Watch(pl.Callback):
    """The model before its first step, and the gradients that the step is taken with."""

    def __init__(self) -> None:
        self.before: Any = None
        self.grads: dict[str, Tensor] = {}
        self.flops = 1.0
        self.training = False

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.before = self.before or copy.deepcopy(pl_module.model)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.model.named_parameters()
        self.grads = {name: p.grad.detach().clone() for name, p in named if p.grad is not None}
        self.flops = float(pl_module.trace.relative_flops().detach())
        self.training = all(module.training for module in pl_module.model.modules())


class Pupil(SkimModule):
    """Notes the logits of its last forward."""

    def forward(self, batch: dict[str, Tensor]) -> Any:
        out = super().forward(batch)
        self.logits = out.logits
        return out


class Noted(Distiller):
    """Notes the logits that it taught."""

    def teach(self, student: torch.nn.Module, batch: dict[str, Tensor], begun: bool) -> Any:
        lesson = super().teach(student, batch, begun)
        assert lesson is not None
        self.target = lesson.output.logits
        return lesson


def one_step(precision: Any = "32-true", *overrides: str, **options: Any) -> tuple[Pupil, Watch, dict[str, Tensor]]:
    """One training step of a method that skims half of the tokens, with dropout; and its batch."""
    cfg = small("method=transkimmer", "method.margin=0", *overrides)
    pl.seed_everything(1, verbose=False)
    parts = build(cfg)
    module, watch = Pupil(parts.model, parts.task, **options), Watch()
    pl.Trainer(
        max_steps=1,
        callbacks=[watch],
        precision=precision,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(module, datamodule=parts.task)
    parts.task.setup("fit")
    return module, watch, next(iter(parts.task.train_dataloader()))


def test_the_teacher_is_the_model_itself_run_dense_and_without_dropout() -> None:
    module, watch, batch = one_step(distiller=Noted(1.0))
    inputs = inputs_of(batch)
    with torch.no_grad():
        wanted = skim.decompress(watch.before).eval()(**inputs).logits
    assert torch.allclose(module.distiller.target, wanted, atol=1e-6)
    assert not torch.allclose(module.logits, wanted, atol=1e-3)
    assert not module.distiller.target.requires_grad
    assert watch.flops < 1, "the trace is the student's"
    assert watch.training, "and so is the dropout"


def test_gradients_are_the_students_in_mixed_precision_too() -> None:
    """Autocast keeps the weights that it has cast; those of a teacher have no gradient to give."""
    found = one_step("bf16-mixed", distiller=Distiller(0.5))[1].grads
    wanted = one_step("bf16-mixed")[1].grads
    assert set(found) == set(wanted)
    assert all(bool(found[name].any()) == bool(grad.any()) for name, grad in wanted.items())


def test_states_teach_the_backbone_and_leave_the_head_alone() -> None:
    """The head stands behind all states that are compared; no gradient but the task's reaches it."""
    found, wanted = (one_step(distiller=distiller)[1].grads for distiller in (Distiller(0.0, hidden=1.0), None))
    assert set(found) == set(wanted)
    # a key's bias changes no softmax, so it has no gradient but rounding
    same = {n for n, grad in wanted.items() if "key.bias" not in n and torch.allclose(found[n], grad, atol=1e-7)}
    assert same == {"classifier.weight", "classifier.bias", *(n for n in wanted if "pooler" in n)}


def test_a_run_that_teaches_itself_needs_no_other(tmp_path: Path) -> None:
    """It learns other weights than without a teacher, and saves no more than without."""
    overrides = ["method=transkimmer", "method.margin=0", "train.max_steps=2"]
    taught = ["train.distill=0.5", "train.distill_hidden=2", "train.distill_from=self"]
    one = train(small(*overrides, *taught, "callbacks.log_every=1"), tmp_path / "one", "")
    train(small(*overrides), tmp_path / "other", "")
    assert one.results.status == "done"
    logged = (tmp_path / "one" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/distill", "train/distill_hidden"} <= set(logged)
    taught, alone = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("one", "other")
    )
    assert set(taught) == set(alone)
    name = "model.bert.encoder.layer.1.attention.self.query.weight"
    assert not torch.equal(taught[name], alone[name])


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["init_from=dense"], {"distill": 0.5, "distill_hidden": 1.0}),
        (["init_from=dense", "train.distill=0.2"], {"distill_hidden": 1.0}),
        (["init_from=dense", "method=tome"], {"distill": 0.5, "distill_hidden": 0.0}),
        (["train.distill_from=self"], {"distill": 0.5, "distill_hidden": 1.0}),
        ([], {"distill": 0.0, "distill_hidden": 0.0}),
        (["init_from=dense", "method=dense"], {"distill": 0.0, "distill_hidden": 0.0}),
        (["init_from=dense", "task=builtin_pairs"], {"distill": 0.0, "distill_hidden": 0.0}),
        (["init_from=skimmed"], {"distill": 0.0, "distill_hidden": 0.0}),
        (["init_from=nowhere"], {"distill": 0.0, "distill_hidden": 0.0}),
        (["init_from=dense", "recipe=plain"], {}),
    ],
)
def test_a_dense_run_of_the_same_task_teaches_unless_somebody_says_otherwise(
    overrides: list[str], wanted: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, method in (("dense", "dense"), ("skimmed", "transkimmer")):
        (tmp_path / name).mkdir()
        OmegaConf.save(composed("task=builtin", f"method={method}"), tmp_path / name / "config.yaml")
    cfg = composed("task=builtin", "method=ltp", *overrides)
    assert weights_of(cfg, method_of(cfg)) == wanted


def states_of(method: skim.Method, form: str) -> tuple[Any, list[Tensor]]:
    """The trace of a model in a form, with its states; and those of the dense model with the same weights."""
    model, batch = families.plain("bert", num_hidden_layers=4), families.batch_of("bert")
    with torch.no_grad():
        taught = model(**batch, output_hidden_states=True).hidden_states[1:]
        with skim.execution(skim.compress(model, method), form), keeping_states(model):
            model(**batch)
        trace = model.trace
        model(**batch)
    assert not model.trace.states, "they are kept where somebody asks for them"
    return trace, list(taught)


@pytest.mark.parametrize("form", ["masked", "packed", "narrowed"])
def test_states_are_compared_of_the_tokens_that_a_layer_computes(form: str) -> None:
    """By hand: the mean cosine over who is alive behind each layer, and then over layers; whatever the form."""
    stay = torch.rand(4, 4, 13, generator=torch.Generator().manual_seed(1)) > 0.2
    stay[0] = True
    trace, taught = states_of(Scripted(stay), form)
    wanted = []
    for layer, tokens, teacher in zip(trace.layers, trace.states, taught, strict=True):
        apart = 1 - torch.nn.functional.cosine_similarity(tokens.restore(), teacher, dim=-1)
        wanted.append(apart[layer.feeding.alive()].mean())
    assert wanted[0] == pytest.approx(0, abs=1e-6), "nobody has left yet"
    assert min(wanted[1:]) > 1e-3
    assert float(states_distance(trace, taught)) == pytest.approx(float(torch.stack(wanted).mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("layers", "pairs"),
    [
        ((0, 2), [(0, 1), (2, 3)]),
        ((0, 1), [(0, 0), (1, 3)]),
        ((1, 3), [(1, 2), (3, 3)]),
        (4, [(i, i) for i in range(4)]),
    ],
)
def test_a_layer_imitates_what_enters_the_layer_that_runs_next(layers: Any, pairs: list[tuple[int, int]]) -> None:
    trace, taught = states_of(skim.LayerDrop(layers), "packed")
    wanted = []
    for own, teachers in pairs:
        cosine = torch.nn.functional.cosine_similarity(trace.states[own].restore(), taught[teachers], dim=-1)
        wanted.append((1 - cosine)[trace.sequences.real].mean())
    assert float(states_distance(trace, taught)) == pytest.approx(float(torch.stack(wanted).mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method=transkimmer", "train.distill=0.5", "train.distill_from=slef"], "'self'"),
        (["method=dense", "train.distill=0.5", "train.distill_from=self"], "its own uncompressed self"),
        (["method=transkimmer", "train.distill=0.5"], "train.distill_from=self"),
        (["method=transkimmer", "train.distill_hidden=1"], "train.distill_from=self"),
        (["method=funnel", "train.distill_hidden=1", "train.distill_from=self"], "method=funnel merges tokens"),
    ],
)
def test_refusals(tmp_path: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(SkimError) as caught:
        train(small(*overrides), tmp_path / "run", "")
    assert says in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_family_that_shortens_its_sequences_has_no_states_to_compare() -> None:
    config = FunnelConfig(vocab_size=9, d_model=8, n_head=2, d_head=4, d_inner=8, block_sizes=[1, 1])
    model = skim.compress(FunnelForSequenceClassification(config), "dense")
    with pytest.raises(SkimError, match="FunnelForSequenceClassification merges tokens on the way"):
        check_states(model, skim.Dense())
