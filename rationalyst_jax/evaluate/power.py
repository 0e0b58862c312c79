"""How small a difference so many questions can show."""

import math
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import betainc
from scipy.stats import binom


def mcnemar_power(n: int, discordant: float, difference: float, alpha: float = 0.05) -> float:
    """The probability that the exact McNemar test of n questions has p <= alpha, exactly.

    discordant: true share of questions that one of two systems gets right and the other wrong. difference: of
    their accuracies, at most `discordant` in size. Sums over how many of the n are discordant (binomial), and
    which system has them (binomial again). Raises ValueError for impossible shares.
    """
    if not abs(difference) <= discordant <= 1:
        raise ValueError(f"a difference of {difference} needs more discordant questions than {discordant}")
    if discordant == 0:
        return 0.0
    # What is further from the mean has a probability of less than 1e-12 (Bernstein).
    reach = 8 * math.sqrt(n * discordant * (1 - discordant)) + 30
    count = np.arange(max(0, int(n * discordant - reach)), min(n, int(n * discordant + reach)) + 1)
    fewest = _fewest_rejected(n, alpha)[count]
    share = (1 + difference / discordant) / 2  # of the discordant questions, those that a gets right
    few = np.where(fewest < 0, 0, fewest)
    # At least count - few of them are a's, or are b's.
    rejected = betainc(count - few, few + 1, share) + betainc(count - few, few + 1, 1 - share)
    return float(binom.pmf(count, n, discordant) @ np.where(fewest < 0, 0.0, rejected))


def smallest_difference(n: int, discordant: float, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """The smallest true difference of two accuracies that n questions show (p <= alpha) with this power.

    An assumption is in it: `discordant`, for which callers take the share seen in their data, is the true
    share of questions that only one of two systems gets right. Where a difference is larger than that share,
    all discordant questions are the better system's. With p-values corrected for a family, and where values
    are clustered and n is their effective size, it is an approximation from below. None where no difference
    would do, as for fewer than 6 questions at 0.05.
    """

    def excess(difference: float) -> float:
        return mcnemar_power(n, max(discordant, difference), difference, alpha) - power

    if excess(1.0) < 0:
        return None
    return brentq(excess, 0.0, 1.0, xtol=1e-5)  # pyright: ignore[reportReturnType]


@lru_cache(maxsize=64)
def _fewest_rejected(n: int, alpha: float) -> np.ndarray:
    """For 0 to n discordant questions: how few may be one system's for p <= alpha; -1 where p never is."""
    count = np.arange(n + 1)
    candidate = binom.ppf(alpha / 2, count, 0.5)
    return np.where(binom.cdf(candidate, count, 0.5) <= alpha / 2, candidate, candidate - 1)
