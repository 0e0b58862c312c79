"""Likelihoods on packed token trees against separate sequences and float64 brute force."""

import json
import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import random_llama

from rationalyst_jax.lm.devices.sharding import make_mesh, shard_weights
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama, tree_attend
from rationalyst_jax.lm.trees import likelihood
from rationalyst_jax.lm.trees.likelihood import Pair, score, score_rows
from rationalyst_jax.lm.trees.reduction import reduce_logprobs
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.mine.documents import read_annotations
from rationalyst_jax.mine.likelihood_filter import filter_pairs
from rationalyst_jax.mine.triples import extract
from rationalyst_jax.prompts.prompt import load_prompts

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


TINY_MODEL = random_llama(TINY)


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


@settings(max_examples=30)
@given(groups, st.sampled_from([13, 20, 64]))
def test_packed_trees_also_cut_to_short_rows_score_like_separate_sequences(groups, row_length):
    model = TINY_MODEL
    pairs = [[Pair((15, *a), tuple(b)) for a, b in group] for group in groups]
    scores = score(model, pairs, row_length=row_length, rows_per_batch=2).result()
    for group, of_group in zip(pairs, scores, strict=True):
        for pair, logprobs in zip(group, of_group, strict=True):
            expected = separate_logprobs(model, [*pair.context, *pair.continuation], 16)
            assert logprobs.dtype == np.float32
            np.testing.assert_allclose(logprobs, expected[len(pair.context) - 1 :], atol=1e-4)


def real_groups(shared, documents: int) -> list[list[Pair]]:
    """Real annotated documents as the filter renders them, with the real Llama-3 tokenizer."""
    tokenizer = load_tokenizer(shared / "llama3_tokenizer")
    prompts = load_prompts("llama3")
    annotations = read_annotations(shared / "rationalyst" / "extractor_output.jsonl")
    by_document: dict[str, list[Pair]] = {}
    for triple in extract(annotations[:documents]).triples:
        by_document.setdefault(triple.document_id, []).extend(filter_pairs(triple, tokenizer, prompts))
    return list(by_document.values())


@pytest.mark.parametrize(("documents", "pairs"), [(20, 60), pytest.param(86, 400, marks=pytest.mark.slow)])
def test_real_annotated_documents_score_like_separate_sequences(shared, documents, pairs):
    """Four layers and the real vocabulary of 128,256; separate sequences share nothing with their row."""
    groups = real_groups(shared, documents)
    model = random_llama(replace(TINY, vocab_size=128256, num_layers=4, rope_theta=500_000.0))
    scored = partial(score, model, row_length=1024, rows_per_batch=2)
    together = [logprobs for group in scored(groups).result() for logprobs in group]
    apart = scored([[pair] for group in groups for pair in group]).result()
    assert len(together) >= pairs
    for ours, [separate] in zip(together, apart, strict=True):
        np.testing.assert_allclose(ours, separate, atol=1e-4)


def test_scoring_other_texts_of_the_same_shape_compiles_nothing():
    compiled = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        score(TINY_MODEL, [[Pair((1, 2), (3, 4, 5))]] * 6, row_length=48, rows_per_batch=2)
        first = len(compiled)
        score(
            TINY_MODEL, [[Pair((1, 2, 7), (3, 4)), Pair((1, 3), (3,))]] * 6, row_length=48, rows_per_batch=2
        )
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == first > 0


def test_the_same_pair_many_times_is_scored_each_time():
    pair = Pair((15, 1), (2, 3, 0, 1))
    [many] = score(TINY_MODEL, [[pair] * 40], row_length=8, rows_per_batch=1).result()
    [[once]] = score(TINY_MODEL, [[pair]], row_length=8, rows_per_batch=1).result()
    assert len(many) == 40
    for logprobs in many:
        np.testing.assert_array_equal(logprobs, once)


@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 2, 1), (1, 2, 2)])
def test_a_mesh_gives_the_same_scores(shape):
    groups = [[Pair((15, *[i] * (i + 2)), (1, 2, 3)), Pair((15, i), (i,) * 4)] for i in range(11)]
    groups.append([])
    expected = score(TINY_MODEL, groups, row_length=16, rows_per_batch=4)
    mesh = make_mesh(*shape, devices=jax.devices()[: math.prod(shape)])
    graph, weights = nnx.split(TINY_MODEL)
    model = nnx.merge(graph, jax.device_put(weights, shard_weights(weights, mesh)))
    scores = score(model, groups, row_length=16, rows_per_batch=4, mesh=mesh)
    for ours, theirs in zip(scores.result(), expected.result(), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_rows_that_the_row_shards_of_a_mesh_do_not_divide_are_refused():
    mesh = make_mesh(1, 2, 1, devices=jax.devices()[:2])
    with pytest.raises(ValueError, match="3 rows a batch cannot be divided among 2 shards"):
        score(TINY_MODEL, [[Pair((1,), (2,))]], rows_per_batch=3, mesh=mesh)


def test_a_group_without_a_common_root_is_named():
    with pytest.raises(ValueError, match="group 1 do not begin with the same token"):
        score(TINY_MODEL, [[Pair((1,), (2,))], [Pair((1,), (2,)), Pair((2,), (2,))]])


def test_rows_come_in_two_shapes_however_many_there_are():
    groups = [[Pair((15, *[i] * 6), (1, 2, 3))] for i in range(7)]
    seen = set()

    def watching(*arguments):
        seen.add(jax.tree.map(jnp.shape, arguments[2]))
        return score_rows(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihood, "score_rows", watching)
        for n in range(1, 8):
            score(TINY_MODEL, groups[:n], row_length=16, rows_per_batch=3).result()
    assert {shapes.token_BT for shapes in seen} == {(3, 16), (1, 16)} and len(seen) == 2


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


def test_work_is_told_batch_by_batch_up_to_all_of_it():
    pairs = [[Pair((15, i % 4), (1, 2, 3))] for i in range(9)]
    scores = score(TINY_MODEL, pairs, row_length=13, rows_per_batch=2)
    told: list[int] = []
    scores.result(told.append)
    assert len(told) > 1
    assert told == sorted(told)
    assert told[-1] == scores.work.nodes
