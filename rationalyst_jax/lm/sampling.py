"""Choosing the next token: noise that only the request decides, temperature, top-k and top-p.

R rows (one per sequence being generated), V vocabulary, in B blocks of S.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


def token_keys(seed_R: Array, candidate_R: Array, position_R: Array) -> Array:
    """The random key of each row's next token, a function of nothing but the three numbers.

    So a row is sampled alike in any batch and at any place of it. `seed` is uint32; `position` is the
    token's index in the whole sequence, context included.
    """

    def key(seed: Array, candidate: Array, position: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), candidate), position)

    return jax.vmap(key)(seed_R, candidate_R, position_R)


def likeliest(logits_RV: Array, top_k_R: Array, top_p_R: Array) -> Array:
    """-inf but for the `top_k` likeliest tokens (0: all), and of these the fewest of mass >= `top_p`.

    (Top-p: arXiv 1904.09751, section 3.1.) Tokens exactly as likely as the last of them stay too.
    """
    V = logits_RV.shape[-1]
    sorted_RV = -jnp.sort(-logits_RV, axis=-1)
    last_R1 = jnp.where(top_k_R > 0, jnp.minimum(top_k_R, V), V)[:, None] - 1
    kept_RV = sorted_RV >= jnp.take_along_axis(sorted_RV, last_R1, axis=-1)
    sorted_RV = jnp.where(kept_RV, sorted_RV, -jnp.inf)
    mass_RV = jax.nn.softmax(sorted_RV, axis=-1)
    before_RV = jnp.cumsum(mass_RV, axis=-1) - mass_RV
    kept_RV &= (before_RV < top_p_R[:, None]).at[:, 0].set(True)
    least_R1 = jnp.min(jnp.where(kept_RV, sorted_RV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_RV >= least_R1, logits_RV, -jnp.inf)


def draw(logits_RV: Array, key_R: Array, temperature_R: Array, top_k_R: Array, top_p_R: Array) -> Array:
    """A token of each row, int32 `[R]`, from softmax(logits / temperature) by the Gumbel-max trick.

    In two levels, since noise is dear: one of B blocks of S words by the mass of each, then a word of it. The
    largest of several Gumbel variables is one too, at the logarithm of their summed masses, so the
    distribution is the same, and B + S numbers are drawn instead of V. A difference in rounding changes the
    token only where two perturbed masses are that close.

    Top-k and top-p are applied after the temperature, where a row asks for them. A temperature of 0 is taken
    for 1: whoever wants the likeliest token needs no draw.
    """
    R, V = logits_RV.shape
    logits_RV = logits_RV / jnp.where(temperature_R > 0, temperature_R, 1)[:, None]
    restricted = (top_k_R > 0).any() | (top_p_R < 1).any()
    restrict = partial(likeliest, logits_RV, top_k_R, top_p_R)
    logits_RV = jax.lax.cond(restricted, restrict, lambda: logits_RV)

    S = 2 ** math.ceil(math.log2(V) / 2)
    logits_RBS = jnp.pad(logits_RV, ((0, 0), (0, -V % S)), constant_values=-jnp.inf).reshape(R, -1, S)
    keys_R2 = jax.vmap(jax.random.split)(key_R)

    def likeliest_with_noise(logits_RX: Array, key_R: Array) -> Array:
        noise_RX = jax.vmap(lambda key: jax.random.gumbel(key, logits_RX.shape[1:]))(key_R)
        return jnp.argmax(logits_RX + noise_RX, axis=-1)

    block_R = likeliest_with_noise(jax.nn.logsumexp(logits_RBS, axis=-1), keys_R2[:, 0])
    word_R = likeliest_with_noise(logits_RBS[jnp.arange(R), block_R], keys_R2[:, 1])
    return (block_R * S + word_R).astype(jnp.int32)
