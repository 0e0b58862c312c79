"""Texts as an encoder reads them: normalised, cut into windows where sentences end, as tokens.

An encoder reads a few hundred tokens. A longer text is not skipped but cut: each window is whole sentences,
as many as one fits, and the windows of a text are about as long as each other. Imports no jax: worker
processes run this.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from rationalyst_jax.lm.weights.wordpiece import WordPieces

Normalisation = Literal["paper", "none"]

# What follows one of these begins a new sentence: a line's end; a full stop, with what closes after it, and a
# space; a full stop of Chinese or Japanese. Possessive, and from the first mark on: so the time that a run of
# marks takes grows with its length alone.
_END = re.compile(r"\n\s*|(?<![.!?…])[.!?…]++[\"'”’)\]]*+\s++|[。！？]++[”’」』）]*+\s*+")
_SPACES = re.compile(r"\s+")

# Words of English that say little of what a text is about. Our own list.
_STOP_WORDS = frozenset(
    """
    a about after again all also am an and any are as at be because been before being both but by can could
    did do does doing done each either else etc ever every few for from further had has have having he her
    here hers herself him himself his how i if in into is it its itself just may me might mine more most much
    must my myself neither no nor not of off on once only or other our ours ourselves out over own per same
    shall she should so some such than that the their theirs them themselves then there these they this those
    through to too under until up upon us very was we were what when where whether which while who whom whose
    why will with within without would yes yet you your yours yourself yourselves
    """.split()
)
_APOSTROPHES = re.compile(r"(?<=\w)['’](?=\w)")
_NO_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Window:
    """A part of a text, from character `start` to `end`, as an encoder's tokens, int32."""

    start: int
    end: int
    tokens: np.ndarray


@dataclass(frozen=True)
class Cutter:
    """Cuts texts into windows of at most `max_tokens` tokens, the two around them included."""

    pieces: WordPieces
    max_tokens: int
    normalisation: Normalisation

    def __call__(self, texts: Sequence[str]) -> list[list[Window]]:
        """The windows of each text, at least one: together they hold every character once, in order."""
        return [self._windows(text) for text in texts]

    def _windows(self, text: str) -> list[Window]:
        room = self.max_tokens - 2
        sentences = self._encoded(text, sentence_spans(text))
        parts = [part for sentence in sentences for part in self._fitting(text, sentence)]
        total = sum(len(ids) for *_, ids in parts)
        share = total / max(1, -(-total // room))  # of a window, were all as long as each other
        windows: list[Window] = []
        first = 0
        held: list[int] = []  # tokens of the window that begins at `first`
        for start, _, ids in parts:
            if held and ids and (len(held) + len(ids) > room or len(held) >= share):
                windows.append(self._window(first, start, held))
                first = start
                held = []
            held += ids
        return [*windows, self._window(first, len(text), held)]

    def _window(self, start: int, end: int, ids: list[int]) -> Window:
        return Window(start, end, np.array([self.pieces.opening, *ids, self.pieces.closing], np.int32))

    def _encoded(self, text: str, spans: Sequence[tuple[int, int]]) -> list["_Part"]:
        normalise = NORMALISATIONS[self.normalisation]
        encoded = self.pieces.encode([normalise(text[start:end]) for start, end in spans])
        return [(start, end, ids) for (start, end), ids in zip(spans, encoded, strict=True)]

    def _fitting(self, text: str, part: "_Part") -> list["_Part"]:
        """A part that fits in a window, or its halves, cut between words where there are any."""
        start, end, ids = part
        if len(ids) <= self.max_tokens - 2 or end - start < 2:
            return [(start, end, ids[: self.max_tokens - 2])]
        middle = (start + end) // 2
        space = _SPACES.search(text, middle, end)
        cut = space.end() if space and space.end() < end else middle
        halves = self._encoded(text, [(start, cut), (cut, end)])
        return [piece for half in halves for piece in self._fitting(text, half)]


_Part = tuple[int, int, list[int]]  # from a character to another, and its tokens


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Where the sentences of a text begin and end, in characters; what stands between two belongs to the
    first, so they hold the whole text."""
    ends = [found.end() for found in _END.finditer(text) if 0 < found.end() < len(text)]
    return list(pairwise([0, *ends, len(text)]))


def _paper(text: str) -> str:
    """Lower case, words alone, none of them a stop word."""
    words = _NO_WORD.split(_APOSTROPHES.sub("", text.lower()))
    return " ".join(word for word in words if word and word not in _STOP_WORDS)


# By their names, which a threshold belongs to: the same text has another cosine under another of them.
NORMALISATIONS: Mapping[Normalisation, Callable[[str], str]] = {"paper": _paper, "none": lambda text: text}
