"""Attention over pages against its definition in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from rationalyst_jax.lm.engine import attention
from rationalyst_jax.lm.engine.attention import Trunk, paged_attention

SIZE = 4


def exact(q_QNH, keys_SKH, values_SKH, position_Q):
    groups = q_QNH.shape[1] // keys_SKH.shape[1]
    keys, values = keys_SKH.repeat(groups, 1), values_SKH.repeat(groups, 1)
    scores = np.einsum("qnh,snh->nqs", q_QNH, keys) / np.sqrt(q_QNH.shape[2])
    scores = np.where(np.arange(len(keys)) <= position_Q[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    return np.einsum("nqs,snh->qnh", weights / weights.sum(axis=2, keepdims=True), values)


@pytest.mark.parametrize("groups", [True, False], ids=["few rows at once", "all rows at once"])
@pytest.mark.parametrize(("rows", "queries", "trunk"), [(1, 1, 0), (5, 1, 3), (11, 3, 7), (8, 2, 0)])
def test_every_query_sees_its_own_tokens_and_those_before(rows, queries, trunk, groups, monkeypatch):
    if not groups:
        monkeypatch.setattr(attention.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(attention, "KEYS_ON_CPU", 2 * SIZE)
    monkeypatch.setattr(attention, "KEYS_AT_ONCE", 3 * SIZE)
    rng, K, N, H, P = np.random.default_rng(rows), 2, 6, 8, 12
    cache = rng.normal(size=(rows * P + 1, SIZE, 2 * K, H)).astype(np.float32)
    page_RP = rng.permutation(rows * P).reshape(rows, P) + 1
    member_R = rng.random(rows) < 0.7 * (trunk > 0)
    page_RP[member_R, :trunk] = np.arange(trunk) + 1  # wherever else these pages are read: that is allowed
    last_R = rng.integers(trunk * SIZE + queries, P * SIZE, rows)
    last_R[-1] = np.where(member_R[-1], last_R[-1], queries - 1)  # a row shorter than the trunk
    position_RQ = last_R[:, None] - np.arange(queries)[::-1]
    q_RQNH = rng.normal(size=(rows, queries, N, H)).astype(np.float32)
    page_P = np.zeros(P, np.int32)
    page_P[:trunk] = np.arange(trunk) + 1
    shared, member = Trunk(jnp.array(page_P), jnp.int32(trunk)), jnp.array(member_R)
    pages, positions = jnp.array(page_RP, jnp.int32), jnp.array(position_RQ, jnp.int32)
    got = np.asarray(paged_attention(jnp.array(q_RQNH), jnp.array(cache), pages, positions, shared, member))
    for r in range(rows):
        kv = cache[page_RP[r]].reshape(P * SIZE, 2 * K, H).astype(np.float64)
        want = exact(q_RQNH[r].astype(np.float64), kv[:, 0::2], kv[:, 1::2], position_RQ[r])
        np.testing.assert_allclose(got[r], want, atol=2e-6)


def test_a_filler_reads_nothing_and_is_no_nan():
    cache = jnp.full((3, SIZE, 2, 8), np.nan)
    q = jnp.ones((2, 1, 2, 8))
    nothing = Trunk(jnp.zeros(2, jnp.int32), jnp.int32(0))
    out = paged_attention(
        q, cache, jnp.ones((2, 2), jnp.int32), jnp.full((2, 1), -1), nothing, jnp.zeros(2, bool)
    )
    assert np.isfinite(np.asarray(out)).all()
