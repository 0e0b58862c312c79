"""Tree attention in plain XLA: the reference, for every device, shape and float dtype.

Short rows have a dense mask. Longer ones go through the same blocks as the kernels (`blocks.py`): each block
of queries walks the key blocks it has to visit, so that work grows with what is seen and memory with T.

Q blocks of a row and P places of a block; X = G * P queries of a block, of all heads of a group.
"""

import jax
import jax.numpy as jnp
from jax import Array

from rationalyst_jax.lm.attention.blocks import visible_blocks, visits
from rationalyst_jax.lm.devices.precision import precision_of

DENSE = 256  # in rows up to this length blocks would skip little
BLOCK = 128
UNSEEN = -1e30  # stands for the score of a masked key: exp of it is 0, and it is no infinity


def refusal(platform: str, dtype: jnp.dtype, H: int) -> str | None:
    """None: whatever the call, this can serve it."""
    return None


def attention(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, subtree_size_BT: Array) -> Array:
    """Tree attention; see `tree_attention`."""
    if q_BTNH.shape[1] <= DENSE:
        return dense(q_BTNH, k_BTKH, v_BTKH, subtree_size_BT)
    return blockwise(q_BTNH, k_BTKH, v_BTKH, subtree_size_BT)


# ---- Dense ----


@jax.checkpoint
def dense(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, subtree_size_BT: Array) -> Array:
    """All scores of a row at once; the backward pass computes them again instead of storing them."""
    return masked_attention(q_BTNH, k_BTKH, v_BTKH, tree_mask(subtree_size_BT))


def tree_mask(subtree_size_BT: Array) -> Array:
    """Which key each query sees: `[B, T, T]` bool, True where query i sees key j (itself or an ancestor)."""
    place_T = jnp.arange(subtree_size_BT.shape[1])
    distance_TS = place_T[:, None] - place_T[None, :]
    return (distance_TS >= 0) & (distance_TS < subtree_size_BT[:, None, :])


def masked_attention(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask_BTS: Array) -> Array:
    """Grouped-query attention under a boolean mask, softmax statistics in float32: `[B, T, N, H]`.

    Query head n reads key-value head `n // (N // K)`; K and V are never repeated. Every query must see at
    least one key. Scores are divided by sqrt(H).
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    G = N // K
    # The G query heads of a group stand one below the other, so that each product is one plain matrix
    # product per key-value head (several times faster on CPU than contracting over five axes).
    q_BKTH = (q_BTNH * H**-0.5).reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    k_BKHS = k_BSKH.transpose(0, 2, 3, 1)
    v_BKSH = v_BSKH.transpose(0, 2, 1, 3)
    scores_BKGTS = _matmul(q_BKTH, k_BKHS).reshape(B, K, G, T, S)
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, -jnp.inf)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
    weights_BKTS = weights_BKGTS.reshape(B, K, G * T, S)
    out_BKTH = jnp.matmul(weights_BKTS, v_BKSH, precision=precision_of(weights_BKTS, v_BKSH))
    return out_BKTH.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


# ---- Block by block ----


def blockwise(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, subtree_size_BT: Array) -> Array:
    """Visits only the blocks in which something is seen; softmax accumulated as in arXiv 2205.14135."""
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    Q = -(-T // BLOCK)
    G = N // K
    padding = Q * BLOCK - T
    pad = ((0, 0), (0, padding), (0, 0), (0, 0))
    q_BTNH = jnp.pad(q_BTNH, pad)
    k_BTKH = jnp.pad(k_BTKH, pad)
    v_BTKH = jnp.pad(v_BTKH, pad)
    size_BQP = jnp.pad(subtree_size_BT, ((0, 0), (0, padding)), constant_values=1).reshape(B, Q, BLOCK)
    q_BQKXH = q_BTNH.reshape(B, Q, BLOCK, K, G, H).transpose(0, 1, 3, 4, 2, 5).reshape(B, Q, K, G * BLOCK, H)
    k_BQKPH = k_BTKH.reshape(B, Q, BLOCK, K, H).swapaxes(2, 3)
    v_BQKPH = v_BTKH.reshape(B, Q, BLOCK, K, H).swapaxes(2, 3)
    out_BQKXH = _blockwise(q_BQKXH, k_BQKPH, v_BQKPH, size_BQP)
    out_BQPKGH = out_BQKXH.reshape(B, Q, K, G, BLOCK, H).transpose(0, 1, 4, 2, 3, 5)
    return out_BQPKGH.reshape(B, Q * BLOCK, N, H)[:, :T]


@jax.custom_vjp
def _blockwise(q_BQKXH: Array, k_BQKPH: Array, v_BQKPH: Array, size_BQP: Array) -> Array:
    return _forward(q_BQKXH, k_BQKPH, v_BQKPH, size_BQP)[0]


def _blockwise_fwd(q_BQKXH, k_BQKPH, v_BQKPH, size_BQP):
    out_BQKXH, lse_BQKX = _forward(q_BQKXH, k_BQKPH, v_BQKPH, size_BQP)
    return out_BQKXH, (q_BQKXH, k_BQKPH, v_BQKPH, size_BQP, out_BQKXH, lse_BQKX)


def _forward(q_BQKXH, k_BQKPH, v_BQKPH, size_BQP):
    """Outputs, and the log-sum-exp of each query's scores."""
    plan = visits(_visible(size_BQP))

    def one(b, i):
        q_KXH = q_BQKXH[b, i]

        def visit(j, carry):
            maximum_KX, sum_KX, acc_KXH = carry
            s = plan.block_BXY[b, i, j]
            scores_KXP, seen_XP = _scores(q_KXH, k_BQKPH[b, s], size_BQP[b, s], i, s)
            scores_KXP = jnp.where(seen_XP, scores_KXP, UNSEEN)
            new_KX = jnp.maximum(maximum_KX, scores_KXP.max(axis=2))
            weights_KXP = jnp.where(seen_XP, jnp.exp(scores_KXP - new_KX[..., None]), 0.0)
            shrink_KX = jnp.exp(maximum_KX - new_KX)
            values_KPH = v_BQKPH[b, s]
            acc_KXH = acc_KXH * shrink_KX[..., None] + _matmul(
                weights_KXP.astype(values_KPH.dtype), values_KPH
            )
            return new_KX, sum_KX * shrink_KX + weights_KXP.sum(axis=2), acc_KXH

        start = (
            jnp.full(q_KXH.shape[:2], UNSEEN),
            jnp.zeros(q_KXH.shape[:2]),
            jnp.zeros(q_KXH.shape, jnp.float32),
        )
        maximum_KX, sum_KX, acc_KXH = jax.lax.fori_loop(0, plan.count_BX[b, i], visit, start)
        return (acc_KXH / sum_KX[..., None]).astype(q_KXH.dtype), maximum_KX + jnp.log(sum_KX)

    return _for_each_block(one, size_BQP.shape[:2])


def _blockwise_bwd(saved, dout_BQKXH):
    q_BQKXH, k_BQKPH, v_BQKPH, size_BQP, out_BQKXH, lse_BQKX = saved
    scale = q_BQKXH.shape[-1] ** -0.5
    delta_BQKX = jnp.sum(out_BQKXH.astype(jnp.float32) * dout_BQKXH.astype(jnp.float32), axis=-1)
    queries = visits(_visible(size_BQP).swapaxes(1, 2))

    def key_value_gradient(dq_BQKXH, z):
        b = z // size_BQP.shape[1]
        s = z % size_BQP.shape[1]
        k_KPH = k_BQKPH[b, s]
        v_KPH = v_BQKPH[b, s]

        def visit(j, carry):
            dq_BQKXH, dk_KPH, dv_KPH = carry
            i = queries.block_BXY[b, s, j]
            q_KXH = q_BQKXH[b, i]
            dout_KXH = dout_BQKXH[b, i]
            scores_KXP, seen_XP = _scores(q_KXH, k_KPH, size_BQP[b, s], i, s)
            weights_KXP = jnp.exp(jnp.where(seen_XP, scores_KXP - lse_BQKX[b, i][..., None], UNSEEN))
            dweights_KXP = _matmul(dout_KXH, v_KPH.swapaxes(1, 2))
            dscores_KXP = weights_KXP * (dweights_KXP - delta_BQKX[b, i][..., None]) * scale
            weights_KXP, dscores_KXP = (x.astype(q_KXH.dtype) for x in (weights_KXP, dscores_KXP))
            return (
                dq_BQKXH.at[b, i].add(_matmul(dscores_KXP, k_KPH)),
                dk_KPH + _matmul(dscores_KXP.swapaxes(1, 2), q_KXH),
                dv_KPH + _matmul(weights_KXP.swapaxes(1, 2), dout_KXH),
            )

        zero_KPH = jnp.zeros(k_KPH.shape, jnp.float32)
        start = dq_BQKXH, zero_KPH, zero_KPH
        dq_BQKXH, *dkv_KPH = jax.lax.fori_loop(0, queries.count_BX[b, s], visit, start)
        return dq_BQKXH, [x.astype(k_KPH.dtype) for x in dkv_KPH]

    start = jnp.zeros(q_BQKXH.shape, jnp.float32)
    blocks = jnp.arange(size_BQP.size // BLOCK)
    dq_BQKXH, dkv = jax.lax.scan(key_value_gradient, start, blocks)
    dk_BQKPH, dv_BQKPH = (x.reshape(k_BQKPH.shape) for x in dkv)
    return dq_BQKXH.astype(q_BQKXH.dtype), dk_BQKPH, dv_BQKPH, None


_blockwise.defvjp(_blockwise_fwd, _blockwise_bwd)


def _visible(size_BQP: Array) -> Array:
    return visible_blocks(size_BQP.reshape(size_BQP.shape[0], -1), BLOCK, BLOCK)


def _scores(q_KXH: Array, k_KPH: Array, size_P: Array, i: Array, s: Array) -> tuple[Array, Array]:
    """Scaled scores of query block i against key block s (float32), and which are seen, `[X, P]`."""
    scores_KXP = _matmul(q_KXH, k_KPH.swapaxes(1, 2)) * q_KXH.shape[-1] ** -0.5
    place_P = jnp.arange(BLOCK)
    distance_PP = (i - s) * BLOCK + place_P[:, None] - place_P[None, :]
    seen_PP = (distance_PP >= 0) & (distance_PP < size_P)
    return scores_KXP, jnp.tile(seen_PP, (q_KXH.shape[1] // BLOCK, 1))


def _matmul(a: Array, b: Array) -> Array:
    """A product summed in float32."""
    return jnp.matmul(a, b, precision=precision_of(a, b), preferred_element_type=jnp.float32)


def _for_each_block(one, BQ: tuple[int, int]):
    """`one(b, i)` for every block of every row, stacked to `[B, Q, ...]`."""
    B, Q = BQ
    stacked = jax.lax.map(lambda z: one(z // Q, z % Q), jnp.arange(B * Q))
    return jax.tree.map(lambda x: x.reshape(B, Q, *x.shape[1:]), stacked)
