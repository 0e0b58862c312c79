"""From tokens to text: which tokens end a candidate by themselves, and which strings that span tokens do."""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.engine.head import ENDING, SUPPRESSED
from rationalyst_jax.lm.engine.requests import GenerateRequest, Generation, Likeliest, Request


class Text:
    """A tokenizer as the engine needs it, and the tokens `eos` that end every sequence."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, eos: frozenset[int]):
        self.tokenizer, self.vocabulary, self.eos = tokenizer, vocabulary, eos
        self._pieces: list[str] = []

    def decode(self, tokens: Sequence[int]) -> str:
        text = self.tokenizer.decode(
            list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return cast(str, text)

    def kind(self, stop: tuple[str, ...], stop_ids: tuple[int, ...], suppress: tuple[int, ...]) -> np.ndarray:
        """Bits of every word, uint8 `[V]`: whether it ends a candidate by itself, whether it is suppressed.

        A stop string that spans tokens is for `finished` to find.
        """
        kind_V = np.zeros(self.vocabulary, np.uint8)
        if stop and not self._pieces:
            self._pieces = [self.decode([token]) for token in range(self.vocabulary)]
        if stop:
            kind_V[[token for token, piece in enumerate(self._pieces) if cut(piece, stop) is not None]] = (
                ENDING
            )
        kind_V[[*self.eos, *stop_ids]] |= ENDING
        kind_V[list(suppress)] |= SUPPRESSED
        return kind_V

    def stopped(self, tokens: Sequence[int], request: GenerateRequest) -> bool:
        """Whether the text of these tokens holds a stop string."""
        return bool(request.stop) and cut(self.decode(tokens), request.stop) is not None

    def generation(
        self,
        tokens: Sequence[int],
        logprobs: Sequence[float],
        likeliest: Sequence[Likeliest],
        request: GenerateRequest,
    ) -> Generation:
        """A finished candidate, cut where its text first holds a stop string."""
        ended = bool(tokens) and (tokens[-1] in self.eos or tokens[-1] in request.stop_ids)
        body = tokens[:-1] if ended else tokens
        text = self.decode(body)
        finish: Literal["stop", "end", "length"] = "end" if ended else "length"
        count, found = len(tokens), ""
        if cut(text, request.stop) is not None:
            finish = "stop"
            count = bisect_left(
                range(len(body)), True, key=lambda k: cut(self.decode(body[:k]), request.stop) is not None
            )
            text = self.decode(body[:count])
            at = cut(text, request.stop)
            found = next(stop for stop in request.stop if text.startswith(stop, at))
            text = text[:at]
        logprobs_T = np.array(logprobs[:count], np.float32)
        return Generation(tuple(tokens[:count]), logprobs_T, text, finish, found, tuple(likeliest[:count]))


class Kinds:
    """A table of words, on the host and on the device: what `Text.kind` says, for a few kinds of request.

    A row is in use from `take` to `give_back`, and keeps its kind until its room is needed.
    """

    def __init__(self, text: Text, rows: int = 8):
        self.table_EV = np.zeros((rows, text.vocabulary), np.uint8)
        self._text = text
        self._users = [0] * rows
        self._row_of: OrderedDict[tuple, int] = OrderedDict()  # the one used last is last
        self._on_device: jax.Array | None = None

    def take(self, request: Request) -> int | None:
        """The row of a request; None while all are in use for other kinds."""
        stop, stop_ids = (), ()
        if isinstance(request, GenerateRequest):
            stop, stop_ids = request.stop, request.stop_ids
        key = stop, stop_ids, request.suppress
        if key not in self._row_of:
            row = len(self._row_of)
            if row == len(self._users):
                idle = (key for key, row in self._row_of.items() if not self._users[row])
                if (oldest := next(idle, None)) is None:
                    return None
                row = self._row_of.pop(oldest)
            self.table_EV[row], self._row_of[key] = self._text.kind(*key), row
            self._on_device = None
        self._row_of.move_to_end(key)
        self._users[self._row_of[key]] += 1
        return self._row_of[key]

    def give_back(self, row: int) -> None:
        self._users[row] -= 1

    def ends(self, row: int, token: int) -> bool:
        """Whether the token ends a candidate of this kind by itself."""
        return bool(self.table_EV[row, token] & ENDING)

    def on_device(self) -> jax.Array:
        if self._on_device is None:
            self._on_device = jnp.array(self.table_EV)
        return self._on_device


def cut(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the first stop string begins in `text`."""
    return min((at for s in stop if (at := text.find(s)) >= 0), default=None)
