"""What mining is told."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rationalyst_jax.files.ranges import (
    ABOVE_0_FINITE,
    ABOVE_0_TO_1,
    AT_LEAST_0,
    AT_LEAST_1,
    FINITE,
    SEED,
    TEMPERATURE,
    require,
)
from rationalyst_jax.lm.trees.reduction import Reduction, reduce_logprobs


@dataclass(frozen=True)
class AnnotateConfig:
    """How documents are annotated.

    Attributes:
        temperature: Of sampling; 0 is greedy. By default 1, because the greedy copy of a small model holds
            only vacuous rationales.
        top_p: Tokens are drawn among the likeliest with at least this share of the probability.
        seed: Equal seeds give equal annotations.
        block: Documents that are at work at once.
        max_document_tokens: Longer documents are left out ("too_long"), as are those whose copy would not fit
            in the model's positions.
        length_factor: An output may have length_factor · document tokens + length_margin tokens.
        length_margin: Tokens; see length_factor.

    Raises ValueError naming the key and the value that is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    block: int = 64
    max_document_tokens: int = 2048
    length_factor: float = 1.6
    length_margin: int = 64

    def __post_init__(self):
        require("annotate", self, AT_LEAST_1, "block", "max_document_tokens")
        require("annotate", self, AT_LEAST_0, "length_margin")
        require("annotate", self, SEED, "seed")
        require("annotate", self, ABOVE_0_FINITE, "length_factor")
        require("annotate", self, TEMPERATURE, "temperature")
        require("annotate", self, ABOVE_0_TO_1, "top_p")


@dataclass(frozen=True)
class FilterConfig:
    """How rationales are judged.

    Attributes:
        reduction: How per-token log-probabilities become one number. The paper's is decayed_sum: token t of
            the following text, from 0, counts decay^t.
        decay: Weight of a token relative to the one before it, in the decayed reductions.
        tau: Smallest gain (nats) that keeps a rationale.
        tau_by_source: Thresholds (nats) of single sources, instead of tau. (The paper: 1.2 for GSM8K, 0.5 for
            ECQA, 0 for The Pile.)
        keep: "gain": those that reach their threshold. As ablations "all", or "random": as many of each
            source as "gain" would keep, drawn by lot.
        seed: Of the lot.
        suppress: Marker strings, one token each, that get no probability while scoring. A model that has seen
            rationales inside of text expects the next marker at the next line break, and charges what stands
            there instead about 0.3 nats, for no fault of the rationale.
        row_length: Tokens of a packed row, and so of the longest sequence: a text with one of its rationales.
            The tree of a document may need several rows.
        rows_per_batch: Rows that are computed at once.
        block: Documents that are packed together; a killed run repeats at most two blocks.

    Raises ValueError naming the key and the value that is out of range.
    """

    reduction: Reduction = "decayed_sum"
    decay: float = 0.9
    tau: float = 0.0
    tau_by_source: Mapping[str, float] = field(default_factory=dict)
    keep: Literal["gain", "all", "random"] = "gain"
    seed: int = 0
    suppress: tuple[str, ...] = ()
    row_length: int = 1024
    rows_per_batch: int = 8
    block: int = 256

    def __post_init__(self):
        require("filter", self, AT_LEAST_1, "row_length", "rows_per_batch", "block")
        require("filter", self, SEED, "seed")
        require("filter", self, ABOVE_0_TO_1, "decay")
        require("filter", self, FINITE, "tau")
        for source, tau in self.tau_by_source.items():
            if not math.isfinite(tau):
                raise ValueError(f"filter: tau_by_source.{source} must be finite, got {tau!r}")
        reduce_logprobs(np.zeros(1), self.reduction)  # raises for a name it does not know
