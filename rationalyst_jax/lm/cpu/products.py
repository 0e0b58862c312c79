"""Products of rows with a matrix of weights, on a CPU, by code of our own (`products.cc`).

Where rows are few XLA's own do not come near the memory's speed, and they know no rows that don't matter
(docs/performance.md).

M rows, I inputs, O outputs, L matrices of which one is taken.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from rationalyst_jax.lm.cpu.library import kernel
from rationalyst_jax.lm.devices.sharding import platform_of

LEAST_BYTES = 2**25  # of a model's projections: a processor's caches hold smaller ones

_SOURCE, _NAME = "products.cc", "rows_product"


def serves(weights: Iterable[Array], mesh: Mesh | None) -> bool:
    """Whether products with the weights of a model are computed here: on one CPU, where there is a compiler,
    and where they are more than its caches hold."""
    if mesh is not None or platform_of(mesh) != "cpu":
        return False
    weights = list(weights)
    large = sum(weight.size * weight.dtype.itemsize for weight in weights) >= LEAST_BYTES
    return large and all(kernel(_SOURCE, _NAME, weight.dtype) for weight in weights)


def product(
    x_MI: Array, weights: Array, layer: Array | int, count: Array | int, *, inputs_first: bool = True
) -> Array:
    """The first `count` rows (int32) times one of L matrices, `[M, O]` in float32; the other rows are zeros.

    `weights` are `[L, I, O]`, or `[L, O, I]` without `inputs_first`: float32, bfloat16 or int8, which are not
    copied. There is no gradient.
    """
    target = kernel(_SOURCE, _NAME, weights.dtype)
    assert target is not None, "asked without `serves`"
    outputs = weights.shape[2 if inputs_first else 1]
    call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct((len(x_MI), outputs), jnp.float32))
    return call(
        x_MI.astype(jnp.float32), weights, jnp.int32(layer), jnp.int32(count), inputs_first=inputs_first
    )
