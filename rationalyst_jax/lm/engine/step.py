"""The device side of the engine: a step computes tokens of many sequences and asks for some next ones.

A step takes D sequences that go on by one token each (which the device knows better than the host), and B
pieces of Q tokens of others (which the host brings). All tokens stand in one row of M = D + B * Q places, so
that weights are read once; keys and values go to their pages before attention reads them, so pieces of one
sequence, or of sequences that begin alike, may stand in one step. A asked entries each read the hidden state
of a place: a target gives its log-probability, none a sampled token, which becomes the next one of a slot.

S slots (and one that belongs to nobody), P pages of a sequence, L layers, C entries of a tile, E kinds.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from rationalyst_jax.lm.config import LlamaConfig
from rationalyst_jax.lm.engine.attention import Trunk, paged_attention
from rationalyst_jax.lm.engine.pages import NOWHERE
from rationalyst_jax.lm.llama import Llama
from rationalyst_jax.lm.sampling import draw, token_keys

TILE, TILE_ON_CPU = 64, 32  # entries whose logits are computed at once
ENDING, SUPPRESSED = 1, 2  # what a kind of entry says of a word, as bits


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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Entries:
    """What is asked of the places of a step; entries from `count` on are fillers.

    place: in the row. target: a token id, or -1 to sample one. slot: which sequence gets it; fresh: as its
    first. kind: row of the table of words that end a sequence or must not be sampled. left: how many tokens
    may still be sampled, this one included. The noise is decided by seed, candidate and position.
    likeliest (bool): somebody asks for the likeliest tokens.
    """

    count: Any
    likeliest: Any
    place_A: Any
    target_A: Any
    slot_A: Any
    fresh_A: Any
    kind_A: Any
    left_A: Any
    seed_A: Any
    candidate_A: Any
    position_A: Any
    temperature_A: Any
    top_p_A: Any
    top_k_A: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Answers:
    """Of every entry: its token (int32), the token's log-probability (float32, nats), and the Z likeliest
    tokens with theirs, best first, where the entries ask for them (else zeros).

    Log-probabilities are the model's own without suppressed words, before temperature, top-p and top-k.
    """

    token_A: Any
    logprob_A: Any
    likeliest_AZ: Any
    likeliest_logprob_AZ: Any

    @classmethod
    def none(cls, *shape: int, Z: int) -> "Answers":
        entries = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)
        return cls(*entries, jnp.zeros((*shape, Z), jnp.int32), jnp.zeros((*shape, Z), jnp.float32))


def new_state(config: LlamaConfig, dtype: Any, *, pages: int, page_size: int, slots: int) -> State:
    """Empty pages, with page NOWHERE beside the others, and idle slots."""
    shape = config.num_layers * (pages + 1), page_size, 2 * config.num_kv_heads, config.head_dim
    return State(jnp.zeros(shape, dtype), jnp.zeros(slots + 1, jnp.int32), jnp.zeros(slots + 1, bool))


@partial(jax.jit, donate_argnames="state")
def copy_pages(state: State, source_N: Array, target_N: Array, layers: Array) -> State:
    """Pages of all layers (int32 `[L]`, first page of each) copied; NOWHERE may stand on both sides."""
    source_LN, target_LN = layers[:, None] + source_N, layers[:, None] + target_N
    cache = state.cache.at[target_LN].set(state.cache[source_LN])
    return replace(state, cache=cache)


@partial(jax.jit, static_argnames=("graph", "Z"), donate_argnames="state")
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
) -> tuple[State, Answers]:
    """One step. An entry of a slot that does not run any more changes nothing."""
    model: Llama = nnx.merge(graph, weights)
    hidden_MD, state = _forward(model, state, trunk, singles, pieces)
    return _answer(model, state, kinds_EV, hidden_MD, entries, Z)


@partial(jax.jit, static_argnames=("graph", "most", "Z"), donate_argnames="state")
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
        hidden_DM, state = _forward(model, state, trunk, now, None)
        asked = replace(entries, left_A=entries.left_A - step, position_A=entries.position_A + step)
        state, new = _answer(model, state, kinds_EV, hidden_DM, asked, Z)
        return step + 1, state, jax.tree.map(lambda all, x: all.at[step].set(x), answers, new)

    start = jnp.int32(0), state, Answers.none(most, D, Z=Z)
    _, state, answers = jax.lax.while_loop(unfinished, advance, start)
    return state, answers


def _forward(
    model: Llama, state: State, trunk: Trunk, singles: Singles, pieces: Pieces | None
) -> tuple[Array, State]:
    """Hidden states of all places, `[M, D]`, and the state with their keys and values in the cache."""
    page_size = state.cache.shape[1]
    running_D = state.running_S[singles.slot_D]
    token_M = jnp.where(running_D, state.token_S[singles.slot_D], 0)
    position_M = position_D = jnp.where(running_D, singles.position_D, -1)
    row_M, page_RP = jnp.arange(len(token_M)), singles.page_DP
    if pieces is not None:
        B, Q = pieces.token_BQ.shape
        token_M = jnp.concatenate([token_M, pieces.token_BQ.reshape(-1)])
        position_M = jnp.concatenate([position_M, pieces.position_BQ.reshape(-1)])
        row_M = jnp.concatenate([row_M, jnp.repeat(len(row_M) + jnp.arange(B), Q)])
        page_RP = jnp.concatenate([page_RP, pieces.page_BP])
    real_M = position_M >= 0
    page_M = jnp.where(real_M, page_RP[row_M, position_M // page_size], NOWHERE)
    place_M = jnp.where(real_M, position_M % page_size, 0)

    D = len(position_D)
    pages = state.cache.shape[0] // model.config.num_layers

    def attend(
        q_1MNH: Array, k_1MKH: Array, v_1MKH: Array, layer: Array, cache: Array
    ) -> tuple[Array, Array]:
        first = layer * pages
        _, M, K, H = k_1MKH.shape
        kv_MKH = jnp.stack([k_1MKH[0], v_1MKH[0]], axis=2).reshape(M, 2 * K, H)
        cache = cache.at[first + page_M, place_M].set(kv_MKH.astype(cache.dtype))
        here = replace(trunk, page_P=first + trunk.page_P)
        q_D1NH, position_D1 = q_1MNH[0, :D, None], position_D[:, None]
        out_D1NH = paged_attention(
            q_D1NH, cache, first + singles.page_DP, position_D1, here, singles.member_D
        )
        out_MNH = out_D1NH[:, 0]
        if pieces is not None:
            q_BQNH = q_1MNH[0, D:].reshape(*pieces.token_BQ.shape, *q_1MNH.shape[2:])
            page_BP = first + pieces.page_BP
            out_BQNH = paged_attention(q_BQNH, cache, page_BP, pieces.position_BQ, here, pieces.member_B)
            out_MNH = jnp.concatenate([out_MNH, out_BQNH.reshape(-1, *out_MNH.shape[1:])])
        return out_MNH[None], cache

    hidden_1MD, cache = model(token_M[None], jnp.maximum(position_M, 0)[None], attend, state.cache)
    return hidden_1MD[0], replace(state, cache=cache)


def _answer(
    model: Llama, state: State, kinds_EV: Array, hidden_MD: Array, entries: Entries, Z: int
) -> tuple[State, Answers]:
    """What the entries ask for, tile by tile, and the slots with their new tokens."""
    A = entries.place_A.shape[0]
    C = min(A, TILE_ON_CPU if jax.default_backend() == "cpu" else TILE)
    fields = {name: x for name, x in vars(entries).items() if name.endswith("_A")}
    fields = {name: jnp.pad(x, (0, -A % C), mode="edge") for name, x in fields.items()}

    def tile(number: Array, answers: Answers) -> Answers:
        e = {name[:-2]: jax.lax.dynamic_slice_in_dim(x, number * C, C) for name, x in fields.items()}
        logits_CV = jnp.einsum(
            "CD,VD->CV", hidden_MD[e["place"]], model.output_VD(), preferred_element_type=jnp.float32
        )
        suppressed_CV = (kinds_EV[e["kind"]] & SUPPRESSED) > 0
        logits_CV = jnp.where(suppressed_CV, -jnp.inf, logits_CV)
        token_C = jnp.where(e["target"] >= 0, e["target"], _sampled(logits_CV, e))
        chosen_C = jnp.take_along_axis(logits_CV, token_C[:, None], axis=1)[:, 0]
        normalizer_C = jax.nn.logsumexp(logits_CV, axis=1)
        best_CZ, likeliest_CZ = jnp.zeros((C, Z), jnp.float32), jnp.zeros((C, Z), jnp.int32)
        if Z:
            none = best_CZ, likeliest_CZ
            best_CZ, likeliest_CZ = jax.lax.cond(
                entries.likeliest, lambda: tuple(jax.lax.top_k(logits_CV, Z)), lambda: none
            )
        new = Answers(token_C, chosen_C - normalizer_C, likeliest_CZ, best_CZ - normalizer_C[:, None])
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=number * C, axis=0)
        return jax.tree.map(put, answers, new)

    start = Answers.none(fields["place_A"].shape[0], Z=Z)
    answers = jax.lax.fori_loop(0, -(-entries.count // C), tile, start)
    answers = jax.tree.map(lambda x: x[:A], answers)
    token_A = answers.token_A

    real_A = (jnp.arange(A) < entries.count) & (entries.target_A < 0)
    going_A = real_A & (entries.fresh_A | state.running_S[entries.slot_A])
    ends_A = (kinds_EV[entries.kind_A, token_A] & ENDING) > 0
    nobody = state.token_S.shape[0] - 1
    slot_A = jnp.where(going_A, entries.slot_A, nobody)
    token_S = state.token_S.at[slot_A].set(token_A)
    running_S = state.running_S.at[slot_A].set(~ends_A & (entries.left_A > 1)).at[nobody].set(False)
    return State(state.cache, token_S, running_S), answers


def _sampled(logits_CV: Array, e: dict[str, Array]) -> Array:
    """A token for each entry, by temperature (0: the likeliest), top-k and top-p."""
    asked_C = (e["target"] < 0) & (e["temperature"] > 0)

    def sampled() -> Array:
        key_C = token_keys(e["seed"], e["candidate"], e["position"])
        return draw(logits_CV, key_C, e["temperature"], e["top_k"], e["top_p"])

    likeliest_C = jnp.argmax(logits_CV, axis=1).astype(jnp.int32)
    drawn_C = jax.lax.cond(asked_C.any(), sampled, lambda: likeliest_C)
    return jnp.where(asked_C, drawn_C, likeliest_C)
