"""Products of rows with matrices of weights, on a CPU, by code of our own (`products.cc`).

Where rows are few XLA's own do not come near the memory's speed, and they know no rows that don't matter
(docs/performance.md).

M rows, I inputs, O outputs, L matrices of which one is taken.
"""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from rationalyst_jax.lm.cpu.library import kernel
from rationalyst_jax.lm.devices.sharding import platform_of

LEAST_BYTES = 2**25  # of a model's projections: a processor's caches hold smaller ones

_SOURCE, _NAME = "products.cc", "rows_products"


def serves(weights: Iterable[Array], mesh: Mesh | None) -> bool:
    """Whether products with the weights of a model are computed here: on one CPU, where there is a compiler,
    and where they are more than its caches hold."""
    if mesh is not None or platform_of(mesh) != "cpu":
        return False
    weights = list(weights)
    large = sum(weight.size * weight.dtype.itemsize for weight in weights) >= LEAST_BYTES
    return large and all(kernel(_SOURCE, _NAME, weight.dtype) for weight in weights)


def multiply(
    x_MI: Array,
    weights: Sequence[Array],
    layer: Array | int,
    count: Array | int,
    *,
    inputs_first: bool = True,
) -> Sequence[Array]:
    """The first `count` rows (int32) times one of L matrices of each of the weights: `[M, O]`, float32;
    other rows are zeros.

    Each of the weights is `[L, I, O]`, or `[L, O, I]` without `inputs_first`; all are float32, bfloat16 or
    int8, and they are not copied. There is no gradient.
    """
    target = kernel(_SOURCE, _NAME, weights[0].dtype)
    assert target is not None, "asked without `serves`"
    widths = [weight.shape[2 if inputs_first else 1] for weight in weights]
    outputs = [jax.ShapeDtypeStruct((len(x_MI), width), jnp.float32) for width in widths]
    call = jax.ffi.ffi_call(target, outputs)
    x_MI = x_MI.astype(jnp.float32)
    return call(x_MI, jnp.int32(layer), jnp.int32(count), *weights, inputs_first=inputs_first)
