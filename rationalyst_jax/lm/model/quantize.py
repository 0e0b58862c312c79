"""Projections in eight bits: weights alone, each output channel with a scale of its own (absmax rounding, as
in arXiv 2208.07339, section 2.1). Half the memory of bfloat16; where the compiler fuses the conversion into
the product (on TPUs), half the bytes that decoding a token reads. Embeddings, head and norms stay.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from rationalyst_jax.lm.model.projections import PROJECTIONS, Projection

QUANTIZED: dict[str, Projection] = {p.parameter: p for p in PROJECTIONS.values()}  # by their parameters


class Scales(nnx.Module):
    """What each projection's channels are multiplied with, float32: `q_DNH` is `[L, N, H]`, and so on."""

    def __init__(self, scales: dict[str, nnx.Param]):
        for parameter, scale in scales.items():
            setattr(self, parameter, scale)


def quantized(parameter: str, weight: nnx.Variable) -> tuple[nnx.Param, nnx.Param]:
    """A projection of all layers as int8, and its scales."""
    projection = QUANTIZED[parameter]
    values, scale = _rounded(weight[...], inputs=projection.inputs)
    integers: Any = weight.replace(values)
    return integers, nnx.Param(scale, axes=("layer", *projection.axes[projection.inputs :]))


@partial(jax.jit, static_argnames="inputs")
def _rounded(weight: Array, *, inputs: int) -> tuple[Array, Array]:
    def of_layer(w: Array) -> tuple[Array, Array]:
        w = w.astype(jnp.float32)
        scale = jnp.maximum(jnp.abs(w).max(axis=tuple(range(inputs)), keepdims=True), 1e-30) / 127
        return jnp.round(w / scale).astype(jnp.int8), scale.reshape(w.shape[inputs:])

    return jax.lax.map(of_layer, weight)
