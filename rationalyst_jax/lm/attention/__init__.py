"""Attention over packed token trees: the one attention primitive.

Rows hold token trees in depth-first order (`lm/trees/tree.py`). Node i sees node j exactly when
`0 <= i - j < subtree_size[j]`: one comparison is the causal mask, the branch mask and the packing mask.

Each implementation is a module with `attention(q, k, v, subtree_size)` and `refusal(platform, dtype, H)`, the
reason why it cannot serve a call. To add one, write its module and name it in the table below.
"""

from importlib import import_module
from types import ModuleType

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from rationalyst_jax.lm.devices.mesh import ROWS, TENSOR
from rationalyst_jax.lm.devices.sharding import platform_of

# What is tried on each platform, in this order; the first that does not refuse serves the call. The GPU
# kernels join their row once they have run on a GPU; until then they serve who names them.
CHOICE = {"cpu": ("cpu", "xla"), "gpu": ("xla",), "tpu": ("pallas_tpu", "xla")}
IMPLEMENTATIONS = ("xla", "cpu", "pallas_tpu", "triton", "cudnn")


def tree_attention(
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    subtree_size_BT: Array,
    *,
    implementation: str | None = None,
    mesh: Mesh | None = None,
) -> Array:
    """Attention of every node over itself and its ancestors: `[B, T, N, H]`, differentiable in q, k and v.

    q is `[B, T, N, H]`, k and v are `[B, T, K, H]` with K dividing N (grouped queries), all of one float
    dtype; `subtree_size` is int32, at least 1 everywhere. Without an `implementation` the first one in
    `CHOICE` that can serves. Under a `mesh` (which also says what platform this is for) rows are divided by
    its `ROWS` axes and heads by `TENSOR`, the sequence stays whole. Raises ValueError where shapes or dtypes
    do not fit together, the named implementation cannot serve the call, or the mesh cannot divide it:
    nothing falls back in silence.
    """
    _check(q_BTNH, k_BTKH, v_BTKH, subtree_size_BT)
    K = k_BTKH.shape[2]
    if mesh is not None and K % mesh.shape[TENSOR]:
        raise ValueError(
            f"tree_attention: {K} key-value heads cannot be divided among {mesh.shape[TENSOR]} devices"
        )
    module = _choose(implementation, platform_of(mesh), q_BTNH.dtype, q_BTNH.shape[3])
    if mesh is None:
        return module.attention(q_BTNH, k_BTKH, v_BTKH, subtree_size_BT)
    heads = PartitionSpec(ROWS, None, TENSOR)
    inputs = heads, heads, heads, PartitionSpec(ROWS)
    on_shards = jax.shard_map(module.attention, mesh=mesh, in_specs=inputs, out_specs=heads, check_vma=False)
    return on_shards(q_BTNH, k_BTKH, v_BTKH, subtree_size_BT)


def _check(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, subtree_size_BT: Array) -> None:
    """Raises ValueError unless the arrays fit together. Kernels do not look: they would read past an end."""
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    fit = k_BTKH.shape == v_BTKH.shape == (B, T, K, H) and subtree_size_BT.shape == (B, T)
    if not fit or not K or N % K:
        raise ValueError(
            f"tree_attention: q {q_BTNH.shape}, k {k_BTKH.shape}, v {v_BTKH.shape} and subtree_size "
            f"{subtree_size_BT.shape} do not fit together"
        )
    if not q_BTNH.dtype == k_BTKH.dtype == v_BTKH.dtype or subtree_size_BT.dtype != jnp.int32:
        raise ValueError(
            f"tree_attention: q, k and v need one dtype and subtree_size int32, not {q_BTNH.dtype}, "
            f"{k_BTKH.dtype}, {v_BTKH.dtype} and {subtree_size_BT.dtype}"
        )


def _choose(implementation: str | None, platform: str, dtype: jnp.dtype, H: int) -> ModuleType:
    """The implementation that was named, or the first in the platform's list that can serve."""
    if implementation is None:
        return next(
            m for m in map(_module, CHOICE.get(platform, ("xla",))) if not m.refusal(platform, dtype, H)
        )
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"tree_attention: no implementation {implementation!r}, only {', '.join(IMPLEMENTATIONS)}"
        )
    try:
        module = _module(implementation)
    except ModuleNotFoundError as error:
        raise ValueError(f"tree_attention: {implementation} cannot serve this call: {error}") from None
    if reason := module.refusal(platform, dtype, H):
        raise ValueError(f"tree_attention: {implementation} cannot serve this call: {reason}")
    return module


def _module(name: str) -> ModuleType:
    """An implementation; imported when asked for, since some build on optional packages."""
    return import_module(f"{__name__}.{name}")
