"""MinHash: how similar two texts are, from a few bytes of each (Broder 1997).

A text is the set of its shingles, runs of a few words. The similarity of two texts is that of their sets,
s = |A ∩ B| / |A ∪ B| (Jaccard). A hash function has its smallest value over A ∪ B at a shingle of both with
probability s. So the share of hash functions whose smallest values over A and over B are equal estimates s.

A signature keeps one byte of each smallest value. Bytes of different values are equal once in 256 times, so
two signatures agree at a place with probability

    p(s) = s + (1 − s) / 256.

The places are divided in bands. Texts are compared only where they agree in a whole band, which can be looked
up; they are near-duplicates when they then agree in as many places as p says for the wanted similarity.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rationalyst_jax.mine.words import Hashes, hash_ngrams, hash_text, hash_words

_RECALL = 0.95  # of pairs at the wanted similarity, how many shall agree in a band
_LONGEST_ROW = 8  # bytes, so that a band is one 64-bit key
_AT_ONCE = 2048  # shingles that are hashed at the same time: 2 MB for 128 hash functions


@dataclass(frozen=True)
class Banding:
    """How signatures of bands * rows bytes are compared; `needed` is in how many places near-duplicates
    agree."""

    bands: int
    rows: int
    needed: int

    @property
    def places(self) -> int:
        return self.bands * self.rows

    def candidate_probability(self, similarity: float) -> float:
        """That two texts of this similarity agree in a whole band: 1 − (1 − p^rows)^bands."""
        return 1 - (1 - _agreement(similarity) ** self.rows) ** self.bands

    def found_probability(self, similarity: float) -> float:
        """That two texts of this similarity agree in a whole band, and in at least `needed` places."""
        p = _agreement(similarity)
        return sum(
            share * p**agreeing * (1 - p) ** (self.places - agreeing)
            for agreeing, share in enumerate(self._patterns_with_a_band)
            if agreeing >= self.needed
        )

    def similarity(self, agreeing: int) -> float:
        """The similarity that agreeing in so many places speaks for."""
        return max((256 * agreeing / self.places - 1) / 255, 0.0)

    @cached_property
    def _patterns_with_a_band(self) -> list[int]:
        """By the number of agreeing places, how many sets of so many places hold a whole band.

        The others are counted by the polynomial ((1 + x)^rows − x^rows)^bands.
        """
        without = [1]
        of_a_band = [math.comb(self.rows, k) for k in range(self.rows)]
        for _ in range(self.bands):
            product = [0] * (len(without) + self.rows - 1)
            for i, a in enumerate(without):
                for k, b in enumerate(of_a_band):
                    product[i + k] += a * b
            without = product
        without += [0] * (self.places + 1 - len(without))
        return [math.comb(self.places, m) - n for m, n in enumerate(without)]


def banding(similarity: float, hashes: int) -> Banding:
    """The bands with which at most `hashes` hash functions find texts of a similarity.

    They have as many rows, and so as few needless comparisons, as leave texts of just this similarity a
    probability of 0.95 to be compared; at least one row.
    """
    for rows in range(min(_LONGEST_ROW, hashes), 0, -1):
        bands = hashes // rows
        needed = math.ceil(_agreement(similarity) * bands * rows - 1e-9)
        found = Banding(bands, rows, needed)
        if found.candidate_probability(similarity) >= _RECALL:
            break
    return found


def _agreement(similarity: float) -> float:
    return similarity + (1 - similarity) / 256


class MinHash:
    """Hash functions x -> a x + b modulo 2^64, drawn by a seed the same way on every machine."""

    def __init__(self, places: int, shingle: int, seed: int):
        drawn = [[hash_text(f"{seed} {name} {place}") for place in range(places)] for name in "ab"]
        self._shingle = shingle
        self._a_P = np.array(drawn[0], np.uint64) | np.uint64(1)
        self._b_P = np.array(drawn[1], np.uint64)

    def signature(self, words: Sequence[str], text_hash: int) -> NDArray[np.uint8]:
        """[places], of a text's words.

        A text of fewer words than a shingle has is one shingle; one without any is its `text_hash`.
        """
        shingles_N = self._shingles(words, text_hash)
        smallest_P = np.full(len(self._a_P), np.iinfo(np.uint64).max, np.uint64)
        for first in range(0, len(shingles_N), _AT_ONCE):
            hashed_NP = shingles_N[first : first + _AT_ONCE, None] * self._a_P
            hashed_NP += self._b_P
            np.minimum(smallest_P, hashed_NP.min(0), out=smallest_P)
        return (_mixed(smallest_P) >> np.uint64(56)).astype(np.uint8)

    def _shingles(self, words: Sequence[str], text_hash: int) -> Hashes:
        if not words:
            return np.array([text_hash], np.uint64)
        [(_, shingles)] = hash_ngrams(hash_words(words), [min(self._shingle, len(words))])
        return _mixed(np.unique(shingles))


def _mixed(hashes: Hashes) -> Hashes:
    """Hashes whose every bit depends on all bits of the given ones (the last steps of MurmurHash3)."""
    hashes = (hashes ^ hashes >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
    hashes = (hashes ^ hashes >> np.uint64(33)) * np.uint64(0xC4CEB9FE1A85EC53)
    return hashes ^ hashes >> np.uint64(33)
