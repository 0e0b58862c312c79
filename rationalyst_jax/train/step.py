"""The optimizer step: loss over a whole batch, accumulated gradient, update.

The loss of a batch is `sum_i w_i * -log p(token_i | its path) / sum_i w_i` over all its targets, in nats per
unit of weight: a mean over the global batch, not a mean of means.

What is trained is apart from what is not: without adapters all weights are trained and nothing is frozen,
with adapters they alone are trained.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from rationalyst_jax.lm.devices.sharding import placed, shard_state
from rationalyst_jax.lm.model.llama import Llama, tree_attend
from rationalyst_jax.lm.model.lora import LoraParam
from rationalyst_jax.lm.trees.logprobs import token_logprobs
from rationalyst_jax.train.batches import TrainBatch
from rationalyst_jax.train.config import TrainConfig
from rationalyst_jax.train.optimizer import as_float32, learning_rate, optimizer, rounded


class TrainState(NamedTuple):
    """What a step turns into the next: trained weights, in `master_dtype`, optimizer's state, steps done."""

    weights: Any
    optimizer: Any
    step: Array


class Parts(NamedTuple):
    """A model taken apart: its structure, the weights that are trained, those that are not."""

    graph: Any
    trained: nnx.State
    frozen: nnx.State


def take_apart(model: Llama) -> Parts:
    """Adapters are trained where there are any, else everything."""
    kind = nnx.Param if model.adapters is None else LoraParam
    return Parts(*nnx.split(model, kind, ...))


def start_state(config: TrainConfig, steps: int, weights: nnx.State) -> TrainState:
    """The state before the first step of a run of `steps`; the weights may be shapes."""
    return TrainState(weights, optimizer(config, steps).init(as_float32(weights)), jnp.zeros((), jnp.int32))


def abstract_state(config: TrainConfig, steps: int, weights: nnx.State, mesh: Mesh) -> TrainState:
    """The shapes of that state, with how the mesh divides them."""
    state = jax.eval_shape(partial(start_state, config, steps), weights)
    return placed(state, shard_state(state, mesh))


def batch_loss(
    graph: Any, weights: Any, frozen: Any, microbatch: TrainBatch, config: TrainConfig, mesh: Mesh
) -> Array:
    """Weighted negative log-likelihood (nats, float32) of one microbatch, *summed* over its targets."""
    computed = jax.tree.map(lambda w: w.astype(config.dtype), (weights, frozen))
    model: Llama = nnx.merge(graph, *computed)
    attend = tree_attend(microbatch.subtree_size_ABT, mesh)
    rows = microbatch.token_ABT, microbatch.position_ABT
    hidden_BTD, _ = model(*rows, attend, remat=config.remat, mesh=mesh)
    asked = microbatch.place_ABP, microbatch.target_ABP
    logprob_BP = token_logprobs(hidden_BTD, model.output_VD(), *asked, mesh=mesh)
    return -jnp.sum(microbatch.weight_ABP * logprob_BP)


def microbatch_at(batch: TrainBatch, index: Array) -> TrainBatch:
    """Microbatch `index` of a batch: the same arrays without their leading A."""
    return jax.tree.map(lambda x: x[index] if x.ndim else x, batch)


def loss_and_gradient(
    graph: Any, weights: Any, frozen: Any, batch: TrainBatch, config: TrainConfig, mesh: Mesh
) -> tuple[Array, Any]:
    """The loss of the whole batch and its float32 gradient in `weights`, one microbatch at a time."""

    def accumulate(index: Array, summed: tuple[Array, Any]) -> tuple[Array, Any]:
        microbatch = microbatch_at(batch, index)
        one = jax.value_and_grad(batch_loss, argnums=1)(graph, weights, frozen, microbatch, config, mesh)
        return divided(jax.tree.map(jnp.add, summed, as_float32(one)))

    def divided(summed: tuple[Array, Any]) -> tuple[Array, Any]:
        return jax.lax.with_sharding_constraint(summed, shard_state(summed, mesh))

    zero = (jnp.zeros(()), jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights))
    summed = jax.lax.fori_loop(0, batch.microbatches, accumulate, divided(zero))
    total = batch.weight_ABP.sum()
    return jax.tree.map(lambda x: x / total, summed)


@partial(jax.jit, static_argnames=("graph", "config", "steps", "mesh"), donate_argnames="state")
def train_step(
    graph: Any,
    config: TrainConfig,
    steps: int,
    mesh: Mesh,
    state: TrainState,
    frozen: Any,
    batch: TrainBatch,
    number: Array,
) -> tuple[TrainState, dict[str, Array]]:
    """Update `number` (0 is the first) of a run of `steps`; `state` is donated.

    Where loss, gradient or update is not finite, the state stays what it was, and so it does in every later
    call (whose number is then not the state's): the last good state is there when the host hears of it.

    Metrics, float32 scalars: `loss` (nats per unit of weight, before the update), `grad_norm` (before
    clipping), `update_norm` (of what is added to the weights), `learning_rate` (of this update).
    """
    loss, gradient = loss_and_gradient(graph, state.weights, frozen, batch, config, mesh)
    norm = optax.tree.norm(gradient)
    weights = as_float32(state.weights)
    updates, moments = optimizer(config, steps).update(gradient, state.optimizer, weights)
    key = jax.random.fold_in(jax.random.key(config.seed), number)
    weights = rounded(optax.apply_updates(weights, updates), config.master_dtype, key)
    update_norm = optax.tree.norm(updates)
    good = jnp.isfinite(loss + norm + update_norm) & (state.step == number)
    new = TrainState(weights, moments, state.step + 1)
    new = jax.tree.map(lambda after, before: jnp.where(good, after, before), new, state)
    rate = learning_rate(config, steps)(number)
    metrics = {"loss": loss, "grad_norm": norm, "update_norm": update_norm, "learning_rate": rate}
    return jax.lax.with_sharding_constraint(new, shard_state(new, mesh)), metrics


@partial(jax.jit, static_argnames=("graph", "config", "mesh"))
def validation_step(
    graph: Any, config: TrainConfig, mesh: Mesh, weights: Any, frozen: Any, batch: TrainBatch
) -> tuple[Array, Array]:
    """(summed loss in nats, summed loss weight) of a batch, both float32."""

    def accumulate(index: Array, summed: Array) -> Array:
        return summed + batch_loss(graph, weights, frozen, microbatch_at(batch, index), config, mesh)

    return jax.lax.fori_loop(0, batch.microbatches, accumulate, jnp.zeros(())), batch.weight_ABP.sum()
