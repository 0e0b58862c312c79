"""Products of rows with matrices of weights, on a CPU, by code of our own (`products.cc`).

XLA's do not come near the memory's speed where rows are few, and they know no rows that don't matter
(docs/performance.md). Matrices lie in panels for them.

M rows, I inputs, O outputs, L matrices of which one is taken, S panels of W outputs.
"""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from rationalyst_jax.lm.cpu.library import constant, kernel
from rationalyst_jax.lm.devices.sharding import platform_of

LEAST_BYTES = 2**25  # of a model's matrices: a processor's caches hold smaller ones

_SOURCE, _NAME = "products.cc", "rows_products"


def serves(weights: Iterable[Array], mesh: Mesh | None) -> bool:
    """Whether products with the matrices of a model are computed here: on one CPU, where there is a compiler
    and code for their types, and where they are more than its caches hold."""
    if mesh is not None or platform_of(mesh) != "cpu":
        return False
    weights = list(weights)
    large = sum(weight.size * weight.dtype.itemsize for weight in weights) >= LEAST_BYTES
    return large and all(kernel(_SOURCE, _NAME, weight.dtype) for weight in weights)


@jax.jit
def in_panels(weights_LIO: Array) -> Array:
    """L matrices (float32, bfloat16 or int8) as the kernel reads them, `[L, S, I, W]`: W outputs of this
    processor side by side, zeros behind the last one. Raises NoKernel."""
    width = constant(_SOURCE, "panel_width", weights_LIO.dtype)
    layers, inputs, outputs = weights_LIO.shape
    padded = jnp.pad(weights_LIO, ((0, 0), (0, 0), (0, -outputs % width)))
    return padded.reshape(layers, inputs, -1, width).swapaxes(1, 2)


def multiply(
    x_MI: Array, panels: Sequence[Array], outputs: Sequence[int], layer: Array | int, count: Array | int
) -> Sequence[Array]:
    """The first `count` rows (int32) times matrix `layer` of each of the stacks, `[L, S, I, W]`, which have
    so many outputs: `[M, O]`, float32; other rows are zeros.

    Stacks are float32, bfloat16 or int8, all of them the same. There is no gradient.
    """
    target = kernel(_SOURCE, _NAME, panels[0].dtype)
    assert target is not None, "asked without `serves`"
    results = [jax.ShapeDtypeStruct((len(x_MI), width), jnp.float32) for width in outputs]
    call = jax.ffi.ffi_call(target, results)
    return call(x_MI.astype(jnp.float32), jnp.int32(layer), jnp.int32(count), *panels)
