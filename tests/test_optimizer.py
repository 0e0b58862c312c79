"""Updates against independent ones, and what is kept in bfloat16 against what float32 would keep."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_train import FAST, fit_examples, random_examples, tiny_model

from rationalyst_jax.train.config import TrainConfig
from rationalyst_jax.train.optimizer import as_float32, optimizer, rounded

BF16 = jnp.bfloat16


@given(arrays(np.float32, 16, elements=st.floats(width=32)), st.integers(0, 2**31))
def test_rounding_gives_a_neighbor_and_keeps_what_bfloat16_can_hold(x, seed):
    found = np.asarray(rounded(jnp.asarray(x), BF16, jax.random.key(seed)).astype(jnp.float32))
    special = ~np.isfinite(x)
    np.testing.assert_array_equal(found[special], x[special])
    down = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)  # towards zero
    up = ((x.view(np.uint32) & 0xFFFF0000) + np.uint32(0x10000)).view(np.float32)
    assert ((found == down) | ((found == up) & (x != down)) | special).all()


def test_rounding_is_right_on_average():
    x = jnp.float32(1 + 0.3 / 128)  # three tenths of the way between two bfloat16 numbers
    found = rounded(jnp.full(20_000, x), BF16, jax.random.key(0)).astype(jnp.float32)
    up = np.asarray(found > 1)
    assert abs(up.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 20_000)


def test_a_second_moment_in_bfloat16_decays():
    """Rounded to the nearest it would stay: 0.999 of it is nearer to it than to the number below."""
    config = TrainConfig(moment_dtype="bfloat16", clip_norm=1e9)
    rule = optimizer(config, 10_000)
    weights: Any = jnp.ones(2000)
    state: Any = rule.init(weights)
    update = jax.jit(rule.update)
    for step in range(400):
        gradient = jnp.ones(2000) * (step < 3)
        _, state = update(gradient, state, weights)
    nu = jax.tree.leaves(state[1].inner.nu)[0]
    assert nu.dtype == BF16
    expected = (1 - 0.999**3) * 0.999**397
    assert float(nu.astype(jnp.float32).mean()) == pytest.approx(expected, rel=0.02)


def test_updates_below_the_distance_of_bfloat16_numbers_are_not_lost(tmp_path):
    """Weights of about 0.1 lie 0.0005 apart; a step moves them by 0.0001 at most."""
    config = replace(FAST, steps=20, peak_learning_rate=1e-4, warmup_fraction=0.0, save_every=100)
    start = jax.tree.map(lambda w: w.astype(BF16), nnx.state(tiny_model()))
    graph = nnx.graphdef(tiny_model())

    def moved(dtype, folder):
        model = nnx.merge(graph, jax.tree.map(jnp.copy, start))
        config_ = replace(config, master_dtype=dtype, moment_dtype=dtype)
        trained = as_float32(
            nnx.state(fit_examples(model, random_examples(60), config_, tmp_path / folder).model)
        )
        pairs = zip(jax.tree.leaves(trained), jax.tree.leaves(as_float32(start)), strict=True)
        return np.concatenate([np.ravel(new - old) for new, old in pairs])

    exact, coarse = moved("float32", "f32"), moved("bfloat16", "bf16")
    assert coarse @ exact / (exact @ exact) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adafactor_of_a_matrix_is_that_of_transformers(weight_decay):
    torch = pytest.importorskip("torch", reason="torch is the oracle here")
    from transformers.optimization import Adafactor

    rng = np.random.default_rng(0)
    start = rng.normal(size=(130, 140)).astype(np.float32)
    config = TrainConfig(optimizer="adafactor", peak_learning_rate=1e-2, warmup_fraction=0.0, clip_norm=1e9)
    config = replace(config, final_fraction=1.0, weight_decay=weight_decay)  # a constant rate
    rule = optimizer(config, 10)
    weight: Any = jnp.asarray(start)
    state = rule.init(weight)
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    options = {"lr": 1e-2, "scale_parameter": False, "relative_step": False, "warmup_init": False}
    peer = Adafactor([theirs], weight_decay=weight_decay, **options)
    for _ in range(5):
        gradient = rng.normal(size=start.shape).astype(np.float32)
        updates, state = rule.update(jnp.asarray(gradient), state, weight)
        weight = optax.apply_updates(weight, updates)
        theirs.grad = torch.from_numpy(gradient)
        peer.step()
    np.testing.assert_allclose(weight, theirs.detach().numpy(), atol=2e-5)
