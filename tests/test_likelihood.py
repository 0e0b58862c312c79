"""Likelihoods on packed token trees against separate sequences and float64 brute force."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from rationalyst_jax.lm.attention import tree_attention
from rationalyst_jax.lm.config import LlamaConfig
from rationalyst_jax.lm.likelihood import Pair, score, token_logprobs
from rationalyst_jax.lm.llama import Llama, tree_attend
from rationalyst_jax.lm.prompt import load_prompts, render
from rationalyst_jax.lm.reduction import reduce_logprobs
from rationalyst_jax.lm.tokenizer import load_tokenizer
from rationalyst_jax.lm.tree import build_tree, pack
from rationalyst_jax.mine.documents import read_annotations
from rationalyst_jax.mine.triples import extract

TINY = LlamaConfig(
    vocab_size=16,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=100.0,
)


TINY_MODEL = Llama(TINY, rngs=nnx.Rngs(0))


@partial(jax.jit, static_argnames="graph")
def logits_of(graph, weights, tokens_1T):
    """Logits of one plain sequence, float32 `[T, V]`."""
    model: Llama = nnx.merge(graph, weights)
    positions = jnp.arange(tokens_1T.shape[1])[None]
    hidden, _ = model(tokens_1T, positions, tree_attend(tokens_1T.shape[1] - positions))
    return hidden[0] @ model.output_VD().T


def separate_logprobs(model: Llama, sequence: list[int], length: int) -> np.ndarray:
    """Log-probabilities of tokens 1.. of one plain sequence, padded on the right to `length`."""
    tokens = jnp.asarray([sequence + [0] * (length - len(sequence))])
    logits = np.asarray(logits_of(*nnx.split(model), tokens), np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.array([logprobs[i, sequence[i + 1]] for i in range(len(sequence) - 1)])


tokens = st.lists(st.integers(0, 3), min_size=1, max_size=6)
groups = st.lists(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=4), min_size=1, max_size=4)


@settings(max_examples=20)
@given(groups)
def test_packed_trees_score_like_separate_sequences(groups):
    model = TINY_MODEL
    pairs = [[Pair((15, *a), tuple(b)) for a, b in group] for group in groups]
    scores = score(model, pairs, row_length=64, rows_per_batch=2)
    for group, of_group in zip(pairs, scores, strict=True):
        for pair, logprobs in zip(group, of_group, strict=True):
            expected = separate_logprobs(model, [*pair.context, *pair.continuation], 16)
            np.testing.assert_allclose(logprobs, expected[len(pair.context) - 1 :], atol=1e-4)


def test_real_annotated_documents_score_like_separate_sequences(shared):
    tokenizer = load_tokenizer(shared / "llama3_tokenizer")
    prompts = load_prompts("llama3")
    annotations = read_annotations(shared / "rationalyst" / "extractor_output.jsonl")
    by_document: dict[str, list[Pair]] = {}
    for triple in extract(annotations).triples:
        fields = {"preceding": triple.preceding, "rationale": triple.rationale}
        for name in ("follow", "follow_guided"):
            pair = Pair(*render(tokenizer, prompts[name], fields, target=triple.following, close=False))
            by_document.setdefault(triple.document_id, []).append(pair)
    # The ids that occur, renumbered: the same trees over a vocabulary a test can afford.
    ids = {id for pairs in by_document.values() for pair in pairs for id in pair.context + pair.continuation}
    small = {id: i for i, id in enumerate(sorted(ids))}
    groups = [
        [Pair(tuple(small[i] for i in p.context), tuple(small[i] for i in p.continuation)) for p in pairs]
        for pairs in by_document.values()
    ]
    model = Llama(replace(TINY, vocab_size=len(small), rope_theta=500_000.0), rngs=nnx.Rngs(0))
    scores = score(model, groups, row_length=1024, rows_per_batch=2)
    # Separately: each sequence is its own group, so nothing is shared and no row holds a branch.
    alone = score(model, [[pair] for group in groups for pair in group], row_length=1024, rows_per_batch=2)
    shared_logprobs = [logprobs for group in scores for logprobs in group]
    assert len(groups) > 70 and len(shared_logprobs) > 300
    for together, [separate] in zip(shared_logprobs, alone, strict=True):
        np.testing.assert_allclose(together, separate, atol=1e-4)


@settings(max_examples=20)
@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=5), min_size=1, max_size=3
    )
)
def test_tree_attention_and_its_gradients_equal_float64_over_walked_ancestors(forest):
    rows = pack([build_tree([[9, *tail] for tail in tails])[0] for tails in forest], 40)
    B, T, N, K, H = len(rows.token_RT), 40, 4, 2, 8
    seen_BTS = np.zeros((B, T, T), bool)
    for b, i in np.ndindex(B, T):
        seen_BTS[b, i, i], place = True, i
        while rows.parent_distance_RT[b, place]:
            place -= rows.parent_distance_RT[b, place]
            seen_BTS[b, i, place] = True
    rng = np.random.default_rng(0)
    q, g = rng.normal(size=(2, B, T, N, H))
    k, v = rng.normal(size=(2, B, T, K, H))
    size = jnp.asarray(rows.subtree_size_RT)
    out, vjp = jax.vjp(lambda q, k, v: tree_attention(q, k, v, size), *map(jnp.float32, (q, k, v)))

    # Softmax attention and its derivative in float64, one head at a time.
    expected = {name: np.zeros(x.shape) for name, x in (("out", q), ("dq", q), ("dk", k), ("dv", v))}
    for b, n in np.ndindex(B, N):
        head = n // (N // K)
        scores = np.where(seen_BTS[b], q[b, :, n] @ k[b, :, head].T / np.sqrt(H), -np.inf)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        d_weights = g[b, :, n] @ v[b, :, head].T
        d_scores = weights * (d_weights - (weights * d_weights).sum(1, keepdims=True)) / np.sqrt(H)
        expected["out"][b, :, n] = weights @ v[b, :, head]
        expected["dq"][b, :, n] = d_scores @ k[b, :, head]
        expected["dk"][b, :, head] += d_scores.T @ q[b, :, n]
        expected["dv"][b, :, head] += weights.T @ g[b, :, n]
    got = dict(zip(expected, (out, *vjp(jnp.float32(g))), strict=True))
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, atol=2e-5, err_msg=name)


def test_naming_an_unknown_implementation_is_refused():
    x = jnp.zeros((1, 2, 1, 8))
    with pytest.raises(ValueError, match="no implementation 'fast'"):
        tree_attention(x, x, x, jnp.ones((1, 2), jnp.int32), implementation="fast")


@pytest.mark.parametrize("max_logits", [1 << 26, 20])  # all at once, three places at a time
def test_logprobs_and_their_gradient_equal_float64_whatever_the_chunks(monkeypatch, max_logits):
    hidden = jax.random.normal(jax.random.key(0), (2, 7, 4))
    output = jax.random.normal(jax.random.key(1), (6, 4))
    places, targets = np.array([[0, 2, 2, 6, 5]] * 2), np.array([[1, 5, 0, 2, 2]] * 2)

    def total(hidden, output):
        return jnp.sum(jnp.sin(token_logprobs(hidden, output, jnp.asarray(places), jnp.asarray(targets))))

    def plain(hidden, output):
        logprobs = jax.nn.log_softmax(jnp.take_along_axis(hidden, places[..., None], 1) @ output.T)
        return jnp.sum(jnp.sin(jnp.take_along_axis(logprobs, targets[..., None], -1)))

    monkeypatch.setattr("rationalyst_jax.lm.likelihood.MAX_LOGITS", max_logits)
    ours = jax.value_and_grad(total, (0, 1))(hidden, output)
    with jax.enable_x64(True):
        exact = jax.value_and_grad(plain, (0, 1))(np.float64(hidden), np.float64(output))
    # A dozen float32 terms are summed: 12 half units in the last place of the largest, and exp's own error.
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a, b, atol=1.5e-6 * np.abs(b).max(), rtol=0)


def test_suppressed_tokens_get_no_probability_and_the_others_share_theirs():
    hidden = jax.random.normal(jax.random.key(0), (1, 3, 4))
    output = jax.random.normal(jax.random.key(1), (6, 4))
    places, targets = jnp.array([[0, 2]]), jnp.array([[1, 5]])
    got = token_logprobs(hidden, output, places, targets, suppress=(2, 3))
    logits = np.delete(np.asarray(hidden[0] @ output.T, np.float64), [2, 3], axis=1)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(got[0], [expected[0, 1], expected[2, 3]], rtol=1e-5)


def test_scoring_other_texts_of_the_same_shape_compiles_nothing():
    model = TINY_MODEL
    score(model, [[Pair((1, 2), (3, 4, 5))]], row_length=64, rows_per_batch=2)
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        compiled = []
        from jax._src.interpreters import pxla

        patch.setattr(pxla.logger, "log", lambda *args, **kwargs: compiled.append(args))
        score(model, [[Pair((1, 2, 7), (3, 4)), Pair((1, 3), (3,))]] * 2, row_length=64, rows_per_batch=2)
    assert not [args for args in compiled if "_score_rows" in str(args)]


def test_empty_continuations_are_refused():
    with pytest.raises(ValueError, match="group 0 has a pair with an empty"):
        score(TINY_MODEL, [[Pair((1,), ())]])


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=30), st.floats(0.1, 1.0))
def test_reductions_are_what_their_names_say(values, decay):
    weights = [decay**t for t in range(len(values))]
    decayed = sum(w * x for w, x in zip(weights, values, strict=True))
    array = np.array(values)
    assert reduce_logprobs(array, "sum") == pytest.approx(sum(values))
    assert reduce_logprobs(array, "mean") == pytest.approx(sum(values) / len(values))
    assert reduce_logprobs(array, "decayed_sum", decay) == pytest.approx(decayed)
    assert reduce_logprobs(array, "decayed_mean", decay) == pytest.approx(decayed / sum(weights))


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="unknown reduction 'median'"):
        reduce_logprobs(np.zeros(1), "median")  # pyright: ignore[reportArgumentType]


def test_shared_real_rows_are_what_the_tests_believe(shared):
    lines = (shared / "rationalyst" / "extractor_output.jsonl").read_text().splitlines()
    assert len(lines) == 86 and set(json.loads(lines[0])) == {"input", "output"}
