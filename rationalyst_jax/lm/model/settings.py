"""What of a model is trained and what its backward pass keeps. Imports no jax."""

from dataclasses import dataclass
from typing import Literal

from rationalyst_jax.files.ranges import ABOVE_0_FINITE, AT_LEAST_1, require
from rationalyst_jax.lm.model.projections import PROJECTIONS, ProjectionName

# What the backward pass finds of a layer; it computes the rest again. "none": all is kept. "dots": the
# projections' outputs are. "full": only what enters the layer. "offload": that too goes to the host's memory.
Remat = Literal["none", "dots", "full", "offload"]


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters: each adds `alpha / rank * x A B` to its projection of x.

    Raises ValueError for what cannot be.

    Attributes:
        rank: Rank of an adapter: columns of A and rows of B.
        alpha: Scale of what an adapter adds, before it is divided by the rank.
        projections: Projections of every layer that have adapters; by default all seven.
    """

    rank: int = 16
    alpha: float = 32.0
    projections: tuple[ProjectionName, ...] = tuple(PROJECTIONS)

    def __post_init__(self):
        require("lora", self, AT_LEAST_1, "rank")
        require("lora", self, ABOVE_0_FINITE, "alpha")
        names = list(self.projections)
        if not names or len(set(names)) < len(names) or set(names) - set(PROJECTIONS):
            raise ValueError(f"lora: projections must be some of {', '.join(PROJECTIONS)}, got {names}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank
