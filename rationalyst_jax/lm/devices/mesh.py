"""The shape of a mesh: how devices are divided among replicas, parameters and heads. Imports no jax."""

import math
from dataclasses import dataclass

# Axes of a mesh: rows of a batch are divided by the first two.
REPLICA, FSDP, TENSOR = "replica", "fsdp", "tensor"
ROWS = (REPLICA, FSDP)


@dataclass(frozen=True)
class MeshShape:
    """Devices along each axis; -1 takes what the other two leave. By default all of them along `fsdp`.

    Raises ValueError for more than one -1, and for a size below 1.

    Attributes:
        replica: Number of copies of all weights. Each copy takes its part of a batch's rows.
        fsdp: Number of parts into which weights, gradients and moments are divided. Each part takes its part
            of a batch's rows too.
        tensor: Number of parts into which heads, the feed-forward layer and the vocabulary are divided.
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
