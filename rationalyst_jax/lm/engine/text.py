"""From tokens to text: which tokens end a candidate by themselves, and which strings that span tokens do."""

import codecs
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.engine.head import ENDING, SUPPRESSED
from rationalyst_jax.lm.engine.requests import GenerateRequest, Generation, Likeliest, Request
from rationalyst_jax.lm.weights.tokenizer import token_bytes

_REST_OF_A_CHARACTER = bytes(range(0x80, 0xC0))


class Detokenizer:
    """A tokenizer as the engine needs it, and the tokens `eos` that end every sequence."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, eos: frozenset[int]):
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.eos = eos

    @cached_property
    def _bytes(self) -> list[bytes]:
        """What each token stands for; only requests with stop strings need it."""
        return token_bytes(self.tokenizer, self.vocabulary)

    @cached_property
    def _dropped(self) -> bytes:
        """What the decoder takes from the beginning of a text: a space, or nothing."""
        spaced = next((token for token, spelled in enumerate(self._bytes) if spelled.startswith(b" ")), None)
        return b"" if spaced is None or self.decode([spaced]).startswith(" ") else b" "

    def decode(self, tokens: Sequence[int]) -> str:
        text = self.tokenizer.decode(
            list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return cast(str, text)

    def mask(self, stop: tuple[str, ...], stop_ids: tuple[int, ...], suppress: tuple[int, ...]) -> np.ndarray:
        """The token mask, uint8 `[V]`: bits of every word, that it ends a candidate, that it is suppressed.

        A stop string that spans tokens is for `stopped` to find.
        """
        mask_V = np.zeros(self.vocabulary, np.uint8)
        for string in stop:
            spelled = string.encode()
            # Wherever a token stands it has its bytes, but for the space that a text may lose.
            holding = (spelled in found.removeprefix(self._dropped) for found in self._bytes)
            mask_V[[token for token, holds in enumerate(holding) if holds]] = ENDING
        mask_V[[*self.eos, *stop_ids]] |= ENDING
        mask_V[list(suppress)] |= SUPPRESSED
        return mask_V

    def stopped(self, tokens: Sequence[int], new: int, request: GenerateRequest) -> bool:
        """Whether the text of these tokens holds a stop string that the last `new` of them make whole.

        Only their bytes and some before them are looked at, however long the text is.
        """
        if not request.stop:
            return False
        wanted = max(len(string.encode()) for string in request.stop) + 3  # a character has up to four bytes
        first = len(tokens) - new
        before = 0
        while first and before < wanted:
            first -= 1
            before += len(self._bytes[tokens[first]])
        return cut(self._settled(tokens, first), request.stop) is not None

    def _settled(self, tokens: Sequence[int], first: int = 0) -> str:
        """What no later token changes of the text of `tokens[first:]`.

        A character that is not whole yet is none, whereas the tokenizer makes U+FFFD of it, or even of whole
        characters beside it.
        """
        spelled = b"".join(self._bytes[token] for token in tokens[first:])
        if first:  # it may begin within a character
            spelled = spelled[:3].lstrip(_REST_OF_A_CHARACTER) + spelled[3:]
        else:
            spelled = spelled.removeprefix(self._dropped)
        return codecs.getincrementaldecoder("utf-8")("replace").decode(spelled)

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
        count = len(tokens)
        found = ""
        if request.stop and cut(self._settled(body), request.stop) is not None:
            finish = "stop"
            count = bisect_left(
                range(len(body)), True, key=lambda k: cut(self._settled(body[:k]), request.stop) is not None
            )
            text = self._settled(body[:count])
            at = cut(text, request.stop)
            found = next(stop for stop in request.stop if text.startswith(stop, at))
            text = text[:at]
        logprobs_T = np.array(logprobs[:count], np.float32)
        return Generation(tuple(tokens[:count]), logprobs_T, text, finish, found, tuple(likeliest[:count]))


class TokenMasks:
    """The token masks of the requests at work, a few at once, on the host and on the device.

    A row of the table is in use from `take` to `give_back`, and keeps its mask until its room is needed.
    """

    def __init__(self, detokenizer: Detokenizer, masks: int = 8):
        self.mask_EV = np.zeros((masks, detokenizer.vocabulary), np.uint8)
        self._detokenizer = detokenizer
        self._users = [0] * masks
        self._row_of: OrderedDict[tuple, int] = OrderedDict()  # the one used last is last
        self._on_device: jax.Array | None = None

    def take(self, request: Request) -> int | None:
        """The row of a request; None while all are in use for other masks."""
        stop = ()
        stop_ids = ()
        if isinstance(request, GenerateRequest):
            stop = request.stop
            stop_ids = request.stop_ids
        key = stop, stop_ids, request.suppress
        if key not in self._row_of:
            row = len(self._row_of)
            if row == len(self._users):
                idle = (key for key, row in self._row_of.items() if not self._users[row])
                if (oldest := next(idle, None)) is None:
                    return None
                row = self._row_of.pop(oldest)
            self.mask_EV[row] = self._detokenizer.mask(*key)
            self._row_of[key] = row
            self._on_device = None
        self._row_of.move_to_end(key)
        self._users[self._row_of[key]] += 1
        return self._row_of[key]

    def give_back(self, row: int) -> None:
        self._users[row] -= 1

    def ends(self, row: int, token: int) -> bool:
        """Whether the token ends a candidate by itself."""
        return bool(self.mask_EV[row, token] & ENDING)

    def on_device(self) -> jax.Array:
        if self._on_device is None:
            self._on_device = jnp.array(self.mask_EV)
        return self._on_device


def cut(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the first stop string begins in `text`."""
    return min((at for s in stop if (at := text.find(s)) >= 0), default=None)
