"""The ranges that settings may lie in."""

import math
from collections.abc import Callable
from typing import Any

# In words, and as a test; no test holds for NaN.
Range = tuple[str, Callable[[Any], bool]]
AT_LEAST_1: Range = "at least 1", lambda value: value >= 1
AT_LEAST_1_FINITE: Range = "at least 1 and finite", lambda value: 1 <= value < math.inf
AT_LEAST_2: Range = "at least 2", lambda value: value >= 2
AT_LEAST_8: Range = "at least 8", lambda value: value >= 8
AT_LEAST_0: Range = "at least 0", lambda value: value >= 0
AT_LEAST_0_FINITE: Range = "at least 0 and finite", lambda value: 0 <= value < math.inf
ABOVE_0: Range = "above 0", lambda value: value > 0
ABOVE_0_FINITE: Range = "above 0 and finite", lambda value: 0 < value < math.inf
FINITE: Range = "finite", math.isfinite
SEED: Range = "from 0 to 4294967295", lambda value: 0 <= value < 2**32  # what keys of JAX tell apart
COSINE: Range = "between -1 and 1", lambda value: -1 <= value <= 1
FRACTION: Range = "between 0 and 1", lambda value: 0 <= value <= 1
BELOW_1: Range = "at least 0 and below 1", lambda value: 0 <= value < 1
ABOVE_0_TO_1: Range = "above 0 and at most 1", lambda value: 0 < value <= 1
TEMPERATURE: Range = "0 (greedy) or more", lambda value: 0 <= value < math.inf


def require(stage: str, config: Any, wanted: Range, *names: str) -> None:
    """Raises ValueError naming the stage, the key and the value of the first field outside the range.

    Integers must also be below 2**63: no array or file has more of anything.
    """
    words, holds = wanted
    for name in names:
        value = getattr(config, name)
        if isinstance(value, int) and value >= 2**63:
            raise ValueError(f"{stage}: {name} must be below 2**63, got {value!r}")
        if not holds(value):
            raise ValueError(f"{stage}: {name} must be {words}, got {value!r}")
