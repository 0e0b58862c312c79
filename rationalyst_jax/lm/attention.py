"""Attention over packed token trees: the one attention primitive.

Rows hold token trees in depth-first order (`lm/tree.py`). Node i sees node j exactly when
`0 <= i - j < subtree_size[j]`: one comparison is the causal mask, the branch mask and the packing mask.
"""

import jax
import jax.numpy as jnp
from jax import Array


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
    scores_BKGTS = jnp.matmul(q_BKTH, k_BKHS, preferred_element_type=jnp.float32).reshape(B, K, G, T, S)
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, -jnp.inf)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
    out_BKTH = jnp.matmul(weights_BKGTS.reshape(B, K, G * T, S), v_BKSH)
    return out_BKTH.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


@jax.checkpoint
def _xla(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, subtree_size_BT: Array) -> Array:
    """The reference: a dense mask. Backward recomputes the `[T, T]` scores instead of storing them."""
    return masked_attention(q_BTNH, k_BTKH, v_BTKH, tree_mask(subtree_size_BT))


IMPLEMENTATIONS = {"xla": _xla}


def tree_attention(
    q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, subtree_size_BT: Array, *, implementation: str = "xla"
) -> Array:
    """Attention of every node over itself and its ancestors: `[B, T, N, H]`, differentiable in q, k and v.

    q is `[B, T, N, H]`, k and v are `[B, T, K, H]` with K dividing N (grouped queries), all of one float
    dtype; `subtree_size` is int32, at least 1 everywhere. Raises ValueError for an unknown implementation:
    nothing falls back in silence.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"tree_attention: no implementation {implementation!r}, only {sorted(IMPLEMENTATIONS)}"
        )
    return IMPLEMENTATIONS[implementation](q_BTNH, k_BTKH, v_BTKH, subtree_size_BT)
