"""Extraction: states as transformers reports them, at the right tokens and rows, of every family and any method."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import skim
from skim.analysis.redundancy import extraction, store
from skim.analysis.redundancy.extraction import Extraction, Reading
from skim.analysis.redundancy.splits import Split
from skim.errors import SkimError
from tests import families
from tests.backbones import test_funnel
from tests.methods.table import METHODS
from tests.ragged import assert_same, ragged

SOME = ("transkimmer", "ltp", "topk", "act_gate", "funnel", "funnel_decoder", "exit_entropy", "layer_drop")
SOME += ("layer_drop+transkimmer",)
LENGTHS = (13, 9, 6, 11, 7, 12)


class Rows:
    """Rows of one batch, cut anew from it as a task's are: padded to the longest of those asked for."""

    def __init__(self, family: str, lengths: tuple[int, ...]) -> None:
        self.family, self.batch = family, families.batch_of(family, lengths)
        self.asked: list[list[int]] = []
        from datasets import Dataset

        self.table = Dataset.from_dict(
            {"input_ids": [row[row != families.PAD].tolist() for row in self.batch["input_ids"]]}
        )

    def __getitem__(self, rows: list[int]) -> dict[str, Tensor]:
        self.asked.append(rows)
        return families.rows_of(self.family, self.batch, rows)


def task_of(family: str, words: Tensor | None = None) -> Any:
    """Just as much of a task as an extraction asks for; ``words`` (B, N) are numbered per token."""
    rows = Rows(family, LENGTHS)
    lengths = np.array(LENGTHS)

    def words_of(batch: dict[str, Tensor]) -> Tensor | None:
        if words is None:
            return None
        width = batch["input_ids"].shape[1]
        here = [
            next(i for i, row in enumerate(rows.batch["input_ids"]) if starts(row, some)) for some in batch["input_ids"]
        ]
        side = slice(-width, None) if families.FAMILIES[family].left else slice(0, width)
        return words[here][:, side]

    def starts(row: Tensor, some: Tensor) -> bool:
        return row[row != families.PAD].tolist() == some[some != families.PAD].tolist()

    numbers = {"train": np.arange(1, len(LENGTHS) + 1)}
    return SimpleNamespace(tokenised=lambda part: (rows, lengths), words_of=words_of, numbers=numbers, rows=rows)


def split_of(order: list[int], counts: list[int] | None = None, words: list[int] | None = None) -> Split:
    counts = [1] * len(order) if counts is None else counts
    return Split(
        "train",
        "train",
        np.array(order),
        np.arange(sum(counts)) % 2,
        None if words is None else np.array(words),
        None if words is None else np.array(words),
        np.array(counts),
    )


def tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.copy())


def layers_of(model: nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
    """What plain transformers reports, by layer."""
    with torch.no_grad():
        states = list(model.base_model(**batch, output_hidden_states=True).hidden_states)
    return states


@pytest.mark.parametrize("family", families.FAMILIES)
def test_states_of_a_dense_model_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    order = [3, 0, 5, 1]
    task, plain = task_of(family), families.plain(family)
    batch = families.rows_of(family, task.rows.batch, order)
    wanted = layers_of(plain, batch)
    reads = -1 if families.FAMILIES[family].left else 0
    model = skim.compress(plain, "dense").eval()
    states, changed = Extraction(model, task, batch_size=2).run(split_of(order), tmp_path / "train")
    assert changed == []
    assert states.numbers == tuple(range(len(wanted)))
    assert states.ran.all()
    assert states.examples.tolist() == [0, 1, 2, 3]
    for number, layer in enumerate(wanted):
        assert_same(tensor(states.values[:, number]), layer[:, reads], what=f"layer {number}")
    mean, _ = Extraction(model, task, Reading(text="mean")).run(split_of(order), tmp_path / "mean")
    mask = batch["attention_mask"][..., None]
    for number, layer in enumerate(wanted):
        found = (layer * mask).sum(1) / mask.sum(1)
        assert_same(tensor(mean.values[:, number]), found, what=f"layer {number}")


@pytest.mark.parametrize("method", SOME)
def test_a_retired_token_has_the_state_it_left_with_and_the_mask_says_who_ran(method: str, tmp_path: Path) -> None:
    task = task_of("bert")
    batch, row = task.rows.batch, METHODS[method]
    model = ragged(families.plain("bert"), batch, row)
    order = list(range(len(LENGTHS)))
    longest = sorted(order, key=lambda i: -LENGTHS[i])  # as the extraction sorts them: paddings may matter
    with torch.no_grad():
        wanted = model.base_model(**families.rows_of("bert", batch, longest), output_hidden_states=True).hidden_states
    alive = model.trace.alive()
    found = Extraction(model, task, Reading(text="mean"))
    states, _ = found.run(split_of(order), tmp_path / "mean")
    first, _ = Extraction(model, task).run(split_of(order), tmp_path / "first")
    mask = families.rows_of("bert", batch, longest)["attention_mask"][..., None]
    back = np.argsort(longest)
    kept = tuple(k for k in range(1, families.LAYERS + 1) if model.method.runs(k - 1))
    assert states.numbers == (0, *kept)
    assert found.not_run == [k for k in range(1, families.LAYERS + 1) if k not in kept]
    for place, number in enumerate(states.numbers):
        mean = ((wanted[number] * mask).sum(1) / mask.sum(1))[back]
        assert_same(tensor(states.values[:, place]), mean, what=f"layer {number}")
        assert_same(tensor(first.values[:, place]), wanted[number][back, 0], what=f"layer {number}")
        if number:
            assert states.ran[:, place].tolist() == alive[number - 1].any(1)[back].tolist()
            assert first.ran[:, place].tolist() == alive[number - 1][back, 0].tolist()


def words_like(batch: dict[str, Tensor]) -> Tensor:
    """Words of one, two, three, one ... tokens between the special ones, (B, N)."""
    words = torch.full_like(batch["input_ids"], -1)
    for row, mask in zip(words, batch["attention_mask"].bool(), strict=True):
        places = mask.nonzero().flatten().tolist()[1:-1]
        sizes = [1, 2, 3, 1, 2, 3]
        numbers = [number for number, size in enumerate(sizes) for _ in range(size)]
        for place, number in zip(places, numbers, strict=False):
            row[place] = number
    return words


@pytest.mark.parametrize("family", ["bert", "xlnet"])
@pytest.mark.parametrize("word", ["first", "last", "average"])
def test_a_word_is_read_at_its_sub_words(family: str, word: str, tmp_path: Path) -> None:
    batch = task_of(family).rows.batch
    words = words_like(batch)
    task, plain = task_of(family, words), families.plain(family, "tokens")
    order, chosen = [2, 0, 4], [[0, 2], [1, 2, 3], [0, 1]]
    wanted = layers_of(plain, batch)
    model = skim.compress(plain, "dense").eval()
    some = split_of(order, [len(few) for few in chosen], [number for few in chosen for number in few])
    states, _ = Extraction(model, task, Reading(word=word), batch_size=2).run(some, tmp_path / "train")
    assert states.examples.tolist() == [0, 0, 1, 1, 1, 2, 2]
    row = 0
    for example, few in zip(order, chosen, strict=True):
        for number in few:
            places = (words[example] == number).nonzero().flatten().tolist()
            taken = {"first": places[:1], "last": places[-1:], "average": places}[word]
            for place, layer in enumerate(wanted):
                assert_same(tensor(states.values[row, place]), layer[example, taken].mean(0))
            row += 1


def test_a_family_that_shortens_its_sequences_has_a_state_at_every_position(tmp_path: Path) -> None:
    plain = test_funnel.model_of("FunnelForTokenClassification")
    model = skim.compress(plain, "dense").eval()
    task = task_of("bert", torch.arange(13).expand(6, -1))
    with torch.no_grad():
        seen = model.base_model(**task.rows.batch, output_hidden_states=True).hidden_states
    places = [0, 1, 2, 3, 4, 7, 8]
    some = split_of([0], [len(places)], places)
    states, _ = Extraction(model, task).run(some, tmp_path / "train")
    assert len(states.numbers) == len(seen) - 1  # the decoder's input is of no layer
    of_layers = seen[:-3] + seen[-2:]  # blocks of 2, 1 and 1 layers, and two that decode
    for number, (layer, stride) in enumerate(zip(of_layers, (1, 1, 1, 2, 4, 1, 1), strict=True)):
        rows = [0 if place == 0 else (place - 1) // stride + 1 for place in places]  # [CLS] is a row of its own
        assert_same(tensor(states.values[:, number]), layer[0, rows], tolerance=1e-4, what=f"layer {number}")


# ---- what can go wrong -----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """A process's end."""


def test_it_goes_on_after_a_kill_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "BLOCK", 2)
    model = skim.compress(families.plain("bert"), "dense").eval()
    some, order = split_of(list(range(6))), [0, 5, 3, 1, 4, 2]  # by falling length
    whole, _ = Extraction(model, task_of("bert")).run(some, tmp_path / "whole")

    task, forwards = task_of("bert"), []

    def dies(rows: list[int]) -> Any:
        forwards.append(rows)
        if len(forwards) == 2:
            raise Killed
        return Rows.__getitem__(task.rows, rows)

    dying = SimpleNamespace(**{**vars(task), "tokenised": lambda part: (Dying(task.rows, dies), np.array(LENGTHS))})
    with pytest.raises(Killed):
        Extraction(model, dying).run(some, tmp_path / "train")
    assert forwards == [order[:2], order[2:4]]
    told: list[int] = []
    again = task_of("bert")
    states, changed = Extraction(model, again).run(some, tmp_path / "train", told.append)
    assert again.rows.asked == [order[2:4], order[4:]]
    assert (changed, told) == ([], [2, 2, 2])
    assert np.array_equal(states.values, whole.values)
    third = task_of("bert")
    Extraction(model, third).run(some, tmp_path / "train")
    assert third.rows.asked == []  # all is there


class Dying:
    """Rows that are asked through a function."""

    def __init__(self, rows: Rows, ask: Any) -> None:
        self.table, self.ask = rows.table, ask

    def __getitem__(self, rows: list[int]) -> Any:
        return self.ask(rows)


@pytest.mark.parametrize("what", ["weights", "data", "settings"])
def test_states_of_another_checkpoint_are_begun_anew_and_it_is_told(what: str, tmp_path: Path) -> None:
    model, some, reading = skim.compress(families.plain("bert"), "dense").eval(), split_of([0, 1, 2, 3]), Reading()
    before, _ = Extraction(model, task_of("bert")).run(some, tmp_path / "train")
    kept = before.values.copy()
    if what == "weights":
        with torch.no_grad():
            model.base_model.encoder.layer[2].output.dense.bias[0] += 0.5
    if what == "data":
        some = split_of([3, 2, 1, 0])
    if what == "settings":
        reading = Reading(text="mean")
    states, changed = Extraction(model, task_of("bert"), reading).run(some, tmp_path / "train")
    assert changed == [what]
    assert not np.array_equal(states.values, kept)


def test_a_full_disk_is_said_before_it_starts_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    model, task = skim.compress(families.plain("bert"), "dense").eval(), task_of("bert")
    with monkeypatch.context() as patch:
        patch.setattr(store.os, "posix_fallocate", full)
        with pytest.raises(SkimError, match=r"The disk is full: .*train cannot hold") as error:
            Extraction(model, task).run(split_of([0, 1, 2]), tmp_path / "train")
    assert len(str(error.value).splitlines()) == 2
    assert not (tmp_path / "train").exists()
    assert task.rows.asked == []
    with monkeypatch.context() as patch:  # and in the middle, on a disk that keeps no promises
        patch.setattr(store.os, "fsync", full)
        with pytest.raises(SkimError, match="The disk is full"):
            Extraction(model, task).run(split_of([0, 1, 2]), tmp_path / "train")
    assert not (tmp_path / "train").exists()


def test_states_that_are_not_numbers_are_refused_by_layer_and_row(tmp_path: Path) -> None:
    model = skim.compress(families.plain("bert"), "dense").eval()
    with torch.no_grad():
        model.base_model.encoder.layer[1].output.dense.bias[0] = torch.nan
    with pytest.raises(SkimError, match="layer 2, row 6 of train: a state is not a number"):
        Extraction(model, task_of("bert")).run(split_of([5, 2, 4]), tmp_path / "train")
    with pytest.raises(SkimError, match="holds states of a part of the rows"):
        store.Store(
            tmp_path / "train", store.state_of(tmp_path / "train")["key"], (3, 4, 32), "float32", (0, 1), {}
        ).states()


def test_halves_are_told_when_they_are_too_small(tmp_path: Path) -> None:
    model, task = skim.compress(families.plain("bert"), "dense").eval(), task_of("bert")
    wanted, _ = Extraction(model, task).run(split_of([0, 1, 2]), tmp_path / "whole")
    found, _ = Extraction(model, task, Reading(dtype="float16")).run(split_of([0, 1, 2]), tmp_path / "half")
    assert found.values.dtype == np.float16
    assert np.array_equal(found.values, wanted.values.astype(np.float16))
    with torch.no_grad():
        model.base_model.encoder.layer[2].output.LayerNorm.weight *= 1e5
    with pytest.raises(SkimError, match=r"layer 3, row 1 of train: a state is too large for float16.\nUse redundancy"):
        Extraction(model, task, Reading(dtype="float16")).run(split_of([0, 1, 2]), tmp_path / "large")


@pytest.mark.parametrize("method", ["dense", "layer_drop"])
def test_time_up_to_a_layer_is_of_no_further_layers(method: str) -> None:
    model = skim.compress(families.plain("bert"), METHODS[method].make()).eval()
    some, batch = Extraction(model, task_of("bert")), families.batch_of("bert")
    own = model.method.runs
    for top in range(families.LAYERS + 1):
        assert some.seconds(top, [batch]) > 0
        assert [layer.ran for layer in model.trace.layers] == [i < top and own(i) for i in range(families.LAYERS)]
    assert some.walk.method is model.method


def test_the_size_is_known_before(tmp_path: Path) -> None:
    some = Extraction(skim.compress(families.plain("bert"), "dense").eval(), task_of("bert"))
    some.run(split_of([0, 1, 2]), tmp_path / "train")
    arrays = [np.load(tmp_path / "train" / name, mmap_mode="r") for name in (store.VALUES, store.RAN)]
    assert some.size([split_of([0, 1, 2])]) == sum(array.nbytes for array in arrays)
