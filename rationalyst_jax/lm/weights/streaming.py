"""Parameters brought to their devices, and back to rows of their stored form, a chunk at a time.

A chunk is some rows of one stored tensor, or as many of every shard: each reads, or gives, its own. So the
host holds a few chunks, whatever the size of a parameter, and a process touches only what its own devices
keep. All chunks of a parameter are of one size: one small program writes them, one reads them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Spec

from rationalyst_jax.lm.devices.distributed import is_main
from rationalyst_jax.lm.weights.tensor_files import Region

# Weights of a chunk, 16 MiB in float32. While loading, each device of this process may have one in the file's
# pages, one read, one transferred and one transposed.
CHUNK = 1 << 22

Read = Callable[[Sequence[Region]], list[np.ndarray]]  # regions of a stored tensor -> their values
Blocks = list[tuple[Region, list[Any]]]  # part of a parameter, and the devices that keep it


@dataclass(frozen=True)
class Layout:
    """How a parameter is stored: layer by layer if `stacked`, each layer as `[out, in]`.

    `inputs` is the number of leading axes (layer axis aside) that are inputs of the projection; with 0 the
    stored axes are ours. Only the first of the input axes and the first of the others may be divided.
    """

    stacked: bool
    inputs: int

    @property
    def row_axis(self) -> int:
        """Our axis that the rows of a stored tensor run along: a chunk is a range of it."""
        return self.stacked + self.inputs

    def stored_shape(self, ours: Sequence[int]) -> tuple[int, ...]:
        """The shape of one stored tensor of a parameter shaped `ours`."""
        layer = tuple(ours[self.stacked :])
        if not self.inputs:
            return layer
        return math.prod(layer[self.inputs :]), math.prod(layer[: self.inputs])

    def to_stored(self, layer: Any) -> Any:
        """A block of a layer, an array of NumPy or JAX, in the stored form."""
        return layer.reshape(math.prod(layer.shape[: self.inputs]), -1).T if self.inputs else layer

    def from_stored(self, stored: Any, shape: Sequence[int]) -> Any:
        """The block of a layer, shaped `shape`, that `stored` holds."""
        return stored.T.reshape(shape) if self.inputs else stored

    def region(self, block: Region) -> Region:
        """Where a block of a parameter (of all its layers) is in the stored tensors."""
        layer = block[self.stacked :]
        if not self.inputs:
            return layer
        return _merged(layer[self.inputs :]), _merged(layer[: self.inputs])

    def stored_spec(self, sharding: NamedSharding, ndim: int) -> Spec:
        """How the stored form of a parameter of so many axes is divided."""
        spec = (*sharding.spec, *(None,) * (ndim - len(sharding.spec)))  # a spec may leave out the last Nones
        return Spec(spec[self.row_axis], spec[self.stacked]) if self.inputs else Spec(*spec[self.stacked :])

    def starts(self, array: Array, layer: Any, row: Any) -> list[Any]:
        """Where in a parameter the chunk of `layer` that begins at `row` lies."""
        starts = [0] * array.ndim
        starts[0] = layer if self.stacked else 0
        starts[self.row_axis] = row
        return starts


def load_parameter(wanted: jax.ShapeDtypeStruct, layout: Layout, layers: Sequence[Read]) -> Array:
    """The array of the shape, dtype and sharding wanted (None: on the default device) that is stored so.

    `layers` read the stored tensors, in order (of an unstacked parameter, the only one). Where processes are
    many, all must call this.
    """
    sharding = _named(wanted.sharding)
    shard_shape = _shard_shape(wanted.shape, sharding)
    blocks = _blocks(wanted.shape, sharding)
    if math.prod(shard_shape) <= CHUNK:  # no need of a program
        shards = [np.empty(shard_shape, wanted.dtype) for _ in blocks]
        for i, read in enumerate(layers):
            stored = read([layout.region(block) for block, _ in blocks])
            for shard, values in zip(shards, stored, strict=True):
                target = shard[i] if layout.stacked else shard
                target[...] = layout.from_stored(values, target.shape)
        return _place(wanted.shape, sharding, blocks, shards)

    axis = layout.row_axis
    ndim = len(wanted.shape)
    rows = shard_shape[axis]
    step = _step(layout, wanted.shape, rows, 1)
    chunk_shape = list(wanted.shape)
    chunk_shape[axis] = step * wanted.shape[axis] // rows
    chunk_sharding = sharding and NamedSharding(sharding.mesh, layout.stored_spec(sharding, ndim))
    write = _writer(layout, sharding, ndim, wanted.dtype)
    kept = _writable(wanted.dtype, sharding)
    array = jax.jit(partial(jnp.zeros, wanted.shape, kept), out_shardings=sharding)()
    for i, read in enumerate(layers):
        for row in _first_rows(rows, step):
            stored = read([layout.region(_rows_of(block, axis, row, step)) for block, _ in blocks])
            chunk = _place(layout.stored_shape(chunk_shape), chunk_sharding, blocks, stored)
            # Waits, or as many chunks as the host can read would wait for their device.
            array = write(array, chunk, i, row).block_until_ready()
    return array if kept == wanted.dtype else _reinterpreted(array, wanted.dtype, sharding)


def stored_rows(
    array: Array, layout: Layout, layer: int | None, dtype: np.dtype
) -> Iterator[tuple[int, np.ndarray]]:
    """The stored tensor of a layer (None: of an unstacked parameter) as `(first row, rows)`, in `dtype`.

    Where processes are many and share the array, all must call this; only process 0 gets rows.
    """
    shared = not array.is_fully_addressable
    if not shared and not is_main():
        return
    if not shared and array.size <= CHUNK:
        values = np.asarray(array)
        yield 0, layout.to_stored(values if layer is None else values[layer]).astype(dtype)
        return
    axis = layout.row_axis
    sharding = _named(array.sharding)
    rows = _shard_shape(array.shape, sharding)[axis]
    shards = array.shape[axis] // rows
    step = _step(layout, array.shape, rows, shards)
    stored_per_row = layout.stored_shape(array.shape)[0] // array.shape[axis]
    read = _reader(layout, sharding, array.ndim, step, dtype, shared)
    for row in _first_rows(rows, step):
        chunk = read(array, layer or 0, row)
        if is_main():
            for i, part in enumerate(np.split(np.asarray(chunk), shards)):
                yield (i * rows + row) * stored_per_row, part


@cache
def _writer(layout: Layout, sharding: NamedSharding | None, ndim: int, dtype: np.dtype) -> Any:
    """The program that writes a chunk, as `dtype`, into a parameter, which it takes over."""

    def write(array: Array, chunk: Array, layer: Array, row: Array) -> Array:
        shape = list(array.shape[layout.stacked :])
        shape[layout.inputs] = -1
        block = layout.from_stored(chunk.astype(dtype), shape)
        block = jax.lax.bitcast_convert_type(block[None] if layout.stacked else block, array.dtype)
        return jax.lax.dynamic_update_slice(array, block, layout.starts(array, layer, row))

    if sharding is None:
        return jax.jit(write, donate_argnums=0)
    inputs = (sharding.spec, layout.stored_spec(sharding, ndim), Spec(), Spec())
    local = jax.shard_map(
        write, mesh=sharding.mesh, in_specs=inputs, out_specs=sharding.spec, check_vma=False
    )
    return jax.jit(local, donate_argnums=0)


@cache
def _reader(
    layout: Layout, sharding: NamedSharding | None, ndim: int, step: int, dtype: np.dtype, shared: bool
) -> Any:
    """The program that reads a chunk of `step` rows of every shard; if `shared`, every device gets it all."""

    def read(array: Array, layer: Array, row: Array) -> Array:
        sizes = list(array.shape)
        sizes[layout.row_axis] = step
        sizes[0] = 1 if layout.stacked else sizes[0]
        block = jax.lax.dynamic_slice(array, layout.starts(array, layer, row), sizes)
        return layout.to_stored(block[0] if layout.stacked else block).astype(dtype)

    if sharding is None:
        return jax.jit(read)
    stored_spec = layout.stored_spec(sharding, ndim)
    inputs = (sharding.spec, Spec(), Spec())
    local = jax.shard_map(read, mesh=sharding.mesh, in_specs=inputs, out_specs=stored_spec, check_vma=False)
    return jax.jit(local, out_shardings=NamedSharding(sharding.mesh, Spec() if shared else stored_spec))


def _named(sharding: Any) -> NamedSharding | None:
    """The sharding over a mesh; None: what is on one device."""
    return sharding if isinstance(sharding, NamedSharding) else None


def _writable(dtype: np.dtype, sharding: NamedSharding | None) -> np.dtype:
    """What an array is kept as while it is written: on a CPU, 16-bit numbers as integers with their bits.

    To write a chunk into an array of bfloat16, XLA's CPU backend would convert all of it to float32 and back.
    """
    platform = jax.default_backend() if sharding is None else next(iter(sharding.device_set)).platform
    return jnp.dtype("uint16") if platform == "cpu" and dtype.itemsize == 2 else dtype


def _reinterpreted(array: Array, dtype: np.dtype, sharding: NamedSharding | None) -> Array:
    """The bits of an array on CPUs as another dtype, in the same memory: XLA would need as much again."""
    if sharding is None:
        return jax.device_put(np.asarray(array).view(dtype))
    shards = [(shard.device, np.asarray(shard.data).view(dtype)) for shard in array.addressable_shards]
    placed = [jax.device_put(values, device) for device, values in shards]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, placed)


def _shard_shape(shape: tuple[int, ...], sharding: NamedSharding | None) -> tuple[int, ...]:
    return shape if sharding is None else sharding.shard_shape(shape)


def _blocks(shape: tuple[int, ...], sharding: NamedSharding | None) -> Blocks:
    """Each different block that devices of this process keep (None: the default device)."""
    if sharding is None:
        return [(tuple(slice(0, size) for size in shape), [None])]
    blocks: dict[tuple[int, ...], tuple[Region, list[Any]]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        ranges = [axis.indices(size) for axis, size in zip(index, shape, strict=True)]
        region = tuple(slice(start, stop) for start, stop, _ in ranges)
        blocks.setdefault(tuple(start for start, _, _ in ranges), (region, []))[1].append(device)
    return list(blocks.values())


def _place(
    shape: Sequence[int], sharding: NamedSharding | None, blocks: Blocks, values: Sequence[np.ndarray]
) -> Array:
    """The array of the given values of each block."""
    placed = [
        jax.device_put(block, device)
        for (_, devices), block in zip(blocks, values, strict=True)
        for device in devices
    ]
    if sharding is None:
        return placed[0]
    return jax.make_array_from_single_device_arrays(tuple(shape), sharding, placed)


def _rows_of(block: Region, axis: int, row: int, step: int) -> Region:
    start = block[axis].start + row
    return (*block[:axis], slice(start, start + step), *block[axis + 1 :])


def _step(layout: Layout, shape: Sequence[int], rows: int, shards: int) -> int:
    """How many of a shard's `rows` a chunk holds, where one chunk holds rows of so many shards."""
    row_size = math.prod(shape[layout.stacked :]) // shape[layout.row_axis]
    chunks = math.ceil(rows / max(1, CHUNK // (row_size * shards)))
    return math.ceil(rows / chunks)


def _first_rows(rows: int, step: int) -> list[int]:
    """Where chunks begin. The last overlaps the one before, rather than be of another size."""
    return [min(row, rows - step) for row in range(0, rows, step)]


def _merged(axes: Region) -> slice:
    """The range of several axes as one, where only the first of them is cut."""
    rest = math.prod(axis.stop for axis in axes[1:])
    return slice(axes[0].start * rest, axes[0].stop * rest)
