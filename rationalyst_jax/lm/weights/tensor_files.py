"""The safetensors files of a checkpoint folder: any region of a tensor read, files written row by row.

Nothing here holds a whole tensor. Files are mapped into memory only while a region is copied out of them: the
pages of a file that stays mapped count as memory of this process. The format is a length (8 bytes,
little-endian), a JSON header of that length, and the tensors without gaps.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from rationalyst_jax.files.whole import naming, read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": jnp.dtype("float32"), "BF16": jnp.dtype("bfloat16"), "F16": jnp.dtype("float16")}
_BLOCK = 1 << 22  # values read at a time where a tensor is read in order
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Region = tuple[slice, ...]  # a slice with start and stop for each axis


@dataclass(frozen=True)
class StoredTensor:
    """What a file's header says of a tensor; `dtype` as safetensors names it."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str

    def read(self, regions: Sequence[Region]) -> list[np.ndarray]:
        """The values in each of the regions, contiguous. Raises ValueError naming a damaged file."""
        with _opened(self.file) as opened:
            tensor = opened.get_slice(self.key)
            return [tensor[region] for region in regions]

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """The tensor in order as `(first row, rows)`, some rows at a time. Raises as `read`."""
        step = max(1, _BLOCK // math.prod(self.shape[1:]))
        rest = [slice(0, size) for size in self.shape[1:]]
        for row in range(0, self.shape[0], step):
            yield row, self.read([(slice(row, min(row + step, self.shape[0])), *rest)])[0]


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint folder `path` by its key; reads headers only.

    Raises FileNotFoundError for a missing file, ValueError for a damaged one.
    """
    files = [path / SINGLE]
    if not files[0].exists():
        if not (path / INDEX).exists():
            raise FileNotFoundError(f"{path}: no {SINGLE} and no {INDEX}")
        try:
            files = [path / name for name in sorted(set(read_json(path / INDEX)["weight_map"].values()))]
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path / INDEX}: no weight_map of key to file") from error
    stored = {}
    for file in files:
        with _opened(file) as opened:
            for key in opened.keys():
                found = opened.get_slice(key)
                stored[key] = StoredTensor(file, key, tuple(found.get_shape()), found.get_dtype())
    return stored


def same_values(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two tensors are equal; reads some rows of each at a time."""
    if a.shape != b.shape:
        return False
    return all(
        np.array_equal(one, other) for (_, one), (_, other) in zip(a.blocks(), b.blocks(), strict=True)
    )


def sha256(tensor: StoredTensor) -> str:
    """The SHA-256 of a tensor's bytes as its file has them, in hexadecimal digits."""
    sha = hashlib.sha256()
    for _, rows in tensor.blocks():
        sha.update(np.ascontiguousarray(rows).view(np.uint8).data)
    return sha.hexdigest()


@contextmanager
def writing(
    file: Path, tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]]
) -> Iterator[Callable[[str, int, np.ndarray], None]]:
    """Writes a file of `tensors` (key -> shape and dtype) through `write(key, first row, rows)`.

    Rows may come in any order; each is to come. Raises OSError naming the file where the disk is full.
    """
    # Wide numbers first, as safetensors does: torch maps a tensor only where its numbers are aligned.
    keys = sorted(tensors, key=lambda key: -tensors[key][1].itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key in keys:
        shape, dtype = tensors[key]
        start = end
        end = end + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with naming(file), file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)

        def write(key: str, first: int, rows: np.ndarray) -> None:
            shape, dtype = tensors[key]
            row_bytes = math.prod(shape[1:]) * dtype.itemsize
            out.seek(8 + len(text) + header[key]["data_offsets"][0] + first * row_bytes)
            out.write(np.ascontiguousarray(rows).view(np.uint8).data)  # Python knows no buffer of bfloat16

        yield write


def misfits(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """In what the tensors found (name -> shape) differ from those wanted: missing, extra and misshaped."""
    yield from (f"missing {name}" for name in wanted if name not in found)
    yield from (f"extra {name}" for name in sorted(found) if name not in wanted)
    for name, shape in wanted.items():
        if name in found and found[name] != shape:
            yield f"{name} has shape {found[name]}, not {shape}"


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        with safe_open(file, framework="numpy") as opened:
            yield opened
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged safetensors file: {error}") from error
