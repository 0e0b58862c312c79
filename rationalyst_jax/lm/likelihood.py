"""Log-likelihoods of continuations given contexts, computed on packed token trees.

Natural logarithms throughout: every log-probability is in nats, float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from rationalyst_jax.lm.llama import Llama, tree_attend
from rationalyst_jax.lm.tree import TokenTree, build_tree, pack

MAX_LOGITS = 1 << 26  # float32 logits that exist at once: 256 MiB


@dataclass(frozen=True)
class Pair:
    """A continuation to be scored after its context, both as token ids; neither may be empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


def token_logprobs(
    hidden_BTD: Array,
    output_VD: Array,
    places_BP: Array,
    targets_BP: Array,
    suppress: Sequence[int] = (),
) -> Array:
    """Log-probabilities of `targets` (token ids) read from the hidden states at `places`: float32 `[B, P]`.

    Only the asked places are projected to the vocabulary, at most `MAX_LOGITS` logits at a time, and the
    backward pass recomputes them: `[B, T, V]` logits never exist. `suppress` names ids whose probability
    is set to zero before the softmax (the others share what they had); a suppressed target gets -inf.
    """
    hidden_BPD = jnp.take_along_axis(hidden_BTD, places_BP[..., None], axis=1)

    def logprobs(hidden_CD: Array, target_C: Array) -> Array:
        logits_CV = jnp.einsum("CD,VD->CV", hidden_CD, output_VD, preferred_element_type=jnp.float32)
        if suppress:
            logits_CV = logits_CV.at[:, jnp.asarray(suppress)].set(-jnp.inf)
        target_C = jnp.take_along_axis(logits_CV, target_C[:, None], axis=1)[:, 0]
        return target_C - jax.nn.logsumexp(logits_CV, axis=1)

    B, P = places_BP.shape
    hidden_XD, target_X = hidden_BPD.reshape(B * P, -1), targets_BP.reshape(B * P)
    if B * P * len(output_VD) <= MAX_LOGITS:
        return logprobs(hidden_XD, target_X).reshape(B, P)
    chunk = max(1, MAX_LOGITS // len(output_VD))
    one = jax.checkpoint(lambda at: logprobs(at[0][None], at[1][None])[0])
    return jax.lax.map(one, (hidden_XD, target_X), batch_size=chunk).reshape(B, P)


@partial(jax.jit, static_argnames=("graph", "suppress"))
def _score_rows(graph, weights, token_BT, position_BT, size_BT, place_BP, target_BP, suppress):
    model: Llama = nnx.merge(graph, weights)
    hidden_BTD, _ = model(token_BT, position_BT, tree_attend(size_BT))
    return token_logprobs(hidden_BTD, model.output_VD(), place_BP, target_BP, suppress)


def bucket(n: int) -> int:
    """n rounded up to a multiple of 32, from 256 on of 1/8 of a power of two: few shapes, little waste."""
    step = max(32, 1 << max(0, n.bit_length() - 3))
    return -(-n // step) * step


def score(
    model: Llama,
    groups: Sequence[Sequence[Pair]],
    *,
    row_length: int = 1024,
    rows_per_batch: int = 8,
    suppress: Sequence[int] = (),
) -> list[list[np.ndarray]]:
    """Per-token log-probabilities (nats, float32) of each pair's continuation.

    The pairs of one group share one token tree, so their common prefixes are computed once; the result
    equals that of separate sequences up to float rounding. Trees are packed in rows of `row_length` tokens,
    `rows_per_batch` rows at a time. Raises ValueError for an empty context or continuation, and for a tree
    longer than a row.
    """
    trees: list[TokenTree] = []
    target_nodes: list[list[np.ndarray]] = []
    for g, group in enumerate(groups):
        if not all(pair.context and pair.continuation for pair in group):
            raise ValueError(f"score: group {g} has a pair with an empty context or continuation")
        tree, paths = build_tree([pair.context + pair.continuation for pair in group])
        trees.append(tree)
        target_nodes.append([path[len(p.context) :] for p, path in zip(group, paths, strict=True)])
    if not trees:
        return []

    rows = pack(trees, row_length)
    R, T = rows.token_RT.shape
    asked_RT = np.zeros((R, T), bool)  # each node once, however many pairs ask for it
    for nodes, r, o in zip(target_nodes, rows.row, rows.offset, strict=True):
        for path in nodes:
            asked_RT[r, o + path] = True
    P = bucket(int(asked_RT.sum(axis=1).max()))
    node_RP = np.argsort(~asked_RT, axis=1, kind="stable")[:, : min(P, T)]
    place_RP = node_RP - np.take_along_axis(rows.parent_distance_RT, node_RP, axis=1)
    target_RP = np.take_along_axis(rows.token_RT, node_RP, axis=1)

    graph, weights = nnx.split(model)
    pending = []  # results stay on the device until all batches are dispatched
    for start in range(0, R, rows_per_batch):
        batch = np.minimum(
            np.arange(start, start + rows_per_batch), R - 1
        )  # the last row fills the last batch
        arrays = (
            a[batch] for a in (rows.token_RT, rows.position_RT, rows.subtree_size_RT, place_RP, target_RP)
        )
        pending.append(_score_rows(graph, weights, *arrays, suppress=tuple(suppress)))
    logprobs_RP = np.concatenate([np.asarray(batch) for batch in pending])[:R]
    logprob_RT = np.zeros((R, T), np.float32)
    np.put_along_axis(logprob_RT, node_RP, logprobs_RP, axis=1)
    return [
        [logprob_RT[r, o + path] for path in nodes]
        for nodes, r, o in zip(target_nodes, rows.row, rows.offset, strict=True)
    ]
