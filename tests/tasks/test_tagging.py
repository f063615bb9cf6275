"""Labels on first tokens, chunks as seqeval finds them, files of every kind, and every error a user can make."""

from __future__ import annotations

import json
import logging
import warnings
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score
from sklearn.metrics import accuracy_score
from transformers import BertTokenizer, RobertaTokenizer

from skim.compression import walk_of
from skim.errors import SkimError
from skim.lightning.looks import evaluate, load
from skim.lightning.module import accepted
from skim.lightning.recipe import train
from tasks.metrics.chunks import TagScores
from tasks.tagging import Tagging
from tests.runs import composed, looking
from tests.tasks.conftest import in_order

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "##s", "bark", "loud", "##ly", "it"]
ROWS = {
    "tokens": [["dogs", "bark", "loudly"], ["it"], ["a", "dog"]],
    "tags": [["NOUN", "VERB", "ADV"], ["PRON"], ["DET", "NOUN"]],
}


@pytest.fixture
def tokenizer() -> Any:
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(PIECES)}, model_max_length=64)


def write(path: Path, rows: dict[str, list]) -> str:
    match path.suffix:
        case ".parquet":
            datasets.Dataset.from_dict(rows).to_parquet(path)
        case ".jsonl":
            datasets.Dataset.from_dict(rows).to_json(path)
        case ".csv" | ".tsv":
            by = "," if path.suffix == ".csv" else "\t"
            cells = [[" ".join(cell) for cell in row] for row in zip(*rows.values(), strict=True)]
            path.write_text("".join(by.join(row) + "\n" for row in [list(rows), *cells]))
        case _:
            pairs = (zip(*row, strict=True) for row in zip(*rows.values(), strict=True))
            path.write_text("\n".join("".join(f"{word} x {tag}\n" for word, tag in row) for row in pairs))
    return str(path)


def make(folder: Path, tokenizer: Any, rows: Any = ROWS, kind: str = "parquet", **options: Any) -> Tagging:
    """A task on files of these rows, ready for its loaders."""
    path = folder / f"rows.{kind}"
    file = write(path, rows) if isinstance(rows, dict) else str(path)
    if isinstance(rows, (str, bytes)):
        path.write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    task = Tagging(name="tagging", **{"files": {"train": file, "validation": file, "test": file}, **options})
    task.setup_tokenizer(tokenizer)
    task.setup("fit")
    return task


# ---- tokens and labels ----


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "tsv", "txt", "conll", "iob"])
def test_every_kind_of_file_has_its_labels_on_first_tokens(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    task = make(tmp_path, tokenizer, kind=kind)
    assert task.label_names == ["ADV", "DET", "NOUN", "PRON", "VERB"]
    batch = in_order(task)
    no = -100
    # [CLS] dog ##s bark loud ##ly [SEP]
    assert batch["labels"].tolist() == [[no, 2, no, 4, 0, no, no], [no, 3, no, no, no, no, no], [no, 1, 2] + [no] * 4]
    assert batch["word"].tolist() == [[-1, 0, -1, 1, 2, -1, -1], [-1, 0] + [-1] * 5, [-1, 0, 1] + [-1] * 4]
    assert batch["words"].tolist() == [3, 1, 2]
    assert batch["attention_mask"].sum(1).tolist() == [7, 3, 4]
    assert batch["gold"].tolist() == [[2, 4, 0], [3, no, no], [1, 2, no]]
    assert task.labelled(batch) == 6
    assert task.example_texts(2) == ["dogs bark loudly", "it"]


def test_labels_are_where_the_tokenizer_says_words_begin(tmp_path: Path, tokenizer: Any) -> None:
    words = [["dogs", "dogs", "loudly", "it", "a"] * n for n in range(1, 9)]
    tags = [[f"T{i % 7}" for i in range(len(some))] for some in words]
    batch = in_order(make(tmp_path, tokenizer, {"tokens": words, "tags": tags}))
    for some, labels, word in zip(tags, batch["labels"], batch["word"], strict=True):
        names = [f"T{i}" for i in labels[labels >= 0].tolist()]
        cut = min(len(some), len(names))
        assert names == some[:cut]
        assert word[word >= 0].tolist() == list(range(cut))
        assert torch.equal(word >= 0, labels >= 0)


def test_class_labels_keep_their_names_in_another_order(tmp_path: Path, tokenizer: Any) -> None:
    tags = datasets.List(datasets.ClassLabel(names=["O", "B-X", "_"]))
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "tags": tags})
    rows = datasets.Dataset.from_dict({"tokens": [["a", "dog", "it"]], "tags": [[1, 0, 2]]}, features=features)
    rows.to_parquet(tmp_path / "own.parquet")
    files = {"train": str(tmp_path / "own.parquet"), "validation": str(tmp_path / "own.parquet")}
    assert make(tmp_path, tokenizer, None, files=files).label_names == ["O", "B-X", "_"]
    task = make(tmp_path, tokenizer, None, files=files, label_names=["B-X", "O"], untagged=["_"])
    assert in_order(task)["labels"].tolist() == [[-100, 0, 1, -100, -100]]
    assert in_order(task)["gold"].tolist() == [[0, 1, -1]]
    assert make(tmp_path, tokenizer, None, files=files, untagged=["_"]).label_names == ["O", "B-X"]


@pytest.mark.parametrize(
    ("tags", "names", "monitor", "metrics"),
    [
        (["I-B", "O", "B-A"], ["O", "B-A", "I-B"], "f1", {"f1", "precision", "recall", "accuracy"}),
        (["NN", "O", "I-X"], ["O", "I-X", "NN"], "accuracy", {"accuracy"}),
        ([0, 2, 1], ["0", "1", "2"], "accuracy", {"accuracy"}),
    ],
)
def test_labels_and_metrics_come_from_the_tags(
    tmp_path: Path, tokenizer: Any, tags: list, names: list, monitor: str, metrics: set
) -> None:
    task = make(tmp_path, tokenizer, {"tokens": [["a", "dog", "it"]], "tags": [tags]})
    assert task.label_names == names
    assert task.model_kwargs()["label2id"] == {name: i for i, name in enumerate(names)}
    assert task.monitor == monitor
    assert set(task.metrics().compute()) == metrics


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_tags_that_are_numbers(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    """Of one figure or of several, in the training file alone or everywhere; names first, ids where there are none."""
    other = {"tokens": [["it"], ["a"]], "tags": [["1"], ["2"]]}
    rows = {"tokens": [["a", "dog"], ["it"]], "tags": [["1", "2"], ["1"]]}
    files = {"train": write(tmp_path / f"a.{kind}", rows), "validation": write(tmp_path / f"b.{kind}", other)}
    for names in (None, ["1", "2"], [1, 2]):
        task = make(tmp_path, tokenizer, None, files=files, label_names=names)
        assert task.label_names == ["1", "2"]
        assert in_order(task)["gold"].tolist() == [[0], [1]]
    rows = {"tokens": [["it"], ["a"]], "tags": [[1], [0]]}
    assert in_order(make(tmp_path, tokenizer, rows, label_names=["X", "Y"]))["gold"].tolist() == [[1], [0]]
    rows["tags"] = [[1], [2]]
    assert in_order(make(tmp_path, tokenizer, rows, label_names=[1, 2]))["gold"].tolist() == [[0], [1]]
    rows = {"tokens": [["it", "a", "dog"]], "tags": [["0", "-1", " 1"]]}
    task = make(tmp_path, tokenizer, rows, untagged=[-1])
    assert task.label_names == ["0", "1"]
    assert in_order(task)["gold"].tolist() == [[0, -1, 1]]


@pytest.mark.parametrize("name", ["gold", "labels", "word", "line"])
def test_columns_called_as_the_task_s_own(tmp_path: Path, tokenizer: Any, name: str) -> None:
    rows = {name: ROWS["tokens"], "tags": ROWS["tags"]}
    task = make(tmp_path, tokenizer, rows, token_column=name)
    assert in_order(task)["gold"].tolist() == [[2, 4, 0], [3, -100, -100], [1, 2, -100]]
    assert task.example_texts(1) == ["dogs bark loudly"]


@pytest.mark.parametrize("line", [[1, 2, 3], [[9], [9], [9]], ["a", "b", "c"]])
def test_a_column_called_line_in_other_files(tmp_path: Path, tokenizer: Any, line: list) -> None:
    rows = {**ROWS, "line": line}
    with pytest.raises(SkimError, match=r"row 1, column 'tags': word 3 \('loudly'\) has the tag 'ADV', which is no"):
        make(tmp_path, tokenizer, rows, label_names=["NOUN", "VERB"])
    rows["tokens"] = [["dogs", "bark", None], *ROWS["tokens"][1:]]
    with pytest.raises(SkimError, match="row 1, column 'tokens': word 3 is null"):
        make(tmp_path, tokenizer, rows)


def test_a_word_of_no_tokens_is_read_as_unknown(tmp_path: Path, tokenizer: Any) -> None:
    rows = {"tokens": [["\u200b", "dog", "", "it"], ["a", "\ufeff"]], "tags": [["X", "N", "Y", "P"], ["D", "X"]]}
    batch = in_order(make(tmp_path, tokenizer, rows))
    assert batch["input_ids"][0].tolist() == [2, 1, 6, 1, 11, 3]
    assert batch["labels"].tolist() == [[-100, 3, 1, 4, 2, -100], [-100, 0, 3, -100, -100, -100]]


def test_byte_level_tokenizers_see_a_space_before_each_word(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("d", "o"), ("do", "g"), ("Ġ", "dog")]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters, *("".join(pair) for pair in merges)]
    tokenizer = RobertaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges)
    task = make(tmp_path, tokenizer, {"tokens": [["dog", "dogs", ""]], "tags": [["A", "B", "C"]]})
    batch = in_order(task)
    assert tokenizer.convert_ids_to_tokens(batch["input_ids"][0]) == ["<s>", "Ġdog", "Ġdog", "s", "<unk>", "</s>"]
    assert batch["labels"].tolist() == [[-100, 0, 1, -100, 2, -100]]
    tokenizer.save_pretrained(tmp_path / "model")
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert again(["dog", "dog"], is_split_into_words=True).tokens()[1:3] == ["Ġdog", "Ġdog"]


def output(logits: torch.Tensor) -> Any:
    return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("side", ["right", "left"])
def test_words_that_are_cut_off_are_wrong_and_in_no_chunk(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture, side: str
) -> None:
    tokenizer.padding_side = side
    rows = {"tokens": [["dogs", "bark", "loudly"], ["a"]], "tags": [["B-X", "I-X", "B-X"], ["O"]]}
    with caplog.at_level(logging.WARNING):
        task = make(tmp_path, tokenizer, rows, max_length=4, label_names=["O", "B-X", "I-X"])
    assert "2 words were cut off" in caplog.text
    batch = in_order(task)
    assert task.labelled(batch) == 2
    assert batch["words"].tolist() == [3, 1]
    logits = torch.nn.functional.one_hot(batch["labels"].clamp(min=0), 3).float()  # all that it can be asked is right
    metrics = task.metrics()
    task.update(metrics, output(logits), batch)
    found = {name: value.item() for name, value in metrics.compute().items()}
    # true chunks: X of two words, X of one; found: X of one word
    assert found == {"f1": 0, "precision": 0, "recall": 0, "accuracy": 0.5}
    assert task.predictions(output(logits), batch) == [{"tags": ["B-X", None, None]}, {"tags": ["O"]}]
    assert task.report["truncated"]["validation"] == 1


def test_the_distance_is_over_labelled_tokens(tmp_path: Path, tokenizer: Any) -> None:
    task = make(tmp_path, tokenizer)
    batch = in_order(task)
    here = batch["labels"] != -100
    mine, taught = torch.randn(2, *here.shape, 5)
    away = task.distance(output(mine), output(taught), batch, 2.0)
    p, q = (mine[here] / 2).log_softmax(-1), (taught[here] / 2).log_softmax(-1)
    assert away.item() == pytest.approx(4 * (q.exp() * (q - p)).sum(-1).mean().item(), rel=1e-5)
    mine[~here] = 100.0
    assert task.distance(output(mine), output(taught), batch, 2.0) == away


# ---- metrics ----

SCHEMES = [
    ["O", "B-X", "I-X", "B-Y", "I-Y"],
    ["B-X-1", "I-X-1", "I-Y", "O"],
    ["O", *(f"{letter}-{kind}" for letter in "BIES" for kind in ("X", "Y"))],
    ["B-X", "I-X"],
]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_scores_are_those_of_seqeval_and_scikit_learn(data: st.DataObject) -> None:
    names = data.draw(st.sampled_from(SCHEMES))
    metrics = TagScores(names, ("f1", "precision", "recall", "accuracy"))
    true: list[list[str]] = []
    said: list[list[str]] = []
    for _ in range(data.draw(st.integers(1, 3))):
        shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 9)))
        seed = data.draw(st.integers(0, 2**31))
        generator = torch.Generator().manual_seed(seed)
        # gaps anywhere, and one word that counts in every batch
        target = torch.randint(-1, len(names), shape, generator=generator)
        target[torch.rand(shape, generator=generator) < 0.2] = -100
        target[0, 0] = 0
        predicted = torch.randint(0, len(names), shape, generator=generator)
        keep = torch.rand(shape, generator=generator) < data.draw(st.sampled_from([0.0, 0.7, 1.0]))
        predicted = torch.where(keep & (target >= 0), target, predicted)
        metrics.update(predicted, target)
        for some, right in zip(predicted.tolist(), target.tolist(), strict=True):
            said.append([names[p] for p, t in zip(some, right, strict=True) if t >= 0])
            true.append([names[t] for t in right if t >= 0])
    found = {name: value.item() for name, value in metrics.compute().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
            assert found[name] == pytest.approx(score(true, said), abs=1e-9), name
    assert found["accuracy"] == pytest.approx(accuracy_score([*chain(*true)], [*chain(*said)]), abs=1e-9)


def test_chunks_end_with_their_sentence_and_no_tag_is_outside() -> None:
    metrics = TagScores(["O", "B-X", "I-X"], ("f1", "accuracy"))
    metrics.update(torch.tensor([[1, 2], [2, 0]]), torch.tensor([[1, 2], [2, 0]]))
    assert metrics.true == metrics.found == 2
    metrics.update(torch.tensor([[1, -1, 2]]), torch.tensor([[1, 2, 2]]))
    assert (metrics.true, metrics.predicted, metrics.found) == (3, 4, 2)
    assert (metrics.right, metrics.words) == (6, 7)


def test_tags_of_other_schemes() -> None:
    """BILOU is IOBES by other letters."""
    letters = {"B": "B", "I": "I", "E": "L", "S": "U"}
    ours = ["O", *(f"{a}-{kind}" for a in letters for kind in "XY")]
    bilou = ["O", *(f"{b}-{kind}" for b in letters.values() for kind in "XY")]
    one, other = (TagScores(names, ("f1",)) for names in (ours, bilou))
    tags = torch.randint(0, 9, (2, 50, 20), generator=torch.Generator().manual_seed(0))
    one.update(*tags)
    other.update(*tags)
    assert one.compute() == other.compute()
    assert one.compute()["f1"] > 0
    assert other.chunked
    assert not TagScores(["NOUN", "O"], ("accuracy",)).chunked


# ---- what users get wrong ----

GOOD = [["dogs", "bark"], ["it"]], [["N", "V"], ["P"]]


@pytest.mark.parametrize(
    ("words", "tags", "said"),
    [
        (["a", "dog"], ["D"], r"row 3, column 'tags': there are 2 words and 1 tags"),
        (["a"], ["D", "N"], r"row 3, column 'tags': there are 1 words and 2 tags"),
        (["a", "dog"], ["P", "Q"], r"row 3, column 'tags': word 2 \('dog'\) has the tag 'Q'(.|\n)*Labels: N, P, V\."),
        ([], [], r"row 3, column 'tokens': there are no words"),
        (None, ["N"], r"row 3, column 'tokens': there are no words"),
        (["a"], None, r"row 3, column 'tags': there are 1 words and 0 tags"),
        (["a", None], ["N", "N"], r"row 3, column 'tokens': word 2 is null"),
        (["a", "it"], [None, "N"], r"row 3, column 'tags': word 1 \('a'\) has no tag(.|\n)*task.untagged=\[null\]"),
        (["a", "it"], ["_", "_"], r"row 3, column 'tags': no word has a tag"),
    ],
)
def test_bad_rows_are_named_or_skipped(tmp_path: Path, tokenizer: Any, words: Any, tags: Any, said: str) -> None:
    rows = {"tokens": [*GOOD[0], words, *GOOD[0]], "tags": [*GOOD[1], tags, *GOOD[1]]}
    options = {"label_names": ["N", "P", "V"], "untagged": ["_"]}
    with pytest.raises(SkimError, match=r"rows\.parquet, " + said):
        make(tmp_path, tokenizer, rows, **options)
    task = make(tmp_path, tokenizer, rows, on_bad_row="skip", **options)
    assert task.report["skipped"] == {"train": 1, "validation": 1}
    assert in_order(task)["labels"].tolist() == [[-100, 0, -100, 2, -100], [-100, 1, -100, -100, -100]] * 2


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("txt", "a D\nit P\n\ndog\nbark V\n", r"row 2, column 'tags': word 1 \('dog', line 4\) has no tag"),
        ("conll", "a D\n\na D\ndog N N\n", r"row 2, column 'tags': word 2 \('dog', line 4\) has no tag"),
        ("txt", b"a D\n\na D\nd\xf6g N\n", r"row 2, column 'tokens': word 2 \(line 4\) is not UTF-8"),
        ("csv", "tokens,tags\na it,D P\na dog,D\n", r"row 2, column 'tags': there are 2 words and 1 tags"),
        ("jsonl", '{"tokens":["a"],"tags":["D"]}\n{"tokens":"a","tags":["D"]}\n', r"row 2, column 'tokens'"),
        ("jsonl", '{"tokens":["a"],"tags":["D"]}\n{"tokens":["a"],"tags":[["D"]]}\n', r"row 2, column 'tags'"),
        ("jsonl", '{"tokens":["a"],"tags":["D"]}\n{"tokens":["a"]}\n', r"row 2, column 'tags'"),
    ],
)
def test_bad_rows_of_text_files(tmp_path: Path, tokenizer: Any, kind: str, text: str | bytes, said: str) -> None:
    with pytest.raises(SkimError, match=rf"rows\.{kind}, " + said):
        make(tmp_path, tokenizer, text, kind, label_names=["D", "P", "N", "V"])
    task = make(tmp_path, tokenizer, text, kind, label_names=["D", "P", "N", "V"], on_bad_row="skip")
    assert task.report["skipped"] == {"train": 1, "validation": 1}
    assert in_order(task)["gold"][:, 0].tolist() == [0]


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ({"words": [["a"]], "tags": [["D"]]}, {}, "no column of words 'tokens'(.|\n)*task.token_column=<column>"),
        ({"tokens": [["a"]], "ner": [["D"]]}, {}, "no column of tags 'tags'(.|\n)*task.tag_column=<column>"),
        ({"tokens": [[1]], "tags": [["D"]]}, {}, "column 'tokens' holds lists of int64 and not of words"),
        ({"tokens": [1], "tags": [["D"]]}, {}, "column 'tokens' holds int64 and not lists"),
        ({"tokens": [["a"]], "tags": [[0.5]]}, {"label_names": ["a", "b"]}, "column 'tags' holds lists of double"),
        ({"tokens": [["a", "dog"]], "tags": [[0, 2]]}, {}, "tags are 0, 2"),
        ({"tokens": [["a", "dog"]], "tags": [["N", "N"]]}, {}, "nothing to learn"),
        (ROWS, {"metric_names": ["f1"]}, r"f1 is of chunks(.|\n)*metric_names=\[accuracy\]"),
        ({"tokens": [["a"]], "tags": [[["D"]]]}, {}, "column 'tags' holds lists of list<.*neither names nor ids"),
        ({"tokens": [["a", "dog"]], "tags": [[True, False]]}, {}, "column 'tags' holds lists of bool"),
        (ROWS, {"metric_names": ["bleu"]}, "bleu"),
        (ROWS, {"metric_names": "f1"}, "metric_names.*must be a list of any of f1"),
        (ROWS, {"label_names": ["A", "B", "A"]}, "task.label_names names 'A' twice"),
        (ROWS, {"untagged": "_"}, "untagged.*must be a list of texts"),
        (ROWS, {"on_unknown_tag": "skip"}, "on_unknown_tag"),
        (ROWS, {"columns": [0, 1]}, r"task.columns=\[0, 1\]"),
        (ROWS, {"label_names": ["O", "B-X"], "on_unknown_tag": "wrong"}, "on_unknown_tag=wrong"),
    ],
)
def test_what_no_row_is_to_blame_for(tmp_path: Path, tokenizer: Any, rows: Any, options: Any, said: str) -> None:
    with pytest.raises(SkimError, match=said):
        make(tmp_path, tokenizer, rows, **options)


def test_unknown_tags_can_be_wrong_instead(tmp_path: Path, tokenizer: Any) -> None:
    task = make(tmp_path, tokenizer, label_names=["NOUN", "VERB"], on_unknown_tag="wrong")
    batch = in_order(task)
    assert task.labelled(batch) == 3
    metrics = task.metrics()
    logits = torch.nn.functional.one_hot(batch["labels"].clamp(min=0), 2).float()
    task.update(metrics, output(logits), batch)
    assert metrics.compute()["accuracy"].item() == pytest.approx(3 / 6)


def test_files_without_tags_can_be_predicted(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "test.txt").write_text("a\ndogs\n\nit\n")
    files = {"train": write(tmp_path / "a.txt", ROWS), "test": str(tmp_path / "test.txt")}
    task = make(tmp_path, tokenizer, None, files=files, holdout=0.4)
    task.setup("predict")
    (batch,) = task.test_dataloader()
    assert "labels" not in batch
    assert task.labelled(batch) == 0
    logits = torch.zeros(*batch["input_ids"].shape, task.num_labels)
    found = task.predictions(output(logits), batch)
    assert [len(one["tags"]) for one in found] == batch["words"].tolist()
    written = task.write_predictions([found[i] for i in batch["row"].argsort()], tmp_path)
    first = task.label_names[0]
    assert json.loads(written[0].read_text().splitlines()[0]) == {
        "row": 1,
        "tokens": ["a", "dogs"],
        "tags": [first] * 2,
    }
    assert written[1].read_text() == f"a\t{first}\ndogs\t{first}\n\nit\t{first}\n"


@pytest.mark.parametrize(
    "tags",
    [
        [["N"], None, ["V", "N"]],
        [["N"], ["Q"], ["V", "N"]],
        [["N"], ["N", "N"], ["V", "N"]],
        [[None], ["N"], ["V", "N"]],
        [1, 2, 3],
        [[0.5], [1.5], [0.5]],
    ],
)
def test_tags_keep_no_row_from_being_predicted(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture, tags: list
) -> None:
    rows = {"tokens": [["a"], ["it"], ["dogs", "bark"]], "tags": tags}
    file = write(tmp_path / "test.parquet", rows)
    for skip in ("error", "skip"):
        task = Tagging(name="tagging", files={"test": file}, label_names=["N", "V"], on_bad_row=skip)
        task.setup_tokenizer(tokenizer)
        with caplog.at_level(logging.WARNING):
            task.setup("predict")
        (batch,) = task.predict_dataloader()
        assert len(batch["row"]) == 3
        assert "labels" not in batch
        assert "test.parquet, " in caplog.text
        assert "can be predicted, and not be measured" in caplog.text


@pytest.mark.parametrize("tags", [[None, None], [[], []], [[None], [None, None]], ["", ""]])
def test_no_tags_at_all_are_no_news(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture, tags: list
) -> None:
    table = pa.table({"tokens": [["a"], ["dogs", "bark"]], "tags": tags})
    if isinstance(tags[0], list):
        table = table.set_column(1, "tags", pa.array(tags, pa.list_(pa.string())))
    pq.write_table(table, tmp_path / "test.parquet")
    task = Tagging(name="tagging", files={"test": str(tmp_path / "test.parquet")}, label_names=["N", "V"])
    task.setup_tokenizer(tokenizer)
    with caplog.at_level(logging.WARNING):
        task.setup("test")
    (batch,) = task.test_dataloader()
    assert "labels" not in batch
    assert not caplog.text


def test_second_time_from_the_cache_and_anew_when_something_changed(tmp_path: Path, tokenizer: Any) -> None:
    def cached(kind: str = "txt", **options: Any) -> bool:
        return make(tmp_path, tokenizer, kind=kind, **options).report["from_cache"]["train"]

    names = ["ADV", "DET", "NOUN", "PRON", "VERB"]
    assert not cached()
    assert cached()
    assert cached(label_names=names)
    assert not cached(label_names=names[::-1])
    assert not cached(max_length=5)
    assert not cached(untagged=["ADV"])


# ---- real runs ----

TINY = [
    *("backbone.overrides.hidden_size=64", "backbone.overrides.intermediate_size=128"),  # half as wide, as good
    *("task=builtin_tags", "hardware=cpu", "hardware.threads=1", "benchmark.enabled=false", "callbacks.progress=false"),
    *("task.max_eval_samples=100", "task.batch_size=16", "train.calibrate=32"),
]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense run that has learned the built-in tags."""
    folder = tmp_path_factory.mktemp("runs") / "dense"
    options = ["method=dense", "task.max_train_samples=2400", "train.max_steps=350", "train.lr=2e-3"]
    results = train(composed(*TINY, *options, "train.evals_per_epoch=1"), folder, "").results
    assert results.monitor == "f1"
    assert results.metrics["f1"] > 0.9
    return folder


def test_it_learns_and_predicts(dense: Path) -> None:
    evaluate(looking(dense, "what=predict"))
    lines = [json.loads(line) for line in (dense / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 100
    true, said = [line["gold"] for line in lines], [line["tags"] for line in lines]
    assert f1_score(true, said) > 0.85
    assert (dense / "predictions.txt").read_text().split("\n\n")[0].splitlines()[0].split("\t")[0] == "the"


@pytest.mark.parametrize(
    "method", [["method=transkimmer", "method.target=0.6"], ["method=topk", "method.start=1", "method.target=0.8"]]
)
def test_retired_tokens_are_tagged_and_packed_is_masked(dense: Path, tmp_path: Path, method: list[str]) -> None:
    folder = tmp_path / "run"
    train(composed(*TINY, "train.max_steps=10", f"init_from={dense}", *method), folder, "")
    found = {}
    for execution in ("packed", "masked"):
        cfg = looking(folder, f"execution={execution}")
        parts = load(cfg).parts
        model, task = parts.model, parts.task
        metrics = task.metrics()
        logits, kept = [], []
        for batch in task.val_dataloader():
            with torch.no_grad():
                out = model(**accepted(model, batch))
            assert out.logits.shape == (*batch["input_ids"].shape, task.num_labels)
            task.update(metrics, out, batch)
            here = batch["labels"] != -100
            logits.append(out.logits[here])
            kept.append(walk_of(model).model.trace.layers_survived()[here])
        survived = torch.cat(kept)
        assert (survived < survived.max()).float().mean() > 0.1  # of the words' tokens
        found[execution] = torch.cat(logits), metrics.compute()
    assert found["packed"][0].isfinite().all()
    assert torch.allclose(found["packed"][0], found["masked"][0], atol=1e-5)
    assert found["packed"][1] == found["masked"][1]
