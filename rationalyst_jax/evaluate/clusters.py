"""Values that belong together: the sums of whole clusters, and how many independent values they are worth."""

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.special import ndtri, stdtrit


def cluster_sums(
    values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The sum of each cluster's values, and how many they are: [K] and [K], in order of first appearance.

    clusters: the cluster of each value [N]; None where each value is its own. Raises ValueError where values
    and clusters are not equally many.
    """
    values_N = np.asarray(values, dtype=np.float64)
    if clusters is None:
        return values_N, np.ones(values_N.size)
    if len(clusters) != values_N.size:
        raise ValueError(f"each value needs its cluster, found {values_N.size} and {len(clusters)}")
    number: dict[Hashable, int] = {}
    cluster_N = np.array([number.setdefault(name, len(number)) for name in clusters], dtype=np.int64)
    return np.bincount(cluster_N, weights=values_N), np.bincount(cluster_N).astype(np.float64)


def effective_size(values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable] | None) -> float:
    """How many independent values have a mean as sure as that of clustered `values` [N]; ValueError for none.

    N over the design effect (Kish 1965): the variance that resampling whole clusters gives the mean (in
    closed form, with K - 1 for K) over that of N independent values; at least 1. The fewer clusters make
    up the variance, the less sure the estimate is: its root is stretched by Student's t over the normal
    quantile, as Korn and Graubard 1998 do, with Satterthwaite's degrees of freedom from the fourth powers,
    at most K - 1.

    It is never above N. It is never below N² / Σ size² (K for clusters of one size), what clusters are worth
    whose values are all alike; that is the result where all values are equal and nothing can be estimated.
    """
    sums_K, sizes_K = cluster_sums(values, clusters)
    K = sums_K.size
    N = sizes_K.sum()
    if N == 0:
        raise ValueError("a mean of no values has no interval")
    floor = float(N**2 / (sizes_K**2).sum())
    mean = sums_K.sum() / N
    independent = np.var(np.asarray(values, dtype=np.float64)) / N
    if K in (1, N) or independent == 0:
        return floor
    squares_K = (sums_K - mean * sizes_K) ** 2
    total = squares_K.sum()
    spread = (squares_K**2).sum() - total**2 / K
    freedom = min(2 * total**2 / spread, K - 1) if spread > 0 else K - 1
    stretch = stdtrit(max(freedom, 1), 0.975) / ndtri(0.975)
    design_effect = max(1.0, K / (K - 1) * total / N**2 / independent) * stretch**2
    return float(np.clip(N / design_effect, floor, N))
