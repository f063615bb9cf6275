"""Inputs that are too much: a cell of megabytes is read, a packed file of nothing but zeros is not."""

from __future__ import annotations

import gzip
import resource
from pathlib import Path

import pytest

from skim.errors import SkimError
from tasks.data.files import RATIO, UNPACKED, read

CELL = 10_000_000
MEMORY = 1 << 30  # bytes beyond what the process has


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.csv.gz"])
def test_a_cell_of_ten_megabytes_is_read_as_it_is(tmp_path: Path, name: str) -> None:
    mark = "\t" if "tsv" in name else ","
    text = "word " * (CELL // 5)
    content = f"text{mark}label\n{text}{mark}good\nshort{mark}bad\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    rows = read(str(tmp_path / name))
    assert [row["label"] for row in rows] == ["good", "bad"]
    assert rows[0]["text"] == text


@pytest.mark.parametrize("name", ["x.csv.gz", "x.jsonl.gz"])
def test_a_small_file_that_unpacks_to_gigabytes_is_refused_before_it_fills_the_memory(
    tmp_path: Path, name: str
) -> None:
    packed = gzip.compress(bytes(64 << 20))  # a file of several such parts holds all of them, one behind the other
    (tmp_path / name).write_bytes(packed * 64)
    assert 64 * (64 << 20) > 4e9
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SkimError, match=r"more than 100 times its size.*\n.*unpack it"):
        read(str(tmp_path / name))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used) << 10 < MEMORY
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_a_small_packed_file_may_hold_the_same_row_many_times(tmp_path: Path) -> None:
    content = b"text,label\n" + b"the film is good,good\n" * 200_000
    packed = gzip.compress(content, 9)
    assert len(packed) * RATIO < len(content) < UNPACKED
    (tmp_path / "x.csv.gz").write_bytes(packed)
    assert len(read(str(tmp_path / "x.csv.gz"))) == 200_000
