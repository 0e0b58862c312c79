"""What the engine is told. Imports no jax."""

from dataclasses import dataclass

from rationalyst_jax.files.ranges import AT_LEAST_1, require


@dataclass(frozen=True)
class EngineConfig:
    """How a model generates and scores (`lm/engine/`).

    Attributes:
        max_sequences: Candidates that are generated at once.
        pages: Pages of 16 tokens that the cache has; by default what fits in the device's memory.
        tensor: Devices among which the model is divided.
        int8: The projections' weights are kept in eight bits (`lm/model/quantize.py`).

    Raises ValueError naming the key and the value that is out of range.
    """

    max_sequences: int = 64
    pages: int | None = None
    tensor: int = 1
    int8: bool = False

    def __post_init__(self):
        require("engine", self, AT_LEAST_1, "max_sequences", "tensor")
        if self.pages is not None:
            require("engine", self, AT_LEAST_1, "pages")

    def weights(self, fingerprint: str) -> str:
        """What a model's results depend on: its checkpoint, and whether it is rounded."""
        return f"{fingerprint} in int8" if self.int8 else fingerprint
