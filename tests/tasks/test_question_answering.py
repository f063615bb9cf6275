"""Windows that lose no answer, every form of answers, every error a user can make, and runs from config to files."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import string
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import settings as drawn
from hypothesis import strategies as some
from tokenizers import processors

import skim
from skim.errors import SkimError
from skim.lightning.looks import evaluate
from skim.lightning.recipe import train
from tasks.data import cells
from tasks.data.cache import problems
from tasks.data.files import read
from tasks.data.squad import READER
from tasks.question_answering import QuestionAnswering
from tests.methods.table import METHODS
from tests.ragged import ragged
from tests.runs import composed
from tests.tasks.samples import STORY, asked, squad_json

ROWS = asked(no_answers=True)["train"].to_list()


def spelling(left: bool = False) -> Any:
    """A tokenizer of letters; ``left``: padded on the left, [CLS] last, as XLNet's."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = transformers.BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=512)
    if left:
        tokenizer.padding_side = "left"
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A [SEP] [CLS]", pair="$A [SEP] $B:1 [SEP]:1 [CLS]:2", special_tokens=[("[SEP]", 3), ("[CLS]", 2)]
        )
    return tokenizer


SPELLING = spelling()


def make(folder: Path, rows: list[dict[str, Any]], tokenizer: Any = None, kind: str = "jsonl", **settings: Any) -> Any:
    """A task on a file of these rows, ready for its loaders."""
    file = folder / f"rows.{kind}"
    if kind == "csv":
        pd.DataFrame(rows).to_csv(file, index=False)
    elif kind == "parquet":
        pd.DataFrame(rows).to_parquet(file)
    else:
        file.write_text("\n".join(json.dumps(row) for row in rows))
    files = {"train": str(file), "validation": str(file)}
    return ready(
        QuestionAnswering(name="own", **{"files": files, "no_answers": True, "stride": 16, **settings}), tokenizer
    )


def ready(task: QuestionAnswering, tokenizer: Any = None, stage: str = "fit") -> QuestionAnswering:
    task.setup_tokenizer(tokenizer or spelling())
    task.setup(stage)
    return task


def knowing(batch: dict[str, torch.Tensor]) -> SimpleNamespace:
    """The output of a model that is sure of the labels."""
    logits = torch.zeros(2, *batch["input_ids"].shape)
    for which, name in enumerate(("start_positions", "end_positions")):
        logits[which].scatter_(1, batch[name][:, None], 9.0)
    return SimpleNamespace(start_logits=logits[0], end_logits=logits[1])


# ---- windows ----


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("max_length", [40, 64, 384])
def test_windows_lose_no_answer(tmp_path: Path, left: bool, max_length: int) -> None:
    """Labels, offsets and [CLS] agree with the tokens, wherever padding moves them: who knows them is always right."""
    task = make(tmp_path, ROWS, spelling(left), max_length=max_length, stride=16, eval_batch_size=5)
    assert task.report["rows"]["validation"] == 12
    assert (task.report["windows"]["validation"] > 12) == (max_length < 384)
    metrics = task.metrics()
    for batch in task.val_dataloader():
        task.update(metrics, knowing(batch), batch)
        assert task.labelled(batch) == len(batch["row"])
        assert batch["input_ids"].shape[1] <= max_length
        for i in range(len(batch["row"])):
            real = batch["attention_mask"][i].bool()
            assert (batch["begins"][i][~real] == -1).all()
            assert batch["input_ids"][i, batch["cls"][i]] == task.tokenizer.cls_token_id
            assert batch["cls"][i] == (batch["input_ids"].shape[1] - 1 if left else 0)
            for token in torch.flatten((batch["begins"][i] >= 0).nonzero()).tolist():
                letter = task.tokenizer.convert_ids_to_tokens(batch["input_ids"][i, token].item()).removeprefix("##")
                assert STORY[batch["begins"][i, token] : batch["ends"][i, token]].lower() == letter
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values["em"] == values["answerable_em"] == values["unanswerable_accuracy"] == 1


def test_windows_overlap_and_reach_the_end(tmp_path: Path) -> None:
    task = make(tmp_path, ROWS[:1], max_length=60, stride=10)
    batch = next(iter(task.val_dataloader()))
    order = batch["row"].argsort()
    seen = [set(row[row >= 0].tolist()) for row in batch["begins"][order]]
    assert [len(one & other) for one, other in pairwise(seen)] == [10] * (len(seen) - 1)
    assert set.union(*seen) == {i for i, letter in enumerate(STORY) if letter != " "}
    # the answer is in the first window; in the others the labels are [CLS]
    assert batch["start_positions"][order].tolist()[1:] == batch["cls"][order].tolist()[1:]
    assert batch["start_positions"][order][0] != batch["cls"][order][0]


@drawn(max_examples=60, deadline=None)
@given(some.integers(9, 60), some.integers(0, 60), some.integers(1, 70), some.integers(1, 40), some.integers(1, 200))
def test_every_stride_is_kept_or_refused(length: int, stride: int, longest: int, asked: int, letters: int) -> None:
    """Windows of any size share the tokens that were asked for and leave none of the text out, or the limit is told."""
    task = QuestionAnswering(
        name="own", max_length=length, stride=stride, max_question_length=longest, max_answer_length=1
    )
    room = length - 3 - min(longest, length // 2)
    if stride >= room:
        with pytest.raises(SkimError, match=rf"task\.stride={stride} .*: at most {room - 1}\."):
            task.setup_tokenizer(SPELLING)
        task.stride = room - 1
    task.setup_tokenizer(SPELLING)
    windows = task.encode({"question": ["q" * asked], "context": ["a " * letters]})
    seen = [begins[begins >= 0].tolist() for begins in windows["begins"]]
    assert max(len(ids) for ids in windows["input_ids"]) <= length
    assert sorted({*itertools.chain(*seen)}) == list(range(0, 2 * letters, 2))
    for one, other in pairwise(seen):
        assert one[len(one) - task.stride :] == other[: task.stride]


def test_a_part_of_an_answer_is_none(tmp_path: Path) -> None:
    """Neither the window that ends in the answer nor the one that begins in it has it."""
    row = {"question": "x?", "context": "a" * 100, "answers": {"text": ["a" * 30], "answer_start": [40]}}
    task = make(tmp_path, [row], max_length=40, stride=0)  # 35 letters each
    batch = next(iter(task.val_dataloader()))
    assert len(batch["row"]) == 3
    assert torch.equal(batch["start_positions"], torch.where(batch["row"] == 1, batch["start_positions"], 0))
    (whole,) = torch.flatten((batch["row"] == 1).nonzero()).tolist()
    begin, end = batch["start_positions"][whole], batch["end_positions"][whole]
    assert (batch["begins"][whole, begin], batch["ends"][whole, end]) == (40, 70)
    task = make(tmp_path, [row], max_length=30, stride=0)
    batch = next(iter(task.val_dataloader()))
    assert torch.equal(batch["start_positions"], batch["cls"])  # no window of 25 has an answer of 30


def test_an_answer_within_a_token_has_the_whole_token(tmp_path: Path, tokenizer: Any) -> None:
    row = {"question": "was it", "context": "a bad film", "answers": {"text": ["ad", " fil"], "answer_start": [3, 5]}}
    batch = next(iter(make(tmp_path, [row], tokenizer).val_dataloader()))
    assert batch["input_ids"][0, batch["start_positions"][0]] == tokenizer.convert_tokens_to_ids("bad")
    assert batch["start_positions"] == batch["end_positions"]
    row["answers"] = {"text": [" film"], "answer_start": [5]}  # the space before it is of no token
    batch = next(iter(make(tmp_path, [row], tokenizer).val_dataloader()))
    assert batch["input_ids"][0, batch["start_positions"][0]] == tokenizer.convert_tokens_to_ids("film")


def test_long_questions_are_cut_counted_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [ROWS[0], {**ROWS[1], "question": "abcdefghij" * 10}]
    with caplog.at_level(logging.WARNING):
        task = make(tmp_path, rows, max_length=64, max_question_length=20)
    assert task.report["truncated"] == {"train": 1, "validation": 1}
    assert "train: 1 of 2 questions were cut to 20 tokens" in caplog.text
    assert "texts were truncated" not in caplog.text  # windows lose nothing
    batch = next(iter(task.val_dataloader()))
    texts = task.tokenizer.batch_decode(batch["input_ids"])
    assert sum("[CLS] abcdefghijabcdefghij [SEP]" in text for text in texts) > 1


def test_limits_count_questions_and_whole_texts(tmp_path: Path) -> None:
    task = make(tmp_path, ROWS, max_length=40, max_train_samples=5, max_eval_samples=3)
    assert task.report["rows"] == {"train": 5, "validation": 3}
    assert len({task._asked("train")[row] for batch in task.train_dataloader() for row in batch["row"].tolist()}) == 5
    long = {**ROWS[0], "id": "long", "context": STORY * 3}
    task = make(tmp_path, [*ROWS, long], max_length=40, length_min=200)
    assert task.report["left_out"]["train"] == 12
    assert task._raw["train"]["id"][:] == ["long"]


# ---- forms of answers ----

FORMS: dict[str, Any] = {
    "texts": lambda a: a["text"],
    "a text": lambda a: (a["text"] or [""])[0],
    "structs": lambda a: [{"text": t, "answer_start": s} for t, s in zip(*a.values(), strict=True)],
    "without starts": lambda a: {"text": a["text"]},
}


def labels(task: Any) -> list[list[int]]:
    (batch,) = task.val_dataloader()
    order = batch["row"].argsort()
    return [batch[name][order].tolist() for name in ("start_positions", "end_positions")]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_every_form_of_answers(tmp_path: Path, form: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = labels(make(tmp_path, ROWS[:4], max_length=384))
    monkeypatch.setattr(cells, "CHUNK", 3)
    assert wanted[0][3] == 0 < wanted[0][0]
    rows = [{**row, "answers": FORMS[form](row["answers"])} for row in ROWS[:4]]
    task = make(tmp_path, rows, kind=kind)
    assert labels(task) == wanted
    assert task._raw["validation"]["id"][:] == [row["id"] for row in ROWS[:4]]


def test_csv_and_the_published_json(tmp_path: Path) -> None:
    wanted = labels(make(tmp_path, ROWS[:4]))
    rows = [
        {"question": r["question"], "context": STORY, "answer": (r["answers"]["text"] or [""])[0]} for r in ROWS[:4]
    ]
    task = make(tmp_path, rows, kind="csv", answers_column="answer")
    assert labels(task) == wanted
    assert task._raw["validation"]["id"][:] == ["1", "2", "3", "4"]
    file = tmp_path / "published.json"
    file.write_text(json.dumps(squad_json(asked(no_answers=True)["train"].select(range(4)))))
    task = ready(QuestionAnswering(name="own", files={"train": str(file), "validation": str(file)}, no_answers=True))
    assert labels(task) == wanted
    assert task._raw["validation"]["golds"][:] == [row["answers"]["text"] for row in ROWS[:4]]


def row_of(**changes: Any) -> dict[str, Any]:
    return {**{key: ROWS[0][key] for key in ("question", "context", "answers")}, **changes}


ANSWER = {"text": ["Ada"], "answer_start": [0]}
WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "elsewhere": (row_of(answers={"text": ["Ada"], "answer_start": [3]}), {}, "'Ada' does not stand .* character 3"),
    "second": (row_of(answers={"text": ["Ada", "Eve"], "answer_start": [0, 0]}), {}, "'Eve' does not stand"),
    "before": (row_of(answers={"text": ["Ada"], "answer_start": [-1]}), {}, "'Ada' does not stand .* character -1"),
    "nowhere": (row_of(answers={"text": ["Eve"]}), {}, "'Eve' does not stand in the context"),
    "uneven": (row_of(answers={"text": ["Ada"], "answer_start": [0, 3]}), {}, "1 answers have 2 answer_start"),
    "none": (row_of(answers={"text": [], "answer_start": []}), {"no_answers": False}, "there is not an answer"),
    "no question": (row_of(question="  "), {}, "'question': there is no text"),
    "null context": (row_of(context=None), {}, "'context': there is no text"),
    "blank answer": (
        row_of(answers={"text": [" "], "answer_start": [4]}),
        {"no_answers": False},
        "there is not an answer",
    ),
    "a text for a start": (row_of(answers={"text": ["Ada"], "answer_start": ["0"]}), {}, "'answers': .* does not fit"),
    "no whole number": (row_of(answers={"text": ["Ada"], "answer_start": [0.5]}), {}, "answer_start is 0.5, not"),
    "no number": (row_of(answers={"text": ["Ada"], "answer_start": [float("nan")]}), {}, "answer_start is NaN, not"),
    "no start": (row_of(answers={"text": ["Ada"], "answer_start": [None]}), {}, "answer_start is null, not"),
    "a number": (row_of(answers={"text": [7], "answer_start": [0]}), {}, "'answers': .* does not fit"),
    "null answer": (row_of(answers={"text": [None], "answer_start": [0]}), {}, "null is not an answer"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_rows_are_named_or_skipped(tmp_path: Path, case: str) -> None:
    row, settings, message = WRONG[case]
    with pytest.raises(SkimError, match=rf"(?s)rows\.jsonl, row 2, .*{message}"):
        make(tmp_path, [row_of(answers=ANSWER), row], **settings)
    task = make(tmp_path, [row_of(answers=ANSWER), row, row_of(answers=ANSWER)], on_bad_row="skip", **settings)
    assert task.report["skipped"] == {"train": 1, "validation": 1}
    assert task.report["rows"]["train"] == 2
    assert labels(task)[0] == labels(make(tmp_path, [row_of(answers=ANSWER)]))[0] * 2


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"question": "a", "text": "b", "answers": ["b"]}], {}, "no text column 'context'.*context_column"),
        ([{"question": "a", "context": "b", "answer": "b"}], {}, "no answers column 'answers'.*answers_column"),
        ([row_of(answers=3)], {}, "column 'answers' holds int64"),
        ([row_of(answers={"start": [0]})], {}, r"column 'answers' holds struct.*\n.*answer_start"),
        ([row_of()], {"id_column": "key"}, "no column of ids 'key'"),
        ([row_of()], {"stride": -1}, "stride=-1"),
        ([row_of()], {"no_answers": False, "no_answer_threshold": 1.0}, "task.no_answers=true"),
        ([row_of()], {"max_length": 6}, "no room"),
    ],
)
def test_wrong_data_and_settings(tmp_path: Path, rows: list, settings: dict, message: str) -> None:
    with pytest.raises(SkimError, match=f"(?s){message}"):
        make(tmp_path, rows, **settings)


PUBLISHED: dict[str, tuple[dict[str, Any], str]] = {
    "question": ({"question": None}, "column 'question': there is no question"),
    "a number": ({"question": 5}, "column 'question': question is 5, not a text"),
    "answers": ({"answers": "Ada"}, "column 'answers': answers is \"Ada\", not a list"),
    "text": ({"answers": [{"answer_start": 0}]}, "column 'answers': there is no text"),
    "start": ({"answers": [{"text": "Ada"}]}, "column 'answers': answer_start is null, not"),
    "half": ({"answers": [{"text": "Ada", "answer_start": 0.5}]}, "column 'answers': answer_start is 0.5, not"),
    "a text": ({"answers": [{"text": "Ada", "answer_start": "x"}]}, "column 'answers': answer_start is \"x\", not"),
    "bytes": ({"question": "caf\udce9"}, r"column 'question': the text is not UTF-8 \(byte 0xE9 at character 4"),
}


def published(folder: Path, change: dict[str, Any], suffix: str = "json") -> Any:
    """Settings of a file with two good questions, and this change to the second one of three."""
    asked = [
        {
            "id": f"q{i}",
            "question": "Who?",
            "answers": [{"text": "Ada", "answer_start": 0}],
            **(change if i == 2 else {}),
        }
        for i in (1, 2, 3)
    ]
    whole = {"data": [{"paragraphs": [{"context": STORY, "qas": asked[:2]}, {"context": STORY, "qas": asked[2:]}]}]}
    text = json.dumps(whole, ensure_ascii=False).encode(errors="surrogateescape")
    file = folder / f"published.{suffix}"
    file.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    return {"name": "own", "files": {"train": str(file), "validation": str(file), "test": str(file)}}


@pytest.mark.parametrize("case", PUBLISHED)
def test_a_bad_question_of_the_published_json_is_one_bad_row(tmp_path: Path, case: str) -> None:
    change, message = PUBLISHED[case]
    settings = published(tmp_path, change)
    for _ in range(2):  # the second time from the cache
        with pytest.raises(SkimError, match=rf"published\.json, row 2, {message}"):
            ready(QuestionAnswering(**settings))
        task = ready(QuestionAnswering(**settings, on_bad_row="skip"))
        assert task.report["skipped"] == {"train": 1, "validation": 1}
        assert task._raw["train"]["id"][:] == ["q1", "q3"]


def test_parts_of_the_published_json_that_hold_no_questions(tmp_path: Path) -> None:
    settings = published(tmp_path, {}, "json.gz")
    assert ready(QuestionAnswering(**settings)).report["rows"] == {"train": 3, "validation": 3}
    file = tmp_path / "published.json"
    whole = json.loads(gzip.decompress(Path(settings["files"]["train"]).read_bytes()))
    good = whole["data"][0]["paragraphs"]
    whole["data"] = [{"title": "a"}, {"paragraphs": [{"context": "b"}, *good, 3]}, 4]
    whole["data"][1]["paragraphs"][1]["qas"].insert(1, None)
    file.write_text(json.dumps(whole))
    rows = read(str(file), reader=READER)
    assert [(problem.row, problem.why) for problem in problems(rows)] == [
        (0, "article 1 has no list of paragraphs"),
        (1, "paragraph 1 of article 2 has no list of qas"),
        (3, "the question is null, not an object"),
        (6, "paragraph 4 of article 2 has no list of qas"),
        (7, "article 3 has no list of paragraphs"),
    ]
    assert [name for name in rows["id"] if name] == ["q1", "q2", "q3"]
    file.write_text(json.dumps({"data": ROWS[:2]}))  # and a list of rows is one
    assert read(str(file), reader=READER).to_list() == ROWS[:2]
    file.write_text('{"data": [{"paragraphs": [')
    with pytest.raises(SkimError, match=r"published\.json, row 1: it is not JSON"):
        read(str(file), reader=READER)


def test_answers_that_are_all_of_the_wrong_kind(tmp_path: Path) -> None:
    """Then no type of the column is at fault, but each row."""
    for answers, why in (
        ({"text": ["Ada"], "answer_start": ["0"]}, 'answer_start is "0", not the number'),
        ({"text": [7], "answer_start": [0]}, "7 is not an answer"),
    ):
        with pytest.raises(SkimError, match=f"row 1, column 'answers': {why}"):
            make(tmp_path, [row_of(answers=answers)] * 2)


def test_answers_are_placed_once(tmp_path: Path) -> None:
    bad = row_of(answers=ANSWER, question="\u00a0")
    task = make(tmp_path, [*ROWS[:3], bad], on_bad_row="skip")
    wanted = {name: task._raw["train"][name][:] for name in ("id", "golds", "begin", "end")}
    (tmp_path / "copy").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.data.questions.places", lambda *arguments: pytest.fail("placed again"))
        patch.setattr("tasks.data.files.parse", lambda *arguments: pytest.fail("read again"))
        again = make(tmp_path / "copy", [*ROWS[:3], bad], on_bad_row="skip")
        assert {name: again._raw["train"][name][:] for name in wanted} == wanted
        assert again.report["skipped"] == {"train": 1, "validation": 1}
        with pytest.raises(SkimError, match=r"row 4, column 'question': there is no text"):
            make(tmp_path, [*ROWS[:3], bad])
    # but not where other answers are asked for
    make(tmp_path, ROWS[:4])
    with pytest.raises(SkimError, match=r"row 4, column 'answers': there is not an answer"):
        make(tmp_path, ROWS[:4], no_answers=False)
    with pytest.raises(SkimError, match=r"no answers column 'none'"):
        make(tmp_path, [*ROWS[:3], bad], answers_column="none")


def test_ids_are_as_written_or_the_rows_numbers_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "test.csv"
    settings: Any = {"name": "own", "files": {"test": str(file)}, "on_bad_row": "skip"}
    file.write_text("key,question,context\n007,a,b\n1.10,c\n1.20,d,e\n")
    task = ready(QuestionAnswering(**settings), stage="predict")
    assert task._raw["test"]["id"][:] == ["1", "3"]
    task = ready(QuestionAnswering(**settings, id_column="key"), stage="predict")
    assert task._raw["test"]["id"][:] == ["007", "1.20"]
    file.write_text("id,question,context,answers\n7,a,b,b\n,c,d,d\n7,e,f,f\n")
    with pytest.raises(SkimError, match=r"row 2, column 'id': there is no id"):
        ready(QuestionAnswering(**{**settings, "on_bad_row": "error"}), stage="predict")
    task = ready(QuestionAnswering(**settings), stage="predict")
    assert task._raw["test"]["id"][:] == ["7"]
    assert task.report["skipped"]["test"] == 2
    task = QuestionAnswering(name="own", files={"train": str(file), "validation": str(file)})
    assert ready(task)._raw["train"]["id"][:] == ["7", "2", "7"]  # nothing goes by them here


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"answers": {"text": ["Eve"], "answer_start": [0]}}, "the answer 'Eve' does not stand"),
        ({"answers": {"text": [], "answer_start": []}}, "there is not an answer"),
        ({"answers": None}, "there is not an answer"),
    ],
)
def test_what_is_predicted_needs_no_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], why: str
) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text("\n".join(map(json.dumps, [row_of(answers=ANSWER), row_of(**change)])))
    for _ in range(2):
        caplog.clear()
        task = ready(QuestionAnswering(name="own", files={"test": str(file)}), stage="test")
        assert task.report["rows"]["test"] == 2
        assert "start_positions" not in next(iter(task.predict_dataloader()))
        assert f"test.jsonl, row 2, column 'answers': {why}" in caplog.text
    caplog.clear()
    file.write_text(json.dumps(row_of(answers=ANSWER)))
    task = ready(QuestionAnswering(name="own", files={"test": str(file)}), stage="test")
    assert "start_positions" in next(iter(task.predict_dataloader()))
    assert not caplog.text


# ---- the head ----


def test_padding_has_no_part_in_the_distance(tmp_path: Path) -> None:
    task = make(tmp_path, ROWS)
    torch.manual_seed(0)
    mask = torch.ones(3, 7, dtype=torch.long)
    one, other = ({"start_logits": torch.randn(3, 7), "end_logits": torch.randn(3, 7)} for _ in range(2))
    found = task.distance(SimpleNamespace(**one), SimpleNamespace(**other), {"attention_mask": mask}, 2.0)
    wanted = 0.0
    for name in one:
        p, q = ((logits[name] / 2).softmax(-1) for logits in (one, other))
        wanted += 4 * (q * (q / p).log()).sum(-1).mean() / 2
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    longer = [
        SimpleNamespace(**{name: torch.cat([x, 9 * torch.randn(3, 4)], 1) for name, x in logits.items()})
        for logits in (one, other)
    ]
    mask = torch.cat([mask, torch.zeros(3, 4, dtype=torch.long)], 1)
    assert task.distance(*longer, {"attention_mask": mask}, 2.0).item() == pytest.approx(found.item(), rel=1e-5)


@pytest.mark.parametrize("method", ["topk", "transkimmer"])
def test_retired_tokens_have_scores_too(tmp_path: Path, method: str) -> None:
    """Packed as masked: a score for every token, also for those that left on the way, and the same answers."""
    task = make(tmp_path, ROWS[:4], max_length=80, stride=20, eval_batch_size=6)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=len(task.tokenizer), initializer_range=0.3, **sizes, num_labels=2)
    model = transformers.BertForQuestionAnswering(config).eval()
    batch = list(task.val_dataloader())[-1]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    assert not inputs["attention_mask"].all()
    compressed = ragged(model, inputs, METHODS[method])
    said, logits = {}, {}
    with torch.no_grad():
        for execution in ("masked", "packed"):
            with skim.execution(compressed, execution):
                output = compressed(**inputs)
            said[execution], logits[execution] = task.predictions(output, batch), output.start_logits
        assert compressed.trace.relative_flops() < 1
    real = batch["attention_mask"].bool()
    assert torch.allclose(logits["masked"][real], logits["packed"][real], atol=1e-4)
    assert logits["packed"][real].unique().numel() > 0.9 * real.sum()  # retired tokens have scores of their own
    for one, other in zip(said["masked"], said["packed"], strict=True):
        assert one["null"] == pytest.approx(other["null"], abs=1e-4)
        assert one["spans"][0][:2] == other["spans"][0][:2]
        assert len(one["spans"]) == task.n_best


# ---- runs ----


def test_a_run_from_config_to_official_files(tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ["hardware=cpu", "hardware.threads=1", "benchmark.enabled=false", "train.lr=3e-3", "train.epochs=1"]
    limits = ["task.max_train_samples=800", "task.max_eval_samples=64", "task.max_length=40", "task.stride=8"]
    cfg = composed("task=builtin_spans", "method=topk", "method.target=0.9", "train.calibrate=64", *small, *limits)
    results = train(cfg, run, "python train.py").results
    names = {"em", "f1", "threshold", "answerable_em", "answerable_f1", "unanswerable_accuracy", "best_em", "best_f1"}
    assert set(results.metrics) == names | {"loss"}
    assert results.monitor == "f1"
    assert results.samples == {"train": 800, "validation": 64}
    assert results.metrics["f1"] == pytest.approx(results.masked_metrics["f1"])
    assert results.metrics["f1"] == pytest.approx(results.metrics["best_f1"], abs=1e-6)
    look = ["hardware.accelerator=cpu", "hardware.threads=1", f"ckpt={run}", "max_samples=64", "split=validation"]
    evaluate(composed(*look, "what=predict", config="evaluate"))
    said, best, odds = (
        json.loads((run / f"{name}.json").read_text()) for name in ("predictions", "nbest_predictions", "null_odds")
    )
    assert len(said) == len(best) == len(odds) == 64
    threshold = results.metrics["threshold"]  # the run's own
    for name, answers in best.items():
        spans = [answer for answer in answers if answer["start"] is not None]
        assert (len(spans), len(answers)) == (20, 21)
        null = next(answer["score"] for answer in answers if answer["start"] is None)
        assert odds[name] == pytest.approx(null - spans[0]["score"])
        assert said[name] == ("" if odds[name] > threshold else spans[0]["text"])
    # those files give the run's own scores
    from tasks.data.builtin import rows
    from tasks.metrics.squad import score

    golds = {row["id"]: row["answers"]["text"] for row in rows("spans", "validation")}
    f1 = [score(text, golds[name], no_answers=True)[1] for name, text in said.items()]
    assert sum(f1) / len(f1) == pytest.approx(results.metrics["f1"], abs=1e-5)
    # it has learned what is asked for; a random span is right in one of a hundred
    right = [next(a["text"] for a in best[name] if a["text"]) == golds[name][0] for name in best if golds[name]]
    assert sum(right) / len(right) > 0.2


def test_questions_without_answers_can_be_predicted(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    asked = [{key: row[key] for key in ("id", "question", "context")} for row in ROWS[:3]]
    file.write_text("\n".join(map(json.dumps, asked)))
    task = ready(QuestionAnswering(name="own", files={"test": str(file)}, max_length=64, stride=8), stage="predict")
    found = {}
    for batch in task.predict_dataloader():
        assert "start_positions" not in batch
        assert task.labelled(batch) == 0
        output = SimpleNamespace(**dict.fromkeys(("start_logits", "end_logits"), torch.zeros(batch["begins"].shape)))
        output.start_logits = output.start_logits + (batch["begins"] == 9)  # "sailor" begins there
        output.end_logits = output.end_logits + (batch["ends"] == 15)
        found.update(zip(batch["row"].tolist(), task.predictions(output, batch), strict=True))
    files = task.write_predictions([found[row] for row in sorted(found)], tmp_path)
    assert [path.name for path in files] == ["predictions.json", "nbest_predictions.json"]
    assert json.loads(files[0].read_text()) == {row["id"]: STORY[9:15] for row in ROWS[:3]}
    file.write_text("\n".join(map(json.dumps, [asked[0], asked[0]])))
    with pytest.raises(SkimError, match=r"row 2, column 'id': .* is the id of an earlier row"):
        ready(QuestionAnswering(name="own", files={"test": str(file)}), stage="predict")
