"""What the engine is told. Imports no jax."""

from dataclasses import dataclass

from rationalyst_jax.files.ranges import AT_LEAST_1, require


@dataclass(frozen=True)
class EngineConfig:
    """How a model generates and scores (`lm/engine/`).

    Attributes:
        max_sequences: Largest number of sequences that are generated at the same time.
        pages: Number of pages of the key-value cache, 16 tokens each. By default as many as fit in the
            memory of the device.
        tensor: Number of devices among which each model is divided.
        int8: Whether the weights of the projections are rounded to eight bits.

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
