"""Which part of an array lives on which device.

A mesh has three axes. `replica` and `fsdp` divide the rows of a batch, `tensor` divides heads, the
feed-forward layer and the vocabulary; the sequence stays whole. Parameters carry logical axis names
(`lm/model/llama.py`); one table says which mesh axis divides each. Over several TPU slices or GPU hosts
`replica` is the axis that crosses the slow network.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from rationalyst_jax.lm.devices.mesh import FSDP, REPLICA, ROWS, TENSOR, MeshShape

Made = TypeVar("Made", bound=nnx.Module)

RULES: dict[str, str | None] = {
    "vocab": TENSOR,
    "heads": TENSOR,
    "kv_heads": TENSOR,
    "mlp": TENSOR,
    "embed": FSDP,
    "head": None,
    "layer": None,
    "rank": None,
}


def make_mesh(replica: int, fsdp: int, tensor: int, devices: Sequence[Any]) -> Mesh:
    """A mesh of the given replica · fsdp · tensor devices.

    Devices of several TPU slices are divided along `replica`, which must be a multiple of their number
    (ValueError), and those of several GPU hosts where it is one.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if devices[0].platform != "tpu" and replica % slices:
        slices = 1  # for jax every GPU host is a slice
    if replica % slices:
        raise ValueError(f"mesh: replica {replica} is not a multiple of {slices} slices")
    within = (replica // slices, fsdp, tensor)
    # Splitting lets 2 x 8 chips be cut out of a torus of 4 x 4; `jax.make_mesh` refuses it on some TPUs.
    # Where it is not needed it changes nothing.
    if slices == 1:
        ordered = mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
    else:
        across = (slices, 1, 1)
        ordered = mesh_utils.create_hybrid_device_mesh(
            within, across, devices, allow_split_physical_axes=True
        )
    return Mesh(ordered, (*ROWS, TENSOR), axis_types=(AxisType.Auto,) * 3)


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


def created(make: Callable[[], Made], mesh: Mesh) -> Made:
    """The new module that `make` makes, each of its parameters made where the mesh wants it.

    Raises ValueError where the mesh does not divide it.
    """
    graph, shapes = nnx.split(nnx.eval_shape(make))
    weights = jax.jit(lambda: nnx.state(make()), out_shardings=shard_weights(shapes, mesh))()
    return nnx.merge(graph, weights)


def shard_state(state: Any, mesh: Mesh) -> Any:
    """The sharding of weights (that `shard_weights` accepts) and of all that an optimizer keeps of them.

    What has the shape of its parameter is divided like it; counts and factored moments, which are small, are
    the same on all devices.
    """

    def of(leaf: Any) -> Any:
        if not isinstance(leaf, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        axes = [RULES[name] for name in leaf.get_metadata("axes")]
        fits = len(axes) == len(leaf.shape) and all(
            axis is None or size % mesh.shape[axis] == 0 for axis, size in zip(axes, leaf.shape, strict=True)
        )
        return leaf.replace(NamedSharding(mesh, PartitionSpec(*axes) if fits else PartitionSpec()))

    return jax.tree.map(of, state, is_leaf=lambda x: isinstance(x, nnx.Variable))


def placed(tree: Any, shardings: Any, dtype: DTypeLike | None = None) -> Any:
    """Shapes of arrays with these shardings, in `dtype` or that which they have."""

    def one(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=sharding)

    return jax.tree.map(one, tree, shardings)


def by_row(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """The sharding of arrays whose axis number `leading` are the rows of a batch."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, ROWS))


def platform_of(mesh: Mesh | None) -> str:
    """ "cpu", "gpu" or "tpu": what a program on this mesh runs on; without a mesh, the default device."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def row_shards(mesh: Mesh | None) -> int:
    """Into how many parts the rows of a batch are divided."""
    return 1 if mesh is None else mesh.shape[REPLICA] * mesh.shape[FSDP]
