"""From gradient to update: schedule, clipping, AdamW or Adafactor, and weights and moments kept in bfloat16.

An update of 2e-5 is less than half of what separates a bfloat16 number of 0.02 from the next one, and a
second moment decays by less than that in a step: rounding to nearest would lose both for good. What is kept
in bfloat16 is therefore rounded up or down at random, so that it is right on average.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike

from rationalyst_jax.train.config import TrainConfig


def learning_rate(config: TrainConfig, steps: int) -> optax.Schedule:
    """Linear warm-up from 0 and cosine decay, per step done (the rule of transformers' cosine schedule)."""
    warmup = math.ceil(config.warmup_fraction * steps)

    def rate(step: Any) -> Array:
        rising = step / max(1, warmup)
        progress = jnp.clip((step - warmup) / max(1, steps - warmup), 0.0, 1.0)
        falling = config.final_fraction + (1 - config.final_fraction) * (1 + jnp.cos(jnp.pi * progress)) / 2
        return config.peak_learning_rate * jnp.where(step < warmup, rising, falling)

    return rate


def optimizer(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) or Adafactor (arXiv 1804.04235) after clipping by global norm.

    Gradients and weights come in float32, and so does the update. Adafactor takes the layers' matrices as
    they are stacked: one is factored along its two largest axes, and clipped by the RMS over all layers.
    """
    if config.optimizer == "adafactor":
        rule = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    else:
        rule = optax.scale_by_adam(config.b1, config.b2, config.eps)
        if config.moment_dtype != "float32":
            rule = _kept_in(rule, config.moment_dtype, config.seed)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        rule,
        optax.add_decayed_weights(config.weight_decay, _decays),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )


def _decays(weights: Any) -> Any:
    """Which weights decay: all but the norms."""
    return jax.tree.map_with_path(lambda path, _: "norm" not in jax.tree_util.keystr(path), weights)


class _Kept(NamedTuple):
    inner: Any
    count: Array


def _kept_in(rule: optax.GradientTransformation, dtype: DTypeLike, seed: int) -> optax.GradientTransformation:
    """`rule`, which computes in float32, with its state kept in `dtype` from one step to the next."""

    def keep(state: Any, count: Array) -> _Kept:
        return _Kept(rounded(state, dtype, jax.random.fold_in(jax.random.key(seed), count)), count)

    def init(params: Any) -> _Kept:
        return keep(rule.init(params), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, _Kept]:
        updates, inner = rule.update(updates, as_float32(state.inner), params)
        return updates, keep(inner, state.count + 1)

    return optax.GradientTransformation(init, update)


def as_float32(tree: Any) -> Any:
    """Every floating-point array in float32; counts as they are."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def rounded(tree: Any, dtype: DTypeLike, key: Array) -> Any:
    """Every float32 array in `dtype`: as it is, or stochastically rounded to bfloat16."""
    if jnp.dtype(dtype) == jnp.float32:
        return tree
    leaves, form = jax.tree.flatten(tree)
    seeds = jax.random.bits(key, (len(leaves),))
    return form.unflatten(
        [_to_bfloat16(x, seeds[i]) if x.dtype == jnp.float32 else x for i, x in enumerate(leaves)]
    )


def _to_bfloat16(x: Array, seed: Array) -> Array:
    """One of the two bfloat16 neighbors of each number, the nearer one the likelier: x on average.

    bfloat16 is the upper half of float32, so a random lower half added before the cut carries over into the
    upper one as often as it should. What is not finite stays what it is.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = _mixed(_mixed(_places(x.shape)) ^ seed) >> 16
    cut = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), cut, x).astype(jnp.bfloat16)


def _places(shape: tuple[int, ...]) -> Array:
    """The number of each element, which does not depend on how the array is divided among devices."""
    place = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return place


def _mixed(x: Array) -> Array:
    """A permutation of 32-bit numbers after which neighbors have nothing in common ("lowbias32", C. Wellons).

    Noise for rounding needs no more, and XLA takes minutes to compile jax.random's for every parameter.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
