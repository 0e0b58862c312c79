"""Log-probabilities at asked places against float64, whatever the tiles, dtypes and meshes."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from rationalyst_jax.lm.devices.sharding import make_mesh
from rationalyst_jax.lm.trees.logprobs import _tile, token_logprobs

D, V = 8, 21


def draw(B: int, T: int, P: int, asked: float = 0.7, V: int = V):
    """Hidden states, head, places and targets, of which a part asks for nothing."""
    rng = np.random.default_rng(B * T * P)
    hidden_BTD, head_VD = rng.normal(size=(B, T, D)), rng.normal(size=(V, D))
    target_BP = np.where(rng.random((B, P)) < asked, rng.integers(0, V, (B, P)), -1)
    return hidden_BTD, head_VD, jnp.asarray(rng.integers(0, T, (B, P))), jnp.asarray(target_BP)


def exact(hidden_BTD, head_VD, place_BP, target_BP, suppress=()):
    """Log-probabilities in float64, all logits at once."""
    logits_BTV = hidden_BTD @ head_VD.T
    logits_BTV = logits_BTV.at[:, :, list(suppress)].set(-jnp.inf) if suppress else logits_BTV
    logits_BPV = jnp.take_along_axis(logits_BTV, place_BP[..., None], 1)
    target_BP1 = jnp.maximum(target_BP, 0)[..., None]
    logprobs_BP = jnp.take_along_axis(jax.nn.log_softmax(logits_BPV), target_BP1, 2)[..., 0]
    return jnp.where(target_BP >= 0, logprobs_BP, 0.0)


def check(arrays, dtype="float32", suppress=(), **options) -> None:
    """Values and gradients equal those of `exact` on the same (rounded) numbers."""
    hidden, head, place, target = arrays
    hidden, head = (np.asarray(jnp.asarray(x, dtype), np.float64) for x in (hidden, head))
    weight = np.random.default_rng(1).normal(size=place.shape)

    def total(function, hidden, head):
        logprobs = function(hidden, head, place, target, suppress=suppress)
        return jnp.sum(weight * jnp.where(jnp.isfinite(logprobs), logprobs, 0.0)), logprobs

    ours = partial(total, partial(token_logprobs, **options))
    (_, logprobs), gradients = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(
        jnp.asarray(hidden, dtype), jnp.asarray(head, dtype)
    )
    with jax.enable_x64(True):
        oracle = jax.jit(jax.value_and_grad(partial(total, exact), (0, 1), has_aux=True))
        (_, wanted), wanted_gradients = oracle(jnp.asarray(hidden), jnp.asarray(head))
    assert logprobs.dtype == jnp.float32
    # 40 half units in the last place: the rounding of D products, V exponentials and a logarithm
    half_unit = 2.0**-24 if dtype == "float32" else 2.0**-9
    assert_allclose(logprobs, wanted, atol=40 * 2.0**-24 * 8)  # sums are float32 in both
    for a, b in zip(gradients, wanted_gradients, strict=True):
        assert a.dtype == dtype
        assert_allclose(np.asarray(a, np.float64), b, atol=40 * half_unit * np.abs(b).max())


@settings(max_examples=4)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(1, 30))
def test_values_and_gradients_whatever_the_shapes(B, T, P, places, words):
    check(draw(B, T, P), tile=(places, words))


@pytest.mark.parametrize("tile", [None, (1, 1), (7, 4), (40, 7), (100, 100)])
def test_values_and_gradients_whatever_the_tiles(tile):
    check(draw(2, 30, 20), tile=tile)


def test_the_more_words_the_fewer_places_on_a_cpu():
    words = {16: 1024, 512: 1024, 600: 873, 4096: 128, 128_256: 128}
    assert {V: _tile("cpu", V)[0] for V in words} == words
    assert {_tile(platform, V)[0] for platform in ("gpu", "tpu") for V in words} == {1024}


def test_values_and_gradients_of_a_vocabulary_with_several_tiles_of_places():
    """Two rows of 200 places in tiles of 128 that are chosen without being asked for."""
    check(draw(2, 30, 200, V=5000))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("suppress", [(), (0, 5, 20)])
def test_values_and_gradients_in_every_dtype_with_suppressed_ids(dtype, suppress):
    check(draw(2, 30, 40), dtype, suppress, tile=(16, 8))


def test_suppressed_tokens_get_no_probability_and_the_others_share_theirs():
    hidden, head, place, _ = draw(1, 3, 2)
    target = jnp.array([[1, 5]])
    got = token_logprobs(jnp.float32(hidden), jnp.float32(head), place, target, suppress=(2, 5))
    logits = np.delete(hidden[0, place[0, 0]] @ head.T, [2, 5])
    assert_allclose(got[0, 0], logits[1] - np.log(np.exp(logits).sum()), rtol=1e-5)
    assert got[0, 1] == -np.inf


def test_tiles_that_nobody_asks_for_are_skipped():
    """What such a tile would read may be NaN: had it been computed, the head's gradient would show it."""
    hidden, head, place, target = draw(1, 8, 8, asked=1.0)
    hidden[0, 4:] = np.nan
    place = jnp.arange(8)[None]
    target = target.at[0, 4:].set(-1)

    def total(hidden, head):
        return token_logprobs(hidden, head, place, target, tile=(4, 8)).sum()

    value, gradients = jax.value_and_grad(total, (0, 1))(jnp.float32(hidden), jnp.float32(head))
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("shape", [(1, 1, 7), (2, 2, 1), (1, 2, 3)])
@pytest.mark.parametrize("suppress", [(), (0, 5, 20)])
def test_a_vocabulary_divided_among_devices_gives_the_same(shape, suppress):
    mesh = make_mesh(*shape, devices=jax.devices()[: math.prod(shape)])
    check(draw(4, 10, 12), suppress=suppress, tile=(5, 2), mesh=mesh)


def test_a_vocabulary_that_cannot_be_divided_is_refused():
    hidden, head, place, target = draw(1, 3, 2)
    with pytest.raises(ValueError, match="a vocabulary of 21 cannot be divided among 2 devices"):
        token_logprobs(
            jnp.float32(hidden), jnp.float32(head), place, target, mesh=make_mesh(1, 1, 2, jax.devices()[:2])
        )


def test_memory_at_the_size_of_llama_3_8b_stays_below_a_quarter_of_full_logits():
    places, width, words = 4096, 4096, 128256
    hidden = jax.ShapeDtypeStruct((1, places, width), jnp.float32)
    head = jax.ShapeDtypeStruct((words, width), jnp.float32)
    asked = jax.ShapeDtypeStruct((1, places), jnp.int32)

    def ours(hidden, head, place, target):
        return token_logprobs(hidden, head, place, target).sum()

    def full(hidden, head, place, target):
        logprobs = jax.nn.log_softmax(jnp.take_along_axis(hidden, place[..., None], 1) @ head.T)
        return jnp.take_along_axis(logprobs, target[..., None], 2).sum()

    def temporary(function) -> int:
        lowered = jax.jit(jax.value_and_grad(function, (0, 1))).lower(hidden, head, asked, asked)
        memory = lowered.compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    found, wanted = temporary(ours), temporary(full)
    print(f"temporary memory: {found / 2**20:,.0f} MiB, with full logits {wanted / 2**20:,.0f} MiB")
    assert found < wanted / 4
