"""Pipelines answer as transformers', whatever texts share a forward, and hold no more than a window."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import skim
from skim import SkimError
from skim.engine.dtype import fastest
from skim.pipelines.batches import Batched, batches
from tests.pipelines.models import HEADS, inputs_of, model_of, saved, texts_of, tokenizer_of

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "text-classification": [{}, {"top_k": None}, {"top_k": 2, "function_to_apply": "sigmoid"}],
    "token-classification": [
        *({"aggregation_strategy": name} for name in ("none", "simple", "first", "average", "max")),
        {"aggregation_strategy": "simple", "stride": 4, "ignore_labels": []},
    ],
    "fill-mask": [{}, {"targets": ["film", "book"]}, {"top_k": 2}],
    "feature-extraction": [{}, {"return_tensors": True, "truncation": True}],
}
CASES = [(task, options) for task, some in OPTIONS.items() for options in some]
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "question_answering.json").read_text())


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers' pipelines leave this behind where it is not set."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def near(mine: Any, theirs: Any) -> bool:
    """Tell whether two answers are the same, numbers to 1e-5."""
    if isinstance(theirs, dict):
        return set(mine) == set(theirs) and all(near(mine[name], value) for name, value in theirs.items())
    if isinstance(theirs, (list, tuple, torch.Tensor)):
        if isinstance(theirs, torch.Tensor):
            return mine.shape == theirs.shape and bool((mine - theirs).abs().max() < 1e-5)
        return len(mine) == len(theirs) and all(map(near, mine, theirs))
    return mine == theirs if isinstance(theirs, (str, int, type(None))) else abs(float(mine) - float(theirs)) < 1e-5


def theirs(task: str, family: str = "bert", **options: Any) -> Any:
    model, tokenizer = model_of(task, family), tokenizer_of(left=family == "xlnet")
    model = model.base_model if task == "feature-extraction" else model
    return transformers.pipeline(task, model, tokenizer=tokenizer, device="cpu", **options)


def ours(task: str, family: str = "bert", **options: Any) -> Any:
    model = skim.compress(model_of(task, family), "dense")
    return skim.pipeline(task, model, tokenizer_of(left=family == "xlnet"), device="cpu", **options)


@pytest.mark.parametrize(("task", "options"), CASES)
def test_answers_are_transformers(task: str, options: dict[str, Any]) -> None:
    inputs = inputs_of(task)
    expected = theirs(task)(inputs, **options)
    pipe = ours(task, window=5, batch_tokens=64)
    assert near(pipe(inputs, **options), expected)
    assert near(list(pipe((text for text in inputs), **options)), expected)
    assert near(list(pipe(map(lambda text: text, inputs), **options)), expected)  # which is no generator
    assert near(ours(task, **options)(inputs[0]), theirs(task, **options)(inputs[0]))
    assert near(pipe(inputs[:3], batch_size=2, **options), expected[:3])


@pytest.mark.parametrize("task", OPTIONS)
def test_padding_on_the_left_leaves_no_trace(task: str) -> None:
    if task == "fill-mask":
        pytest.skip("XLNet has no head for it")
    inputs = inputs_of(task)
    assert near(ours(task, "xlnet", batch_tokens=96)(inputs), theirs(task, "xlnet")(inputs))


def test_pairs_empty_and_long_texts() -> None:
    task = "text-classification"
    inputs: list[Any] = [
        {"text": text, "text_pair": other} for text, other in zip(texts_of(4, 1), texts_of(4, 2), strict=True)
    ]
    inputs += ["", *texts_of(2, 3, longest=200)]
    random.Random(0).shuffle(inputs)
    options = {"truncation": True, "max_length": 30}
    assert near(ours(task)(inputs, **options), theirs(task)(inputs, **options))
    assert near(
        ours(task)({"text": "a film", "text_pair": "a book"}), theirs(task)({"text": "a film", "text_pair": "a book"})
    )
    assert ours(task)([]) == []


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["options"]))
def test_answers_to_questions_are_those_of_the_pipeline_that_transformers_had(case: dict[str, Any]) -> None:
    pipe = ours("question-answering", batch_tokens=128)
    inputs = GOLDEN["inputs"]
    assert near(pipe(inputs, **case["options"]), case["answers"])
    assert near(list(pipe((one for one in inputs), **case["options"])), case["answers"])
    apart = {"question": [one["question"] for one in inputs], "context": [one["context"] for one in inputs]}
    assert near(pipe(**apart, **case["options"]), case["answers"])
    assert near(pipe(**inputs[0], **case["options"]), case["answers"][0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"inputs": "who ?"}, "dicts with question and context"),
        ({"question": "who ?"}, "question and context are two texts"),
        ({"question": "who ?", "context": ""}, "must be a text that is not empty"),
        ({"question": "who ?", "context": "he", "top_k": 0}, "top_k=0 must be at least 1"),
        ({"question": "the " * 60, "context": "a film"}, "leaves no room for its text"),
    ],
)
def test_a_question_that_is_none(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SkimError, match=said):
        ours("question-answering")(**given)


def test_a_pruned_model_answers_as_if_alone_and_counts_what_it_spent() -> None:
    model = skim.compress(model_of("text-classification"), skim.TopK(target=0.5, start=1))
    pipe = skim.pipeline("text-classification", model, tokenizer_of(), device="cpu")
    texts = texts_of(12)
    alone = [pipe(text)[0] for text in texts]
    spent = pipe.spent.tokens
    assert spent == sum(len(pipe.tokenizer(text)["input_ids"]) for text in texts)
    assert near(pipe(texts), alone)
    assert pipe.spent.tokens == 2 * spent
    assert pipe.spent.relative_flops < 0.9
    assert ours("text-classification").spent.relative_flops == 1


def test_folders_of_transformers_and_of_skim(tmp_path: Path) -> None:
    task = "text-classification"
    folder, texts = saved(task, tmp_path / "plain"), texts_of(3)
    expected = theirs(task)(texts)
    pipe = skim.pipeline(task, folder, device="cpu")
    assert near(pipe(texts), expected)
    assert pipe.model.trace.execution == "packed"
    assert skim.pipeline(task, folder, device="cpu", dtype="auto").model.dtype == fastest("cpu").dtype
    model = skim.compress(model_of(task), skim.TopK(target=0.5, start=1))
    skim.save_pretrained(model, tmp_path / "run" / "model")
    tokenizer_of().save_pretrained(tmp_path / "run" / "model")
    pruned = skim.pipeline(task, tmp_path / "run", device="cpu", dtype=torch.float32)  # a run's folder
    assert near(pruned(texts), skim.pipeline(task, model, tokenizer_of(), device="cpu")(texts))


def test_no_more_than_a_window_is_held() -> None:
    """Texts are taken when they are needed, and what a window has computed is let go before the next."""
    pipe = ours("text-classification", window=8, batch_tokens=100)
    taken, running = 0, [0]
    whole, rows = Batched.forward, []

    def stream() -> Iterator[str]:
        nonlocal taken
        for text in texts_of(50):
            taken += 1
            yield text

    def forward(self: Any, given: Any, **more: Any) -> Any:
        rows.append(given["input_ids"].shape)
        running[0] = max(running[0], taken - answered)
        return whole(self, given, **more)

    answered = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batched, "forward", forward)
        for _ in pipe(stream()):
            answered += 1
            assert taken - answered < 8
    assert answered == 50
    assert running[0] == 8
    assert all(b * n <= 100 or b == 1 for b, n in rows)
    assert len(rows) < 25  # texts do share forwards


def test_batches_are_sorted_and_bounded() -> None:
    lengths = [3, 9, 1, 9, 4, 30, 2]
    made = list(batches(lengths, tokens=18))
    assert made == [[5], [1, 3], [4, 0, 6, 2]]
    assert list(batches(lengths, 18, most=1)) == [[5], [1], [3], [4], [0], [6], [2]]
    assert list(batches([], 18)) == []


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        ("text-classificaton", {}, "Did you mean 'text-classification'"),
        (
            "token-classification",
            {},
            "BertForSequenceClassification has no head for that.\nIt is one for text-classification",
        ),
        ("text-classification", {"window": 0}, "window=0 must be a whole number"),
        ("text-classification", {"dtype": "float23"}, "dtype=float23 is unknown"),
        ("text-classification", {"device": "gpu"}, "gpu"),
        ("text-classification", {"tokenizer": None}, "pass tokenizer="),
    ],
)
def test_what_there_is_no_pipeline_for(task: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(SkimError, match=said):
        skim.pipeline(
            task, model_of("text-classification"), **{"tokenizer": tokenizer_of(), "device": "cpu", **options}
        )


def test_every_kind_has_a_tiny_model() -> None:
    from skim.pipelines.kinds import KINDS

    assert set(KINDS) == set(HEADS)


def test_pipelines_race_in_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from skim.pipelines.__main__ import main

    folder = saved("text-classification", tmp_path / "dense")
    pruned = skim.compress(model_of("text-classification"), skim.TopK(target=0.5, start=1))
    skim.save_pretrained(pruned, tmp_path / "pruned")
    tokenizer_of().save_pretrained(tmp_path / "pruned")
    rows = [{"sentence": text} for text in texts_of(6)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [str(folder), str(tmp_path / "pruned"), str(tmp_path / "a.jsonl"), "--repeats", "1", "--rows", "5"]
    assert main([*command, "--field", "sentence", "--max-length", "20"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("5 texts of", "transformers, sorted", "skim, dense", "skim, topk", "1.000"):
        assert part in said
    assert main(command) == 2
    assert "holds no text in 'text'; name its field" in capsys.readouterr().err
