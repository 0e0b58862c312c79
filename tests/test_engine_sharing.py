"""What the engine shares, counted; and that nothing is lost in it."""

import numpy as np
from test_engine import byte_tokenizer, random_llama

from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import GenerateRequest, Handle, ScoreRequest


def test_no_page_is_lost_in_ten_thousand_random_operations():
    """Requests with common beginnings come, are worked on and are given up, in a cache that is too small."""
    rng = np.random.default_rng(0)
    engine = Engine(
        random_llama(257, layers=1), byte_tokenizer(), rows=6, pieces=3, piece=4, page_size=3, pages=25
    )
    open_: list[Handle] = []
    beginnings = [tuple(rng.integers(0, 256, 20).tolist()) for _ in range(3)]
    done = cancelled = 0
    for _ in range(10_000):
        what = rng.random()
        if what < 0.2 and len(open_) < 12:
            context = (*beginnings[rng.integers(3)][: rng.integers(1, 20)], int(rng.integers(256)))
            length = int(rng.integers(1, 9))
            if rng.random() < 0.3:
                request = ScoreRequest(context, tuple(rng.integers(0, 256, length).tolist()))
            else:
                request = GenerateRequest(context, length, n=int(rng.integers(1, 4)), seed=done)
            open_.append(engine.submit(request))
        elif what < 0.25 and open_:
            engine.cancel(open_.pop(rng.integers(len(open_))))
            cancelled += 1
        elif what < 0.26:
            engine.forget()
        else:
            for handle in engine.step():
                if handle in open_:
                    open_.remove(handle)
                    done += 1
        pages = engine.pages
        assert 0 <= pages.available <= pages.number and 0 <= pages.in_use <= pages.number
    for handle in open_:
        engine.cancel(handle)
    while engine.busy:
        engine.step()
    assert done > 300 and cancelled > 100
    assert engine.pages.in_use == 0 and engine.pages.available == engine.pages.number
    engine.forget()
    assert sorted(engine.pages._free) == list(range(1, engine.pages.number + 1))
