"""The device side of the engine: a step computes tokens of many sequences and asks for some next ones.

A step takes B sequences that decode one token each (which the device knows better than the host), and C
prefill chunks of Q tokens (which the host brings). All tokens stand in one row of M = B + C * Q places, so
that weights are read once; keys and values go to their pages before attention reads them, so chunks of one
prompt, or of prompts that begin alike, may stand in one step. A entries (`head.py`) each read the hidden
state of a place: a target gives its log-probability, none a sampled token, which becomes the next one of a
slot.

S slots (and the idle one, the last), P pages of a page table, E token masks; the other letters as in
docs/architecture.md.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rationalyst_jax.lm.devices.mesh import TENSOR
from rationalyst_jax.lm.engine.attention import Queries, SharedPrefix, paged_attention
from rationalyst_jax.lm.engine.head import ENDING, HeadInputs, HeadOutputs, apply_head
from rationalyst_jax.lm.engine.prefix_cache import NULL_PAGE
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """What stays on the device; donated from step to step.

    cache: `[L * pages, page size, 2 K, H]`: layer l has page p at l * pages + p. token_S (int32): the newest
    token of the sequence in each slot, which has not been computed yet. running_S (bool): it has one.
    """

    cache: Array
    token_S: Array
    running_S: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeBatch:
    """B sequences: their slots, positions of the tokens there, page tables; a filler has the idle slot.

    in_prefix (bool): the sequence begins with the step's shared prefix, and its token stands after it.
    """

    slot_B: Any
    position_B: Any
    page_BP: Any
    in_prefix_B: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PrefillBatch:
    """C prefill chunks of at most Q tokens: tokens, positions (-1 for a filler), page tables, and `in_prefix`
    as above."""

    token_CQ: Any
    position_CQ: Any
    page_CP: Any
    in_prefix_C: Any


def new_state(
    config: LlamaConfig, dtype: Any, *, pages: int, page_size: int, slots: int, mesh: Mesh | None = None
) -> State:
    """Empty pages, with the NULL_PAGE beside the others, and idle slots. Heads are divided over a mesh."""
    shape = config.num_layers * (pages + 1), page_size, 2 * config.num_kv_heads, config.head_dim
    heads = None if mesh is None else cache_sharding(mesh)
    replicated = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return State(
        cache=jnp.zeros(shape, dtype, device=heads),
        token_S=jnp.zeros(slots + 1, jnp.int32, device=replicated),
        running_S=jnp.zeros(slots + 1, bool, device=replicated),
    )


def cache_sharding(mesh: Mesh) -> NamedSharding:
    """Keys and values of a head lie on one device."""
    return NamedSharding(mesh, PartitionSpec(None, None, TENSOR))


@partial(jax.jit, donate_argnames="state")
def copy_pages(state: State, source_P: Array, target_P: Array, first_page_L: Array) -> State:
    """Pages copied in all layers (int32, the first page of each); the NULL_PAGE may stand on both sides."""
    source_LP = first_page_L[:, None] + source_P
    target_LP = first_page_L[:, None] + target_P
    return replace(state, cache=state.cache.at[target_LP].set(state.cache[source_LP]))


@partial(jax.jit, static_argnames=("graph", "Z", "mesh"), donate_argnames="state")
def mixed_step(
    graph: Any,
    weights: nnx.State,
    state: State,
    mask_EV: Array,
    shared_prefix: SharedPrefix,
    decode: DecodeBatch,
    prefill: PrefillBatch,
    inputs: HeadInputs,
    *,
    Z: int,
    mesh: Mesh | None = None,
) -> tuple[State, HeadOutputs]:
    """One step. An entry of a slot that does not run any more changes nothing."""
    model: Llama = nnx.merge(graph, weights)
    hidden_MD, state = _forward(model, state, shared_prefix, decode, prefill, mesh)
    return _next_tokens(model, state, mask_EV, hidden_MD, inputs, Z, mesh)


@partial(jax.jit, static_argnames=("graph", "most", "Z", "mesh"), donate_argnames="state")
def decode_steps(
    graph: Any,
    weights: nnx.State,
    state: State,
    mask_EV: Array,
    shared_prefix: SharedPrefix,
    decode: DecodeBatch,
    inputs: HeadInputs,
    steps: Array,
    *,
    most: int,
    Z: int,
    mesh: Mesh | None = None,
) -> tuple[State, HeadOutputs]:
    """Up to `steps` (at most `most`) tokens for B sequences, fewer where none runs any more; `[most, B]`, of
    Z likeliest tokens `[most, B, Z]`.

    Entry b asks at place b; pages for all steps are there.
    """
    model: Llama = nnx.merge(graph, weights)
    B = decode.slot_B.shape[0]

    def unfinished(carry: tuple[Array, State, HeadOutputs]) -> Array:
        step, state, _ = carry
        return (step < steps) & state.running_S[decode.slot_B].any()

    def advance(carry: tuple[Array, State, HeadOutputs]) -> tuple[Array, State, HeadOutputs]:
        step, state, outputs = carry
        now = replace(decode, position_B=decode.position_B + step)
        hidden_BD, state = _forward(model, state, shared_prefix, now, None, mesh)
        asked = replace(inputs, remaining_A=inputs.remaining_A - step, position_A=inputs.position_A + step)
        state, new = _next_tokens(model, state, mask_EV, hidden_BD, asked, Z, mesh)
        return step + 1, state, jax.tree.map(lambda all, x: all.at[step].set(x), outputs, new)

    start = jnp.int32(0), state, HeadOutputs.zeros(most, B, Z=Z)
    _, state, outputs = jax.lax.while_loop(unfinished, advance, start)
    return state, outputs


def _forward(
    model: Llama,
    state: State,
    shared_prefix: SharedPrefix,
    decode: DecodeBatch,
    prefill: PrefillBatch | None,
    mesh: Mesh | None,
) -> tuple[Array, State]:
    """Hidden states of all places, `[M, D]`, and the state with their keys and values in the cache."""
    # 1. The step's tokens in one row: the newest token of each decoding slot, then the prefill chunks.
    running_B = state.running_S[decode.slot_B]
    token_M = jnp.where(running_B, state.token_S[decode.slot_B], 0)
    position_B = jnp.where(running_B, decode.position_B, -1)
    queries = [Queries(position_B[:, None], decode.page_BP, decode.in_prefix_B)]
    if prefill is not None:
        token_M = jnp.concatenate([token_M, prefill.token_CQ.reshape(-1)])
        queries.append(Queries(prefill.position_CQ, prefill.page_CP, prefill.in_prefix_C))

    # 2. Where the keys and values of each go: a page, and a place in it. Fillers write to the NULL_PAGE.
    pages = state.cache.shape[0] // model.config.num_layers
    page_size = state.cache.shape[1]
    position_M = jnp.concatenate([some.position_RQ.reshape(-1) for some in queries])
    page_M = jnp.concatenate([some.own_page(page_size).reshape(-1) for some in queries])
    page_M = jnp.where(position_M >= 0, page_M, NULL_PAGE)
    place_M = jnp.maximum(position_M, 0) % page_size

    # 3. A CPU leaves fillers out: for it the places that are no fillers come first.
    order_M = back_M = count = None
    if model.panels is not None:
        order_M = jnp.argsort(position_M < 0, stable=True)
        back_M = jnp.argsort(order_M)
        count = jnp.sum(position_M >= 0, dtype=jnp.int32)
        token_M, position_M, page_M, place_M = (x[order_M] for x in (token_M, position_M, page_M, place_M))

    # 4. Each layer writes them, then attends over the pages of every sequence.
    def attend(
        q_1MNH: Array, k_1MKH: Array, v_1MKH: Array, layer: Array, cache: Array
    ) -> tuple[Array, Array]:
        first_page = layer * pages
        _, M, K, H = k_1MKH.shape
        kv_MKH = jnp.stack([k_1MKH[0], v_1MKH[0]], axis=2).reshape(M, 2 * K, H)
        cache = cache.at[first_page + page_M, place_M].set(kv_MKH.astype(cache.dtype))
        prefix_here = replace(shared_prefix, page_P=first_page + shared_prefix.page_P)
        queries_here = [replace(some, page_RP=first_page + some.page_RP) for some in queries]
        q_MNH = q_1MNH[0] if back_M is None else q_1MNH[0, back_M]
        out_MNH = paged_attention(q_MNH, cache, prefix_here, queries_here, mesh)
        return (out_MNH if order_M is None else out_MNH[order_M])[None], cache

    position_1M = jnp.maximum(position_M, 0)[None]
    hidden_1MD, cache = model(token_M[None], position_1M, attend, state.cache, mesh=mesh, count=count)
    if mesh is not None:
        cache = jax.lax.with_sharding_constraint(cache, cache_sharding(mesh))
    hidden_MD = hidden_1MD[0] if back_M is None else hidden_1MD[0, back_M]
    return hidden_MD, replace(state, cache=cache)


def _next_tokens(
    model: Llama,
    state: State,
    mask_EV: Array,
    hidden_MD: Array,
    inputs: HeadInputs,
    Z: int,
    mesh: Mesh | None,
) -> tuple[State, HeadOutputs]:
    """What the entries ask for, and the slots with their new tokens."""
    # 5. The output head, at the places that are asked for.
    panels = None if model.panels is None else model.panels.head[...]
    outputs = apply_head(hidden_MD, model.output_VD(), mask_EV, inputs, Z, mesh, panels)

    # 6. Sampled tokens go to their slots, unless these have ended; all others to the idle slot.
    token_A = outputs.token_A
    sampled_A = (jnp.arange(len(token_A)) < inputs.count) & (inputs.target_A < 0)
    running_A = sampled_A & (inputs.fresh_A | state.running_S[inputs.slot_A])
    idle_slot = state.token_S.shape[0] - 1
    slot_A = jnp.where(running_A, inputs.slot_A, idle_slot)
    token_S = state.token_S.at[slot_A].set(token_A)

    # 7. A slot runs on until a token that ends its sequence, or the last that may be sampled.
    ends_A = (mask_EV[inputs.mask_A, token_A] & ENDING) > 0
    running_S = state.running_S.at[slot_A].set(~ends_A & (inputs.remaining_A > 1)).at[idle_slot].set(False)
    return State(state.cache, token_S, running_S), outputs
