"""The roles of the method, and how a strategy asks them for something.

A strategy is a coroutine without an event loop: awaiting `ask` hands a Call to whoever drives it
(`reason/solve.py`), which answers the calls of all questions together and sends each result back.
"""

import types
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.generate import GenerateRequest, Generation, ScoreRequest


class Engine(Protocol):
    """What computes: our own engine, or anything else that answers whole batches of requests in order."""

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Generation]]:
        """The `n` generations of each request."""
        ...

    def score(self, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
        """Per-token log-probabilities (nats) of each request's continuation."""
        ...


@dataclass(frozen=True)
class Role:
    """A model in a part: an engine with its tokenizer. Two roles may share one engine.

    name says which model it is (its checkpoint's fingerprint, say): traces of another are not continued.
    """

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    name: str = ""


@dataclass(frozen=True)
class Roles:
    """agent proposes steps; rationalyst writes rationales (None: no strategy that needs them can run);
    scorer ranks steps (the paper: the untuned model, often the agent's own)."""

    agent: Role
    rationalyst: Role | None
    scorer: Role


@dataclass(frozen=True)
class Call:
    """Requests of one question to one engine, answered by a list of the same length."""

    engine: Engine
    method: Literal["generate", "score"]
    requests: tuple[Any, ...]


@types.coroutine
def ask(call: Call) -> Generator[Call, list[Any], list[Any]]:
    """Awaits the results of a call, one per request."""
    return (yield call)
