"""What the engine shares, counted; and that nothing is lost in it."""

import json
import logging
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import yaml
from random_model import random_llama
from test_engine import byte_tokenizer, small_llama
from test_engine_admission import Preempting

from rationalyst_jax.lm.engine import sequences
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import GenerateRequest, Handle, Request, ScoreRequest
from rationalyst_jax.lm.engine.sequences import fitting_pages
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.prompts.prompt import load_prompts
from rationalyst_jax.reason.config import ReasonConfig
from rationalyst_jax.reason.solve import solve
from rationalyst_jax.reason.traces import mean_ledger
from rationalyst_jax.reason.trajectory import Roles
from rationalyst_jax.roles.role import Role
from rationalyst_jax.tasks.question import Question


def test_no_page_is_lost_in_thousands_of_random_operations(monkeypatch):
    """Requests with common beginnings come, are worked on, preempted and given up, in a cache that is too
    small."""
    monkeypatch.setattr(sequences, "PROMISED", 1)
    rng = np.random.default_rng(0)
    engine = Preempting(
        small_llama(257, layers=1),
        byte_tokenizer(),
        max_sequences=6,
        prefill_chunks=1,
        chunk_size=8,
        page_size=3,
        pages=25,
    )
    open_: list[Handle] = []
    beginnings = [tuple(rng.integers(0, 256, 20).tolist()) for _ in range(3)]
    done = cancelled = 0
    for _ in range(3_000):
        what = rng.random()
        if what < 0.2 and len(open_) < 12:
            context = (*beginnings[rng.integers(3)][: rng.integers(1, 20)], int(rng.integers(256)))
            length = int(rng.integers(1, 25))
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
        cache = engine.prefix_cache
        assert 0 <= cache.available <= cache.pages and 0 <= cache.in_use <= cache.pages
    for handle in open_:
        engine.cancel(handle)
    while engine.busy:
        engine.step()
    assert done > 100 and cancelled > 40 and engine.preemptions > 40
    assert engine.prefix_cache.in_use == 0 and engine.prefix_cache.available == engine.prefix_cache.pages
    engine.forget()
    assert sorted(engine.prefix_cache._free) == list(range(1, engine.prefix_cache.pages + 1))


class Watched(Engine):
    """Compares its pages in use with what the open requests need, each beginning once, after every step."""

    def __init__(self, *args, **sizes):
        super().__init__(*args, **sizes)
        self.beginnings: Counter[int] = Counter()  # full pages of contexts, by all tokens up to their end
        self.own: dict[Handle, int] = {}
        self.most = 0

    def _beginnings(self, request: Request) -> list[int]:
        size = self.prefix_cache.page_size
        found = [0]
        for start in range(0, len(request.context) - size, size):
            found.append(hash((found[-1], request.context[start : start + size])))
        return found[1:]

    def submit(self, request: Request) -> Handle:
        shared = self._beginnings(request)
        rest = len(request.context) - len(shared) * self.prefix_cache.page_size
        n, new = (
            (request.n, request.max_tokens)
            if isinstance(request, GenerateRequest)
            else (1, len(request.continuation))
        )
        handle = super().submit(request)
        self.beginnings.update(shared)
        self.own[handle] = n * -(-(rest + new - 1) // self.prefix_cache.page_size)
        return handle

    def step(self) -> list[Handle]:
        finished = super().step()
        self.most = max(self.most, self.prefix_cache.in_use)
        assert self.prefix_cache.in_use <= len(self.beginnings) + sum(self.own.values())
        for handle in finished:
            del self.own[handle]
            self.beginnings -= Counter(self._beginnings(handle.request))
        return finished


def test_a_guided_loop_computes_a_tenth_of_what_it_sends(shared, tmp_path, caplog):
    """Questions of GSM8K with 8 examples before each: N = 3 candidates, 6 steps, a rationale for each."""
    tokenizer = load_tokenizer(shared / "llama3_tokenizer")
    shipped = load_prompts("llama3")
    chat = [("system", "Solve it step by step, one step a line.")]
    for line in (shared / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:8]:
        row = json.loads(line)
        chat += [("user", row["question"]), ("assistant", row["answer"].replace("{", "(").replace("}", ")"))]
    chat += [("user", "{question}"), ("assistant", "{steps}{step}")]
    kinds = {
        "step": chat,
        **{kind: shipped[kind].messages for kind in ("rationale", "follow", "follow_guided")},
    }
    messages = {k: {"messages": [{"role": r, "content": c} for r, c in m]} for k, m in kinds.items()}
    path = tmp_path / "prompts.yaml"
    path.write_text(
        yaml.safe_dump({"version": "8 examples", "document": shipped.document, "prompts": messages})
    )
    lines = (shared / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:6]
    questions = [Question(str(i), json.loads(line)["question"]) for i, line in enumerate(lines)]

    shape = LlamaConfig(128256, 8, 8, 1, 2, 1, 4, max_position_embeddings=2048, eos_token_id=128001)
    engine = Watched(random_llama(shape), tokenizer, max_sequences=18)
    engine.warm_up()
    role = Role(engine, tokenizer)
    config = ReasonConfig(
        "implicit", candidates=3, max_steps=6, max_step_tokens=6, max_rationale_tokens=6, step_end="turn"
    )
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        traces = solve(
            questions, Roles(role, role, role), load_prompts(path), config, lambda *_: None, tmp_path / "t"
        )
    assert not [r for r in caplog.records if r.getMessage().startswith("Compiling")]
    assert len(traces) == 6 and all(len(trace.steps) == 6 for trace in traces)
    used = mean_ledger(traces)
    sent = used["prefilled"] + used["cached"]
    assert sent > 9000
    assert used["prefilled"] <= 0.1 * sent
    assert engine.most > 100


def test_a_cache_takes_its_share_of_what_is_free(monkeypatch):
    model = small_llama(257, max_position_embeddings=4096)
    page = 2 * 2 * 2 * 8 * 4 * 16  # bytes: keys and values, layers, heads, head size, float32, tokens
    used = {"bytes_limit": 1000 * page, "bytes_in_use": 200 * page}
    device = SimpleNamespace(memory_stats=lambda: used)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert fitting_pages(model, 16, 64, 0.5, None) == 400 - 1  # and page NOWHERE
    assert fitting_pages(model, 16, 1, 0.5, None) == model.config.max_position_embeddings // 16
    used["bytes_in_use"] = 990 * page
    with pytest.raises(ValueError, match="0 MiB are left for the cache: less than 1024 tokens"):
        fitting_pages(model, 16, 64, 0.9, None)
