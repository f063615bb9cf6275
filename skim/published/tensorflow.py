"""Reading TensorFlow checkpoints without TensorFlow.

A checkpoint is ``<prefix>.index``, a sorted table in LevelDB's format that says where each variable lies, and the
variables' bytes in ``<prefix>.data-00000-of-00001`` and its like. Facts: LevelDB's doc/table_format.md, and
tensorflow/core/protobuf/tensor_bundle.proto. Checksums (CRC32C, of the index's blocks and of each variable's bytes) are
not checked: a file that is cut short is refused, but a flipped bit becomes a wrong weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from skim.errors import SkimError

FOOTER, MAGIC = 48, 0xDB4775248B80FB57
DTYPES = {1: torch.float32, 2: torch.float64, 3: torch.int32, 9: torch.int64, 14: torch.bfloat16, 19: torch.float16}
VARINT, BYTES, WIDTHS = 0, 2, {1: 8, 5: 4}  # wire types of protocol buffers; bytes of the fixed ones


def read(prefix: Path) -> dict[str, Tensor]:
    """All variables of a checkpoint by name; of types that weights do not have, none.

    Raises:
        SkimError: a file is missing, or is not what it should be.
    """
    index = Path(f"{prefix}.index")
    try:
        table = dict(entries(index.read_bytes()))
        shards = fields(table.pop(b"", b"")).get(1, [1])[0]
        data = [Path(f"{prefix}.data-{i:05d}-of-{shards:05d}").read_bytes() for i in range(shards)]
        found = {name.decode(): variable(fields(entry), data) for name, entry in table.items()}
    except OSError as error:
        raise SkimError(f"TensorFlow's checkpoint {prefix} is not whole: {error}") from error
    except (IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SkimError(f"{index} is not a TensorFlow checkpoint, or is broken: {error}") from error
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def variable(entry: dict[int, list], data: list[bytes]) -> Tensor | None:
    """One variable from its entry: 1 type, 2 shape, 3 file, 4 where it begins, 5 bytes, 7 slices of it elsewhere."""
    dtype = DTYPES.get(entry.get(1, [0])[0])
    if dtype is None:
        return None
    if 7 in entry:
        raise ValueError("it holds a variable in slices")
    dimensions = fields(entry[2][0]).get(2, []) if 2 in entry else []
    shape = [fields(dimension).get(1, [0])[0] for dimension in dimensions]
    begin, size = (entry.get(key, [0])[0] for key in (4, 5))
    values = bytearray(data[entry.get(3, [0])[0]][begin : begin + size])
    return torch.frombuffer(values, dtype=dtype).view(shape) if size else torch.empty(shape, dtype=dtype)


def entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a sorted table, block by block."""
    if int.from_bytes(table[-8:], "little") != MAGIC:
        raise ValueError("its last bytes are not those of an index")
    at = len(table) - FOOTER
    for _ in range(2):  # where the metadata are: a beginning and a size
        _, at = varint(table, at)
    for _, handle in block(table, table[at:]):
        yield from block(table, handle)


def block(table: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block; a key shares its beginning with the one before."""
    begin, at = varint(handle, 0)
    size, _ = varint(handle, at)
    if table[begin + size]:  # behind a block: how it is compressed, and a checksum
        raise ValueError("it is compressed")
    restarts = int.from_bytes(table[begin + size - 4 : begin + size], "little")
    at, end, key = begin, begin + size - 4 * (restarts + 1), b""
    while at < end:
        shared, at = varint(table, at)
        own, at = varint(table, at)
        length, at = varint(table, at)
        key = key[:shared] + table[at : at + own]
        yield key, table[at + own : at + own + length]
        at += own + length


def fields(message: bytes) -> dict[int, list]:
    """A protocol buffer's fields by number: integers and bytes."""
    found: dict[int, list] = {}
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        number, kind = tag >> 3, tag & 7
        values = found.setdefault(number, [])
        if kind == VARINT:
            value, at = varint(message, at)
            values.append(value)
        else:
            size, at = varint(message, at) if kind == BYTES else (WIDTHS[kind], at)
            values.append(message[at : at + size])
            at += size
    return found


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
