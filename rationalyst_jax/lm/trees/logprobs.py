"""Log-probabilities of tokens from hidden states, without ever holding `[B, T, V]` logits.

Only the asked places are projected to the vocabulary, one tile of some places and some words at a time; the
log-sum-exp is accumulated over the tiles (the softmax of arXiv 2205.14135), and the backward pass computes
each tile again. A tile stays in fast memory between the matrix product that makes it and the sum over it.

X nodes of all rows; P asked places of a row, all of them in M chunks of C; W words of a tile, V the words of
this device's part of the vocabulary.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as Spec

from rationalyst_jax.lm.devices.mesh import FSDP, REPLICA, ROWS, TENSOR
from rationalyst_jax.lm.devices.precision import precision_of
from rationalyst_jax.lm.devices.sharding import platform_of

WORDS = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # of a tile: a CPU keeps it in its cache
LOWEST = -1e30  # below every logit, and no infinity: exp(LOWEST - LOWEST) is 1


def token_logprobs(
    hidden_BTD: Array,
    head_VD: Array,
    place_BP: Array,
    target_BP: Array,
    *,
    suppress: Sequence[int] = (),
    tile: tuple[int, int] | None = None,
    mesh: Mesh | None = None,
) -> Array:
    """Log-probabilities (nats, float32) of `target` (token ids) read from the hidden states at `place`.

    Differentiable in `hidden` and `head`, both of one float dtype, in which matrix products are computed;
    sums are float32. A target of -1 asks for nothing: it gets 0, and tiles without any other are skipped.
    `suppress` names ids whose probability is set to zero before the softmax (the others share what they had);
    a suppressed target gets -inf. `tile`: places and words computed at once. Under a `mesh` rows are divided
    by its `ROWS` axes and the vocabulary by `TENSOR`, which must divide V (ValueError otherwise).
    """
    V = head_VD.shape[0]
    if mesh is not None and V % mesh.shape[TENSOR]:
        raise ValueError(f"a vocabulary of {V} cannot be divided among {mesh.shape[TENSOR]} devices")
    allowed_V = jnp.ones(V, bool).at[jnp.asarray(suppress)].set(False) if suppress else None
    tile = tile or _tile(platform_of(mesh), V)
    return _logprobs(hidden_BTD, head_VD, place_BP, target_BP, allowed_V, tile, mesh)


def _tile(platform: str, V: int) -> tuple[int, int]:
    """Places and words. An accelerator wants large products. On a CPU a place that nobody asks for, beside
    one that somebody does, costs the more the more words there are: so there are fewer places."""
    places = 1024 if platform in ("gpu", "tpu") else min(1024, max(128, 2**19 // V))
    return places, WORDS.get(platform, WORDS["cpu"])


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _logprobs(hidden_BTD, head_VD, place_BP, target_BP, allowed_V, tile, mesh):
    return _forward(hidden_BTD, head_VD, place_BP, target_BP, allowed_V, tile, mesh)[0]


def _logprobs_fwd(hidden_BTD, head_VD, place_BP, target_BP, allowed_V, tile, mesh):
    inputs = (hidden_BTD, head_VD, place_BP, target_BP, allowed_V)
    logprob_BP, logsumexp_BP = _forward(*inputs, tile, mesh)
    return logprob_BP, (*inputs, logsumexp_BP)


def _logprobs_bwd(tile, mesh, saved, dlogprob_BP):
    dhidden_BTD, dhead_VD = _backward((*saved, dlogprob_BP), tile, mesh)
    return dhidden_BTD, dhead_VD, None, None, None


_logprobs.defvjp(_logprobs_fwd, _logprobs_bwd)


def _on_shards(function, mesh: Mesh | None, inputs: tuple[Spec, ...], outputs: tuple[Spec, ...]):
    """`function` on each device's part of the arrays; without a mesh, on all of them."""
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


# ---- Forward ----


def _forward(hidden_BTD, head_VD, place_BP, target_BP, allowed_V, tile, mesh):
    """Log-probabilities, and the log-sum-exp of each place's logits."""
    inputs = (Spec(ROWS), Spec(TENSOR), Spec(ROWS), Spec(ROWS), Spec(TENSOR))
    local = partial(_local_forward, tile=tile, sharded=mesh is not None)
    on_shards = _on_shards(local, mesh, inputs, (Spec(ROWS),) * 2)
    return on_shards(hidden_BTD, head_VD, place_BP, target_BP, allowed_V)


def _local_forward(hidden_BTD, head_VD, place_BP, target_BP, allowed_V, *, tile, sharded):
    V = head_VD.shape[0]
    hidden_XD, node_MC, target_MC = _chunks(hidden_BTD, place_BP, target_BP, tile[0])
    first_word = jax.lax.axis_index(TENSOR) * V if sharded else 0

    def chunk(node_C, target_C):
        hidden_CD = hidden_XD[node_C]

        def visit(start, W, carry):
            maximum_C, sum_C, target_logit_C = carry
            logits_WC = _logits(hidden_CD, head_VD, allowed_V, start, W)
            new_C = jnp.maximum(maximum_C, logits_WC.max(axis=0))
            sum_C = sum_C * jnp.exp(maximum_C - new_C) + jnp.exp(logits_WC - new_C).sum(axis=0)
            word_C = target_C - first_word - start
            logit_C = jnp.take_along_axis(logits_WC, word_C.clip(0, W - 1)[None], axis=0)[0]
            return new_C, sum_C, jnp.where((word_C >= 0) & (word_C < W), logit_C, target_logit_C)

        nothing = jnp.full(node_C.shape, LOWEST), jnp.zeros(node_C.shape), jnp.full(node_C.shape, -jnp.inf)
        return _over_words(visit, V, tile[1], nothing)

    def skip(node_C, target_C):
        zero_C = jnp.zeros(node_C.shape)
        return zero_C, zero_C + 1, zero_C

    def one(nodes_and_targets):
        return jax.lax.cond((nodes_and_targets[1] >= 0).any(), chunk, skip, *nodes_and_targets)

    statistics = jax.lax.map(one, (node_MC, target_MC))
    B, P = place_BP.shape
    maximum_BP, sum_BP, target_logit_BP = (x.reshape(-1)[: B * P].reshape(B, P) for x in statistics)
    if sharded:
        shard_maximum_BP = maximum_BP
        maximum_BP = jax.lax.pmax(maximum_BP, TENSOR)
        sum_BP = jax.lax.psum(sum_BP * jnp.exp(shard_maximum_BP - maximum_BP), TENSOR)
        target_logit_BP = jax.lax.pmax(target_logit_BP, TENSOR)
    logsumexp_BP = maximum_BP + jnp.log(sum_BP)
    asked_BP = target_BP >= 0
    logprob_BP = jnp.where(asked_BP, target_logit_BP - logsumexp_BP, 0.0)
    return logprob_BP, logsumexp_BP


# ---- Backward ----


def _backward(arrays, tile, mesh):
    """Gradients of the hidden states and of the head; `arrays` are those of `_local_backward`.

    Under a mesh the head's gradient is divided as the head is kept (words by `TENSOR`, D by `FSDP`), so that
    the sum over the rows' devices is a reduce-scatter.
    """
    inputs = (Spec(ROWS), Spec(TENSOR), Spec(ROWS), Spec(ROWS), Spec(TENSOR), Spec(ROWS), Spec(ROWS))
    local = partial(_local_backward, tile=tile, sharded=mesh is not None)
    return _on_shards(local, mesh, inputs, (Spec(ROWS), Spec(TENSOR, FSDP)))(*arrays)


def _local_backward(
    hidden_BTD, head_VD, place_BP, target_BP, allowed_V, logsumexp_BP, dlogprob_BP, *, tile, sharded
):
    """Each row of the head's gradient is written once; the hidden states' are summed over the words."""
    V, D = head_VD.shape
    hidden_XD, node_MC, target_MC = _chunks(hidden_BTD, place_BP, target_BP, tile[0])
    logsumexp_MC, dlogprob_MC = (
        _padded(x, tile[0], 0).reshape(node_MC.shape) for x in (logsumexp_BP, dlogprob_BP)
    )
    first_word = jax.lax.axis_index(TENSOR) * V if sharded else 0

    def visit(start, W, gradients):
        words_WD = jax.lax.dynamic_slice_in_dim(head_VD, start, W)

        def chunk(m, carry):
            dwords_WD, dhidden_MCD = carry
            hidden_CD = hidden_XD[node_MC[m]]
            logits_WC = _logits(hidden_CD, head_VD, allowed_V, start, W)
            is_target_WC = jnp.arange(W)[:, None] == target_MC[m] - first_word - start
            dlogits_WC = (is_target_WC - jnp.exp(logits_WC - logsumexp_MC[m])) * dlogprob_MC[m]
            dlogits_WC = jnp.where((target_MC[m] >= 0) & (logits_WC > -jnp.inf), dlogits_WC, 0.0)
            dlogits_WC = dlogits_WC.astype(head_VD.dtype)
            dhidden_CD = _product("WC,WD->CD", dlogits_WC, words_WD)
            return dwords_WD + _product("WC,CD->WD", dlogits_WC, hidden_CD), dhidden_MCD.at[m].add(dhidden_CD)

        def one(m, carry):
            return jax.lax.cond((target_MC[m] >= 0).any(), partial(chunk, m), lambda carry: carry, carry)

        dhead_VD, dhidden_MCD = gradients
        start_WD = jnp.zeros((W, D), jnp.float32)
        dwords_WD, dhidden_MCD = jax.lax.fori_loop(0, len(node_MC), one, (start_WD, dhidden_MCD))
        if sharded:
            dwords_WD = jax.lax.psum_scatter(dwords_WD, FSDP, scatter_dimension=1, tiled=True)
            dwords_WD = jax.lax.psum(dwords_WD, REPLICA)
        dwords_WD = dwords_WD.astype(head_VD.dtype)
        return jax.lax.dynamic_update_slice_in_dim(dhead_VD, dwords_WD, start, 0), dhidden_MCD

    own_D = D // jax.lax.axis_size(FSDP) if sharded else D
    start = jnp.zeros((V, own_D), head_VD.dtype), jnp.zeros((*node_MC.shape, D), jnp.float32)
    dhead_VD, dhidden_MCD = _over_words(visit, V, tile[1], start)
    dhidden_XD = jnp.zeros(hidden_XD.shape, jnp.float32)
    dhidden_XD = dhidden_XD.at[node_MC.reshape(-1)].add(dhidden_MCD.reshape(-1, D))
    if sharded:
        dhidden_XD = jax.lax.psum(dhidden_XD, TENSOR)
    return dhidden_XD.reshape(hidden_BTD.shape).astype(hidden_BTD.dtype), dhead_VD


# ---- What both passes share ----


def _chunks(hidden_BTD, place_BP, target_BP, C: int):
    """Hidden states of all nodes `[B * T, D]`; the asked nodes and their targets in chunks of C."""
    B, T, D = hidden_BTD.shape
    node_BP = place_BP + T * jnp.arange(B)[:, None]
    node_MC = _padded(node_BP, C, 0)
    target_MC = _padded(target_BP, C, -1)
    return hidden_BTD.reshape(B * T, D), node_MC, target_MC


def _padded(x_BP: Array, C: int, filler: int) -> Array:
    """All elements in chunks of C (fewer where there are fewer), the last one filled up: `[M, C]`."""
    C = min(C, x_BP.size)
    return jnp.pad(x_BP.reshape(-1), (0, -x_BP.size % C), constant_values=filler).reshape(-1, C)


def _logits(hidden_CD, head_VD, allowed_V, start, W: int) -> Array:
    """Logits of W words from `start` on, float32; -inf where the word is suppressed."""
    words_WD = jax.lax.dynamic_slice_in_dim(head_VD, start, W)
    logits_WC = _product("WD,CD->WC", words_WD, hidden_CD)
    if allowed_V is None:
        return logits_WC
    allowed_W = jax.lax.dynamic_slice_in_dim(allowed_V, start, W)
    return jnp.where(allowed_W[:, None], logits_WC, -jnp.inf)


def _product(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, precision=precision_of(a, b), preferred_element_type=jnp.float32)


def _over_words(visit: Callable, V: int, W: int, carry):
    """`visit(start, words, carry)` for one tile of W words after the other; the last may be smaller."""
    W = min(W, V)
    carry = jax.lax.fori_loop(0, V // W, lambda i, carry: visit(i * W, W, carry), carry)
    return visit(V - V % W, V % W, carry) if V % W else carry
