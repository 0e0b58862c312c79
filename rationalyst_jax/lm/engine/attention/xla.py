"""Attention over pages in plain XLA, for any device. The shared prefix is read once, for all its sequences.

G = N / K query heads of a key-value head, Y = G * Q queries of a row that share one; X pages that are read at
once, with S = X * page size keys.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from rationalyst_jax.lm.devices.precision import precision_of
from rationalyst_jax.lm.engine.attention import Queries, SharedPrefix

KEYS_AT_ONCE = 256
# What a core's cache holds; so no row waits for the longest of all, either.
ROWS_ON_CPU = 8
KEYS_ON_CPU = 64
UNSEEN = -1e30  # stands for the score of a masked key: exp of it is 0, and it is no infinity

Softmax = tuple[Array, Array, Array]  # maximum_RKY, sum_RKY, out_RKYH: of the keys seen so far


def serves(H: int, dtype: Any) -> bool:
    """Any size."""
    return True


def attention(
    q_MNH: Array, cache: Array, shared_prefix: SharedPrefix, queries: Sequence[Queries], platform: str
) -> Array:
    """See `paged_attention`. Pages are read in blocks, with the softmax accumulated in float32
    (arXiv 2205.14135)."""
    outputs = []
    start = 0
    for some in queries:
        stop = start + some.position_RQ.size
        q_RQNH = q_MNH[start:stop].reshape(*some.position_RQ.shape, *q_MNH.shape[1:])
        outputs.append(_of_rows(q_RQNH, cache, shared_prefix, some, platform).reshape(-1, *q_MNH.shape[1:]))
        start = stop
    return jnp.concatenate(outputs)


def _of_rows(
    q_RQNH: Array, cache: Array, shared_prefix: SharedPrefix, queries: Queries, platform: str
) -> Array:
    in_prefix_R = queries.in_prefix_R
    R, Q, N, H = q_RQNH.shape
    page_size = cache.shape[1]
    K = cache.shape[2] // 2
    G = N // K
    Y = G * Q
    q_RKYH = (q_RQNH * H**-0.5).reshape(R, Q, K, G, H).transpose(0, 2, 3, 1, 4).reshape(R, K, Y, H)
    last_seen_RY = jnp.tile(queries.position_RQ, (1, G))
    softmax = jnp.full((R, K, Y), UNSEEN), jnp.zeros((R, K, Y)), jnp.zeros((R, K, Y, H))
    tokens = shared_prefix.count * page_size
    # 1. The shared prefix: all rows are one, whose queries see every key or none.
    one = partial(jax.tree.map, lambda x: x.swapaxes(0, 1).reshape(1, K, R * Y, *x.shape[3:]))
    upto_1Y = jnp.repeat(jnp.where(in_prefix_R, tokens - 1, -1), Y)[None]
    page_1P = shared_prefix.page_P[None]
    from_1 = jnp.zeros(1, jnp.int32)
    softmax = _visit(cache, KEYS_AT_ONCE, one(q_RKYH), page_1P, from_1, upto_1Y, one(softmax))
    softmax = jax.tree.map(lambda x: x.reshape(K, R, Y, *x.shape[3:]).swapaxes(0, 1), softmax)
    # 2. What a row has for itself.
    from_R = jnp.where(in_prefix_R, tokens, 0)
    own = q_RKYH, queries.page_RP, from_R, last_seen_RY, softmax
    if platform == "cpu":
        order_R = jnp.lexsort((last_seen_RY.max(axis=1), from_R))  # rows that read the same stand together
        own = jax.tree.map(lambda x: _in_groups(ROWS_ON_CPU, x[order_R]), own)
        softmax = jax.lax.map(lambda rows: _visit(cache, KEYS_ON_CPU, *rows), own)
        back_R = jnp.argsort(order_R)
        softmax = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[back_R], softmax)
    else:
        softmax = _visit(cache, KEYS_AT_ONCE, *own)
    _, sum_RKY, out_RKYH = softmax
    out_RKYH = out_RKYH / jnp.maximum(sum_RKY, 1e-30)[..., None]
    out_RQNH = out_RKYH.reshape(R, K, G, Q, H).transpose(0, 3, 1, 2, 4).reshape(R, Q, N, H)
    return out_RQNH.astype(q_RQNH.dtype)


def _in_groups(size: int, x_R: Array) -> Array:
    """`[R, ...]` as `[groups, size, ...]`, with copies of the last row at the end."""
    return x_R[jnp.minimum(jnp.arange(-(-len(x_R) // size) * size), len(x_R) - 1)].reshape(
        -1, size, *x_R.shape[1:]
    )


def _visit(
    cache: Array,
    keys: int,
    q_RKYH: Array,
    page_RP: Array,
    from_R: Array,
    last_seen_RY: Array,
    softmax: Softmax,
) -> Softmax:
    """The softmax with each row's keys from place `from` to the last each query sees, `keys` at a time."""
    R, K = q_RKYH.shape[:2]
    page_size = cache.shape[1]
    P = page_RP.shape[1]
    X = min(P, max(1, keys // page_size))
    page_RP = jnp.pad(page_RP, ((0, 0), (0, -P % X)))

    def block(number: Array, softmax: Softmax) -> Softmax:
        page_RX = jax.lax.dynamic_slice_in_dim(page_RP, number * X, X, axis=1)
        kv_RSKH = cache[page_RX].reshape(R, X * page_size, *cache.shape[2:])
        place_S = number * X * page_size + jnp.arange(X * page_size)
        seen_RYS = (place_S >= from_R[:, None, None]) & (place_S <= last_seen_RY[..., None])
        heads = []
        for k in range(K):
            maximum_RY, sum_RY, out_RYH = (x[:, k] for x in softmax)
            k_RSH = kv_RSKH[:, :, 2 * k]
            v_RSH = kv_RSKH[:, :, 2 * k + 1]
            scores_RYS = _matmul(q_RKYH[:, k], k_RSH.swapaxes(1, 2))
            scores_RYS = jnp.where(seen_RYS, scores_RYS, UNSEEN)
            new_RY = jnp.maximum(maximum_RY, scores_RYS.max(axis=2))
            weights_RYS = jnp.where(seen_RYS, jnp.exp(scores_RYS - new_RY[..., None]), 0.0)
            shrink_RY = jnp.exp(maximum_RY - new_RY)
            added_RYH = _matmul(weights_RYS.astype(v_RSH.dtype), v_RSH)
            out_RYH = out_RYH * shrink_RY[..., None] + added_RYH
            heads.append((new_RY, sum_RY * shrink_RY + weights_RYS.sum(axis=2), out_RYH))
        maximum_RKY, sum_RKY, out_RKYH = (jnp.stack(parts, axis=1) for parts in zip(*heads, strict=True))
        return maximum_RKY, sum_RKY, out_RKYH

    first = from_R.min() // (X * page_size)
    end = last_seen_RY.max() // (X * page_size) + 1
    return jax.lax.fori_loop(first, end, block, softmax)


def _matmul(a: Array, b: Array) -> Array:
    """A product summed in float32."""
    return jnp.matmul(a, b, precision=precision_of(a, b), preferred_element_type=jnp.float32)
