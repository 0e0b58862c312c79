"""How sure a result is: bootstrap intervals, and the exact test for two systems on the same questions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its percentile bootstrap interval, at 95 %."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> Interval:
    """The mean of `values` [N] with its percentile bootstrap interval (Efron 1979); ValueError where N is 0.

    For an accuracy the values are 0 and 1; for a paired difference of two systems, their differences -1, 0, 1
    question by question. How often each distinct value comes in a resample of N with replacement is one
    multinomial draw, so a resample costs as many numbers as there are distinct values, not N.
    """
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.size == 0:
        raise ValueError("a mean of no values has no interval")
    distinct, counts = np.unique(values_N, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(values_N.size, counts / values_N.size, size=RESAMPLES)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn @ distinct / values_N.size, (tail, 1 - tail))
    return Interval(float(values_N.mean()), float(low), float(high))


def mcnemar(a: Sequence[bool] | np.ndarray, b: Sequence[bool] | np.ndarray) -> float:
    """The exact two-sided p-value that a and b [N], right or wrong on the same questions, are equally good.

    McNemar 1947 in its binomial form: among the questions that only one of them got right, each is as likely
    to be a's as b's. 1 where they never differ. Raises ValueError where a and b are not equally long.
    """
    a_N = np.asarray(a, dtype=bool)
    b_N = np.asarray(b, dtype=bool)
    if a_N.shape != b_N.shape:
        raise ValueError(f"paired outcomes must be equally many, found {a_N.size} and {b_N.size}")
    only_a = int((a_N & ~b_N).sum())
    only_b = int((b_N & ~a_N).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
