"""Weights by their Hugging Face keys, wherever they come from, and the folder they are written to."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rationalyst_jax.files.whole import whole, write_json
from rationalyst_jax.lm.devices.distributed import is_main
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.weights.tensor_files import DTYPES, INDEX, SINGLE, writing

Header = Mapping[str, tuple[tuple[int, ...], np.dtype]]
Rows = Callable[[str], Iterator[tuple[int, np.ndarray]]]


@dataclass(frozen=True)
class Weights:
    """The weights of a Llama: shape and dtype of each tensor by its Hugging Face key, in file order.

    `rows(key)` gives a tensor as `(first row, rows)`, some rows at a time, in any order, some of them twice.
    Where processes are many, all ask for the same tensors in the same order, and only process 0 gets rows.
    """

    config: LlamaConfig
    tensors: Header
    rows: Rows

    @property
    def size(self) -> int:
        """The number of weights."""
        return sum(math.prod(shape) for shape, _ in self.tensors.values())


def save_weights(weights: Weights, path: Path, max_shard_bytes: int = 10**9) -> None:
    """Writes config.json and safetensors into the folder `path`, in shards of at most `max_shard_bytes`.

    Everything is written under other names first: a save that is cut off, or meets a full disk (an OSError
    naming the file), leaves an earlier checkpoint in `path` whole and nothing half-written. Raises ValueError
    for a dtype that the format has no place for.
    """
    tensors = weights.tensors
    dtypes = {dtype for _, dtype in tensors.values()}
    if others := {str(dtype) for dtype in dtypes if dtype not in DTYPES.values()}:
        raise ValueError(f"{path}: weights in {', '.join(sorted(others))}, wanted {', '.join(DTYPES)}")
    sizes = {key: math.prod(shape) * dtype.itemsize for key, (shape, dtype) in tensors.items()}
    shards = _plan_shards(sizes, max_shard_bytes)
    count = len(shards)
    shard_names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    names = [*shard_names, INDEX, "config.json"]
    if count == 1:
        shard_names = [SINGLE]
        names = [SINGLE, "config.json"]
    with ExitStack() as written:  # as it is left, all files get their names, or none does
        files: dict[str, Path] = {}
        if is_main():
            files = {name: written.enter_context(whole(path / name)) for name in reversed(names)}
        for name, keys in zip(shard_names, shards, strict=True):
            _write_shard(files.get(name), {key: tensors[key] for key in keys}, weights.rows)
        if is_main():
            if count > 1:
                named = {key: name for name, keys in zip(shard_names, shards, strict=True) for key in keys}
                write_json(
                    files[INDEX], {"metadata": {"total_size": sum(sizes.values())}, "weight_map": named}
                )
            _, dtype = next(iter(tensors.values()))
            write_json(files["config.json"], weights.config.to_hf() | {"torch_dtype": str(dtype)})
            # Readers prefer a single file to an index: one left from an earlier save would win over these.
            for old in {*path.glob("model*.safetensors"), path / INDEX} - {path / name for name in names}:
                old.unlink(missing_ok=True)


def _plan_shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """The keys cut into runs of tensors of at most `limit` bytes (or of one larger tensor)."""
    shards: list[list[str]] = [[]]
    used = 0
    for key, size in sizes.items():
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(key)
        used += size
    return shards


def _write_shard(file: Path | None, header: Header, rows: Rows) -> None:
    """Writes a file of weights; processes that have no file give their parts."""
    with nullcontext(lambda *_: None) if file is None else writing(file, header) as write:
        for key in header:
            for first, block in rows(key):
                write(key, first, block)
