"""The optimizer step: loss over a whole batch, accumulated gradient, AdamW.

The loss of a batch is `sum_i w_i * -log p(token_i | its path) / sum_i w_i` over all its targets, in nats per
unit of weight: a mean over the global batch, not a mean of means.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from rationalyst_jax.lm.llama import Llama, tree_attend
from rationalyst_jax.lm.logprobs import token_logprobs
from rationalyst_jax.train.batches import Batch
from rationalyst_jax.train.config import TrainConfig


class TrainState(NamedTuple):
    """What a step turns into the next: float32 weights, the optimizer's moments, steps done (int32)."""

    weights: Any
    optimizer: Any
    step: Array


def learning_rate(config: TrainConfig, steps: int) -> optax.Schedule:
    """Linear warm-up from 0 and cosine decay, per step done (the rule of transformers' cosine schedule)."""
    warmup = math.ceil(config.warmup_fraction * steps)

    def rate(step: Any) -> Array:
        rising = step / max(1, warmup)
        progress = jnp.clip((step - warmup) / max(1, steps - warmup), 0.0, 1.0)
        falling = config.final_fraction + (1 - config.final_fraction) * (1 + jnp.cos(jnp.pi * progress)) / 2
        return config.peak_learning_rate * jnp.where(step < warmup, rising, falling)

    return rate


def adamw(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) after clipping by global norm; decay on everything but the norms."""

    def decays(weights: Any) -> Any:
        return jax.tree.map_with_path(lambda path, _: "norm" not in jax.tree_util.keystr(path), weights)

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decays,
        ),
    )


def batch_loss(graph: Any, weights: Any, microbatch: Batch, dtype: str) -> Array:
    """Weighted negative log-likelihood (nats, float32) of one microbatch, *summed* over its targets."""
    model: Llama = nnx.merge(graph, jax.tree.map(lambda w: w.astype(dtype), weights))
    hidden_BTD, _ = model(
        microbatch.token_ABT, microbatch.position_ABT, tree_attend(microbatch.subtree_size_ABT)
    )
    asked = microbatch.place_ABP, microbatch.target_ABP
    logprob_BP, _ = token_logprobs(hidden_BTD, model.output_VD(), *asked)
    return -jnp.sum(microbatch.weight_ABP * logprob_BP)


def microbatch_at(batch: Batch, index: Array) -> Batch:
    """Microbatch `index` of a batch: the same arrays without their leading A."""
    return jax.tree.map(lambda x: x[index] if x.ndim else x, batch)


def loss_and_gradient(graph: Any, weights: Any, batch: Batch, dtype: str) -> tuple[Array, Any]:
    """The loss of the whole batch and its gradient in `weights`, one microbatch at a time."""

    def accumulate(index: Array, summed: tuple[Array, Any]) -> tuple[Array, Any]:
        one = jax.value_and_grad(batch_loss, argnums=1)(graph, weights, microbatch_at(batch, index), dtype)
        return jax.tree.map(jnp.add, summed, one)

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, weights))
    summed = jax.lax.fori_loop(0, batch.microbatches, accumulate, zero)
    total = batch.weight_ABP.sum()
    return jax.tree.map(lambda x: x / total, summed)


@partial(jax.jit, static_argnames=("graph", "config", "steps"), donate_argnames="state")
def train_step(
    graph: Any, config: TrainConfig, steps: int, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, Array]]:
    """One update of a run of `steps`; `state` is donated.

    Metrics, float32 scalars: `loss` (nats per unit of weight, before the update), `grad_norm` (before
    clipping), `learning_rate` (of this update).
    """
    loss, gradient = loss_and_gradient(graph, state.weights, batch, config.dtype)
    updates, moments = adamw(config, steps).update(gradient, state.optimizer, state.weights)
    metrics = {
        "loss": loss,
        "grad_norm": optax.tree.norm(gradient),
        "learning_rate": learning_rate(config, steps)(state.step),
    }
    return TrainState(optax.apply_updates(state.weights, updates), moments, state.step + 1), metrics


@partial(jax.jit, static_argnames=("graph", "dtype"))
def validation_step(graph: Any, weights: Any, batch: Batch, dtype: str) -> tuple[Array, Array]:
    """(summed loss in nats, summed loss weight) of a batch, both float32."""

    def accumulate(index: Array, summed: Array) -> Array:
        return summed + batch_loss(graph, weights, microbatch_at(batch, index), dtype)

    return jax.lax.fori_loop(0, batch.microbatches, accumulate, jnp.zeros(())), batch.weight_ABP.sum()
