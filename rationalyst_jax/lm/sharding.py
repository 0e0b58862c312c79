"""Which part of an array lives on which device.

A mesh has three axes. `replica` and `fsdp` divide the rows of a batch, `tensor` divides heads, the
feed-forward layer and the vocabulary; the sequence stays whole. Parameters carry logical axis names
(`lm/llama.py`); one table says which mesh axis divides each. Over several TPU slices or GPU hosts `replica` is
the axis that crosses the slow network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

ROWS = ("replica", "fsdp")
TENSOR = "tensor"
RULES: dict[str, str | None] = {
    "vocab": TENSOR,
    "heads": TENSOR,
    "kv_heads": TENSOR,
    "mlp": TENSOR,
    "embed": "fsdp",
    "head": None,
    "layer": None,
    "rank": None,
}


@dataclass(frozen=True)
class MeshShape:
    """Devices along each axis; -1 takes what the other two leave. By default all of them along `fsdp`.

    Raises ValueError for more than one -1, and for a size below 1.
    """

    replica: int = 1
    fsdp: int = -1
    tensor: int = 1

    def __post_init__(self):
        sizes = {name: getattr(self, name) for name in (*ROWS, TENSOR)}
        for name, size in sizes.items():
            if size < 1 and size != -1:
                raise ValueError(f"mesh: {name} must be at least 1, or -1 to fill, got {size}")
        if list(sizes.values()).count(-1) > 1:
            raise ValueError(f"mesh: only one axis can be -1, got {sizes}")

    def sizes(self, devices: int) -> tuple[int, int, int]:
        """The three sizes on so many devices. Raises ValueError where they do not multiply to these."""
        sizes = (self.replica, self.fsdp, self.tensor)
        fixed = math.prod(size for size in sizes if size != -1)
        filled = tuple(devices // fixed if size == -1 else size for size in sizes)
        if math.prod(filled) != devices:
            asked = ", ".join(f"{name} {size}" for name, size in zip((*ROWS, TENSOR), sizes, strict=True))
            raise ValueError(f"mesh: {asked} do not divide {devices} devices")
        return filled


def make_mesh(replica: int, fsdp: int, tensor: int, devices: Sequence[Any]) -> Mesh:
    """A mesh of the given replica · fsdp · tensor devices.

    Devices of several TPU slices are divided along `replica`, which must be a multiple of their number
    (ValueError).
    """
    shape, axes = (replica, fsdp, tensor), (*ROWS, TENSOR)
    types = (AxisType.Auto,) * 3
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(shape, axes, axis_types=types, devices=devices)
    if replica % slices:
        raise ValueError(f"mesh: replica {replica} is not a multiple of {slices} slices")
    within = (replica // slices, fsdp, tensor)
    ordered = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices)
    return Mesh(ordered, axes, axis_types=types)


def mesh_of(shape: MeshShape, devices: Sequence[Any]) -> Mesh:
    """The mesh of that shape on these devices; ValueError where it does not divide them."""
    return make_mesh(*shape.sizes(len(devices)), devices)


def shard_weights(weights: nnx.State, mesh: Mesh) -> nnx.State:
    """The sharding of every parameter, in the shape of the model's state.

    Raises ValueError listing each parameter with an axis that its part of the mesh does not divide.
    """
    problems = []

    def of(path: Any, parameter: Any) -> Any:
        axes = [RULES[name] for name in parameter.get_metadata("axes")]
        for name, axis, size in zip(parameter.get_metadata("axes"), axes, parameter.shape, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                where = jax.tree_util.keystr(path, simple=True, separator=".")
                problems.append(f"{where}: {size} {name} among {mesh.shape[axis]} of {axis}")
        return parameter.replace(NamedSharding(mesh, PartitionSpec(*axes)))

    shardings = jax.tree.map_with_path(of, weights, is_leaf=lambda x: isinstance(x, nnx.Variable))
    if problems:
        raise ValueError(f"mesh: does not divide the model: {'; '.join(problems)}")
    return shardings


def by_row(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """The sharding of arrays whose axis number `leading` are the rows of a batch."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, ROWS))


def platform_of(mesh: Mesh | None) -> str:
    """ "cpu", "gpu" or "tpu": what a program on this mesh runs on; without a mesh, the default device."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def row_shards(mesh: Mesh | None) -> int:
    """Into how many parts the rows of a batch are divided."""
    return 1 if mesh is None else mesh.shape["replica"] * mesh.shape["fsdp"]
