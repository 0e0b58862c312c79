"""Which key blocks a query block has to visit, and which it may pass over.

Node i sees node j exactly when `0 <= i - j < subtree_size[j]`. So the queries of block q can see something in
key block b only if b begins no later than q ends, and some key in it reaches past q's first query:
`max_{j in b} (j + subtree_size[j]) > first(q)`. Every other pair of blocks costs a kernel nothing.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Visits(NamedTuple):
    """For each block of one side, the blocks of the other side to visit, int32.

    count_BX: how many, at least 1 (a block always visits itself). block_BXY: which, ascending; after the
    last one its number is repeated, so that a kernel's next load is one it already has.
    """

    count_BX: Array
    block_BXY: Array


def visible_blocks(subtree_size_BT: Array, query_block: int, key_block: int) -> Array:
    """Bool `[B, Q, S]`: whether query block q must look at key block s. T is a multiple of both sizes."""
    B, T = subtree_size_BT.shape
    end_BT = jnp.arange(T) + subtree_size_BT  # the first place after a node's subtree
    end_BS = end_BT.reshape(B, T // key_block, key_block).max(axis=2)
    first_Q = jnp.arange(0, T, query_block)
    first_S = jnp.arange(0, T, key_block)
    causal_QS = first_S[None, :] < first_Q[:, None] + query_block
    return causal_QS & (end_BS[:, None, :] > first_Q[:, None])


def visits(visible_BXY: Array) -> Visits:
    """The visits of each block on the axis X of a visibility matrix."""
    count_BX = visible_BXY.sum(axis=2, dtype=jnp.int32)
    order_BXY = jnp.argsort(~visible_BXY, axis=2, stable=True).astype(jnp.int32)
    last_BX1 = jnp.take_along_axis(order_BXY, count_BX[..., None] - 1, axis=2)
    rank_Y = jnp.arange(visible_BXY.shape[2])
    return Visits(count_BX, jnp.where(rank_Y < count_BX[..., None], order_BXY, last_BX1))
