"""Low-rank adapters (LoRA, arXiv 2106.09685): what is trained beside projections that stay as they are.

A projection `x W` becomes `x W + (alpha / rank) x A B`, with A `[in, R]` and B `[R, out]`; B begins at zero,
so that training starts from the model itself. There is no dropout.

R rank, X inputs and Y outputs of a projection, each as one axis; the other letters as in `lm/model/llama.py`.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from rationalyst_jax.lm.devices.precision import precision_of
from rationalyst_jax.lm.model.projections import PROJECTIONS, ProjectionName
from rationalyst_jax.lm.model.settings import LoraConfig


class LoraParam(nnx.Param):
    """An adapter's matrix: with adapters, the only kind of parameter that is trained."""


class Adapters(nnx.Module):
    """The matrices of all layers: `q_in` is `[L, D, R]`, `q_out` is `[L, R, N, H]`, and so on."""

    def __init__(self, layers: Any, config: LoraConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        """Adapters for the projections of `layers` (`lm/model/llama.py::Layers`).

        Raises ValueError where these lie in panels (`lay_out`).
        """
        self.config = config
        for name in config.projections:
            projection = PROJECTIONS[name]
            L, *shape = getattr(layers, projection.parameter).shape
            if 0 in shape:
                raise ValueError(f"{projection.parameter}: laid out for a CPU, takes no new adapter")
            fan_in = shape[: projection.inputs]
            fan_out = shape[projection.inputs :]
            axes_in = projection.axes[: projection.inputs]
            axes_out = projection.axes[projection.inputs :]
            bound = math.prod(fan_in) ** -0.5
            # Drawn as a vector: the same values, and XLA compiles that in a seventh of the time.
            size = (L, *fan_in, config.rank)
            values = jax.random.uniform(rngs.params(), (math.prod(size),), jnp.float32, -bound, bound)
            zeros = jnp.zeros((L, config.rank, *fan_out), dtype)
            setattr(
                self,
                f"{name}_in",
                LoraParam(values.reshape(size).astype(dtype), axes=("layer", *axes_in, "rank")),
            )
            setattr(self, f"{name}_out", LoraParam(zeros, axes=("layer", "rank", *axes_out)))

    def __call__(self, name: ProjectionName, x: Array) -> Array | None:
        """What the adapter of a projection adds to it, for M rows of input; None where it has none.

        `self` is the slice of one layer.
        """
        if name not in self.config.projections:
            return None
        projection = PROJECTIONS[name]
        a, b = (getattr(self, f"{name}_{side}")[...] for side in ("in", "out"))
        low_MR = jnp.einsum(projection.low, x, a, precision=precision_of(x, a))
        added = jnp.einsum(projection.high, low_MR, b, precision=precision_of(low_MR, b))
        return self.config.scale * added


def merge(model: Any) -> None:
    """Adds the adapters of a `Llama` to its projections, in float32, and takes them away.

    Dtypes and divisions stay. The projections' arrays are used up.
    """
    adapters: Adapters = model.adapters
    for name in adapters.config.projections:
        parameter = PROJECTIONS[name].parameter
        weight: nnx.Param = getattr(model.layers, parameter)
        a, b = (getattr(adapters, f"{name}_{side}")[...] for side in ("in", "out"))
        setattr(model.layers, parameter, weight.replace(_added(weight[...], a, b, adapters.config.scale)))
    model.adapters = None


@partial(jax.jit, donate_argnums=0)
def _added(weight: Array, a: Array, b: Array, scale: float) -> Array:
    def one(layer: tuple[Array, Array, Array]) -> Array:
        w, a, b = layer
        R = a.shape[-1]
        a_XR = a.reshape(-1, R).astype(jnp.float32)
        b_RY = b.reshape(R, -1).astype(jnp.float32)
        product = jnp.matmul(a_XR, b_RY, precision=precision_of(a_XR, b_RY))
        return (w.astype(jnp.float32) + scale * product.reshape(w.shape)).astype(w.dtype)

    return jax.lax.map(one, (weight, a, b))
