"""From the log-probabilities of a continuation's tokens to one number."""

from typing import Literal

import numpy as np

Reduction = Literal["sum", "mean", "decayed_sum", "decayed_mean"]


def reduction_weights(length: int, reduction: Reduction, decay: float = 0.9) -> np.ndarray:
    """What each of a continuation's `length` log-probabilities counts, float64: every reduction is linear.

    `decayed_sum` is the paper's weighting, sum of decay^t * logprob_t with t from 0; `decayed_mean` divides
    it by the sum of the weights. Raises ValueError for an unknown reduction.
    """
    match reduction:
        case "sum":
            return np.ones(length)
        case "mean":
            return np.full(length, 1 / length)
        case "decayed_sum" | "decayed_mean":
            weights = decay ** np.arange(length)
            return weights if reduction == "decayed_sum" else weights / weights.sum()
    raise ValueError(f"unknown reduction {reduction!r}: one of sum, mean, decayed_sum, decayed_mean")


def reduce_logprobs(logprobs: np.ndarray, reduction: Reduction, decay: float = 0.9) -> float:
    """One number (nats) for a continuation's per-token log-probabilities; see `reduction_weights`."""
    return float(reduction_weights(len(logprobs), reduction, decay) @ np.asarray(logprobs, np.float64))
