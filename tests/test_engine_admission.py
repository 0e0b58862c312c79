"""Who is admitted when, and who is preempted."""

from typing import Any

import numpy as np
import pytest
from test_engine import byte_tokenizer, contexts, random_llama, same

from rationalyst_jax.lm.engine import sequences
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import GenerateRequest, TokenUsage
from rationalyst_jax.lm.model.llama import Llama


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def model() -> Llama:
    return random_llama(257, layers=1)


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
    engine = Preempting(model, tokenizer, pages=12, page_size=4, steps=1, max_sequences=2)
    first, second = contexts(4, 4)
    handles = [engine.submit(GenerateRequest(c, 40, temperature=0, suppress=(256,))) for c in (first, second)]
    while engine.busy:
        engine.step()
    assert engine.preemptions == 1  # when the two have 24 tokens each
    assert handles[0].usage == TokenUsage(40, 4, 0, 0, 43 * 44 // 2)
    again = handles[1].usage.prefilled - 4
    assert 0 < again < 24 and handles[1].usage.cached == 0
    assert handles[1].usage.attended > 43 * 44 // 2


def test_far_limits_do_not_keep_others_waiting(model, tokenizer):
    """Six requests that may fill the cache three times over are at work at once."""
    engine = Engine(model, tokenizer, max_sequences=8, pages=256, page_size=16)
    handles = [engine.submit(GenerateRequest(c, 2000, suppress=(256,))) for c in contexts(9, 8, 7, 6, 5, 4)]
    for _ in range(3):
        engine.step()
    assert len(engine._decoding) == 6
    for handle in handles:
        engine.cancel(handle)
    assert engine.prefix_cache.in_use == 0
