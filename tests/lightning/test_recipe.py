"""A run from config to folder, on the built-in task: what it leaves behind, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import pytorch_lightning as pl
import torch
import transformers
from omegaconf import OmegaConf

import skim
from skim.errors import SkimError
from skim.lightning.build import build
from skim.lightning.distill import Distiller
from skim.lightning.looks import evaluate, load
from skim.lightning.module import SkimModule
from skim.lightning.recipe import train
from skim.lightning.start import Continued, continue_method, fewer_layers
from skim.resume import LAST, PREVIOUS
from skim.stages import Stage
from tasks.base import Task
from tests.methods.test_suggestion import REPORT, written
from tests.runs import composed, looking, small


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small Transkimmer run, shared by the tests that look at what it left."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    train(
        small("method=transkimmer", "method.margin=0", "train.epochs=2", "callbacks.log_every=1"),
        folder,
        "python train.py ...",
    )
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "dense"
    train(small("method=dense", "train.max_steps=2"), folder, "python train.py ...")
    return folder


def fit(module: SkimModule, task: Task, *callbacks: pl.Callback) -> None:
    """One step."""
    pl.Trainer(
        max_steps=1,
        callbacks=list(callbacks),
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(module, datamodule=task)


def test_the_run_folder_is_complete(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "metrics.csv", "checkpoints", "model", "results.json", "report.html"} <= names
    assert not any(name.endswith(".part") for name in names)
    assert (folder / "checkpoints" / "last.ckpt").is_file()


def test_results_have_the_schema(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    assert results["schema"] == 1
    assert results["status"] == "done"
    assert (results["task"], results["method"], results["backbone"]) == ("builtin", "transkimmer", "tiny")
    assert set(results["metrics"]) == {"accuracy", "loss"}
    assert results["monitor"] == "accuracy"
    assert len(results["keep_ratio"]) == 4
    assert 0 < results["relative_flops"] < 1.5
    assert results["gflops"] == pytest.approx(results["relative_flops"] * results["baseline_gflops"], rel=1e-4)
    assert results["samples"] == {"train": 256, "validation": 96}
    assert results["versions"]["torch"] == torch.__version__


def test_masked_and_packed_evaluation_agree(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    assert min(results["keep_ratio"]) < 0.99, "nothing was retired, so nothing was shown"
    assert results["masked_metrics"]["accuracy"] == results["metrics"]["accuracy"]
    assert results["masked_metrics"]["loss"] == pytest.approx(results["metrics"]["loss"], abs=1e-4)


def test_metrics_csv_has_the_penalties_by_name(folder: Path) -> None:
    header = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {
        "train/loss",
        "train/skim_loss",
        "train/skim_loss_weight",
        "train/keep",
        "train/flops",
        "val/accuracy",
    } <= set(header)


def test_exported_model_loads_with_skim_and_with_plain_transformers(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    batch = tokenizer(["the film was good", "a"], padding=True, return_tensors="pt")
    ours = skim.from_pretrained(folder / "model")
    loaded = load(composed(f"ckpt={folder}", config="evaluate"))
    with torch.no_grad():
        assert torch.allclose(ours(**batch).logits, loaded.parts.model(**batch).logits, atol=1e-6)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "model")
    skim.decompress(ours)
    with torch.no_grad():
        assert torch.allclose(plain(**batch).logits, ours(**batch).logits, atol=1e-6)
    assert set(plain.config.id2label.values()) == set(loaded.parts.task.label_names)


@pytest.mark.parametrize("source", ["", "checkpoints/last.ckpt"])
def test_evaluating_again_gives_the_same_numbers(folder: Path, source: str) -> None:
    evaluate(looking(folder / source, "what=metrics"))
    before = json.loads((folder / "results.json").read_text())
    again = json.loads((folder / "evaluation.json").read_text())
    assert again["metrics"] == pytest.approx(before["metrics"], abs=1e-5)
    assert again["keep_ratio"] == pytest.approx(before["keep_ratio"])


def test_tokens_are_printed_and_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(looking(folder, "what=tokens", "text='<b>the film & me</b>'"))
    assert "film" in capsys.readouterr().out
    page = (folder / "tokens.html").read_text()
    assert (folder / "tokens.svg").read_text().startswith("<svg")
    assert "film" in page
    assert "<b>the" not in page


def test_a_text_of_no_tokens_works(folder: Path) -> None:
    evaluate(looking(folder, "what=tokens", "text=''"))


def test_the_backbone_trains_in_training_mode(dense: Path) -> None:
    """from_pretrained leaves the backbone in eval mode and Lightning keeps it: no dropout, no relaxed decisions."""
    cfg = small("method=transkimmer", f"init_from={dense}", "train.max_steps=2")
    parts = build(cfg)
    assert not parts.model.training
    seen: list[bool] = []
    module = SkimModule(parts.model, parts.task)
    parts.model.bert.encoder.layer[0].attention.register_forward_hook(lambda m, *_: seen.append(m.training))
    fit(module, parts.task)
    assert seen == [True]


def test_weights_load_in_float32(dense: Path, tmp_path: Path) -> None:
    """A checkpoint in bf16 would otherwise make a bf16 model, silently."""
    half = transformers.AutoModelForSequenceClassification.from_pretrained(dense / "model").to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    transformers.AutoTokenizer.from_pretrained(dense / "model").save_pretrained(tmp_path / "half")
    parts = build(small("method=dense", f"init_from={tmp_path / 'half'}"))
    assert {p.dtype for p in parts.model.parameters()} == {torch.float32}


def test_init_from_starts_with_those_weights(dense: Path) -> None:
    before = transformers.AutoModelForSequenceClassification.from_pretrained(dense / "model").state_dict()
    after = build(small("method=transkimmer", f"init_from={dense}")).model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_teacher_is_the_dense_model_and_stays_as_it_is(dense: Path, tmp_path: Path) -> None:
    cfg = small("method=transkimmer", f"init_from={dense}", "train.distill=0.5", "train.max_steps=2")
    parts = build(cfg)
    assert parts.teacher is not None
    assert not parts.teacher.training
    module = SkimModule(parts.model, parts.task, distiller=Distiller(0.5, teacher=parts.teacher))
    assert not any("teacher" in name for name, _ in module.named_parameters())
    train(cfg, tmp_path / "run", "python train.py ...")


def test_resuming_goes_on_where_it_stopped(tmp_path: Path) -> None:
    plain = ("method=transkimmer", "method.stages.hard=null")  # one stage, that may be made longer
    train(small(*plain, "train.epochs=1"), tmp_path / "first", "")
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    before = torch.load(last, weights_only=True)["global_step"]
    train(small(*plain, "train.epochs=2", f"resume={last}"), tmp_path / "second", "")
    after = torch.load(tmp_path / "second" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert after == 2 * before > 0


def test_layers_that_a_report_named_outlive_it(dense: Path, tmp_path: Path) -> None:
    """Trained with a teacher, looked at, gone on with and shipped, when the report is there no more."""
    about = {"total": 4, "width": 128, "not_run": [], "selected": [{"delta": 1.0, "layers": 2}]}
    report = written(tmp_path / "report.json", {**REPORT, "layers": about})
    options = ("method=layer_drop", f"method.report={report}", f"init_from={dense}", "train.distill=0.5")
    run = train(small(*options, "train.max_steps=2"), tmp_path / "one", "")
    report.unlink()
    assert run.results.relative_flops == pytest.approx(0.5, abs=1e-6)
    assert run.results.config["method"]["layers"] == [0, 1]
    evaluate(looking(tmp_path / "one", "what=metrics"))
    again = json.loads((tmp_path / "one" / "evaluation.json").read_text())
    assert again["metrics"]["accuracy"] == run.results.metrics["accuracy"]
    remembered = OmegaConf.load(tmp_path / "one" / "config.yaml")
    assert (remembered.method.layers, remembered.method.report) == ([0, 1], None)
    remembered.merge_with({"resume": str(tmp_path / "one"), "train": {"max_steps": 4}, "paths": {"run": None}})
    assert train(remembered, tmp_path / "two", "").results.steps == 4

    model = skim.from_pretrained(tmp_path / "two" / "model")
    before = load(looking(dense)).parts.model.state_dict()
    learned = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert any(".layer.1." in name for name in learned)
    assert not any(".layer.2." in name or ".layer.3." in name for name in learned)
    skim.save_pretrained(model, tmp_path / "shipped", merged=True)
    transformers.AutoTokenizer.from_pretrained(tmp_path / "two" / "model").save_pretrained(tmp_path / "shipped")
    start = (f"init_from={tmp_path / 'shipped'}", "backbone.overrides.num_hidden_layers=2", "train.max_steps=1")
    shallow = train(small("method=dense", *start), tmp_path / "three", "").results
    assert len(shallow.keep_ratio) == 2


def test_a_report_of_another_backbone_is_refused_by_name(tmp_path: Path) -> None:
    report = written(tmp_path / "report.json", {**REPORT, "backbone": "minilm"})
    with pytest.raises(SkimError, match=r"reads a report of backbone=minilm, and this run has backbone=tiny\."):
        train(small("method=layer_drop", f"method.report={report}"), tmp_path / "one", "")
    assert not (tmp_path / "one").exists()


def test_a_run_in_mixed_precision_with_clipping(tmp_path: Path) -> None:
    run = train(small("method=transkimmer", "hardware.precision=bf16-mixed", "train.max_steps=2"), tmp_path / "run", "")
    assert run.results.status == "done"


def test_what_calibration_did_is_told_and_kept_in_the_checkpoint(tmp_path: Path) -> None:
    cfg = small("method=transkimmer", "method.target=0.6", "method.margin=0.5", "train.max_steps=4")
    run = train(cfg, tmp_path / "run", "")
    assert run.results.calibration is not None
    assert run.results.calibration["shift"] != 0
    assert run.results.relative_flops == pytest.approx(0.6, abs=0.03)
    evaluate(looking(tmp_path / "run" / "checkpoints" / "last.ckpt"))
    again = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert again["relative_flops"] == pytest.approx(run.results.relative_flops, abs=1e-6)


def test_a_curve_moves_one_model_along_its_budgets(folder: Path) -> None:
    evaluate(looking(folder, "what=curve", "targets=[0.3,0.8]"))
    points = json.loads((folder / "curve.json").read_text())
    assert [point["target"] for point in points] == [0.3, 0.8]
    assert [point["relative_flops"] for point in points] == pytest.approx([0.3, 0.8], abs=0.06)


def test_a_folder_used_again_holds_the_new_run_only(tmp_path: Path) -> None:
    train(small("method=dense", "train.max_steps=2"), tmp_path, "")
    train(small("method=dense", "train.max_steps=1"), tmp_path, "")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1


def test_a_run_that_dies_says_so_in_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(SkimModule, "training_step", fail)
    with pytest.raises(RuntimeError, match="luck"):
        train(small("method=dense"), tmp_path, "")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["status"] == "failed"
    assert "out of luck" in results["notes"][0]


def test_steps_take_precedence_over_epochs(tmp_path: Path) -> None:
    train(small("method=dense", "train.epochs=1", "train.max_steps=12"), tmp_path, "")  # an epoch has 8
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 12


def test_an_encoder_that_is_not_in_the_file_is_refused(dense: Path) -> None:
    with pytest.raises(SkimError, match="lacks"):
        build(small("method=dense", f"init_from={dense}", "backbone.overrides.num_hidden_layers=6"))


def test_method_parameters_have_their_own_learning_rate_and_no_decay() -> None:
    parts = build(small("method=transkimmer", "method.target=0.5"))
    module = SkimModule(parts.model, parts.task, [Stage(lr=1e-5, method_lr=1e-3, weight_decay=0.1)])
    groups: list[dict] = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
            groups.extend(dict(group) for group in optimizer.param_groups)

    fit(module, parts.task, Watch())
    own = {id(p) for p in parts.model.method.parameters()}
    for group in groups:
        mine = {id(p) in own for p in group["params"]}
        assert len(mine) == 1
        assert group["lr"] == (1e-3 if mine == {True} else 1e-5)
        free = mine == {True} or all(p.dim() < 2 for p in group["params"])
        assert group["weight_decay"] == (0.0 if free else 0.1)
    assert sum(len(group["params"]) for group in groups) == len(list(parts.model.parameters()))


@pytest.mark.parametrize("name", ["transkimmer", "ltp"])
def test_thresholds_that_an_adapter_has_frozen_are_refused(name: str) -> None:
    """Or a stage that shall learn them learns nothing, without a word."""
    task = build(small("method=dense")).task
    lora = peft.LoraConfig(target_modules=["query"], r=2, modules_to_save=["classifier"])

    def model() -> torch.nn.Module:
        return transformers.AutoModelForSequenceClassification.from_config(
            transformers.BertConfig(vocab_size=1000, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
        )

    frozen = peft.get_peft_model(skim.compress(model(), name), lora)
    with pytest.raises(SkimError, match=r"(?s)frozen, such as .*skim\.compress after it"):
        fit(SkimModule(frozen, task, [Stage(method_lr=0.0), Stage(method_lr=1e-3)]), task)
    fit(SkimModule(frozen, task, [Stage(method_lr=0.0)]), task)
    free = skim.compress(peft.get_peft_model(model(), lora), name)
    before = [parameter.detach().clone() for parameter in free.get_base_model().method.parameters()]
    fit(SkimModule(free, task, [Stage(method_lr=1e-3, warmup=0.0)]), task)
    after = list(free.get_base_model().method.parameters())
    assert not all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_run_goes_on_with_what_its_method_has_learned(folder: Path, dense: Path) -> None:
    before = skim.from_pretrained(folder / "model").method.state_dict()
    fresh = build(small("method=transkimmer", "method.margin=0", f"init_from={dense}")).model.method.state_dict()
    after = build(small("method=transkimmer", "method.margin=0", f"init_from={folder}")).model.method.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not all(torch.equal(fresh[name], tensor) for name, tensor in before.items())
    with pytest.raises(SkimError, match="do not fit"):
        build(small("method=transkimmer", "method.bottleneck=16", f"init_from={folder}"))
    with pytest.raises(SkimError, match="in one and not in the other"):
        build(small("method=transkimmer", "method.layers=[0]", f"init_from={folder}"))


def compressed(*methods: skim.Method) -> torch.nn.Module:
    config = transformers.BertConfig(
        vocab_size=99, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    return skim.compress(model, list(methods) if len(methods) > 1 else methods[0])


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_chain_goes_on_with_what_its_members_have_learned(tmp_path: Path) -> None:
    """Budgets are steered anew, options that change nothing of what was learned may be others, and the rest may not."""

    def chained(*before: skim.Method, **options: Any) -> torch.nn.Module:
        return compressed(*before or [skim.LayerDrop(2)], skim.Transkimmer(**options))

    before = chained(target=0.5)
    before.method.members[1].budget.multiplier.fill_(7.0)
    skim.save_pretrained(before, tmp_path / "run" / "model")
    for options in ({"target": 0.4}, {"coefficient": 0.1}):
        after = chained(**options).method
        assert continue_method(after, tmp_path / "run" / "model").labels == {"transkimmer"}
        assert same_weights(before.method.members[1].predictors, after.members[1].predictors)
        assert after.members[1].budget is None or float(after.members[1].budget.multiplier) == 0
    assert continue_method(chained(skim.LayerDrop((0, 1))).method, tmp_path / "run" / "model").labels  # the same layers
    other = chained(skim.LayerDrop(every=2)).method
    chance = torch.random.get_rng_state()
    found = continue_method(other, tmp_path / "run" / "model")
    assert torch.equal(chance, torch.random.get_rng_state())
    assert (found.labels, len(found.notes)) == (frozenset(), 1)
    assert "other layers run than there, so transkimmer of this run starts anew" in found.notes[0]
    assert not same_weights(before.method.members[1].predictors, other.members[1].predictors)
    after = chained().method
    after.members[1].protect = ("cls", "sep")
    with pytest.raises(SkimError, match=r"method\.transkimmer\.protect=\('cls',\), this run has \('cls', 'sep'\)"):
        continue_method(after, tmp_path / "run" / "model")


def test_a_teacher_runs_the_layers_that_ran_when_it_was_trained(tmp_path: Path) -> None:
    """The others are as they were pretrained, and a model that runs them too answers at random."""
    cases = [((skim.LayerDrop(2),), [0, 1]), ((skim.LayerDrop((0, 2)), skim.LTP()), [0, 2]), ((skim.LTP(),), [0, 1, 2])]
    for number, (methods, ran) in enumerate(cases):
        skim.save_pretrained(compressed(*methods), tmp_path / str(number))
        teacher = compressed(fewer_layers(tmp_path / str(number))).eval()
        teacher(input_ids=torch.randint(5, 99, (2, 6)))
        assert [i for i, layer in enumerate(teacher.trace.layers) if layer.ran] == ran
        assert (teacher.trace.keep_ratio()[ran] == 1).all()


def test_members_are_found_by_their_names_in_a_run_of_one_method_and_in_other_chains(tmp_path: Path) -> None:
    def saved(name: str, *methods: skim.Method) -> tuple[Path, Any]:
        model = compressed(*methods)
        for parameter in model.method.parameters():
            torch.nn.init.normal_(parameter)
        skim.save_pretrained(model, tmp_path / name / "model")
        return tmp_path / name / "model", model.method

    single, ltp = saved("ltp", skim.LTP())
    chain = compressed(skim.Transkimmer(), skim.LTP()).method
    assert continue_method(chain, single).labels == {"ltp"}
    assert torch.equal(chain.members[1].delta, ltp.delta)
    both, before = saved("both", skim.LTP(), skim.Transkimmer())
    assert continue_method(chain, both).labels == {"ltp", "transkimmer"}  # in another order
    assert same_weights(chain.members[0], before.members[1])
    assert same_weights(chain.members[1], before.members[0])
    alone = compressed(skim.LTP()).method
    assert continue_method(alone, both).labels == {""}
    assert torch.equal(alone.delta, before.members[0].delta)
    fewer = compressed(skim.LayerDrop(2), skim.LTP()).method
    assert "so ltp of this run starts anew" in continue_method(fewer, single).notes[0]
    for other in (compressed(skim.LayerDrop(2), skim.ACT()).method, compressed(skim.LayerDrop(2)).method):
        assert continue_method(other, both) == Continued()
    dense, _ = saved("dense", skim.Dense())
    assert continue_method(chain, dense) == Continued()


# ---- what a run refuses, before it writes anything ----


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method=transkimmer", "method.target=0.001"], "cannot be reached"),
        (["method=transkimmer", "method.target=1.5"], "above 0 and at most 1"),
        (["method=transkimmer", "method.temperature=0"], "above 0"),
        (["method=transkimmer", "method.preset=papr"], "paper"),
        (["method=transkimmer", "method.layers=[0,9]"], "layers"),
        (["method=transkimmer", "method.protect=[pad]"], "protect"),
        (["method=transkimmer", "method.preset=paper", "execution=packed"], "denominator"),
        (["method=dense", "execution=pakced"], "packed"),
        (["method=dense", "train.distill=0.5"], "init_from"),
        (["method=dense", "init_from=nowhere"], "no trained model"),
        (["method=dense", "resume=nowhere.ckpt"], "neither a file"),
        (["method=dense", "train.lr=fast"], "train.lr=fast must be a number"),
        (["method=dense", "task.batch_size=0"], "at least 1"),
        (["method=dense", "seed=-1"], "from 0 to 4294967295"),
        (["method=dense", "benchmark.batch_sizes=[0]"], "at least 1"),
        (["method=dense", "hardware.precision=half"], "hardware"),
        (["method=dense", "hardware.accelerator=gpu"], "hardware"),
    ],
)
def test_refusals(tmp_path: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(Exception, match=says) as caught:
        train(small(*overrides), tmp_path / "run", "")
    cause: BaseException | None = caught.value
    while cause is not None and not isinstance(cause, SkimError):
        cause = cause.__cause__ or cause.__context__
    assert isinstance(cause, SkimError)
    assert len(str(cause).splitlines()) <= 5
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_method_or_backbone_is_refused(dense: Path, folder: Path) -> None:
    last = dense / "checkpoints" / "last.ckpt"
    with pytest.raises(SkimError, match="method"):
        train(small("method=transkimmer", f"resume={last}"), folder.parent / "never", "")
    with pytest.raises(SkimError, match="backbone"):
        build(small("method=dense", f"init_from={dense}", "backbone.name=other"))
    with pytest.raises(SkimError, match="does not fit"):
        load(looking(folder, "+overrides.method.bottleneck=16"))
    assert not (folder.parent / "never").exists()


def test_a_broken_checkpoint_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    broken = tmp_path / "checkpoints" / "last.ckpt"
    broken.write_bytes(b"not a checkpoint")
    with pytest.raises(SkimError, match=r"last\.ckpt cannot be read"):
        load(looking(broken))


def test_a_pretrained_task_needs_a_tokenizer() -> None:
    with pytest.raises(SkimError, match="tokenizer"):
        build(composed("task=sst2", "backbone=tiny"))


def test_a_checkpoint_in_which_a_bit_has_changed_is_not_evaluated(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    last, previous = tmp_path / LAST, tmp_path / PREVIOUS
    data = (folder / LAST).read_bytes()
    previous.write_bytes(data)
    last.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    with pytest.raises(SkimError, match=r"last\.ckpt is cut or damaged: its checksum differs|cannot be read"):
        load(looking(last))
    load(looking(tmp_path))  # from the one before
    previous.unlink()
    with pytest.raises(SkimError, match=r"nor a whole checkpoints/last\.ckpt"):
        load(looking(tmp_path))
