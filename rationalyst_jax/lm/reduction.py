"""From the log-probabilities of a continuation's tokens to one number."""

from typing import Literal

import numpy as np

Reduction = Literal["sum", "mean", "decayed_sum", "decayed_mean"]


def reduce_logprobs(logprobs: np.ndarray, reduction: Reduction, decay: float = 0.9) -> float:
    """One number (nats) for a continuation's per-token log-probabilities.

    `decayed_sum` is the paper's weighting, sum of decay^t * logprob_t with t from 0; `decayed_mean` divides
    it by the sum of the weights. Raises ValueError for an unknown reduction.
    """
    values = np.asarray(logprobs, np.float64)
    match reduction:
        case "sum":
            return float(values.sum())
        case "mean":
            return float(values.mean())
        case "decayed_sum" | "decayed_mean":
            weights = decay ** np.arange(len(values))
            total = float(weights @ values)
            return total if reduction == "decayed_sum" else total / float(weights.sum())
    raise ValueError(f"unknown reduction {reduction!r}: one of sum, mean, decayed_sum, decayed_mean")
