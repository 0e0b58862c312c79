"""What can be asked of the engine, and what it answers."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.flops import forward_flops


@dataclass(frozen=True)
class GenerateRequest:
    """Ask for `n` candidates of at most `max_tokens` tokens after `context` (token ids, BOS included).

    Temperature 0 is greedy; else tokens are drawn at `temperature` among the `top_k` likeliest (0: all), and
    of these among the fewest with a mass of at least `top_p`. `stop` are strings that end a candidate,
    `stop_ids` tokens that do; `suppress` are token ids that must not be sampled. Equal seeds give equal noise
    at equal positions: give each request its own. `alternatives`: how many of the likeliest tokens are named
    at each place. Raises ValueError for a value out of range.
    """

    context: tuple[int, ...]
    max_tokens: int
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    seed: int = 0
    suppress: tuple[int, ...] = ()
    alternatives: int = 0

    def __post_init__(self):
        if not self.context:
            raise ValueError("generate: the context is empty")
        if self.max_tokens < 1:
            raise ValueError(f"generate: max_tokens must be at least 1, got {self.max_tokens}")
        if self.n < 1:
            raise ValueError(f"generate: n must be at least 1, got {self.n}")
        if not self.temperature >= 0:
            raise ValueError(f"generate: temperature must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"generate: top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"generate: top_k must be at least 0, got {self.top_k}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"generate: seed must be in [0, 2**32), got {self.seed}")
        if "" in self.stop:
            raise ValueError("generate: a stop string is empty")


Likeliest = tuple[tuple[int, float], ...]  # tokens and their log-probabilities (nats), best first


@dataclass(frozen=True)
class Generation:
    """One candidate. `tokens` and `logprobs` include the token that ended it; `text` does not.

    `logprobs` (nats, float32) are the model's own, after `suppress` but before temperature, top-k and top-p:
    a score request gives the same numbers. `finish` is "stop" for a stop string, "end" for the model's end of
    sequence or one of the `stop_ids` (also where a stop string is spelled alike), "length" when the tokens or
    the positions ran out (no token at all, where the context leaves no position free). `stop` is the stop
    string. `likeliest`: for each token what the request's `alternatives` ask for.
    """

    tokens: tuple[int, ...]
    logprobs: np.ndarray
    text: str
    finish: Literal["stop", "end", "length"]
    stop: str = ""
    likeliest: tuple[Likeliest, ...] = ()


@dataclass(frozen=True)
class ScoreRequest:
    """Ask for the log-probabilities of `continuation`'s tokens after `context`, without those of `suppress`.

    `alternatives` as for a GenerateRequest.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    suppress: tuple[int, ...] = ()
    alternatives: int = 0

    def __post_init__(self):
        if not self.context:
            raise ValueError("score: the context is empty")
        if not self.continuation:
            raise ValueError("score: the continuation is empty")


Request = GenerateRequest | ScoreRequest


@dataclass
class TokenUsage:
    """Tokens: sampled, computed as context, found in the cache instead, and scored; and `attended`: keys that
    those which were computed saw, summed over their queries.

    What a preempted sequence had to compute again counts as prefilled.
    """

    generated: int = 0
    prefilled: int = 0
    cached: int = 0
    scored: int = 0
    attended: int = 0


@dataclass(eq=False)
class Handle:
    """A request (a Request, where our engine has it) that was taken: `done` with a result, an error, or
    cancelled with neither.

    result: the generations of a GenerateRequest, one for each candidate, or the log-probabilities (nats,
    float32) of a ScoreRequest's continuation. error: why there is none. stream: somebody follows what is
    written, so it comes token by token.
    """

    request: Any
    done: bool = False
    result: Any = None
    error: Exception | None = None
    stream: bool = False
    usage: TokenUsage = field(default_factory=TokenUsage)
    likeliest: list[Likeliest] = field(default_factory=list)


def request_flops(config: LlamaConfig, handle: Handle) -> int:
    """Operations a finished request took (`lm/model/flops.py`). A token that ended a candidate is not
    computed."""
    used = handle.usage
    if isinstance(handle.request, ScoreRequest):
        decoded = used.scored - 1
    else:
        decoded = used.generated - len(handle.result)
    tokens = used.prefilled + max(0, decoded)
    return forward_flops(config, tokens, used.attended, used.generated + used.scored)
