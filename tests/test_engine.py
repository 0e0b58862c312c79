"""The generation engine: against transformers, against a plain forward pass, and against itself."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import random_llama
from scipy.stats import chisquare
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rationalyst_jax.lm.devices.sharding import make_mesh, shard_weights
from rationalyst_jax.lm.engine import sequences
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import GenerateRequest, Handle, ScoreRequest
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama, tree_attend
from rationalyst_jax.lm.weights.hf import load_llama

# Most engines here have these sizes, so that they have the same compiled programs.
SMALL: dict[str, Any] = {"max_sequences": 4, "steps": 4, "prefill_chunks": 1, "chunk_size": 24}
PAGED: dict[str, Any] = SMALL | {"page_size": 4, "pages": 200}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and an end of sequence: whatever is generated, most stop strings span tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def small_llama(vocab_size: int, layers: int = 2, **config) -> Llama:
    """A random model whose next tokens are neither certain nor uniform."""
    return random_llama(LlamaConfig(vocab_size, 32, 48, layers, 4, 2, 8, **config))


@partial(jax.jit, static_argnames="graph")
def plain_logits(graph: Any, weights: nnx.State, token_T: jax.Array) -> jax.Array:
    model: Llama = nnx.merge(graph, weights)
    place_1T = jnp.arange(len(token_T))[None]
    hidden_1TD, _ = model(token_T[None], place_1T, tree_attend(len(token_T) - place_1T))
    return hidden_1TD[0] @ model.output_VD().T


def next_logprobs(model: Llama, tokens: tuple[int, ...], suppress: tuple[int, ...] = ()) -> np.ndarray:
    """Log-probabilities `[T, V]` after each token by one plain forward pass, the softmax in float64."""
    token_T = np.zeros(-(-len(tokens) // 64) * 64, np.int32)  # few lengths, so few programs
    token_T[: len(tokens)] = tokens
    logits_TV = np.asarray(plain_logits(*nnx.split(model), token_T)[: len(tokens)], np.float64)
    logits_TV[:, list(suppress)] = -np.inf
    return logits_TV - np.log(np.exp(logits_TV).sum(axis=-1, keepdims=True))


def contexts(*lengths: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(0, 256, length).tolist()) for length in lengths]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def model() -> Llama:
    return small_llama(257)


@pytest.fixture(scope="module")
def engine(model, tokenizer) -> Engine:
    return Engine(model, tokenizer, **SMALL)


def test_greedy_tokens_equal_transformers_on_200_prompts_of_1_to_1000_tokens(tmp_path, tokenizer):
    torch = pytest.importorskip("torch", reason="torch is the oracle here")
    from transformers import LlamaConfig as HFConfig
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = HFConfig(
        vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.3, bos_token_id=None,
        eos_token_id=256, head_dim=12, rms_norm_eps=3e-4, attention_bias=False,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 70_000.0, "factor": 4.0, "low_freq_factor": 1.5,
            "high_freq_factor": 5.0, "original_max_position_embeddings": 256,
        },
    )  # fmt: skip
    oracle = LlamaForCausalLM(config).eval()
    oracle.save_pretrained(tmp_path)
    engine = Engine(load_llama(tmp_path), tokenizer, max_sequences=32)

    prompts = contexts(1, 2, 3, 1000, *np.geomspace(4, 999, 196).astype(int))
    requests = [GenerateRequest(prompt, max_tokens=8, temperature=0) for prompt in prompts]
    for prompt, (result,) in zip(prompts, engine.generate(requests), strict=True):
        with torch.inference_mode():
            logits_TV = oracle(torch.tensor([prompt + result.tokens])).logits[0]
        assert list(result.tokens) == logits_TV[len(prompt) - 1 : -1].argmax(dim=1).tolist()
        assert len(result.tokens) == 8 or result.tokens[-1] == 256


def test_a_result_does_not_depend_on_the_batch(engine, model, tokenizer):
    requests = [
        GenerateRequest(context, max_tokens=10 + i, n=2, temperature=0.8, seed=i)
        for i, context in enumerate(contexts(5, 9, 30, 31, 40, 64, 17, 29, 12))
    ]
    together = engine.generate(requests)
    alone = [engine.generate([request])[0] for request in requests]
    other = Engine(model, tokenizer, max_sequences=3, prefill_chunks=1, chunk_size=5, page_size=3)
    reordered = other.generate(requests[::-1])[::-1]
    for others in (alone, reordered):
        for candidates, others_candidates in zip(together, others, strict=True):
            for a, b in zip(candidates, others_candidates, strict=True):
                assert (a.tokens, a.text, a.finish) == (b.tokens, b.text, b.finish)
                np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_seed_and_candidate_decide_the_noise(engine):
    (context,) = contexts(20)
    request = GenerateRequest(context, max_tokens=12, n=3, seed=7)
    first, again, more, other = engine.generate(
        [request, request, replace(request, n=5), replace(request, seed=8)]
    )
    tokens = [g.tokens for g in first]
    assert tokens == [g.tokens for g in again] == [g.tokens for g in more[:3]]
    assert len({*tokens, *(g.tokens for g in other)}) == 6


def test_a_stop_string_that_spans_tokens_cuts_text_and_tokens(model, tokenizer):
    (context,) = contexts(20)
    free = GenerateRequest(context, max_tokens=40, seed=3, suppress=tuple(range(94, 257)))  # ASCII only
    ((whole,),) = Engine(model, tokenizer, **SMALL).generate([free])
    assert whole.finish == "length" and len(whole.text) == 40
    stop = whole.text[17:20]
    at = whole.text.index(stop)
    for steps in (1, 4):
        options: dict[str, Any] = SMALL | {"steps": steps}
        engine = Engine(model, tokenizer, **options)
        ((cut,),) = engine.generate([replace(free, stop=("never there", stop))])
        assert cut.finish == "stop"
        assert cut.text == whole.text[:at]
        assert cut.tokens == whole.tokens[: at + 3]
        np.testing.assert_allclose(cut.logprobs, whole.logprobs[: at + 3], atol=1e-5)


def test_a_token_that_holds_a_stop_string_ends_its_candidate_only(engine, tokenizer):
    (context,) = contexts(20)
    free = GenerateRequest(context, max_tokens=32, n=4, seed=1, suppress=tuple(range(94, 257)))
    (whole,) = engine.generate([free])
    stop = whole[0].text[5]
    (cut,) = engine.generate([replace(free, stop=(stop,))])
    assert cut[0].finish == "stop"
    for before, after in zip(whole, cut, strict=True):
        assert after.text == before.text.partition(stop)[0]
        assert after.tokens == before.tokens[: len(after.text) + (after.finish == "stop")]


def test_end_of_sequence_ends_a_candidate_and_stays_out_of_the_text(tokenizer):
    (context,) = contexts(20)
    greedy = GenerateRequest(context, max_tokens=8, temperature=0)
    ((whole,),) = Engine(small_llama(257), tokenizer, **SMALL).generate([greedy])
    end = whole.tokens[3]
    ending = Engine(small_llama(257, eos_token_id=(end, 256)), tokenizer, **SMALL)
    ((ended,),) = ending.generate([greedy])
    count = whole.tokens.index(end) + 1
    assert ended.tokens == whole.tokens[:count]
    assert ended.finish == "end"
    assert ended.text == tokenizer.decode(list(ended.tokens[:-1]))


def test_a_candidate_has_at_most_its_own_max_tokens(engine):
    limits = [1, 2, 31, 32, 33]
    requests = [
        GenerateRequest(c, max_tokens=m) for m, c in zip(limits, contexts(5, 6, 7, 8, 9), strict=True)
    ]
    results = engine.generate([replace(request, suppress=(256,)) for request in requests])
    assert [len(g.tokens) for (g,) in results] == limits
    assert {g.finish for (g,) in results} == {"length"}


def test_generation_ends_where_the_positions_do(tokenizer):
    engine = Engine(small_llama(257, max_position_embeddings=40), tokenizer, **SMALL)
    inside, beyond = contexts(35, 40)
    ((result,),) = engine.generate([GenerateRequest(inside, max_tokens=20, suppress=(256,))])
    assert (len(result.tokens), result.finish) == (5, "length")
    # A context without room has no continuation; its neighbours have theirs.
    none, again = engine.generate([GenerateRequest(c, 20, n=2, suppress=(256,)) for c in (beyond, inside)])
    assert [(g.tokens, g.text, g.finish) for g in none] == [((), "", "length")] * 2
    assert again[0].tokens == result.tokens


def test_logprobs_are_those_of_a_scoring_pass(engine, model):
    suppress = tuple(range(0, 257, 3))
    requests = [
        GenerateRequest(c, max_tokens=15, n=2, temperature=t, top_p=p, seed=s, suppress=suppress)
        for s, (c, t, p) in enumerate(zip(contexts(3, 33, 50), (0.0, 0.7, 1.5), (1.0, 0.9, 1.0), strict=True))
    ]
    generated = [(r, g) for r, gs in zip(requests, engine.generate(requests), strict=True) for g in gs]
    scores = engine.score([ScoreRequest(r.context, g.tokens, suppress) for r, g in generated])
    for (request, generation), score in zip(generated, scores, strict=True):
        assert not set(suppress) & set(generation.tokens)
        np.testing.assert_allclose(generation.logprobs, score, atol=1e-4)
        places = np.arange(len(generation.tokens))
        plain = next_logprobs(model, request.context + generation.tokens, suppress)[
            len(request.context) - 1 :
        ]
        np.testing.assert_allclose(generation.logprobs, plain[places, generation.tokens], atol=1e-4)


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 1.0, 0), (0.6, 1.0, 0), (1.0, 0.7, 0), (1.7, 0.85, 0), (1.0, 1.0, 5), (0.8, 0.9, 6)],
)
def test_samples_follow_the_exact_distribution(temperature, top_p, top_k):
    V, draws = 12, 20_000
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(V)}, unk_token="w0"))
    model = small_llama(V, layers=1)
    engine = Engine(model, PreTrainedTokenizerFast(tokenizer_object=words), max_sequences=500)
    request = GenerateRequest((3, 1, 4), 1, n=draws, temperature=temperature, top_p=top_p, top_k=top_k)
    counts_V = np.bincount([g.tokens[0] for g in engine.generate([request])[0]], minlength=V)

    exact_V = np.exp(next_logprobs(model, request.context)[-1] / temperature)
    order = np.argsort(-exact_V)[: top_k or V]
    exact_V /= exact_V[order].sum()
    kept = []
    mass = 0.0
    for token in order:  # the nucleus by its definition
        kept.append(token)
        mass += exact_V[token]
        if mass >= top_p:
            break
    assert counts_V[kept].sum() == draws
    assert 3 < len(kept) <= V and (len(kept) < len(order)) == (top_p < 1)
    assert chisquare(counts_V[kept], draws * exact_V[kept] / mass).pvalue > 1e-3


def test_what_is_computed_once_is_not_computed_again(model, tokenizer):
    engine = Engine(model, tokenizer, **PAGED)
    (context,) = contexts(30)
    handles = [engine.submit(GenerateRequest(context, 4, n=4, suppress=(256,), seed=s)) for s in range(3)]
    while engine.busy:
        engine.step()
    assert [h.usage.prefilled for h in handles] == [30, 2, 2]  # 28 tokens of seven pages are there
    # The next step of a trajectory finds the tokens of the last one.
    longer = context + handles[0].result[0].tokens
    again = engine.submit(GenerateRequest(longer, 4))
    scored = engine.submit(ScoreRequest(longer, (1, 2, 3)))
    while engine.busy:
        engine.step()
    assert again.usage.prefilled <= 6 and scored.usage.prefilled <= 4
    assert engine.prefix_cache.in_use == 0


def test_candidates_that_take_turns_are_counted_once_each(model, tokenizer):
    engine = Engine(model, tokenizer, **PAGED)
    handle = engine.submit(GenerateRequest(contexts(30)[0], 2, n=11, suppress=(256,)))
    while engine.busy:
        engine.step()
    assert vars(handle.usage) | {"attended": 0} == {
        "generated": 22, "prefilled": 34, "cached": 56, "scored": 0, "attended": 0,
    }  # fmt: skip


def test_heads_and_vocabulary_divided_among_devices_change_nothing(tokenizer, caplog):
    """Sampled, restricted, suppressed, scored, with forks and shared prefixes: as on one device."""
    config = LlamaConfig(260, 32, 48, 2, 8, 4, 8)
    requests = [
        GenerateRequest(context, 9, n=3, temperature=t, top_k=k, seed=5, suppress=(7,), alternatives=2)
        for context in contexts(3, 41, 70)
        for t, k in ((0.0, 0), (1.0, 0), (0.7, 4))
    ]
    scores = [ScoreRequest(context, (5, 6, 7) * 9) for context in contexts(41, 70)]
    sizes: dict[str, Any] = PAGED | {"alternatives": 2}
    model = random_llama(config)
    want = Engine(model, tokenizer, **sizes)
    mesh = make_mesh(1, 1, 4, jax.devices()[:4])
    graph, weights = nnx.split(model)
    divided = nnx.merge(graph, jax.device_put(weights, shard_weights(weights, mesh)))
    got = Engine(divided, tokenizer, mesh=mesh, **sizes)
    got.warm_up()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        mine = got.generate(requests), got.score(scores)
    assert not [r for r in caplog.records if r.getMessage().startswith("Compiling")]
    for one, other in zip(mine[0], want.generate(requests), strict=True):
        assert [g.tokens for g in one] == [g.tokens for g in other]
        for g, h in zip(one, other, strict=True):
            np.testing.assert_allclose(g.logprobs, h.logprobs, atol=1e-5)
            assert [[t for t, _ in place] for place in g.likeliest] == [
                [t for t, _ in p] for p in h.likeliest
            ]
    for one, other in zip(mine[1], want.score(scores), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert {shard.data.shape[2] for shard in got._state.cache.addressable_shards} == {2}


def test_a_mesh_of_rows_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="only the axis tensor of a mesh can be more than 1"):
        Engine(model, tokenizer, mesh=make_mesh(1, 2, 2, jax.devices()[:4]))


def test_after_warm_up_nothing_is_compiled(model, tokenizer, caplog):
    engine = Engine(model, tokenizer, **SMALL)
    jax.clear_caches()  # another engine may have compiled the same programs
    engine.warm_up()
    requests = [
        GenerateRequest(c, 5 + i, n=1 + i % 3, seed=i, stop=("x",) * (i % 2), top_k=i % 4, temperature=i % 3)
        for i, c in enumerate(contexts(3, 40, 50, 60, 64, 33, 120))
    ]
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        engine.generate(requests)
        engine.score([ScoreRequest(r.context, (5, 6, 7)) for r in requests])
        assert not [r for r in caplog.records if r.getMessage().startswith("Compiling")]


def test_scores_equal_a_plain_forward_pass_whatever_they_are_grouped_with(engine, model):
    document, other = contexts(120, 40)
    requests = [
        ScoreRequest(document, (1, 2, 3)),
        ScoreRequest(other, (4,)),
        ScoreRequest(document, (1, 2, 9, 9)),
        ScoreRequest(document[:100], (5, 6), suppress=(0, 7)),
        ScoreRequest(document[:90] + other, (1, 2, 3)),
        ScoreRequest(document, (1, 2, 3)),
        ScoreRequest(document * 3, document[:10]),
    ]
    for request, score in zip(requests, engine.score(requests), strict=True):
        tokens = request.context + request.continuation
        places = np.arange(len(request.context) - 1, len(tokens) - 1)
        plain_TV = next_logprobs(model, tokens, request.suppress)
        np.testing.assert_allclose(score, plain_TV[places, request.continuation], atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"context": ()}, "context is empty"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
        ({"seed": -1}, "seed must be in .*, got -1"),
        ({"stop": ("a", "")}, "stop string is empty"),
        ({"context": (1, 257)}, "token id 257 is outside the model's vocabulary of 257"),
    ],
)
def test_a_bad_request_is_refused_in_one_line(engine, wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        engine.generate([GenerateRequest(**{"context": (1, 2), "max_tokens": 4, **wrong})])
    assert "\n" not in str(error.value)


def test_nothing_asked_is_nothing_answered(engine):
    assert engine.generate([]) == [] == engine.score([])


# ---- Whatever else is going on ----

ALONE = st.fixed_dictionaries(
    {
        "length": st.integers(1, 90),
        "document": st.integers(0, 2),  # requests about one document begin alike
        "n": st.integers(1, 4),
        "max_tokens": st.integers(1, 30),
        "temperature": st.sampled_from([0.0, 0.8]),
        "score": st.booleans(),
    }
)
DOCUMENTS = contexts(100, 100, 100)
# Caches that hold little more than one sequence, one for a few, and one for all.
SIZES: tuple[dict[str, Any], ...] = (
    {"max_sequences": 8, "prefill_chunks": 1, "chunk_size": 8, "page_size": 4, "pages": 32, "steps": 4},
    {"max_sequences": 6, "prefill_chunks": 3, "chunk_size": 7, "page_size": 3, "pages": 60, "steps": 1},
    PAGED,
)


@pytest.fixture(scope="module")
def crowded_engines(model, tokenizer) -> Iterator[list[Engine]]:
    """Used by all examples, one after the other: their caches are never empty. Nobody is promised much."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequences, "PROMISED", 2)
        yield [Engine(model, tokenizer, **sizes) for sizes in SIZES]


def request_of(drawn: dict, seed: int) -> GenerateRequest | ScoreRequest:
    context = DOCUMENTS[drawn["document"]][: drawn["length"]]
    if drawn["score"]:
        return ScoreRequest(context, DOCUMENTS[0][-drawn["max_tokens"] :])
    options = {name: drawn[name] for name in ("n", "max_tokens", "temperature")}
    return GenerateRequest(context, seed=seed, **options)


def same(a, b) -> None:
    if isinstance(a, np.ndarray):
        np.testing.assert_allclose(a, b, atol=2e-5)
        return
    for one, other in zip(a, b, strict=True):
        assert (one.tokens, one.text, one.finish) == (other.tokens, other.text, other.finish)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-5)


@settings(max_examples=12)
@given(st.lists(ALONE, min_size=1, max_size=12), st.integers(0, len(SIZES) - 1), st.data())
def test_results_are_those_of_a_request_alone(crowded_engines, engine, drawn, size, data):
    crowded = crowded_engines[size]
    requests = [request_of(one, seed) for seed, one in enumerate(drawn)]
    handles: list[Handle] = []
    cancelled = set()
    for request in requests:
        handles.append(crowded.submit(request))
        if data.draw(st.booleans()):
            crowded.step()
        if data.draw(st.integers(0, 9)) == 0:
            cancelled.add(place := data.draw(st.integers(0, len(handles) - 1)))
            crowded.cancel(handles[place])
    while crowded.busy:
        crowded.step()
    assert crowded.prefix_cache.in_use == 0 and crowded.prefix_cache.available == crowded.prefix_cache.pages
    for place, (request, handle) in enumerate(zip(requests, handles, strict=True)):
        assert handle.done
        if place in cancelled and handle.result is None:
            continue
        alone = engine.score if isinstance(request, ScoreRequest) else engine.generate
        same(handle.result, alone([request])[0])


def test_a_request_that_the_cache_could_not_hold_is_refused(engine, model, tokenizer):
    options: dict[str, Any] = PAGED | {"pages": 4}
    small = Engine(model, tokenizer, **options)
    (many,) = small.generate([GenerateRequest((1,) * 12, max_tokens=4, n=3)])  # one candidate after the other
    same(many, engine.generate([GenerateRequest((1,) * 12, max_tokens=4, n=3)])[0])
    for context in (12, 100):
        with pytest.raises(
            ValueError, match=f"{context} tokens and 5 new ones do not fit in the cache, 16 are"
        ):
            small.submit(GenerateRequest((1,) * context, max_tokens=5))
