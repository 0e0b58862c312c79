"""The choices of a reasoning run."""

from dataclasses import dataclass

import numpy as np

from rationalyst_jax.files.ranges import ABOVE_0_TO_1, AT_LEAST_1, TEMPERATURE, require
from rationalyst_jax.lm.reduction import Reduction, reduce_logprobs


@dataclass(frozen=True)
class ReasonConfig:
    """How questions are solved. Lengths are in tokens of the role's own tokenizer.

    `candidates`, `temperature`, `max_steps`, `reduction` and `decay` default to the paper's inference
    (section 3.4; three candidates at 0.7, at most 15 steps, decayed mean of 0.9).
    A step ends at `step_stop`. `suppress` lists marker strings, one token each, that the agent never samples
    and the scorer counts as impossible: a model that has seen inline rationales expects a marker at every
    line break and would charge each step for its absence. `block` questions run at once and are written
    together; a killed run repeats at most one block.
    Raises ValueError naming the key and the value that is out of range.
    """

    strategy: str = "implicit"
    candidates: int = 3
    temperature: float = 0.7
    top_p: float = 1.0
    max_steps: int = 15
    max_step_tokens: int = 128
    max_rationale_tokens: int = 128
    reduction: Reduction = "decayed_mean"
    decay: float = 0.9
    rationale_temperature: float = 0.0
    seed: int = 0
    step_stop: str = "\n"
    suppress: tuple[str, ...] = ()
    block: int = 256

    def __post_init__(self):
        counts = ("candidates", "max_steps", "max_step_tokens", "max_rationale_tokens", "block")
        require("reason", self, AT_LEAST_1, *counts)
        require("reason", self, TEMPERATURE, "temperature", "rationale_temperature")
        require("reason", self, ABOVE_0_TO_1, "top_p", "decay")
        if not self.step_stop:
            raise ValueError("reason: step_stop must not be empty: a step would never end")
        reduce_logprobs(np.zeros(1), self.reduction)  # raises for a name it does not know
