"""``what=choose``: who is chosen, with which uncertainty, what is exported, and what the card says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from rich.console import Console

import skim
from skim import SkimError
from skim.lightning.looks import evaluate
from skim.report.choosing import difference
from skim.results import SCHEMA
from tests.pipelines.models import model_of, texts_of, tokenizer_of
from tests.runs import composed

TASK = "text-classification"


def results(method: str, seed: int, accuracy: float, flops: float, **more: Any) -> dict[str, Any]:
    config = {
        "seed": seed,
        "task": {"hub_id": "me/data", "max_length": 64},
        "backbone": {"hub_id": "me/tiny"},
        "method": {"_target_": method, "target": flops},
    }
    timed = {"median_ms": 100 * flops, "min_ms": 1.0, "max_ms": 2.0, "runs": 3}
    latency = {"32": {"packed": timed, "padded_hf": {**timed, "median_ms": 100.0}}}
    found = {
        **{"task": "sst2", "method": method, "backbone": "tiny", "seed": seed, "target": flops, "config": config},
        **{
            "metrics": {"accuracy": accuracy},
            "monitor": "accuracy",
            "relative_flops": flops,
            "keep_ratio": [1.0, flops],
        },
        **{"status": "done", "schema": SCHEMA, "command": f"python train.py method={method}", "latency": latency},
        **{
            "keep_ratio": [1.0, flops],
            "samples": {"train": 10, "validation": 5},
            "versions": {"torch": "2"},
            "notes": [],
        },
        **{"masked_metrics": None, "calibration": None, "formulas": {}, "gflops": flops, "baseline_gflops": 1.0},
    }
    return {**found, **more}


def left(folder: Path, *runs: dict[str, Any]) -> None:
    """Leave runs in folders, each with a model."""
    for run in runs:
        place = folder / f"{run['method']}-{run['target']}-{run['seed']}"
        model = skim.compress(model_of(TASK), skim.TopK(target=0.5, start=1))
        skim.save_pretrained(model, place / "model")
        tokenizer_of().save_pretrained(place / "model")
        (place / "results.json").write_text(json.dumps(run))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    left(
        folder,
        *(results("dense", seed, 0.90 + 0.01 * seed, 1.0) for seed in (1, 2)),
        *(results("ltp", seed, 0.892 + 0.01 * seed + 0.002 * (seed == 2), 0.5) for seed in (1, 2)),
        results("ltp", 1, 0.85, 0.3),
        results(
            *("topk", 1, 0.909, 0.7),
            notes=["<script>alert(1)</script> | `x`", "init_from=/home/me/dense: other layers"],
            command="python /home/me/train.py 'task.files.train=[~/secret/a.csv,/data/b.csv]' resume=runs/x C:\\me\\y",
        ),
    )
    return folder


def look(*overrides: str) -> None:
    evaluate(composed("what=choose", *overrides, config="evaluate"))


def test_the_cheapest_within_a_bound_is_exported_with_its_card(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = runs / "half"
    half.mkdir()
    (half / "results.json").write_text('{"task": ')
    failed = results("act", 1, 0.99, 0.1, status="failed")
    diverged = results("act", 1, float("nan"), 0.1)
    for name, run in (("other", failed), ("diverged", diverged)):
        (runs / name).mkdir()
        (runs / name / "results.json").write_text(json.dumps(run))
    look(f"runs={runs}", "max_drop=1.0")
    said = capsys.readouterr().out
    # dense is 0.91 and 0.92, ltp 0.902 and 0.914: 0.8 and 0.6 points below at equal seeds
    assert (
        "ltp 0.5: relative FLOPs 0.500±.000, time 0.50±.00 of padded at batch size 32, 0.70 ± 0.10 points below" in said
    )
    assert "half/results.json" in said
    assert "may be half-written" in said
    assert "other: its status is failed" in said
    assert "diverged: it has no accuracy that is a number" in said
    assert "seed 2, the best of 2" in said
    card = (runs / "chosen" / "README.md").read_text()
    _, head, text = card.split("---\n", 2)
    about = yaml.safe_load(head)
    assert (about["base_model"], about["datasets"], about["pipeline_tag"]) == ("me/tiny", "me/data", TASK)
    assert about["tags"] == ["skim", "ltp"]
    (entry,) = about["model-index"]
    assert entry["results"][0]["metrics"] == [{"type": "accuracy", "value": pytest.approx(0.914)}]
    for part in (
        "| 0.9140 | 0.500 | 0.500 | 1.000 | 0.750 |",
        "0.70 ± 0.10 points below dense",
        "python train.py method=ltp",
    ):
        assert part in text
    assert "| 32 | this model | 50.0 | 1.0 - 2.0 | 3 | - | 0.500 |" in text
    texts = texts_of(3)
    own = skim.from_pretrained(runs / "chosen")
    assert own.method.name == "topk"
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(runs / "chosen")
    assert not hasattr(plain, "method")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(runs / "chosen")
    assert tokenizer(texts[0])["input_ids"] == tokenizer_of()(texts[0])["input_ids"]
    look(f"runs={runs}", "max_drop=0.5", f"folder={tmp_path / 'own'}")  # topk is 0.1 below the dense run of its seed
    assert "topk" in yaml.safe_load((tmp_path / "own" / "README.md").read_text().split("---\n")[1])["tags"]


def test_by_cost_alone_the_best_is_chosen_and_few_seeds_are_told(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    look(f"runs={runs}", "max_time=0.8")
    said = capsys.readouterr().out
    assert "topk 0.7: relative FLOPs 0.700, time 0.70 of padded at batch size 32, 0.10 points below dense" in said
    assert "one seed: how far below dense it is has no uncertainty" in said
    card = (runs / "chosen" / "README.md").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \\| \\`x\\`" in card
    assert "<script>" not in card
    # a card is published: of folders outside the project only the last name is left
    assert "python .../train.py 'task.files.train=[.../a.csv,.../b.csv]' resume=runs/x .../y\n" in card
    assert "init_from=.../dense: other layers" in card
    assert "relative FLOPs 0.700, time 0.70 of padded" in card
    assert str(runs.parent) not in card


def test_nobody_is_within(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SkimError) as error:
        look(f"runs={runs}", "max_drop=0.05", "max_flops=0.6")
    assert str(error.value) == (
        "None of 3 settings is within max_drop=0.05 max_flops=0.6.\nThe nearest is topk 0.7: relative FLOPs 0.700, "
        "time 0.70 of padded at batch size 32, 0.10 points below dense."
    )
    assert "misses" in capsys.readouterr().out
    assert not (runs / "chosen").exists()
    with pytest.raises(SkimError, match="Time at batch size 8 was not measured of any"):
        look(f"runs={runs}", "max_time=0.5", "batch_size=8")


def test_the_uncertainty_is_of_equal_seeds() -> None:
    own = [results("ltp", seed, value, 0.5) for seed, value in ((1, 0.80), (2, 0.85), (3, 0.90))]
    dense = [results("dense", seed, value, 1.0) for seed, value in ((1, 0.81), (2, 0.87), (3, 0.91))]
    assert difference(own, dense) == (pytest.approx(4 / 3), pytest.approx(1 / 3), 3)
    apart = [results("dense", seed, value, 1.0) for seed, value in ((4, 0.81), (5, 0.87), (6, 0.91))]
    drop, error, paired = difference(own, apart)
    assert (drop, paired) == (pytest.approx(4 / 3), 0)
    assert error == pytest.approx(100 * ((0.0025 + 0.0076 / 3) / 3) ** 0.5)  # variances of the two, over three seeds
    assert difference(own[:1], dense[:1]) == (pytest.approx(1.0), None, 1)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "Which runs\\?"),
        (["runs={runs}"], "needs a bound: max_drop=1.0"),
        (["runs={runs}", "max_drop=1", "ckpt=somewhere"], "leave ckpt=somewhere away"),
        (["runs={runs}", "max_drop=1", "what=metrics"], "is for what=choose"),
        (["runs={runs}/none", "max_drop=1"], "There is no folder"),
        (["runs={runs}", "max_drop=1", "folder={runs}/ltp-0.5-1"], "holds something else than a model"),
        (["runs={runs}", "max_drop=1", "folder={runs}/ltp-0.3-1/model"], "is the model of a run"),
        (["runs={runs}", "max_drop=1", "push_to_hub=a//b"], "cannot be a repository's name"),
        (["runs=[{runs}/ltp-0.5-1,{runs}/ltp-0.3-1]", "max_drop=1"], "None of these runs is dense"),
        (["runs={runs}/dense-1.0-1", "max_drop=1"], "All of these runs are dense"),
        (["runs={runs}", "max_drop=1", "task=mrpc"], "No finished run"),
    ],
)
def test_what_cannot_be_chosen(overrides: list[str], said: str, runs: Path) -> None:
    with pytest.raises(SkimError, match=said):
        look(*(override.replace("{runs}", str(runs)) for override in overrides))
    assert not (runs / "chosen").exists()


def test_several_tasks_are_told_apart(runs: Path) -> None:
    left(runs, results("dense", 7, 0.5, 1.0, task="mrpc"))
    with pytest.raises(SkimError, match=r"mrpc with tiny, sst2 with tiny\.\nName one: task="):
        look(f"runs={runs}", "max_drop=1")


class Hub:
    """Stands in for ``HfApi``: writes down what is asked of it."""

    asked: list[tuple[str, dict[str, Any]]] = []
    error: Exception | None = None

    def create_repo(self, name: str, **options: Any) -> str:
        if self.error is not None:
            raise self.error
        self.asked.append((name, options))
        return f"https://huggingface.co/{name}"

    def upload_folder(self, **options: Any) -> None:
        self.asked.append(("upload", options))


def test_it_is_pushed_to_the_hub_or_two_lines_say_why_not(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "asked", [])
    look(f"runs={runs}", "max_drop=1", "push_to_hub=me/small")
    (made, options), (_, upload) = Hub.asked
    assert (made, options["private"], options["exist_ok"]) == ("me/small", True, True)
    assert (upload["repo_id"], Path(upload["folder_path"])) == ("me/small", runs / "chosen")
    assert "https://huggingface.co/me/small" in capsys.readouterr().out
    monkeypatch.setattr(Hub, "error", OSError("no token was found\nmore"))
    with pytest.raises(SkimError) as error:
        look(f"runs={runs}", "max_drop=1", "push_to_hub=me/small")
    first, second = str(error.value).splitlines()
    assert first.endswith("could not be pushed to me/small: no token was found.")
    assert "hf auth login" in second
    assert (runs / "chosen" / "README.md").is_file()


def test_the_table_shows_all(runs: Path) -> None:
    console = Console(width=200, record=True)
    from skim.lightning.looks import choose

    choose.look(composed("what=choose", f"runs={runs}", "max_drop=1", config="evaluate"), console)
    text = console.export_text()
    for part in ("→ ltp 0.5", "topk 0.7", "0.9150±.0071", "0.70", "0.10", "max_drop", "b32 time"):
        assert part in text


def test_a_model_that_was_not_chosen_is_not_replaced(runs: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    skim.save_pretrained(skim.compress(model_of(TASK), skim.TopK(target=0.5, start=1)), mine)
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    with pytest.raises(SkimError, match=r"^folder=.*mine holds a model that what=choose has not put there"):
        look(f"runs={runs}", "max_drop=1.0", f"folder={mine}")
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before
    look(f"runs={runs}", "max_drop=1.0")
    look(f"runs={runs}", "max_drop=0.5")  # a choice takes the place of the one before
    assert "topk" in yaml.safe_load((runs / "chosen" / "README.md").read_text().split("---\n")[1])["tags"]
