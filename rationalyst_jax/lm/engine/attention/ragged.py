"""Attention over pages on TPUs: JAX's own kernel, which takes all rows of a step in one call.

It knows no trunk: every row reads its own pages, so that members do not save reading.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

from rationalyst_jax.lm.engine.attention import Rows, Trunk

LANES = 128
# Pages of keys and queries that a core works on at once. The kernel's own table asks the devices that are
# there, which are not those a program is compiled for.
PAGES, QUERIES = 32, 32


def refusal(H: int) -> str | None:
    """Why this implementation cannot serve a call; None: it can."""
    return None if H % LANES == 0 else f"the ragged kernel has head sizes that {LANES} divides, not {H}"


def attention(q_MNH: Array, cache: Array, trunk: Trunk, rows: Sequence[Rows], platform: str) -> Array:
    """See `paged_attention`. A row has all its Q queries here, of which fillers see what may be anything."""
    most = max(r.position_RQ.shape[1] for r in rows)
    P = rows[0].page_RP.shape[1] + -(-most // cache.shape[1])  # fillers may stand behind the last page
    lengths, tables, starts = [], [], []
    for r in rows:
        R, Q = r.position_RQ.shape
        lengths.append(jnp.maximum(r.position_RQ[:, 0], 0) + Q)
        tables.append(jnp.pad(r.page_RP, ((0, 0), (0, P - r.page_RP.shape[1]))))
        starts.append(jnp.full(R, Q, jnp.int32))
    count_R = jnp.concatenate(starts)
    return ragged_paged_attention(
        q_MNH,
        cache,
        jnp.concatenate(lengths),
        jnp.concatenate(tables),
        jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(count_R, dtype=jnp.int32)]),
        jnp.array([len(count_R)], jnp.int32),
        sm_scale=q_MNH.shape[2] ** -0.5,
        num_kv_pages_per_block=min(PAGES, P),
        num_queries_per_block=min(QUERIES, len(q_MNH)),
    )
