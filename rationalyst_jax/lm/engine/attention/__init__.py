"""Paged attention: of a step's tokens over the pages of their sequences.

Each implementation is a module with `attention(q, cache, shared_prefix, queries, platform)` and
`serves(H, dtype)`: whether it has heads of size H, and keys and values of a dtype. To add one, write its
module and name it in the table below.

M tokens of a step, R rows of Q queries each (a decoding sequence is a row of one, a prefill chunk a row of
many), P pages of a page table; the other letters as in docs/architecture.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from rationalyst_jax.lm.devices.mesh import TENSOR
from rationalyst_jax.lm.devices.sharding import platform_of

# What is tried on each platform, in this order.
CHOICE: dict[str, tuple[str, ...]] = {"tpu": ("ragged", "xla"), "cpu": ("cpu", "xla")}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SharedPrefix:
    """Pages with which many sequences begin, read once for all of them: `[P]`, of which `count` are there."""

    page_P: Any
    count: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Queries:
    """R rows of Q queries: their positions one after the other, then -1 for fillers; their page tables.

    in_prefix (bool): the pages begin with those of the shared prefix, and all queries of the row stand after
    them.
    """

    position_RQ: Any
    page_RP: Any
    in_prefix_R: Any

    def own_page(self, page_size: int) -> Array:
        """In which page each query's own token is: `[R, Q]`, anything for a filler."""
        return jnp.take_along_axis(self.page_RP, jnp.maximum(self.position_RQ, 0) // page_size, axis=1)


def paged_attention(
    q_MNH: Array,
    cache: Array,
    shared_prefix: SharedPrefix,
    queries: Sequence[Queries],
    mesh: Mesh | None = None,
) -> Array:
    """Attention of each query over the tokens of its row at its own position and before: `[M, N, H]`.

    `cache` is `[pages, page size, 2 K, H]`, keys and values of a head side by side; the pages of a row, from
    its first token on, hold what is seen. The M queries are those of all rows, one row after the other. A
    filler's output may be anything. Under a `mesh` heads are divided by its axis `TENSOR`.
    """
    platform = platform_of(mesh)
    modules = (import_module(f"{__name__}.{name}") for name in CHOICE.get(platform, ("xla",)))
    module = next(module for module in modules if module.serves(q_MNH.shape[2], cache.dtype))
    attention = partial(module.attention, platform=platform)
    if mesh is None:
        return attention(q_MNH, cache, shared_prefix, queries)
    heads = PartitionSpec(None, TENSOR)
    cache_heads = PartitionSpec(None, None, TENSOR)
    replicated = PartitionSpec()
    inputs = heads, cache_heads, replicated, replicated
    on_shards = jax.shard_map(attention, mesh=mesh, in_specs=inputs, out_specs=heads, check_vma=False)
    return on_shards(q_MNH, cache, shared_prefix, tuple(queries))
