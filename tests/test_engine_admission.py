"""Who is admitted when, who is preempted, and what somebody who follows sees."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import byte_tokenizer, contexts, same, small_llama

from rationalyst_jax.lm.engine import engine as engine_module
from rationalyst_jax.lm.engine import sequences
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import GenerateRequest, Handle, TokenUsage
from rationalyst_jax.lm.model.llama import Llama


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def model() -> Llama:
    return small_llama(257, layers=1)


@pytest.fixture(scope="module")
def narrow(model, tokenizer) -> Engine:
    """Four slots, and pages for 512 tokens."""
    return Engine(model, tokenizer, max_sequences=4, prefill_chunks=1, chunk_size=32, pages=128, page_size=4)


# ---- Growth ----


class Preempting(Engine):
    """Counts how often a sequence is preempted."""

    preemptions = 0

    def _preempt(self, sequence) -> None:
        self.preemptions += 1
        super()._preempt(sequence)


def test_preempted_sequences_write_what_they_would_have_written(model, tokenizer, monkeypatch):
    """Eight times as many tokens as the cache holds, of sequences that have all begun."""
    monkeypatch.setattr(sequences, "PROMISED", 4)
    requests = [
        GenerateRequest(c, 60, n=n, temperature=0.9, seed=i, suppress=(256,), alternatives=2)
        for i, (c, n) in enumerate(zip(contexts(5, 17, 30, 8, 12), (1, 4, 2, 3, 6), strict=True))
    ]
    sizes: dict[str, Any] = {
        "max_sequences": 12,
        "prefill_chunks": 1,
        "chunk_size": 8,
        "page_size": 4,
        "steps": 4,
        "alternatives": 2,
    }
    small = Preempting(model, tokenizer, pages=36, **sizes)
    got = [small.submit(request) for request in requests]
    while small.busy:
        small.step()
    assert small.preemptions > 20
    assert small.prefix_cache.in_use == 0 and small.prefix_cache.available == 36
    large = Preempting(model, tokenizer, pages=2000, **sizes)
    want = [large.submit(request) for request in requests]
    while large.busy:
        large.step()
    assert large.preemptions == 0
    for request, one, other in zip(requests, got, want, strict=True):
        same(one.result, other.result)
        for a, b in zip(one.result, other.result, strict=True):
            assert [[t for t, _ in place] for place in a.likeliest] == [
                [t for t, _ in p] for p in b.likeliest
            ]
        assert one.usage.generated == other.usage.generated == 60 * request.n
        # What was computed again is counted, and nothing else.
        assert one.usage.prefilled + one.usage.cached >= other.usage.prefilled + other.usage.cached
        assert one.usage.attended >= other.usage.attended

    # Equal requests in equal order, equal results to the last bit, preemptions included.
    small.forget()
    again = small.generate(requests)
    for one, candidates in zip(got, again, strict=True):
        for a, b in zip(one.result, candidates, strict=True):
            np.testing.assert_array_equal(a.logprobs, b.logprobs)


def test_a_resumed_sequence_is_prefilled_where_its_pages_are_gone(model, tokenizer, monkeypatch):
    monkeypatch.setattr(sequences, "PROMISED", 1)
    engine = Preempting(
        model, tokenizer, pages=12, page_size=4, steps=1, max_sequences=2, prefill_chunks=1, chunk_size=8
    )
    first, second = contexts(4, 4)
    handles = [engine.submit(GenerateRequest(c, 40, temperature=0, suppress=(256,))) for c in (first, second)]
    while engine.busy:
        engine.step()
    assert engine.preemptions == 1  # when the two have 24 tokens each
    assert handles[0].usage == TokenUsage(40, 4, 0, 0, 43 * 44 // 2)
    again = handles[1].usage.prefilled - 4
    assert 0 < again < 24 and handles[1].usage.cached == 0
    assert handles[1].usage.attended > 43 * 44 // 2


def test_far_limits_do_not_keep_others_waiting(narrow):
    """Four requests that may fill the cache three times over are at work at once."""
    handles = [narrow.submit(GenerateRequest(c, 450, suppress=(256,))) for c in contexts(9, 8, 7, 6)]
    for _ in range(4):
        narrow.step()
    assert len(narrow._decoding) == 4
    for handle in handles:
        narrow.cancel(handle)
    assert narrow.prefix_cache.in_use == 0
    assert narrow.step() == handles


# ---- Fairness ----


def in_order_of_their_ends(engine: Engine) -> list[Handle]:
    """Works until all is done."""
    done: list[Handle] = []
    while engine.busy:
        done += engine.step()
    return done


@settings(max_examples=6)
@given(st.lists(st.integers(1, 100), min_size=2, max_size=5), st.integers(1, 3))
def test_a_short_request_does_not_wait_for_long_ones_that_wait(narrow, lengths, n):
    """The first request leaves a slot; each of the others needs all four."""
    (context,) = contexts(100)
    first = narrow.submit(GenerateRequest(context[:9], 60, n=n, suppress=(256,)))
    waiting = [
        narrow.submit(GenerateRequest(context[:length], 60, n=4, suppress=(256,))) for length in lengths
    ]
    short = narrow.submit(GenerateRequest(context[:5], 3))
    assert in_order_of_their_ends(narrow) == [short, first, *waiting]


@pytest.mark.parametrize(
    "large",
    [GenerateRequest((7,) * 5, 4, n=4), GenerateRequest(contexts(330)[0], 4)],
    ids=["of many slots", "of many pages"],
)
def test_a_large_request_is_not_passed_for_ever(narrow, large, monkeypatch):
    """Short ones come without end, three at a time: there are never four slots, nor pages for 330 tokens."""
    monkeypatch.setattr(engine_module, "MOST_PASSED", 5)

    def short(number: int) -> Handle:
        return narrow.submit(GenerateRequest((number,) * 90, 8 + 5 * (number % 3), suppress=(256,)))

    before = [short(number) for number in range(3)]
    narrow.step()
    waiting = narrow.submit(large)
    came = 3
    done: list[Handle] = []
    while waiting not in done:
        while came < 3 + len(done):
            short(came)
            came += 1
        done += narrow.step()
    assert set(before) < set(done)
    assert 1 <= len(done) - 1 - len(before) <= 5  # so many passed it
    in_order_of_their_ends(narrow)


# ---- Streams ----


def test_a_stream_comes_token_by_token(narrow):
    narrow.forget()
    ascii_only = tuple(range(94, 257))  # so every token is a character
    request = GenerateRequest(contexts(20)[0], 30, seed=1, suppress=ascii_only)
    beside = narrow.submit(GenerateRequest(contexts(12)[0], 100, seed=2, suppress=ascii_only))
    handle = narrow.submit(request, stream=True)
    lengths = [0]
    while not handle.done:
        narrow.step()
        lengths.append(len(narrow.written(handle)[0].tokens))
    assert set(np.diff(lengths)) == {0, 1} and lengths[-1] == 30
    assert lengths.index(30) - lengths.index(1) == 29  # a token every step
    # Afterwards several tokens are decoded in one dispatch again.
    count = 0
    while not beside.done:
        narrow.step()
        count += 1
    assert count < 20
    same(handle.result, narrow.generate([request])[0])
