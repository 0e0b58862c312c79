"""The GGUF file: metadata as typed values by key, then the tensors, each from an aligned place on.

All numbers are little-endian. A file begins with the magic "GGUF", its version, and how many tensors and
keys there are. A string is its length (8 bytes) and UTF-8; an array is the type of its items, their number,
and the items. The layout is ggml's (docs/gguf.md there). The package `gguf` has a reader too: it takes 5
seconds for a vocabulary of 49,152, and of a file that is cut off it says only that an array had no shape.
"""

import math
import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rationalyst_jax.files.whole import naming
from rationalyst_jax.lm.weights.gguf.numbers import TYPES, bytes_of, decoded, encoded, type_name

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
# Types of values by their numbers: how `struct` names them.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9

Value = str | bool | int | float | list[str] | list[int]


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies; `shape` has the slowest axis first, as everywhere here, `start` is in bytes."""

    file: Path
    name: str
    shape: tuple[int, ...]
    kind: str
    start: int

    @property
    def rows(self) -> int:
        """The number of rows, of `shape[-1]` weights each."""
        return math.prod(self.shape[:-1])

    def read(self, first: int, count: int) -> np.ndarray:
        """The rows from `first` on, float32 `[count, shape[-1]]`."""
        row_bytes = bytes_of(self.kind, self.shape[-1])
        start = self.start + first * row_bytes
        with naming(self.file):
            data = np.fromfile(self.file, np.uint8, count * row_bytes, offset=start)
        return decoded(self.kind, data.reshape(count, row_bytes))


@dataclass(frozen=True)
class Gguf:
    """What the header of a GGUF file says: its metadata by key, and its tensors by name."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def is_gguf(path: Path) -> bool:
    """Whether `path` is a file that begins as GGUF does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_header(path: Path) -> Gguf:
    """What a GGUF file holds; reads no weights.

    Raises FileNotFoundError, or ValueError naming the file, and the key or tensor, for what is no GGUF file,
    is cut off, of another version, big-endian, one part of several, or has tensors of a type not read here.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not is_gguf(path):
        raise ValueError(f"{path}: not a GGUF file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(path, data)
        version = cursor.number("I")
        if version & 0xFFFF == 0:
            raise ValueError(f"{path}: a big-endian GGUF file, only little-endian ones are read")
        if version not in _VERSIONS:
            raise ValueError(f"{path}: GGUF of version {version}, only 2 and 3 are read")
        tensors, keys = cursor.number("Q"), cursor.number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            cursor.within = "its metadata"
            key = cursor.string()
            if key in metadata:
                raise ValueError(f"{path}: has {key} twice")
            cursor.within = key
            metadata[key] = cursor.value(cursor.number("I"))
        if metadata.get("split.count", 1) != 1:
            raise ValueError(
                f"{path}: split.count {metadata['split.count']}: one part of several; merge them first "
                "(llama-gguf-split --merge)"
            )
        return Gguf(path, metadata, _tensors(path, cursor, tensors, metadata))


def _tensors(path: Path, cursor: "_Cursor", count: int, metadata: Mapping[str, Any]) -> dict[str, GgufTensor]:
    """The tensors that a header lists, all of them within the file."""
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"{path}: general.alignment must be a positive integer, found {alignment!r}")
    listed = []
    for _ in range(count):
        cursor.within = "its list of tensors"
        name = cursor.string()
        cursor.within = name
        shape = tuple(cursor.number("Q") for _ in range(cursor.number("I")))[
            ::-1
        ]  # the fastest axis is first
        kind = type_name(cursor.number("I"))
        if kind not in TYPES:
            raise ValueError(f"{path}: {name} is {kind}, only {', '.join(TYPES)} are read")
        if not 1 <= len(shape) <= 2 or 0 in shape or shape[-1] % TYPES[kind].block:
            raise ValueError(f"{path}: {name} has shape {shape}, which {kind} here cannot have")
        listed.append((name, shape, kind, cursor.number("Q")))
    begin = -(-cursor.place // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in listed:
        tensor = GgufTensor(path, name, shape, kind, begin + offset)
        end = tensor.start + tensor.rows * bytes_of(kind, shape[-1])
        if end > len(cursor.data):
            raise ValueError(
                f"{path}: cut off: {name} goes to byte {end:,}, the file to {len(cursor.data):,}"
            )
        if name in tensors:
            raise ValueError(f"{path}: has {name} twice")
        tensors[name] = tensor
    return tensors


class _Cursor:
    """Reads the values of a header in order; `within` is what an error names."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path = path
        self.data = data
        self.place = len(MAGIC)
        self.within = "its header"

    def take(self, size: int) -> bytes:
        """The next bytes. Raises ValueError where the file has fewer."""
        if size > len(self.data) - self.place:
            raise ValueError(f"{self.path}: cut off within {self.within}")
        self.place += size
        return self.data[self.place - size : self.place]

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: {self.within} holds bytes that are not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item, count = self.number("I"), self.number("Q")
            if item in _SCALARS:
                code = np.dtype(_SCALARS[item]).newbyteorder("<")
                return np.frombuffer(self.take(count * code.itemsize), code).tolist()
            if item == _STRING:
                return [self.string() for _ in range(count)]
            raise ValueError(f"{self.path}: {self.within} is an array of type {item}, which is not read")
        if kind not in _SCALARS:
            raise ValueError(
                f"{self.path}: {self.within} has a value of type {kind}, which GGUF doesn't know"
            )
        return self.number(_SCALARS[kind])


@contextmanager
def writing(
    file: Path, metadata: Mapping[str, Value], tensors: Mapping[str, tuple[tuple[int, ...], str]]
) -> Iterator[Callable[[str, int, np.ndarray], None]]:
    """Writes a GGUF file of `tensors` (name -> shape and type) through `write(name, first row, rows)`.

    Rows may come in any order, in any dtype of floats; each is to come. Raises OSError naming the file where
    the disk is full, and ValueError naming the tensor for a weight beyond its type.
    """
    head = bytearray(MAGIC + struct.pack("<IQQ", _VERSIONS[-1], len(tensors), len(metadata)))
    for key, value in metadata.items():
        head += _string(key) + _value(value)
    starts: dict[str, int] = {}
    end = 0
    for name, (shape, kind) in tensors.items():
        starts[name] = end
        head += _string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += struct.pack("<IQ", TYPES[kind].number, end)
        end += math.prod(shape[:-1]) * bytes_of(kind, shape[-1])
        end += -end % _ALIGNMENT
    head += bytes(-len(head) % _ALIGNMENT)
    with naming(file), file.open("wb") as out:
        out.write(head)
        out.truncate(len(head) + end)

        def write(name: str, first: int, rows: np.ndarray) -> None:
            shape, kind = tensors[name]
            try:
                data = encoded(kind, rows.reshape(-1, shape[-1]))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            out.seek(len(head) + starts[name] + first * bytes_of(kind, shape[-1]))
            out.write(data.data)

        yield write


def _value(value: Value) -> bytes:
    """A value behind its type."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if any(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(
            _string(str(item)) for item in value
        )
    return struct.pack(f"<IIQ{len(value)}i", _ARRAY, _INT32, len(value), *value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
