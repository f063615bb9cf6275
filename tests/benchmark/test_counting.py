"""Every kind of read is seen, on a CPU too, and nothing else is taken for one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import skim
from skim.benchmark import KeepShare
from skim.benchmark.counting import counting
from skim.engine.reads import read_of
from tests.families import batch_of, plain

X = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
MASK = X > 0.5
COUNTS = torch.tensor([1, 2])


def fill(value: object, cast: type = Tensor) -> None:
    X.clone()[MASK] = value


READS = {
    "item": (lambda: X.sum().item(), lambda: bool(MASK.any()), lambda: int(COUNTS[0]), lambda: torch.equal(X, X)),
    "nonzero": (MASK.nonzero, lambda: torch.where(MASK), lambda: torch.argwhere(MASK)),
    "boolean index": (
        *(lambda: X[MASK], lambda: X[:, MASK[0]], lambda: X.masked_select(MASK)),
        *(lambda: fill(torch.ones(3)), lambda: X.clone().index_put((MASK,), torch.ones(3))),
    ),
    "unique": (X.unique, COUNTS.unique_consecutive, lambda: X.unique(dim=0)),
    "repeat_interleave": (lambda: X[:, 0].repeat_interleave(COUNTS),),
    "bincount": (COUNTS.bincount,),
    "copy to the host": (X.tolist, X.numpy, X.cpu, lambda: X.to("cpu")),
    "copy from the host": (lambda: torch.tensor([1], device=X.device), lambda: torch.as_tensor([1], device="cpu")),
}
NONE = (
    *(lambda: X[COUNTS - 1], lambda: X.clone().index_put((COUNTS - 1,), X[0]), lambda: fill(0.0)),
    *(lambda: X.masked_fill(MASK, 0), lambda: X.where(MASK, 0.0), lambda: X.sort(), lambda: X.to(X.device)),
    *(lambda: X[:, 0].repeat_interleave(COUNTS, output_size=3), lambda: torch.tensor([1]), lambda: X.to(torch.float64)),
    *(lambda: torch.empty(2).copy_(X[:, 0]), lambda: torch.searchsorted(COUNTS, COUNTS), lambda: X.cumsum(0)),
)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(("kind", "read"), [(kind, read) for kind, reads in READS.items() for read in reads])
def test_a_read_is_counted_once_and_by_its_kind(kind, read, inference):
    with torch.inference_mode(inference), counting() as work:
        read()
    assert [(seen, number) for (seen, _), number in work.reads.items()] == [(kind, 1)]


@pytest.mark.parametrize("operation", NONE)
def test_what_stays_on_the_device_is_no_read(operation):
    with counting() as work:
        operation()
    assert not work.reads


def test_copies_between_devices_are_told_by_their_ends():
    here, there = torch.empty(2), torch.empty(2, device="meta")
    copies = {
        ("_to_copy", (there,), "cpu"): ("copy to the host", True),
        ("_to_copy", (here,), "meta"): ("copy from the host", True),
        ("_to_copy", (there,), None): (None, True),
        ("copy_", (here, there), None): ("copy to the host", True),
        ("copy_", (here, there, True), None): ("copy to the host", False),
        ("copy_", (there, here), None): ("copy from the host", True),
        ("copy_", (here, here), None): (None, True),
    }
    for (name, arguments, device), expected in copies.items():
        assert read_of(name, arguments, {"device": device} if device else {}) == expected, (name, expected)


def test_a_copy_that_nobody_waits_for_is_no_read():
    with counting() as work:
        X.to("cpu", non_blocking=True)
    assert not work.reads
    assert sum(work.late.values()) == 1


def test_views_and_allocations_are_told_from_operations_that_compute():
    with torch.inference_mode(), counting() as work:
        torch.empty(2, 3).copy_(X).t().reshape(-1)[1:].add(1).exp_()
    assert work.operations == {"copy_": 1, "clone": 1, "add": 1, "exp_": 1}
    assert set(work.views) >= {"empty", "t", "slice"}


def test_reads_of_a_forward_are_told_by_the_lines_of_skim_that_do_them():
    model = skim.compress(plain("bert"), KeepShare(0.5)).eval()
    with torch.inference_mode(), counting() as work:
        model(**batch_of("bert"))
    places = {place.rpartition(":")[0] for kind, place in work.reads if kind == "nonzero"}
    assert places == {"engine/packed.py"}
    assert work.operations["addmm"] > 6 * 3
