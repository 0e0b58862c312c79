"""What asking a model took."""

from dataclasses import astuple, dataclass

from rationalyst_jax.lm.engine.requests import Handle
from rationalyst_jax.roles.role import Model


@dataclass(frozen=True)
class Usage:
    """The ledger of a role: requests; tokens generated, computed as context, found in the cache instead, and
    scored; and the operations that took (`lm/model/flops.py`; 0 where an endpoint keeps them to itself).
    """

    requests: int = 0
    generated: int = 0
    prefilled: int = 0
    cached: int = 0
    scored: int = 0
    flops: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @classmethod
    def of(cls, model: Model, handle: Handle) -> "Usage":
        """What one finished request took."""
        used = handle.usage
        return cls(1, used.generated, used.prefilled, used.cached, used.scored, model.flops(handle))
