"""A model in a part of the method: what it can be asked, and how a prompt becomes a request for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.engine.requests import GenerateRequest, Handle, ScoreRequest
from rationalyst_jax.lm.weights.tokenizer import marker_ids
from rationalyst_jax.prompts.prompt import Field, Prompt, render


class NotAnswered(Exception):
    """A question that cannot be gone on with: what a model gave is of no use, however often it was asked."""


class Model(Protocol):
    """What computes: our own engine (`lm/engine`), an endpoint (`roles/endpoint.py`), or anything else."""

    @property
    def repeatable(self) -> bool:
        """Whether the same requests in the same order have the same results, to the last bit."""
        ...

    @property
    def positions(self) -> int | None:
        """The most tokens of a sequence, context and continuation; None where nobody knows."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens computed so far, of contexts and continuations."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a request is not done, or is and was not told."""
        ...

    def submit(self, request: Any) -> Handle:
        """Takes a request. Raises ValueError for one that cannot be served."""
        ...

    def step(self) -> list[Handle]:
        """Works a moment. Gives the requests that are done now, with a result or an error."""
        ...

    def cancel(self, handle: Handle) -> None:
        """Gives up a request that is not done."""
        ...

    def forget(self) -> None:
        """Makes what comes then independent of what was asked before, to the last bit."""
        ...

    def flops(self, handle: Handle) -> int:
        """Operations that a finished request took (`lm/model/flops.py`); 0 where nobody knows."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How text is to be generated: see GenerateRequest. `suppress` are marker strings, one token each."""

    max_tokens: int
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    suppress: tuple[str, ...] = ()


def derived_seed(*numbers: int) -> int:
    """The seed of a request that these numbers tell from all others: 31 bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0]) >> 1


@dataclass(frozen=True)
class Role:
    """A model in a part, asked by token ids. Two roles may share one model.

    name says which model it is (its checkpoint's fingerprint, say): traces of another are not continued.
    """

    model: Model
    tokenizer: PreTrainedTokenizerBase
    name: str = ""

    @property
    def can_score(self) -> bool:
        return True

    def count_tokens(self, text: str) -> int:
        """How many tokens the model has for a text."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def has_room(self, request: Any, tokens: int) -> bool:
        """Whether so many tokens after a request's context have positions in the model."""
        positions = self.model.positions
        return positions is None or len(request.context) + tokens <= positions

    def to_generate(self, prompt: Prompt, fields: Mapping[str, Field], how: Sampling) -> Any:
        """The request for texts that follow a prompt, left open."""
        context, _ = render(self.tokenizer, prompt, fields, target=None, close=False)
        options = {name: value for name, value in vars(how).items() if name != "suppress"}
        return GenerateRequest(context, **options, suppress=marker_ids(self.tokenizer, how.suppress))

    def to_score(
        self, prompt: Prompt, fields: Mapping[str, Field], target: str, suppress: Sequence[str]
    ) -> Any:
        """The request for log-probabilities of a text that follows a prompt, left open after it."""
        pair = render(self.tokenizer, prompt, fields, target=target, close=False)
        return ScoreRequest(*pair, marker_ids(self.tokenizer, suppress))
