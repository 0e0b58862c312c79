"""What mining is told."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rationalyst_jax.lm.reduction import Reduction, reduce_logprobs


@dataclass(frozen=True)
class AnnotateConfig:
    """How documents are annotated.

    temperature: 1, because the greedy copy of a small model holds only vacuous rationales.
    block: documents generated, and written, at once.
    max_document_tokens: longer documents are left out ("too_long"), as are those whose copy would not fit in
        the model's positions.
    length_factor, length_margin, length_bucket: an output may have length_factor · document tokens +
        length_margin tokens, rounded up to a multiple of length_bucket (few sizes, few compilations).
    Raises ValueError naming the key and the value that is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    block: int = 64
    max_document_tokens: int = 2048
    length_factor: float = 1.6
    length_margin: int = 64
    length_bucket: int = 128

    def __post_init__(self):
        _require("annotate", self, _POSITIVE, "block", "max_document_tokens", "length_bucket")
        _require("annotate", self, _NOT_NEGATIVE, "seed", "length_margin")
        _require("annotate", self, _ABOVE_0, "length_factor")
        _require("annotate", self, _TEMPERATURE, "temperature")
        _require("annotate", self, _PORTION, "top_p")


@dataclass(frozen=True)
class FilterConfig:
    """How rationales are judged.

    reduction, decay: how per-token log-probabilities become one number (`lm.reduction.reduce_logprobs`).
    tau: smallest gain in nats that keeps a rationale; tau_by_source overrides it. (The paper: 1.2 for GSM8K,
        0.5 for ECQA, 0 for The Pile.)
    keep: "gain"; or, as ablations, "all", or "random": as many of each source as "gain" would keep, drawn by
        lot with `seed`.
    suppress: marker tokens that get no probability while scoring. A model that has seen rationales inside of
        text expects, after one, the next <BOT> at the next line break and charges what stands there instead
        about 0.3 nats: on the side with the rationale, for no fault of the rationale.
    row_length: tokens of a packed row, hence of the longest document with rationales; rows_per_batch rows are
        computed at once. block: documents packed together.
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
        _require("filter", self, _POSITIVE, "row_length", "rows_per_batch", "block")
        _require("filter", self, _NOT_NEGATIVE, "seed")
        _require("filter", self, _PORTION, "decay")
        _require("filter", self, _FINITE, "tau")
        for source, tau in self.tau_by_source.items():
            if not math.isfinite(tau):
                raise ValueError(f"filter: tau_by_source.{source} must be finite, got {tau!r}")
        reduce_logprobs(np.zeros(1), self.reduction)  # raises for a name it does not know


# A range in words, and as a test.
_Range = tuple[str, Callable[[Any], bool]]
_POSITIVE: _Range = "at least 1", lambda value: value >= 1
_NOT_NEGATIVE: _Range = "at least 0", lambda value: value >= 0
_ABOVE_0: _Range = "above 0 and finite", lambda value: 0 < value < math.inf
_TEMPERATURE: _Range = "0 (greedy) or more", lambda value: 0 <= value < math.inf
_FINITE: _Range = "finite", math.isfinite
_PORTION: _Range = "above 0 and at most 1", lambda value: 0 < value <= 1


def _require(stage: str, config: Any, wanted: _Range, *names: str) -> None:
    words, holds = wanted
    for name in names:
        if not holds(value := getattr(config, name)):
            raise ValueError(f"{stage}: {name} must be {words}, got {value!r}")
