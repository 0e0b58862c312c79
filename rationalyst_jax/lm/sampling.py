"""Choosing the next token: noise that only the request decides, temperature and top-p.

R rows (one per sequence being generated), V vocabulary.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

Mode = Literal["greedy", "sample", "nucleus"]


def token_keys(seed_R: Array, candidate_R: Array, position_R: Array) -> Array:
    """The random key of each row's next token, a function of nothing but the three numbers.

    So a row is sampled alike in any batch and at any place of it. `seed` is uint32; `position` is the
    token's index in the whole sequence, context included.
    """

    def key(seed: Array, candidate: Array, position: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), candidate), position)

    return jax.vmap(key)(seed_R, candidate_R, position_R)


def nucleus(logits_RV: Array, top_p_R: Array) -> Array:
    """Top-p (arXiv 1904.09751, section 3.1): -inf but for the fewest likeliest tokens of mass >= top_p.

    Tokens exactly as likely as the last of them stay too.
    """
    sorted_RV = -jnp.sort(-logits_RV, axis=-1)
    mass_RV = jax.nn.softmax(sorted_RV, axis=-1)
    before_RV = jnp.cumsum(mass_RV, axis=-1) - mass_RV
    kept_RV = (before_RV < top_p_R[:, None]).at[:, 0].set(True)
    least_R1 = jnp.min(jnp.where(kept_RV, sorted_RV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_RV >= least_R1, logits_RV, -jnp.inf)


def choose(logits_RV: Array, key_R: Array, temperature_R: Array, top_p_R: Array, mode: Mode) -> Array:
    """The next token of each row, int32 `[R]`.

    `mode` is what all rows need: "greedy" ignores the last three arrays; "sample" draws from
    softmax(logits / temperature) by the Gumbel-max trick; "nucleus" applies top-p to it first.
    """
    if mode == "greedy":
        return jnp.argmax(logits_RV, axis=-1).astype(jnp.int32)
    logits_RV = logits_RV / temperature_R[:, None]
    if mode == "nucleus":
        logits_RV = nucleus(logits_RV, top_p_R)
    noise_RV = jax.vmap(lambda key: jax.random.gumbel(key, logits_RV.shape[1:]))(key_R)
    return jnp.argmax(logits_RV + noise_RV, axis=-1).astype(jnp.int32)
