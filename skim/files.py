"""Files that are there whole or not at all, whatever ends the process that writes them. Imports nothing heavy.

A file is written in a folder of its own within the one where it belongs, brought to the disk, and renamed; what a
killed process leaves of one is cleared away by the next that writes there. What is read again as state bears a
checksum.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import xxhash

from skim.errors import SkimError, reading

try:
    import fcntl
except ImportError:  # no such locks on Windows, nor everywhere on a network: what a killed process leaves there stays
    fcntl = None  # type: ignore[assignment]

PARTS = f".{'[0-9a-f]' * 8}.part"  # folders of files that are being written; nobody else names one so
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOWHERE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
MARK = b"xxh3_128:"  # before the checksum in a checkpoint, which is a zip archive and has room for a comment
CHUNK = 1 << 20
SUM = ".sum"  # behind the name of a file: the checksum of one that has no room for it


@contextlib.contextmanager
def replacing(path: str | Path, before: Path | None = None) -> Iterator[Path]:
    """Yield a path to write a file at; when that went well, it takes the place of ``path`` at once.

    Args:
        path: of the file; its folder is made if it is not there.
        before: where the file that was at ``path`` goes on living, in the same folder; ``None``: it is gone.

    Raises:
        SkimError: the disk is full, or the folder cannot be written to. ``path`` is as it was before.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    with accepted(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _aside(path.parent) as folder:
            part = folder / path.name
            yield part
            _synced(part)
            if before is not None and path.exists():
                _kept(path, before, folder)
            os.replace(part, path)
            _synced(path.parent)


@contextlib.contextmanager
def filling(folder: str | Path, last: str) -> Iterator[Path]:
    """Yield an empty folder to write into; when that went well, its files take their places in ``folder``.

    Args:
        folder: made if it is not there; other files in it stay.
        last: the file that comes last, and says that the others are whole.

    Raises:
        SkimError: the disk is full, or the folder cannot be written to.
    """
    folder = Path(os.path.realpath(folder))
    with accepted(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _aside(folder) as part:
            yield part
            files = sorted((file for file in part.rglob("*") if file.is_file()), key=lambda file: file.name == last)
            for file in files:
                _synced(file)
            for file in files:
                target = folder / file.relative_to(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
            for place in {folder, *((folder / file.relative_to(part)).parent for file in files)}:
                _synced(place)


def write_text(path: str | Path, text: str) -> None:
    """Write a text at once or not at all, as UTF-8."""
    with replacing(path) as part:
        part.write_bytes(text.encode())  # and lines end as they do, on every system


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file at once or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: str | Path, advice: str = "") -> dict[str, Any]:
    """Read a JSON file that holds a mapping.

    Args:
        path: of the file.
        advice: a sentence on what to do if it does not.

    Raises:
        SkimError: it is not there, is damaged, or holds something else.
    """
    with reading(path, "JSON", advice):
        found = json.loads(Path(path).read_bytes())
    if not isinstance(found, dict):
        raise SkimError(f"{path} is damaged: it holds no mapping.{advice and f' {advice}'}")
    return found


@contextlib.contextmanager
def accepted(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into an error that says so.

    Args:
        path: that was to be written.

    Raises:
        SkimError: instead of what the operating system, or a library that writes, has raised for it.
    """
    try:
        yield
    except SkimError:
        raise
    except Exception as error:
        if refused(error):
            raise SkimError(
                f"{path} was not written, for the disk is full (or a quota, or a limit on the size of files).\n"
                "What was there before is as it was. Make room, and start again."
            ) from error
        if isinstance(error, OSError) and error.errno in NOWHERE:
            raise SkimError(f"{path} cannot be written: {error.strerror or error}.\nChoose another place.") from error
        raise


def refused(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it came of, says that no room is left; libraries say it in words."""
    while error is not None:
        said = str(error)
        if getattr(error, "errno", None) in FULL or any(os.strerror(number) in said for number in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def sweep(folder: Path) -> None:
    """Clear away what killed processes have left of files in a folder; those that are being written stay."""
    if fcntl is None:
        return
    for part in folder.glob(PARTS):
        with contextlib.suppress(OSError):
            lock = os.open(part, os.O_RDONLY)
            try:
                if _locked(lock, wait=False):
                    shutil.rmtree(part)
            finally:
                os.close(lock)


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """Make a folder for what is being written, within another one; it is locked as long as its writer lives."""
    sweep(folder)
    lock: int | None
    while True:
        part = folder / f".{secrets.token_hex(4)}.part"
        part.mkdir()
        if fcntl is None:  # where a folder cannot be opened either
            lock = None
            break
        try:
            lock = os.open(part, os.O_RDONLY)
        except FileNotFoundError:  # another process has taken it for a dead one's before it was locked
            continue
        _locked(lock, wait=True)
        if part.exists():
            break
        os.close(lock)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked(file: int, wait: bool) -> bool:
    """Lock an open file for this process, if nobody else has; False also where there are no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _kept(path: Path, before: Path, aside: Path) -> None:
    """Let a file live on under a second name, without a moment in which it has none."""
    second = aside / before.name
    try:
        os.link(path, second)
    except OSError:  # a file system without links
        second = path
    os.replace(second, before)


def _synced(path: Path) -> None:
    """Bring what was written of a file, or the names in a folder, to the disk."""
    if fcntl is None and path.is_dir():
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # of folders, not everywhere
            raise
    finally:
        os.close(file)


# ------------------------------------------------------------------------------------------------------- checksums


def checksum(path: Path) -> str:
    """The checksum of a file against damage by chance (XXH3, 128 bits); it does not prove who wrote it."""
    with path.open("rb") as file:
        return _sum(file, path.stat().st_size)


def _sum(file: IO[bytes], size: int, tail: bytes = b"") -> str:
    """The checksum of the first bytes of a file, and others behind them."""
    found = xxhash.xxh3_128()
    while size > 0:
        chunk = file.read(min(CHUNK, size))
        if not chunk:
            break
        found.update(chunk)
        size -= len(chunk)
    found.update(tail)
    return found.hexdigest()


def seal(path: Path) -> None:
    """Write the checksum of a zip archive without a comment, as ``torch.save`` makes one, into its comment."""
    comment = MARK + checksum(path).encode()
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)  # the length of the comment
        file.write(len(comment).to_bytes(2, "little") + comment)


def whole(path: Path) -> bool:
    """Tell whether a zip archive is as it was written: by its seal, and of one without it by the sums of its parts."""
    try:
        size = path.stat().st_size
        length = len(MARK) + 32
        with path.open("rb") as file:
            file.seek(max(size - length, 0))
            comment = file.read()
            if comment.startswith(MARK):
                file.seek(0)
                return _sum(file, size - length - 2, bytes(2)) == comment[len(MARK) :].decode("ascii", "replace")
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError):
        return False


def write_sum(path: Path, of: Path | None = None) -> None:
    """Write the checksum of a file beside its place.

    Args:
        path: its place.
        of: where it is now, if it has still to be moved there.
    """
    of = path if of is None else of
    write_text(path.with_name(path.name + SUM), f"{of.stat().st_size} {checksum(of)}\n")


def matches(path: Path) -> bool:
    """Tell whether a file is the one whose checksum lies beside it; True also where none does."""
    try:
        size, said = path.with_name(path.name + SUM).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return True  # of a version that wrote none
    except (OSError, ValueError):
        return False
    return str(path.stat().st_size) == size and checksum(path) == said
