"""Files of a split's states: filled block by block, gone on with after a kill, not taken for whole before they are.

A folder holds ``values.npy``, the small arrays of :class:`States`, and ``state.json``: the key of the states
and how many blocks are done. It is replaced when a block's bytes are on the disk, so that whatever ends the process
leaves at most one block to be computed again. States of another key are thrown away and begun anew.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from skim.analysis.redundancy.states import States
from skim.errors import SkimError, first_line
from skim.files import checksum, refused, write_json

log = logging.getLogger("skim")

STATE = "state.json"
VALUES, RAN = "values.npy", "ran.npy"


class Store:
    """Folder of one split's states.

    Args:
        folder: is made, and emptied if it holds states of another key.
        key: by kind (weights, data, settings) a hash of what the states depend on.
        shape: of the values: rows, layers, width.
        dtype: float32 or float16.
        numbers: of the layers.
        arrays: by name the other arrays of :class:`States`.

    Attributes:
        done: blocks that earlier processes have written.
        changed: kinds of the key in which states that lay here differed; they were thrown away.

    Raises:
        SkimError: the disk is full, or the folder cannot be written to. Nothing is left in it then.
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, str],
        shape: tuple[int, int, int],
        dtype: str,
        numbers: tuple[int, ...],
        arrays: Mapping[str, np.ndarray],
    ) -> None:
        self.folder, self.shape, self.dtype = folder, shape, np.dtype(dtype)
        self.state: dict[str, Any] = {"key": dict(key), "done": 0, "whole": False, "numbers": list(numbers)}
        found = state_of(folder)
        self.changed = [kind for kind in key if found is not None and found["key"].get(kind) != key[kind]]
        if found is not None and not self.changed:
            damaged = [name for name, said in found.get("sums", {}).items() if summed(folder / name) != said]
            if not damaged:
                self.state = found
                return
            log.warning("%s is not as it was written (its checksum differs): states are made anew", folder / damaged[0])
        with writing(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for name, array in arrays.items():
                np.save(folder / f"{name}.npy", array)
            _reserve(folder / VALUES, shape, self.dtype)
            _reserve(folder / RAN, shape[:2], np.dtype(bool))
            self._record()

    @property
    def done(self) -> int:
        """Blocks that are on the disk."""
        return int(self.state["done"])

    @property
    def whole(self) -> bool:
        """True once every row is there."""
        return bool(self.state["whole"])

    @contextmanager
    def open(self) -> Iterator[Files]:
        """Open the files for writing; what goes wrong with the disk leaves an empty place and a SkimError."""
        with writing(self.folder), (self.folder / VALUES).open("r+b") as values, (self.folder / RAN).open("r+b") as ran:
            yield Files(self, values, ran)

    def _record(self) -> None:
        write_json(self.folder / STATE, self.state)

    def states(self) -> States:
        """Map the states into memory.

        Raises:
            SkimError: they are not whole.
        """
        if not self.whole:
            raise SkimError(f"{self.folder} holds states of a part of the rows: the extraction has not ended.")

        def read(name: str) -> Any:
            return (
                np.load(self.folder / f"{name}.npy", mmap_mode="r") if (self.folder / f"{name}.npy").is_file() else None
            )

        numbers = tuple(self.state["numbers"])
        return States(
            np.load(self.folder / VALUES, mmap_mode="r"),
            read("labels"),
            read("examples"),
            read("ran"),
            numbers,
            read("types"),
        )


class Files:
    """Open files of a store.

    Args:
        store: whose they are.
        values: of the states.
        ran: of the mask.
    """

    def __init__(self, store: Store, values: IO[bytes], ran: IO[bytes]) -> None:
        self.store, self.values, self.ran = store, values, ran
        self._begins = tuple(os.fstat(file.fileno()).st_size - _bytes(store, part) for part, file in self._files())

    def _files(self) -> tuple[tuple[str, IO[bytes]], tuple[str, IO[bytes]]]:
        return (VALUES, self.values), (RAN, self.ran)

    def write(self, first: int, values: np.ndarray, ran: np.ndarray) -> None:
        """Write rows from number ``first`` on: ``(rows, layers, width)`` and ``(rows, layers)`` bool.

        Not through a mapping: on a full disk that would kill the process.
        """
        for (_, file), begin, array in zip(
            self._files(), self._begins, (values.astype(self.store.dtype), ran), strict=True
        ):
            file.seek(begin + first * array[0].nbytes if len(array) else begin)
            file.write(np.ascontiguousarray(array).tobytes())

    def block_done(self, whole: bool) -> None:
        """Record one more block, once its bytes are on the disk."""
        for _, file in self._files():
            file.flush()
            os.fsync(file.fileno())
        self.store.state |= {"done": self.store.done + 1, "whole": whole}
        if whole:
            self.store.state["sums"] = {path.name: summed(path) for path in sorted(self.store.folder.glob("*.npy"))}
        self.store._record()


def summed(path: Path) -> str | None:
    """The checksum of a file; ``None`` where there is none."""
    return checksum(path) if path.is_file() else None


def _bytes(store: Store, name: str) -> int:
    rows, layers, width = store.shape
    return rows * layers * (width * store.dtype.itemsize if name == VALUES else 1)


def _reserve(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Make an array's file with all the room that it takes, so that a disk that is too small says so at once."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        )
        begin, size = file.tell(), int(np.prod(shape)) * dtype.itemsize
        file.flush()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, begin + size)
        else:
            blank = bytes(1 << 20)
            for start in range(0, size, len(blank)):
                file.write(blank[: size - start])


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what a disk refuses into a SkimError, and leave nothing of the folder then."""
    try:
        yield
    except (OSError, SkimError) as error:
        if isinstance(error, SkimError) and not isinstance(error.__cause__, OSError):
            raise  # of what was to be written, such as states that are no numbers: the blocks before it stay
        shutil.rmtree(folder, ignore_errors=True)
        if refused(error):
            raise SkimError(
                f"The disk is full: {folder} cannot hold the states, and has been removed.\n"
                "Make room, choose another folder, or store less: redundancy.dtype=float16, redundancy.max_rows=<rows>."
            ) from error
        raise SkimError(f"{folder} cannot be written to: {first_line(error)}.\nChoose another folder.") from error


def state_of(folder: Path) -> dict[str, Any] | None:
    """Read what a folder says of its states; ``None`` for one that holds none, or says it in words of its own."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and {"key", "done", "whole", "numbers"} <= set(state) else None
