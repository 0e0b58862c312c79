"""From tokens to the pieces of an answer's text, one piece a token, also while the tokens still come.

A token's piece is the text that it completes: half a character has an empty piece, the token with the other
half has the character. The pieces, one after the other, are the text.
"""

import codecs
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.engine.requests import Generation, Likeliest
from rationalyst_jax.lm.weights.tokenizer import token_bytes


class Vocabulary:
    """What stands for each token id: its bytes, a name of its own, and whether it is a special token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int):
        self.bytes = token_bytes(tokenizer, size)
        self.special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        owner = {spelled: token for token, spelled in enumerate(self.bytes) if spelled}
        self.names = [
            _name(spelled) if owner.get(spelled) == token else f"token_id:{token}"
            for token, spelled in enumerate(self.bytes)
        ]


def _name(spelled: bytes) -> str:
    """The text of a token, or its bytes where these are none."""
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


@dataclass(frozen=True)
class Token:
    """A token of an answer. text: its piece. logprob: in nats; None for the first token of a prompt."""

    id: int
    text: str
    logprob: float | None
    likeliest: Likeliest


class TextPieces:
    """Tokens that become text. text: what is whole so far; ends: how long it was after each token.

    Special tokens that are skipped are text (a stop string may be in it) but no part of a piece.
    """

    def __init__(self, vocabulary: Vocabulary, skip_special: bool):
        self.text = ""
        self.ends: list[int] = []
        self._vocabulary = vocabulary
        self._skipped = vocabulary.special if skip_special else set()
        self._skipped_from: dict[int, int] = {}  # by place: where the own text of a skipped token begins
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if token in self._skipped:  # half a character before it becomes U+FFFD, in this token's piece
                self.text += self._decoder.decode(b"", final=True)
                self._skipped_from[len(self.ends)] = len(self.text)
            self.text += self._decoder.decode(self._vocabulary.bytes[token])
            self.ends.append(len(self.text))

    def close(self) -> None:
        """No token comes any more: half a character becomes U+FFFD, in the piece of the last token."""
        self.text += self._decoder.decode(b"", final=True)
        if self.ends:
            self.ends[-1] = len(self.text)

    def piece(self, place: int) -> str:
        """What the token at that place completes."""
        end = min(self.ends[place], self._skipped_from.get(place, self.ends[place]))
        return self.text[self.ends[place - 1] if place else 0 : end]


class Candidate:
    """A candidate as its tokens come. given: how many were given out; length: the characters of these."""

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str], skip_special: bool):
        self.given = 0
        self.length = 0
        self._stop = stop
        self._pieces = TextPieces(vocabulary, skip_special)
        self._tokens: list[tuple[int, float, Likeliest]] = []

    def add(self, tokens: Sequence[tuple[int, float, Likeliest]]) -> list[Token]:
        """Takes the next tokens of an unfinished candidate; gives those that cannot become a stop string."""
        self._tokens += tokens
        self._pieces.add([token for token, _, _ in tokens])
        text = self._pieces.text
        begun = (
            length
            for stop in self._stop
            for length in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:length])
        )
        return self._give(bisect_right(self._pieces.ends, len(text) - max(begun, default=0)))

    def end(self, generation: Generation) -> list[Token]:
        """Takes what the candidate has become; gives the tokens that were not given yet."""
        new = triples(generation)[len(self._tokens) :]
        ended = generation.finish == "end"  # by a token that is no text
        self._tokens += new
        self._pieces.add([token for token, _, _ in new[: len(new) - ended]])
        self._pieces.close()
        ends = self._pieces.ends
        text = self._pieces.text
        if ended:
            ends.append(len(text))
        if generation.stop and (cut := text.find(generation.stop)) >= 0:
            ends[:] = [min(end, cut) for end in ends]
        return self._give(len(self._tokens))

    def _give(self, count: int) -> list[Token]:
        given = []
        for place in range(self.given, count):
            token, logprob, likeliest = self._tokens[place]
            text = self._pieces.piece(place)
            given.append(Token(token, text, logprob, likeliest))
            self.length += len(text)
        self.given += len(given)
        return given


def prompt_pieces(
    vocabulary: Vocabulary, tokens: Sequence[int], given: str | None, skip_special: bool
) -> list[str]:
    """The pieces of a prompt's tokens. They make the text `given`, of which a BOS that the tokenizer added is
    no part; where token ids were given, the text that these stand for."""
    pieces = TextPieces(vocabulary, skip_special)
    pieces.add(tokens)
    pieces.close()
    if given is None:
        return [pieces.piece(place) for place in range(len(tokens))]
    added = len(pieces.text) - len(given)
    ends = [min(max(0, end - added), len(given)) for end in pieces.ends[:-1]]
    return [given[start:end] for start, end in pairwise([0, *ends, len(given)])]


def triples(generation: Generation) -> list[tuple[int, float, Likeliest]]:
    """Token, log-probability and likeliest of each place of a generation."""
    likeliest = generation.likeliest or ((),) * len(generation.tokens)
    return list(zip(generation.tokens, generation.logprobs.tolist(), likeliest, strict=True))
