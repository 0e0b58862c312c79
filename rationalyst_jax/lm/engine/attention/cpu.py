"""Attention over pages on a CPU, by code of our own (`lm/cpu/paged_attention.cc`): one call for all pages of
a row, where XLA makes dozens of small programs.

R rows of Q queries; the other letters as in docs/architecture.md.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from rationalyst_jax.lm.cpu.library import HEAD, kernel
from rationalyst_jax.lm.engine.attention import Queries, SharedPrefix


def serves(H: int, dtype: Any) -> bool:
    """Heads as published checkpoints have them, where there is a compiler."""
    return H % HEAD == 0 and kernel("paged_attention.cc", "paged_attention", dtype) is not None


def attention(
    q_MNH: Array, cache: Array, shared_prefix: SharedPrefix, queries: Sequence[Queries], platform: str
) -> Array:
    """See `paged_attention`."""
    target = kernel("paged_attention.cc", "paged_attention", cache.dtype)
    assert target is not None, "asked without `serves`"
    outputs = []
    start = 0
    for some in queries:
        stop = start + some.position_RQ.size
        q_RQNH = q_MNH[start:stop].reshape(*some.position_RQ.shape, *q_MNH.shape[1:])
        out_RQNH = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(q_RQNH.shape, jnp.float32))(
            q_RQNH.astype(jnp.float32),
            cache,
            shared_prefix.page_P,
            jnp.int32(shared_prefix.count),
            some.position_RQ,
            some.page_RP,
            some.in_prefix_R,
        )
        outputs.append(out_RQNH.reshape(-1, *q_MNH.shape[1:]).astype(q_MNH.dtype))
        start = stop
    return jnp.concatenate(outputs)
