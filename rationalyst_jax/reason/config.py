"""The choices of a reasoning run."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from rationalyst_jax.files.ranges import ABOVE_0_TO_1, AT_LEAST_1, SEED, TEMPERATURE, require
from rationalyst_jax.lm.trees.reduction import Reduction, reduce_logprobs

GuideName = Literal["likelihood", "implicit", "rationale_confidence", "judge"]
STEP_ENDS: dict[str, tuple[str, ...]] = {  # the strings that end a step
    "line": ("\n",),
    "sentence": (". ", "! ", "? ", "\n"),
    "turn": (),
}


@dataclass(frozen=True)
class ReasonConfig:
    """How questions are solved. Lengths are in tokens of the role's own tokenizer.

    The defaults are the paper's inference (section 3.4): implicit supervision, three candidates at
    temperature 0.7, at most 15 steps, decayed mean of 0.9.

    Attributes:
        strategy: How the next step is chosen: greedy, random, self_consistency, likelihood, implicit,
            explicit, rationale_confidence, judge, best_of_n or beam.
        candidates: Next steps that the agent proposes; whole solutions of self_consistency and best_of_n.
        temperature: Of the agent's proposals; 0 is greedy.
        top_p: Proposals are drawn among the likeliest tokens with at least this share of the probability.
        max_steps: A solution ends after so many.
        max_step_tokens: The longest step.
        max_rationale_tokens: The longest rationale.
        reduction: How a candidate's log-probabilities become its score.
        decay: Weight of a token relative to the one before it, in the decayed reductions.
        rationale_temperature: Of RATIONALYST; 0 is greedy.
        seed: Equal seeds give equal traces.
        step_end: A step is a line, a sentence, or a whole turn of the agent.
        suppress: Marker strings, one token each, that the agent never samples and the scorer counts as
            impossible. A model that has seen inline rationales expects a marker at every line break and would
            charge each step for its absence.
        block: Questions that are at work at once; a killed run repeats at most one block.
        keep_rationales: The strategy explicit shows the agent the rationales of earlier steps too.
        guide: What best_of_n and beam rank by: likelihood, implicit, rationale_confidence or judge.
        beams: Partial solutions that beam keeps.

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
    step_end: Literal["line", "sentence", "turn"] = "line"
    suppress: tuple[str, ...] = ()
    block: int = 256
    keep_rationales: bool = False
    guide: GuideName = "implicit"
    beams: int = 2

    def __post_init__(self):
        counts = ("candidates", "max_steps", "max_step_tokens", "max_rationale_tokens", "block", "beams")
        require("reason", self, AT_LEAST_1, *counts)
        require("reason", self, SEED, "seed")
        require("reason", self, TEMPERATURE, "temperature", "rationale_temperature")
        require("reason", self, ABOVE_0_TO_1, "top_p", "decay")
        for key, known in (("step_end", STEP_ENDS), ("guide", get_args(GuideName))):
            if getattr(self, key) not in known:
                raise ValueError(
                    f"reason: {key} must be one of {', '.join(known)}, got {getattr(self, key)!r}"
                )
        reduce_logprobs(np.zeros(1), self.reduction)  # raises for a name it does not know
