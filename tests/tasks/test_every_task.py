"""Every file in conf/task trains a step, is evaluated and predicts, on a few rows in the schema of its data set."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
import transformers

from skim.errors import SkimError
from skim.lightning.looks import evaluate
from skim.lightning.recipe import train
from tests.runs import CONF, composed
from tests.tasks import samples

TASKS = sorted(path.stem for path in (CONF / "task").glob("*.yaml") if not path.stem.startswith("_"))
# of each kind of data and of head one; the others differ from these in names of columns, which tests/tasks hold as well
SOME = ("cola", "conll2003", "electra", "mnli", "mrpc", "sop", "squad2", "stsb", "ud")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
ONCE = [
    "hardware=cpu",
    "hardware.threads=1",
    "train.max_steps=1",
    "benchmark.enabled=false",
    "task.max_train_samples=64",
    "task.max_eval_samples=32",
    "callbacks.progress=false",
]


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny pretrained BERT and ELECTRA that spell every word."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = transformers.BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=512)
    folders = {}
    for name, kind in (("bert", transformers.BertModel), ("electra", transformers.ElectraModel)):
        folders[name] = tmp_path_factory.mktemp("backbones") / name
        kind(kind.config_class(vocab_size=len(pieces), **SIZES)).save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


def overrides_of(task: str, backbones: dict[str, Path], folder: Path) -> list[str]:
    """What makes ``task=<task>`` run here: its sample where the config looks for it, or files."""
    chosen = ["backbone=electra_small", f"backbone.hub_id={backbones['electra']}"]
    if not task.startswith("electra"):
        chosen = ["backbone=minilm", f"backbone.hub_id={backbones['bert']}"]
    cfg = composed(f"task={task}").task
    if task in samples.FILES:
        return chosen + samples.FILES[task](folder)
    if (cfg.get("hub_id") or "builtin/").startswith("builtin"):
        return []  # with a backbone of its own
    assert task in samples.SAMPLES, f"tests/tasks/samples.py has no rows for task={task}"
    samples.write(folder / "mirror", task, cfg)
    return chosen


@pytest.mark.parametrize(
    "task",
    [
        name if name.startswith("builtin") or name in SOME else pytest.param(name, marks=pytest.mark.slow)
        for name in TASKS
    ],
)
def test_trains_a_step_is_evaluated_and_predicts(
    task: str, backbones: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = overrides_of(task, backbones, tmp_path)
    run = tmp_path / "run"
    if task in samples.NOT_TRAINED:
        with pytest.raises(SkimError, match=samples.NOT_TRAINED[task]):
            train(composed(f"task={task}", "method=dense", *ONCE, *given), run, "")
        return
    # a method on one task of each kind; the others differ from those in their data
    skims = task.startswith(("builtin", "electra", "sop"))
    skimming = ["method=transkimmer", "method.stages.hard=null", "method.target=0.8", "train.calibrate=32"]
    method = skimming if skims else ["method=dense"]
    results = train(composed(f"task={task}", *method, *ONCE, *given), run, "python train.py").results
    assert results.status == "done"
    assert results.monitor in results.metrics
    if skims:  # as it runs and masked; calibrated on what it is evaluated on
        assert results.metrics[results.monitor] == pytest.approx(results.masked_metrics[results.monitor], abs=1e-3)
        assert results.relative_flops == pytest.approx(0.8, abs=0.02)
    else:
        assert results.relative_flops == 1
    look = [f"ckpt={run}", "hardware.accelerator=cpu", "hardware.threads=1", "max_samples=32"]
    evaluate(composed(*look, "what=metrics", config="evaluate"))
    again: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    assert again["metrics"] == pytest.approx(results.metrics, abs=1e-5, nan_ok=True)
    before = {path.name for path in run.iterdir()}
    evaluate(
        composed(*look[:-1], "max_samples=null", "what=predict", *samples.PREDICTED.get(task, []), config="evaluate")
    )
    written = [path for path in run.iterdir() if path.name not in before]
    assert written
    assert all(path.read_text(encoding="utf-8").strip() for path in written)
