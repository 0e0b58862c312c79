"""Which part of an array lives on which device.

A mesh has three axes. `replica` and `fsdp` divide the rows of a batch, `tensor` divides heads, the
feed-forward layer and the vocabulary; the sequence stays whole. Parameters carry logical axis names
(`lm/llama.py`); one table says which mesh axis divides each.
"""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
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
}


def make_mesh(replica: int, fsdp: int, tensor: int, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of replica · fsdp · tensor devices (the first ones there are, where none are given)."""
    return jax.make_mesh(
        (replica, fsdp, tensor), (*ROWS, TENSOR), axis_types=(AxisType.Auto,) * 3, devices=devices
    )


def shard_weights(weights: nnx.State, mesh: Mesh) -> nnx.State:
    """The sharding of every parameter, in the shape of the model's state."""

    def of(parameter: Any) -> Any:
        names = parameter.get_metadata("axes")
        return parameter.replace(NamedSharding(mesh, PartitionSpec(*(RULES[name] for name in names))))

    return jax.tree.map(of, weights, is_leaf=lambda x: isinstance(x, nnx.Variable))


def platform_of(mesh: Mesh | None) -> str:
    """ "cpu", "gpu" or "tpu": what a program on this mesh runs on; without a mesh, the default device."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def row_shards(mesh: Mesh | None) -> int:
    """Into how many parts the rows of a batch are divided."""
    return 1 if mesh is None else mesh.shape["replica"] * mesh.shape["fsdp"]
