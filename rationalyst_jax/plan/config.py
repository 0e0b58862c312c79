"""What an estimate of mining assumes. Imports no jax."""

from dataclasses import dataclass

from rationalyst_jax.files.ranges import ABOVE_0_TO_1, AT_LEAST_1_FINITE, FRACTION, require


@dataclass(frozen=True)
class MiningAssumptions:
    """What only a model can tell, or the chips: an estimate of mining assumes it.

    Attributes:
        rationale_tokens: Mean number of tokens in a rationale, without markers. The default is the mean of
            the rationales that the paper's authors released.
        rationales_per_place: Fraction of a document's places (annotate.places) at which a copy of it has a
            rationale. The default is what copies by Llama-3-8B, as released, have for each sentence.
        utilisation: Fraction of a chip's published peak (bfloat16) that annotating and filtering reach.

    Raises ValueError naming the key and the value that is out of range.
    """

    rationale_tokens: float = 28.0
    rationales_per_place: float = 0.37
    utilisation: float = 0.2

    def __post_init__(self):
        require("assume", self, AT_LEAST_1_FINITE, "rationale_tokens")
        require("assume", self, FRACTION, "rationales_per_place")
        require("assume", self, ABOVE_0_TO_1, "utilisation")
