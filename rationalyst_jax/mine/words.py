"""The words of a text, as duplicates and overlaps are looked for, and hashes of words that follow each other.

Everything is a 64-bit hash from here on. The lowest bit of a word's hash says whether it is a number.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

# Chinese and Japanese put no space between words: there each character counts as one.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[^\W\d_{_UNSPACED}]+|\d+(?:\.\d+)?|[{_UNSPACED}]")
_BETWEEN_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_MOST_KNOWN = 1 << 18  # words whose hashes are remembered: about 50 MB


def normalized(text: str) -> str:
    """The text with compatible characters made one (NFKC), without case, all white space a single space."""
    return " ".join(_folded(text).split())


def words_of(text: str) -> list[str]:
    """Numbers ("1,000" is "1000") and runs of letters, without case; punctuation and "_" only divide."""
    return _WORD.findall(_BETWEEN_THOUSANDS.sub("", _folded(text)))


def hash_text(text: str) -> int:
    """64 bits, the same on every machine."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class _Known(dict[str, int]):
    """Hashes of words met before."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MOST_KNOWN:
            self.clear()
        self[word] = hash_text(word) & ~1 | word[0].isdigit()
        return self[word]


_known = _Known()
_NUMBER = np.uint64(_known["0"])
_BASE = np.uint64(0x9E3779B97F4A7C15)


def hash_words(words: Sequence[str]) -> Hashes:
    """[words]."""
    return np.fromiter(map(_known.__getitem__, words), np.uint64, len(words))


def are_numbers(word_hashes: Hashes) -> NDArray[np.bool_]:
    """Which words are numbers."""
    return (word_hashes & np.uint64(1)).astype(bool)


def masked(word_hashes: Hashes) -> Hashes:
    """The hashes with all numbers made the same one."""
    return np.where(are_numbers(word_hashes), _NUMBER, word_hashes)


def hash_ngrams(word_hashes: Hashes, lengths: Iterable[int]) -> Iterator[tuple[int, Hashes]]:
    """For each length, from the shortest on, the hashes of all runs of so many words, in order (none where
    there are fewer words).

    A run's hash is the polynomial Σ word · base^place modulo 2^64.
    """
    wanted = set(lengths)
    hashes = word_hashes
    for length in range(1, max(wanted, default=0) + 1):
        if length > 1:
            hashes = hashes[:-1] * _BASE + word_hashes[length - 1 :]
        if length in wanted:
            yield length, hashes


def _folded(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
