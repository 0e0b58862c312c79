"""The device side of generation: one prefill per prompt, then decoding in a compiled loop.

The C candidates of a prompt share its keys and values without a copy: a new token attends over the prompt's
part (one per prompt, broadcast over its candidates) and over its own candidate's part under one softmax.

B prompts, C candidates of each, R = B * C rows (prompt-major), T prompt tokens (padded on the right),
S generated tokens, D model, N query heads, K key-value heads, G = N / K, H head size, V vocabulary, L layers.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from rationalyst_jax.lm.attention import tree_attention
from rationalyst_jax.lm.llama import Attend, Llama
from rationalyst_jax.lm.sampling import Mode, choose, token_keys


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Wishes:
    """What the requests of a batch ask for."""

    length_B: Array  # int32, real tokens of each prompt, at least 1
    limit_B: Array  # int32, most tokens to generate; 0 for a row that only fills the batch
    temperature_B: Array  # float32, above 0 unless the batch is greedy
    top_p_B: Array  # float32
    seed_B: Array  # uint32
    ending_V: Array  # bool, tokens that end a row
    suppressed_V: Array  # bool, tokens of probability zero


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prefix:
    """What decoding needs of the prompts: keys and values, and the last hidden state of each."""

    hidden_BD: Array
    k_LBKTH: Array
    v_LBKTH: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoding:
    """The rows so far: `step` tokens were sampled in each, of which the first `count` are its result."""

    step: Array  # int32 scalar
    hidden_RD: Array  # the next token's logits are read from it
    tokens_BCS: Array  # int32
    logprobs_BCS: Array  # float32, nats
    count_BC: Array  # int32
    running_BC: Array  # bool
    k_LRKSH: Array
    v_LRKSH: Array


@partial(jax.jit, static_argnames=("graph", "room"))
def prefill(
    graph: nnx.GraphDef, weights: nnx.State, tokens_BT: Array, length_B: Array, *, room: int
) -> Prefix:
    """Run the prompts once; their keys and values are padded from T to `room` places.

    Padding stands on the right, where no real token sees it: `tokens` beyond `length` may be anything.
    """
    model: Llama = nnx.merge(graph, weights)
    B, T = tokens_BT.shape
    place_BT = jnp.broadcast_to(jnp.arange(T), (B, T))

    def padded(x_BTKH: Array) -> Array:
        return jnp.pad(x_BTKH.swapaxes(1, 2), ((0, 0), (0, 0), (0, room - T), (0, 0)))

    def attend(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, cache: None) -> tuple[Array, tuple[Array, Array]]:
        out_BTNH = tree_attention(q_BTNH, k_BTKH, v_BTKH, T - place_BT)
        return out_BTNH, (padded(k_BTKH), padded(v_BTKH))

    hidden_BTD, (k_LBKTH, v_LBKTH) = model(tokens_BT, place_BT, attend)
    hidden_B1D = jnp.take_along_axis(hidden_BTD, length_B[:, None, None] - 1, axis=1)
    return Prefix(hidden_B1D[:, 0], k_LBKTH, v_LBKTH)


@partial(jax.jit, static_argnames=("candidates", "space"))
def begin(prefix: Prefix, limit_B: Array, *, candidates: int, space: int) -> Decoding:
    """Rows without a token yet, with space for `space` of them."""
    L, B, K, _, H = prefix.k_LBKTH.shape
    C, S = candidates, space
    return Decoding(
        step=jnp.int32(0),
        hidden_RD=jnp.repeat(prefix.hidden_BD, C, axis=0),
        tokens_BCS=jnp.zeros((B, C, S), jnp.int32),
        logprobs_BCS=jnp.zeros((B, C, S), jnp.float32),
        count_BC=jnp.zeros((B, C), jnp.int32),
        running_BC=jnp.broadcast_to(limit_B[:, None] > 0, (B, C)),
        k_LRKSH=jnp.zeros((L, B * C, K, S, H), prefix.k_LBKTH.dtype),
        v_LRKSH=jnp.zeros((L, B * C, K, S, H), prefix.v_LBKTH.dtype),
    )


@partial(jax.jit, static_argnames=("graph", "mode"), donate_argnames="decoding")
def decode(
    graph: nnx.GraphDef,
    weights: nnx.State,
    prefix: Prefix,
    wishes: Wishes,
    decoding: Decoding,
    until: Array,
    *,
    mode: Mode,
) -> Decoding:
    """Generate until each row has `until` tokens (int32, at most its space) or none runs any more."""
    model: Llama = nnx.merge(graph, weights)

    def advance(decoding: Decoding) -> Decoding:
        place = decoding.step
        decoding = _sample(model, wishes, decoding, mode)
        # Most batches end before their space does: a token after which nothing runs needs no forward pass.
        hidden_RD, k_LRKH, v_LRKH = jax.lax.cond(
            decoding.running_BC.any(), forward, lambda decoding, place: blank(decoding), decoding, place
        )
        return replace(
            decoding,
            hidden_RD=hidden_RD,
            k_LRKSH=decoding.k_LRKSH.at[:, :, :, place].set(k_LRKH),
            v_LRKSH=decoding.v_LRKSH.at[:, :, :, place].set(v_LRKH),
        )

    def forward(decoding: Decoding, place: Array) -> tuple[Array, Array, Array]:
        B, C, _ = decoding.tokens_BCS.shape
        hidden_R1D, (k_LRKH, v_LRKH) = model(
            decoding.tokens_BCS[:, :, place].reshape(B * C, 1),
            jnp.repeat(wishes.length_B + place, C)[:, None],
            _attend_cached(wishes.length_B, place),
            (prefix.k_LBKTH, prefix.v_LBKTH, decoding.k_LRKSH, decoding.v_LRKSH),
        )
        return hidden_R1D[:, 0], k_LRKH, v_LRKH

    def blank(decoding: Decoding) -> tuple[Array, Array, Array]:
        nothing_LRKH = jnp.zeros_like(decoding.k_LRKSH[:, :, :, 0])
        return decoding.hidden_RD, nothing_LRKH, nothing_LRKH

    def unfinished(decoding: Decoding) -> Array:
        return (decoding.step < until) & decoding.running_BC.any()

    return jax.lax.while_loop(unfinished, advance, decoding)


def _attend_cached(length_B: Array, place: Array) -> Attend:
    """Attention of one new token per row, the `place`-th generated, over its prompt and its row.

    Takes the layer's caches and returns only the new key and value `[R, K, H]`: what goes back through the
    scan over layers is copied, and the caches are large.
    """

    def attend(q_R1NH: Array, k_R1KH: Array, v_R1KH: Array, cache: tuple[Array, Array, Array, Array]):
        k_BKTH, v_BKTH, k_RKSH, v_RKSH = cache
        B, K, T, H = k_BKTH.shape
        R, _, S, _ = k_RKSH.shape
        G = q_R1NH.shape[2] // K
        k_RKSH = k_RKSH.at[:, :, place].set(k_R1KH[:, 0])
        v_RKSH = v_RKSH.at[:, :, place].set(v_R1KH[:, 0])

        q_BCKGH = q_R1NH.reshape(B, R // B, K, G, H) * H**-0.5
        k_BCKSH, v_BCKSH = k_RKSH.reshape(B, -1, K, S, H), v_RKSH.reshape(B, -1, K, S, H)
        dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
        prompt_BKCGT = dot("BCKGH,BKTH->BKCGT", q_BCKGH, k_BKTH)
        row_BKCGS = dot("BCKGH,BCKSH->BKCGS", q_BCKGH, k_BCKSH)
        seen_BT = jnp.arange(T) < length_B[:, None]
        prompt_BKCGT = jnp.where(seen_BT[:, None, None, None], prompt_BKCGT, -jnp.inf)
        row_BKCGS = jnp.where(jnp.arange(S) <= place, row_BKCGS, -jnp.inf)
        weights = jax.nn.softmax(jnp.concatenate([prompt_BKCGT, row_BKCGS], axis=-1), axis=-1)
        weights = weights.astype(v_BKTH.dtype)
        out_BCKGH = jnp.einsum("BKCGT,BKTH->BCKGH", weights[..., :T], v_BKTH)
        out_BCKGH += jnp.einsum("BKCGS,BCKSH->BCKGH", weights[..., T:], v_BCKSH)
        return out_BCKGH.reshape(q_R1NH.shape), (k_R1KH[:, 0], v_R1KH[:, 0])

    return attend


def _sample(model: Llama, wishes: Wishes, decoding: Decoding, mode: Mode) -> Decoding:
    """Append a token to each row, with its log-probability before temperature and top-p."""
    B, C, _ = decoding.tokens_BCS.shape
    logits_RV = jnp.einsum(
        "RD,VD->RV", decoding.hidden_RD, model.output_VD(), preferred_element_type=jnp.float32
    )
    logits_RV = jnp.where(wishes.suppressed_V, -jnp.inf, logits_RV)
    seed_R, position_R, temperature_R, top_p_R = (
        jnp.repeat(x_B, C)
        for x_B in (wishes.seed_B, wishes.length_B + decoding.step, wishes.temperature_B, wishes.top_p_B)
    )
    key_R = token_keys(seed_R, jnp.tile(jnp.arange(C), B), position_R)
    token_R = choose(logits_RV, key_R, temperature_R, top_p_R, mode)
    chosen_R = jnp.take_along_axis(logits_RV, token_R[:, None], axis=-1)[:, 0]
    logprob_R = chosen_R - jax.nn.logsumexp(logits_RV, axis=-1)

    token_BC = token_R.reshape(B, C)
    count_BC = decoding.count_BC + decoding.running_BC
    going_on_BC = ~wishes.ending_V[token_BC] & (count_BC < wishes.limit_B[:, None])
    return replace(
        decoding,
        step=decoding.step + 1,
        tokens_BCS=decoding.tokens_BCS.at[:, :, decoding.step].set(token_BC),
        logprobs_BCS=decoding.logprobs_BCS.at[:, :, decoding.step].set(logprob_R.reshape(B, C)),
        count_BC=count_BC,
        running_BC=decoding.running_BC & going_on_BC,
    )
