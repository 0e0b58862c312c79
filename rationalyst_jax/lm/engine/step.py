"""The device side of the engine: a step computes tokens of many sequences and asks for some next ones.

A step takes D sequences that go on by one token each (which the device knows better than the host), and B
pieces of Q tokens of others (which the host brings). All tokens stand in one row of M = D + B * Q places, so
that weights are read once; keys and values go to their pages before attention reads them, so pieces of one
sequence, or of sequences that begin alike, may stand in one step. A asked entries each read the hidden state
of a place: a target gives its log-probability, none a sampled token, which becomes the next one of a slot.

S slots (and one that belongs to nobody), P pages of a sequence, L layers, E kinds.
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
from rationalyst_jax.lm.engine.attention import Rows, Trunk, paged_attention
from rationalyst_jax.lm.engine.head import ENDING, Answers, Entries, answer
from rationalyst_jax.lm.engine.pages import NOWHERE
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
class Singles:
    """D sequences: their slots, positions of the tokens there, their pages; a filler has the last slot.

    member (bool): their pages begin with the trunk's, and the tokens stand after it.
    """

    slot_D: Any
    position_D: Any
    page_DP: Any
    member_D: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pieces:
    """B pieces of at most Q tokens: tokens, positions (-1 for a filler), pages, and members as above."""

    token_BQ: Any
    position_BQ: Any
    page_BP: Any
    member_B: Any


def new_state(
    config: LlamaConfig, dtype: Any, *, pages: int, page_size: int, slots: int, mesh: Mesh | None = None
) -> State:
    """Empty pages, with page NOWHERE beside the others, and idle slots. Heads are divided over a mesh."""
    shape = config.num_layers * (pages + 1), page_size, 2 * config.num_kv_heads, config.head_dim
    where, alike = (
        (None, None) if mesh is None else (cache_sharding(mesh), NamedSharding(mesh, PartitionSpec()))
    )
    return State(
        jnp.zeros(shape, dtype, device=where),
        jnp.zeros(slots + 1, jnp.int32, device=alike),
        jnp.zeros(slots + 1, bool, device=alike),
    )


def cache_sharding(mesh: Mesh) -> NamedSharding:
    """Keys and values of a head lie on one device."""
    return NamedSharding(mesh, PartitionSpec(None, None, TENSOR))


@partial(jax.jit, donate_argnames="state")
def copy_pages(state: State, source_N: Array, target_N: Array, layers: Array) -> State:
    """Pages of all layers (int32 `[L]`, first page of each) copied; NOWHERE may stand on both sides."""
    source_LN, target_LN = layers[:, None] + source_N, layers[:, None] + target_N
    cache = state.cache.at[target_LN].set(state.cache[source_LN])
    return replace(state, cache=cache)


@partial(jax.jit, static_argnames=("graph", "Z", "mesh"), donate_argnames="state")
def mixed_step(
    graph: Any,
    weights: nnx.State,
    state: State,
    kinds_EV: Array,
    trunk: Trunk,
    singles: Singles,
    pieces: Pieces,
    entries: Entries,
    *,
    Z: int,
    mesh: Mesh | None = None,
) -> tuple[State, Answers]:
    """One step. An entry of a slot that does not run any more changes nothing."""
    model: Llama = nnx.merge(graph, weights)
    hidden_MD, state = _forward(model, state, trunk, singles, pieces, mesh)
    return _answer(model, state, kinds_EV, hidden_MD, entries, Z, mesh)


@partial(jax.jit, static_argnames=("graph", "most", "Z", "mesh"), donate_argnames="state")
def decode_steps(
    graph: Any,
    weights: nnx.State,
    state: State,
    kinds_EV: Array,
    trunk: Trunk,
    singles: Singles,
    entries: Entries,
    steps: Array,
    *,
    most: int,
    Z: int,
    mesh: Mesh | None = None,
) -> tuple[State, Answers]:
    """Up to `steps` (at most `most`) tokens for D sequences, fewer where none runs any more; `[most, D]`, of
    Z likeliest tokens `[most, D, Z]`.

    Entry d asks at place d; pages for all steps are there.
    """
    model: Llama = nnx.merge(graph, weights)
    D = singles.slot_D.shape[0]

    def unfinished(carry: tuple[Array, State, Answers]) -> Array:
        step, state, _ = carry
        return (step < steps) & state.running_S[singles.slot_D].any()

    def advance(carry: tuple[Array, State, Answers]) -> tuple[Array, State, Answers]:
        step, state, answers = carry
        now = replace(singles, position_D=singles.position_D + step)
        hidden_DM, state = _forward(model, state, trunk, now, None, mesh)
        asked = replace(entries, left_A=entries.left_A - step, position_A=entries.position_A + step)
        state, new = _answer(model, state, kinds_EV, hidden_DM, asked, Z, mesh)
        return step + 1, state, jax.tree.map(lambda all, x: all.at[step].set(x), answers, new)

    start = jnp.int32(0), state, Answers.none(most, D, Z=Z)
    _, state, answers = jax.lax.while_loop(unfinished, advance, start)
    return state, answers


def _forward(
    model: Llama, state: State, trunk: Trunk, singles: Singles, pieces: Pieces | None, mesh: Mesh | None
) -> tuple[Array, State]:
    """Hidden states of all places, `[M, D]`, and the state with their keys and values in the cache."""
    running_D = state.running_S[singles.slot_D]
    token_M = jnp.where(running_D, state.token_S[singles.slot_D], 0)
    position_D = jnp.where(running_D, singles.position_D, -1)
    rows = [Rows(position_D[:, None], singles.page_DP, singles.member_D)]
    if pieces is not None:
        token_M = jnp.concatenate([token_M, pieces.token_BQ.reshape(-1)])
        rows.append(Rows(pieces.position_BQ, pieces.page_BP, pieces.member_B))
    pages, page_size = state.cache.shape[0] // model.config.num_layers, state.cache.shape[1]
    position_M = jnp.concatenate([some.position_RQ.reshape(-1) for some in rows])
    page_M = jnp.concatenate([some.pages_of_queries(page_size).reshape(-1) for some in rows])
    page_M, place_M = jnp.where(position_M >= 0, page_M, NOWHERE), jnp.maximum(position_M, 0) % page_size

    def attend(
        q_1MNH: Array, k_1MKH: Array, v_1MKH: Array, layer: Array, cache: Array
    ) -> tuple[Array, Array]:
        first = layer * pages
        _, M, K, H = k_1MKH.shape
        kv_MKH = jnp.stack([k_1MKH[0], v_1MKH[0]], axis=2).reshape(M, 2 * K, H)
        cache = cache.at[first + page_M, place_M].set(kv_MKH.astype(cache.dtype))
        here = replace(trunk, page_P=first + trunk.page_P)
        rows_here = [replace(some, page_RP=first + some.page_RP) for some in rows]
        return paged_attention(q_1MNH[0], cache, here, rows_here, mesh)[None], cache

    position_1M = jnp.maximum(position_M, 0)[None]
    hidden_1MD, cache = model(token_M[None], position_1M, attend, state.cache, mesh=mesh)
    if mesh is not None:
        cache = jax.lax.with_sharding_constraint(cache, cache_sharding(mesh))
    return hidden_1MD[0], replace(state, cache=cache)


def _answer(
    model: Llama, state: State, kinds_EV: Array, hidden_MD: Array, entries: Entries, Z: int, mesh: Mesh | None
) -> tuple[State, Answers]:
    """What the entries ask for, and the slots with their new tokens."""
    answers = answer(hidden_MD, model.output_VD(), kinds_EV, entries, Z, mesh)
    token_A = answers.token_A
    real_A = (jnp.arange(len(token_A)) < entries.count) & (entries.target_A < 0)
    going_A = real_A & (entries.fresh_A | state.running_S[entries.slot_A])
    ends_A = (kinds_EV[entries.kind_A, token_A] & ENDING) > 0
    nobody = state.token_S.shape[0] - 1
    slot_A = jnp.where(going_A, entries.slot_A, nobody)
    token_S = state.token_S.at[slot_A].set(token_A)
    running_S = state.running_S.at[slot_A].set(~ends_A & (entries.left_A > 1)).at[nobody].set(False)
    return State(state.cache, token_S, running_S), answers
