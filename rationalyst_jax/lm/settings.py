"""What the machine is told: how it is divided, what of it is trained and what kept. Imports no jax."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from rationalyst_jax.files.ranges import ABOVE_0_FINITE, AT_LEAST_1, require

# Axes of a mesh: rows of a batch are divided by the first two.
REPLICA, FSDP, TENSOR = "replica", "fsdp", "tensor"
ROWS = (REPLICA, FSDP)
# What the backward pass finds of a layer; it computes the rest again. "none": all is kept. "dots": the
# projections' outputs are. "full": only what enters the layer. "offload": that too goes to the host's memory.
Remat = Literal["none", "dots", "full", "offload"]
Projection = Literal["q", "k", "v", "o", "gate", "up", "down"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)


@dataclass(frozen=True)
class MeshShape:
    """Devices along each axis; -1 takes what the other two leave. By default all of them along `fsdp`.

    Raises ValueError for more than one -1, and for a size below 1.
    """

    replica: int = 1
    fsdp: int = -1
    tensor: int = 1

    def __post_init__(self):
        sizes = {name: getattr(self, name) for name in (*ROWS, TENSOR)}
        for name, size in sizes.items():
            if size < 1 and size != -1:
                raise ValueError(f"mesh: {name} must be at least 1, or -1 to fill, got {size}")
        if list(sizes.values()).count(-1) > 1:
            raise ValueError(f"mesh: only one axis can be -1, got {sizes}")

    def sizes(self, devices: int) -> tuple[int, int, int]:
        """The three sizes on so many devices. Raises ValueError where they do not multiply to these."""
        sizes = (self.replica, self.fsdp, self.tensor)
        fixed = math.prod(size for size in sizes if size != -1)
        replica, fsdp, tensor = (devices // fixed if size == -1 else size for size in sizes)
        if replica * fsdp * tensor != devices:
            asked = ", ".join(f"{name} {size}" for name, size in zip((*ROWS, TENSOR), sizes, strict=True))
            raise ValueError(f"mesh: {asked} do not divide {devices} devices")
        return replica, fsdp, tensor


@dataclass(frozen=True)
class EngineConfig:
    """How a model generates and scores (`lm/engine/`).

    rows: candidates that are generated at once. pages: of 16 tokens that the cache has; by default what fits
    in the device's memory. tensor: devices among which the model is divided. int8: the projections' weights
    in eight bits (`lm/quantize.py`). Raises ValueError for what cannot be.
    """

    rows: int = 64
    pages: int | None = None
    tensor: int = 1
    int8: bool = False

    def __post_init__(self):
        require("engine", self, AT_LEAST_1, "rows", "tensor", *(("pages",) if self.pages is not None else ()))

    def weights(self, fingerprint: str) -> str:
        """What a model's results depend on: its checkpoint, and whether it is rounded."""
        return f"{fingerprint} in int8" if self.int8 else fingerprint


@dataclass(frozen=True)
class LoraConfig:
    """Rank, scale and projections of the adapters. Raises ValueError for what cannot be."""

    rank: int = 16
    alpha: float = 32.0
    projections: tuple[Projection, ...] = PROJECTIONS

    def __post_init__(self):
        require("lora", self, AT_LEAST_1, "rank")
        require("lora", self, ABOVE_0_FINITE, "alpha")
        names = list(self.projections)
        if not names or len(set(names)) < len(names) or set(names) - set(PROJECTIONS):
            raise ValueError(f"lora: projections must be some of {', '.join(PROJECTIONS)}, got {names}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank
