"""Attention over pages against its definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import (
    dynamic_validate_inputs,
    ref_ragged_paged_attention,
)

from rationalyst_jax.lm.engine.attention import Queries, SharedPrefix, cpu, ragged, xla

SIZE, P = 4, 12


def exact(q_QNH, keys_SKH, values_SKH, position_Q):
    groups = q_QNH.shape[1] // keys_SKH.shape[1]
    keys = keys_SKH.repeat(groups, 1)
    values = values_SKH.repeat(groups, 1)
    scores = np.einsum("qnh,snh->nqs", q_QNH, keys) / np.sqrt(q_QNH.shape[2])
    scores = np.where(np.arange(len(keys)) <= position_Q[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    return np.einsum("nqs,snh->qnh", weights / weights.sum(axis=2, keepdims=True), values)


def as_documented(*inputs, sm_scale, **blocks):
    """JAX's own reference of its kernel, which its interpreter cannot run."""
    dynamic_validate_inputs(*inputs, **blocks)
    return ref_ragged_paged_attention(*inputs, sm_scale=sm_scale)


def queries_of(rng, count, queries, shared, spare, K, H):
    """Rows of queries whose pages are their own but for a shared prefix."""
    page_RP = spare[: count * P].reshape(count, P)
    in_prefix_R = rng.random(count) < 0.7 * (shared > 0)
    page_RP[in_prefix_R, :shared] = (
        np.arange(shared) + 1
    )  # wherever else these pages are read: that is allowed
    last_R = rng.integers(shared * SIZE + queries, P * SIZE, count)
    last_R[-1] = np.where(in_prefix_R[-1], last_R[-1], queries - 1)  # shorter than the shared prefix
    return Queries(last_R[:, None] - np.arange(queries)[::-1], page_RP, in_prefix_R)


@pytest.mark.parametrize("implementation", ["cpu", "gpu", "tpu", "kernel", "kernel in bfloat16"])
@pytest.mark.parametrize(("decoding", "chunks", "shared"), [(1, 0, 0), (5, 2, 3), (11, 3, 7), (8, 1, 0)])
def test_every_query_sees_its_own_tokens_and_those_before(
    decoding, chunks, shared, implementation, monkeypatch
):
    monkeypatch.setattr(xla, "KEYS_ON_CPU", 2 * SIZE)
    monkeypatch.setattr(xla, "KEYS_AT_ONCE", 3 * SIZE)
    rng = np.random.default_rng(decoding)
    K = 2
    N = 6
    H = {"tpu": 128, "kernel": 64, "kernel in bfloat16": 64}.get(implementation, 8)
    if implementation.startswith("kernel") and not cpu.serves(H, jnp.float32):
        pytest.skip("no C++ compiler")
    count = (decoding + chunks) * P
    cache = rng.normal(size=(count + 1, SIZE, 2 * K, H)).astype(np.float32)
    if implementation == "kernel in bfloat16":
        cache = cache.astype(jnp.bfloat16)
    spare = rng.permutation(count) + 1
    queries = [queries_of(rng, decoding, 1, shared, spare, K, H)]
    if chunks:
        queries.append(queries_of(rng, chunks, 3, shared, spare[decoding * P :], K, H))
    q_MNH = rng.normal(size=(decoding + 3 * chunks, N, H)).astype(np.float32)
    page_P = np.zeros(P, np.int32)
    page_P[:shared] = np.arange(shared) + 1
    inputs = jnp.array(q_MNH), jnp.array(cache), SharedPrefix(jnp.array(page_P), jnp.int32(shared))
    on_device = [
        jax.tree.map(lambda x: jnp.array(x, bool if x.dtype == bool else jnp.int32), r) for r in queries
    ]
    if implementation == "tpu":
        monkeypatch.setattr(ragged, "ragged_paged_attention", as_documented)
        monkeypatch.setattr(ragged, "TABLE", 4 * (P + 1))  # four rows a call
        got = np.asarray(ragged.attention(*inputs, on_device, "tpu"))
    else:
        module = cpu if implementation.startswith("kernel") else xla
        attention = jax.jit(module.attention, static_argnames="platform")
        got = np.asarray(attention(*inputs, on_device, platform=implementation))
    start = 0
    for position_Q, page_P in (
        (p, t) for r in queries for p, t in zip(r.position_RQ, r.page_RP, strict=True)
    ):
        q_QNH = q_MNH[start : start + len(position_Q)].astype(np.float64)
        kv = cache[page_P].reshape(P * SIZE, 2 * K, H).astype(np.float64)
        want = exact(q_QNH, kv[:, 0::2], kv[:, 1::2], position_Q)
        np.testing.assert_allclose(got[start : start + len(position_Q)], want, atol=2e-6)
        start += len(position_Q)


@pytest.mark.parametrize("module", [xla, cpu])
def test_a_filler_reads_nothing_and_is_no_nan(module):
    if module is cpu and not cpu.serves(64, jnp.float32):
        pytest.skip("no C++ compiler")
    cache = jnp.full((3, SIZE, 2, 64), np.nan)
    nothing = SharedPrefix(jnp.zeros(2, jnp.int32), jnp.int32(0))
    fillers = Queries(jnp.full((2, 1), -1), jnp.ones((2, 2), jnp.int32), jnp.zeros(2, bool))
    attention = jax.jit(module.attention, static_argnames="platform")
    out = attention(jnp.ones((2, 2, 64)), cache, nothing, [fillers], platform="cpu")
    assert np.isfinite(np.asarray(out)).all()
