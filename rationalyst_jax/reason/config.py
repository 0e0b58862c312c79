"""The choices of a reasoning run."""

from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np

from rationalyst_jax.files.ranges import ABOVE_0_TO_1, AT_LEAST_0, AT_LEAST_1, SEED, TEMPERATURE, require
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
        candidates: Number of next steps that the agent proposes each time. For self_consistency and best_of_n
            it is the number of whole solutions.
        temperature: Temperature at which the agent proposes steps; 0 is greedy.
        top_p: The agent draws tokens from the likeliest ones that together have at least this probability.
        max_steps: Largest number of steps in a solution.
        max_step_tokens: Largest number of tokens in a step.
        max_rationale_tokens: Largest number of tokens in a rationale.
        reduction: How the log-probabilities of a proposed step's tokens become its score.
        decay: Weight of a token relative to the one before it, in decayed_sum and decayed_mean.
        rationale_temperature: Temperature at which RATIONALYST writes rationales; 0 is greedy.
        seed: Seed of all noise: equal seeds give equal traces.
        step_end: What a step is: a line, a sentence, or a whole turn of the agent. By default it is what the
            task says (a line, but for MATH a sentence).
        shots: Number of solved questions that the agent is shown before its own. By default it is shown all
            that we wrote for the task; of drawn ones as many as the paper shows, or 5.
        suppress: Marker strings, one token each, that the agent never writes and the scorer gives no
            probability. A model that has seen rationales inside of text expects a marker at every line break,
            and would score each step lower for its absence.
        block: Number of questions that are at work at the same time. A killed run repeats at most one block.
        keep_rationales: Whether the strategy explicit shows the agent the rationales of earlier steps too.
        guide: What best_of_n and beam rank candidates by.
        beams: Number of partial solutions that the strategy beam keeps.
        record_gains: Whether traces keep, of each candidate that is ranked under a rationale, the
            log-probabilities of its tokens with the rationale and without it. The scorer is then asked twice,
            and the second time is not counted in the ledger.

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
    step_end: Literal["line", "sentence", "turn"] | None = None
    shots: int | None = None
    suppress: tuple[str, ...] = ()
    block: int = 256
    keep_rationales: bool = False
    guide: GuideName = "implicit"
    beams: int = 2
    record_gains: bool = False

    def __post_init__(self):
        counts = ("candidates", "max_steps", "max_step_tokens", "max_rationale_tokens", "block", "beams")
        require("reason", self, AT_LEAST_1, *counts)
        require("reason", self, SEED, "seed")
        require("reason", self, TEMPERATURE, "temperature", "rationale_temperature")
        require("reason", self, ABOVE_0_TO_1, "top_p", "decay")
        if self.shots is not None:
            require("reason", self, AT_LEAST_0, "shots")
        for key, known in (("step_end", STEP_ENDS), ("guide", get_args(GuideName))):
            if getattr(self, key) not in (known if key == "guide" else (*known, None)):
                raise ValueError(
                    f"reason: {key} must be one of {', '.join(known)}, got {getattr(self, key)!r}"
                )
        reduce_logprobs(np.zeros(1), self.reduction)  # raises for a name it does not know

    @property
    def stop(self) -> tuple[str, ...]:
        """The strings that end a step; a line's where neither config nor task says more."""
        return STEP_ENDS[self.step_end or "line"]


@dataclass(frozen=True)
class LocateConfig:
    """How the steps of given solutions are scored. Rationales are greedy.

    Attributes:
        max_rationale_tokens: Largest number of tokens in a rationale.
        reduction: How the log-probabilities of a step's tokens become its score.
        decay: Weight of a token relative to the one before it, in decayed_sum and decayed_mean.
        suppress: Marker strings, one token each, that the scorer gives no probability.
        block: Number of solutions that are at work at the same time. A killed run repeats at most one block.
        seed: Seed of the resampling, and of whose rationale stands in for whose.

    Raises ValueError naming the key and the value that is out of range.
    """

    max_rationale_tokens: int = 128
    reduction: Reduction = "decayed_mean"
    decay: float = 0.9
    suppress: tuple[str, ...] = ()
    block: int = 128
    seed: int = 0

    def __post_init__(self):
        require("locate", self, AT_LEAST_1, "max_rationale_tokens", "block")
        require("locate", self, SEED, "seed")
        require("locate", self, ABOVE_0_TO_1, "decay")
        reduce_logprobs(np.zeros(1), self.reduction)  # raises for a name it does not know

    @property
    def reasoning(self) -> ReasonConfig:
        """The same for a trajectory, whose steps are given here."""
        return ReasonConfig(**asdict(self))
