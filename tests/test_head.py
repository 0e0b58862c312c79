"""What entries ask of hidden states, with the vocabulary in parts and blocks, against its definition."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler import needs_compiler
from scipy.special import log_softmax

from rationalyst_jax.lm.cpu import products
from rationalyst_jax.lm.engine import head
from rationalyst_jax.lm.engine.sampling import block_size

A, D = 7, 16


def asked(target, temperature, *, top_k=0, top_p=1.0, count=A):
    inputs = replace(
        head.HeadInputs.fillers(A),
        count=np.int32(count),
        wants_likeliest=np.bool_(True),
        place_A=np.arange(A, dtype=np.int32),
        target_A=np.full(A, target, np.int32),
        mask_A=np.arange(A, dtype=np.int32) % 2,
        remaining_A=np.full(A, 9, np.int32),
        position_A=np.arange(A, dtype=np.int32),
        temperature_A=np.full(A, temperature, np.float32),
        top_p_A=np.full(A, top_p, np.float32),
        top_k_A=np.full(A, top_k, np.int32),
    )
    return jax.tree.map(jnp.asarray, inputs)


def compiled(in_panels=False):
    """`head.apply_head`, compiled anew: its constants are changed here."""

    @partial(jax.jit, static_argnames="Z")
    def answer(hidden, table, masks, entries, Z):
        panels = products.in_panels(table.T[None]) if in_panels else None
        return head.apply_head(hidden, table, masks, entries, Z, panels=panels)

    return lambda inputs, entries, Z: answer(*map(jnp.asarray, inputs), entries, Z=Z)


def model(V):
    rng = np.random.default_rng(V)
    masks = np.zeros((2, V), np.uint8)
    masks[1, rng.permutation(V)[: V // 3]] = head.SUPPRESSED
    return rng.normal(size=(A, D)).astype(np.float32), rng.normal(size=(V, D)).astype(np.float32), masks


@pytest.mark.parametrize("in_panels", [False, pytest.param(True, marks=needs_compiler)])
@pytest.mark.parametrize(
    ("V", "words"), [(1, 9), (2, 9), (257, 300), (1200, 2000), (1200, 300), (1200, 40), (4096, 1100)]
)
def test_log_probabilities_are_those_of_the_softmax(V, words, in_panels, monkeypatch):
    monkeypatch.setattr(head, "LOGITS_ON_CPU", 3 * words)
    monkeypatch.setattr(head, "ENTRIES_AT_ONCE", 3)
    hidden, table, masks = model(V)
    logits = hidden.astype(np.float64) @ table.T.astype(np.float64)
    exact = log_softmax(np.where(masks[np.arange(A) % 2] == head.SUPPRESSED, -np.inf, logits), axis=1)
    answers = compiled(in_panels)
    likeliest = answers((hidden, table, masks), asked(-1, 0.0), min(V, 4))
    np.testing.assert_array_equal(likeliest.token_A, exact.argmax(axis=1))
    np.testing.assert_allclose(likeliest.logprob_A, exact.max(axis=1), atol=1e-5)
    np.testing.assert_array_equal(likeliest.likeliest_AZ[:, 0], likeliest.token_A)
    np.testing.assert_allclose(
        likeliest.likeliest_logprob_AZ, -np.sort(-exact, axis=1)[:, : min(V, 4)], atol=1e-5
    )
    for target in {0, V // 2, V - 1}:
        given = answers((hidden, table, masks), asked(target, 0.0), 0)
        np.testing.assert_array_equal(given.token_A, target)
        np.testing.assert_allclose(given.logprob_A, exact[:, target], atol=1e-5)


@pytest.mark.parametrize("how", [{}, {"top_k": 3}, {"top_p": 0.4}], ids=["all", "top-k", "top-p"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_parts_do_not_change_what_is_drawn(how, temperature, monkeypatch):
    inputs = model(1200)
    whole = compiled()(inputs, asked(-1, temperature, **how), 0)
    monkeypatch.setattr(head, "LOGITS_ON_CPU", 2 * 300)
    monkeypatch.setattr(head, "ENTRIES_AT_ONCE", 2)
    parts = compiled()(inputs, asked(-1, temperature, **how), 0)
    np.testing.assert_array_equal(parts.token_A, whole.token_A)
    np.testing.assert_allclose(parts.logprob_A, whole.logprob_A, atol=1e-5)


def test_entries_behind_the_count_are_not_computed():
    inputs = model(257)
    nothing = compiled()(inputs, asked(-1, 0.0, count=0), 2)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(nothing))


@pytest.mark.parametrize(
    ("V", "S"), [(128256, 334), (32000, 160), (151936, 512), (257, 32), (472, 32), (1, 1)]
)
def test_blocks_are_about_the_square_root_of_the_vocabulary(V, S):
    assert block_size(V) == S
