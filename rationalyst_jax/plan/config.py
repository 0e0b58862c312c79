"""What an estimate assumes, and machines by name. Imports no jax."""

from dataclasses import dataclass
from typing import Literal

from rationalyst_jax.files.ranges import ABOVE_0_TO_1, AT_LEAST_1_FINITE, FRACTION, require


@dataclass(frozen=True)
class MiningAssumptions:
    """What only a model can tell, or the chips: an estimate assumes it.

    Attributes:
        rationale_tokens: Mean number of tokens in a rationale, without markers. The default is the mean of
            the rationales that the paper's authors released.
        rationales_per_place: Fraction of a document's places (annotate.places) at which a copy of it has a
            rationale. The default is what copies by Llama-3-8B, as released, have for each sentence.
        utilisation: Fraction of a chip's published peak (bfloat16) that is reached.

    Raises ValueError naming the key and the value that is out of range.
    """

    rationale_tokens: float = 28.0
    rationales_per_place: float = 0.37
    utilisation: float = 0.2

    def __post_init__(self):
        require("assume", self, AT_LEAST_1_FINITE, "rationale_tokens")
        require("assume", self, FRACTION, "rationales_per_place")
        require("assume", self, ABOVE_0_TO_1, "utilisation")


@dataclass(frozen=True)
class Preset:
    """A machine that people get for some hours: so many chips of a kind.

    topology: of TPUs, by libtpu's names. None of GPUs, for which nothing can be compiled here.
    """

    chip: str
    chips: int
    topology: str | None = None


PresetName = Literal["colab-v5e-1", "kaggle-v5e-8", "t4x2"]
PRESETS: dict[PresetName, Preset] = {
    "colab-v5e-1": Preset("v5e", 1, "v5e:1x1"),
    "kaggle-v5e-8": Preset("v5e", 8, "v5e:2x4"),
    "t4x2": Preset("t4", 2),
}
