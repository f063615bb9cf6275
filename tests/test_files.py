"""Files that are there whole or not at all: what is seen when a writer fails, is killed, or has no room."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

from skim import files
from skim.errors import SkimError
from skim.files import checksum, filling, matches, replacing, seal, sweep, whole, write_json, write_sum, write_text
from skim.lightning.checkpoint_io import write_checkpoint

FORK = multiprocessing.get_context("fork")
SIZE = 1 << 16


def killed(write: Callable[[], None], at: str, number: int = 1) -> int:
    """The exit code of a process that is killed just before its n-th call of a function of ``os``."""

    def run() -> None:
        calls, real = 0, getattr(os, at)

        def call(*given: object, **more: object) -> object:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **more)

        with mock.patch.object(os, at, call):
            write()
        os._exit(0)

    process = FORK.Process(target=run)
    process.start()
    process.join()
    return int(process.exitcode or 0)


@pytest.mark.parametrize(("at", "number"), [("fsync", 1), ("replace", 1), ("fsync", 2)])
def test_a_writer_that_is_killed_leaves_the_old_file_or_the_new_one(at: str, number: int, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    write_json(file, "old")
    assert killed(lambda: write_json(file, "new"), at, number) == -signal.SIGKILL
    moved = (at, number) == ("fsync", 2)  # of the folder, behind the renaming
    assert json.loads(file.read_text()) == ("new" if moved else "old")
    assert len(list(tmp_path.iterdir())) == 2, "the killed process has left its folder, or the test kills nobody"
    write_text(tmp_path / "other.txt", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.txt", "results.json"]


def test_a_killed_writer_of_a_folder_never_has_the_last_file_before_the_others(tmp_path: Path) -> None:
    def write(text: str) -> None:
        with filling(tmp_path / "model", last="a.json") as part:
            for name in ("a.json", "b", "sub/c"):
                (part / name).parent.mkdir(exist_ok=True)
                (part / name).write_text(text)

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").touch()
    for number in (1, 2, 3):
        assert killed(lambda: write("new"), "replace", number) == -signal.SIGKILL
        assert not (tmp_path / "model" / "a.json").exists()
    assert killed(lambda: write("new"), "replace", 4) == 0
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"model/a.json", "model/b", "model/sub/c", "model/mine"}


def test_what_is_being_written_is_not_swept(tmp_path: Path) -> None:
    with replacing(tmp_path / "one") as part:
        part.write_text("1")
        sweep(tmp_path)
        write_text(tmp_path / "two", "2")
    assert (tmp_path / "one").read_text() == "1"


def test_a_folder_of_somebody_else_is_not_swept(tmp_path: Path) -> None:
    for name in (".mine.part", ".0123456.part", "01234567.part"):
        (tmp_path / name).mkdir()
    (tmp_path / ".01234567.part").mkdir()  # as a killed process leaves one
    write_text(tmp_path / "one", "1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".0123456.part", ".mine.part", "01234567.part", "one"]


@pytest.mark.parametrize("lacks", ["locks", "links", "flock"])
def test_a_file_system_without_locks_or_links_will_do(
    lacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    if lacks == "locks":
        monkeypatch.setattr(files, "fcntl", None)
    else:
        monkeypatch.setattr(os if lacks == "links" else fcntl, lacks.rstrip("s"), refuses)
    for step in (1, 2):
        write_checkpoint({"step": step}, tmp_path / "last.ckpt")
    found = {path.name: torch.load(path, weights_only=True)["step"] for path in tmp_path.iterdir()}
    assert found == {"last.ckpt": 2, "previous.ckpt": 1}


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def fails() -> None:
        with replacing(tmp_path / "one") as part:
            part.write_text("new")
            raise ValueError("mine")

    write_text(tmp_path / "one", "old")
    with pytest.raises(ValueError, match="mine"):
        fails()
    assert (tmp_path / "one").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_files_are_brought_to_the_disk_before_they_get_their_name(tmp_path: Path) -> None:
    """Or a machine that loses its power has a name for nothing."""
    done: list[str] = []
    real = os.replace

    def fsync(file: int) -> None:
        done.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{file}')).name}")

    def replace(one: Path, other: Path) -> None:
        done.append("replace")
        real(one, other)

    with mock.patch.object(os, "fsync", fsync), mock.patch.object(os, "replace", replace):
        write_text(tmp_path / "one", "")
    assert done == ["fsync one", "replace", f"fsync {tmp_path.name}"]


def test_a_link_stays_one_and_the_usual_rights_are_given(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "one")
    write_text(tmp_path / "link", "1")
    (tmp_path / "usual").write_text("")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "one").stat().st_mode == (tmp_path / "usual").stat().st_mode


def as_checkpoint(path: Path) -> None:
    write_checkpoint({"weights": torch.zeros(SIZE)}, path)


def as_safetensors(path: Path) -> None:
    with replacing(path) as part:
        save_file({"weights": torch.zeros(SIZE)}, part)


@pytest.mark.parametrize("write", [as_checkpoint, as_safetensors, lambda path: write_text(path, "x" * 4 * SIZE)])
def test_a_full_disk_is_said_in_two_lines_and_the_old_file_stays(write: Callable[[Path], None], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, before[1]))
    try:
        with pytest.raises(SkimError, match=r"was not written, for the disk is full .*\nWhat was there before"):
            write(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


# --------------------------------------------------------------------------- checksums
@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sealed") / "one.ckpt"
    write_checkpoint({"weights": torch.arange(500), "step": 3}, path)
    assert whole(path)
    assert torch.load(path, weights_only=True, mmap=True)["step"] == 3
    return path.read_bytes()


@pytest.mark.parametrize("sealed", [True, False])
def test_a_checkpoint_with_any_byte_changed_or_cut_off_is_told_from_a_good_one(
    sealed: bool, checkpoint: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "one.ckpt"
    if not sealed:  # as versions before wrote them: the data of a zip archive have sums of their own
        torch.save(torch.load(io.BytesIO(checkpoint), weights_only=True), path)
        assert whole(path)
        checkpoint = path.read_bytes()
        data = checkpoint.index(torch.arange(500).numpy().tobytes())
        places = range(data, data + 4000, 97)
    else:
        places = range(0, len(checkpoint) - 43, 97)
    for place in places:
        path.write_bytes(checkpoint[:place] + bytes([checkpoint[place] ^ 1]) + checkpoint[place + 1 :])
        assert not whole(path), place
        path.write_bytes(checkpoint[:place])
        assert not whole(path), place


def test_a_sum_beside_a_file_tells_whether_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "rows.arrow"
    file.write_bytes(b"rows")
    assert matches(file), "of a version that wrote no sums"
    write_sum(file)
    assert matches(file)
    for other in (b"row", b"rowz", b""):
        file.write_bytes(other)
        assert not matches(file)


def test_a_seal_is_of_the_whole_content(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        torch.save({"weights": torch.ones(3)}, path)
    before = checksum(one)
    seal(one)
    assert one.read_bytes()[-32:].decode() == before
