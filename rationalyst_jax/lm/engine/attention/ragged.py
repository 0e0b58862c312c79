"""Attention over pages on TPUs: JAX's own kernel, which takes all rows of a step in one call.

It knows no shared prefix: every row reads all of its own pages.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

from rationalyst_jax.lm.devices.precision import precision_of
from rationalyst_jax.lm.engine.attention import Queries, SharedPrefix

LANES = 128
# Pages of keys and queries that a core works on at once. The kernel's own table asks the devices that are
# there, which are not those a program is compiled for.
PAGES = 32
QUERIES = 32
TABLE = 2**17  # page numbers that fit in a core's scalar memory (1 MiB) beside the rest: so many rows a call


def serves(H: int, dtype: Any) -> bool:
    """Whole rows of lanes."""
    return H % LANES == 0


def attention(
    q_MNH: Array, cache: Array, shared_prefix: SharedPrefix, queries: Sequence[Queries], platform: str
) -> Array:
    """See `paged_attention`. A row has all its Q queries here, of which fillers see what may be anything."""
    counts = [some.position_RQ.shape[1] for some in queries for _ in range(some.position_RQ.shape[0])]
    length_R = jnp.concatenate(
        [jnp.maximum(some.position_RQ[:, 0], 0) + some.position_RQ.shape[1] for some in queries]
    )
    behind = -(-max(counts) // cache.shape[1])  # pages after the last one, where fillers may stand
    page_RP = jnp.pad(jnp.concatenate([some.page_RP for some in queries]), ((0, 0), (0, behind)))
    P = page_RP.shape[1]
    at_once = max(1, TABLE // P)
    outputs = []
    for start in range(0, len(counts), at_once):
        some = slice(start, start + at_once)
        place = sum(counts[:start])
        q_mNH = q_MNH[place : place + sum(counts[some])]
        precision = precision_of(q_mNH, cache).name.lower()
        with jax.default_matmul_precision(precision):  # the kernel takes it from nowhere else
            out_mNH = ragged_paged_attention(
                q_mNH,
                cache,
                length_R[some],
                page_RP[some],
                jnp.array([0, *accumulate(counts[some])], jnp.int32),
                jnp.array([len(counts[some])], jnp.int32),
                sm_scale=q_MNH.shape[2] ** -0.5,
                num_kv_pages_per_block=min(PAGES, P),
                num_queries_per_block=min(QUERIES, len(q_mNH)),
            )
        outputs.append(out_mNH)
    return jnp.concatenate(outputs)
