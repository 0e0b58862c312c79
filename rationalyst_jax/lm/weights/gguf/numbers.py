"""The types that tensors have in GGUF, to float32 and from it.

Quantized types keep a block of weights of one row together, with a scale of its own. The package `gguf`, of
the authors of the format, turns them into numbers and back.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class TensorType:
    """How a type is numbered in a file, and how many bytes a block of so many weights takes."""

    number: int
    block: int
    bytes: int


TYPES = {
    "F32": TensorType(0, 1, 4),
    "F16": TensorType(1, 1, 2),
    "BF16": TensorType(30, 1, 2),
    "Q8_0": TensorType(8, 32, 34),
    "Q4_0": TensorType(2, 32, 18),
    "Q4_1": TensorType(3, 32, 20),
    "Q4_K": TensorType(12, 256, 144),
    "Q6_K": TensorType(14, 256, 210),
}
# Types that are written, by the names that users know.
WRITTEN = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
_FLOATS = {"F32": jnp.dtype("float32"), "F16": jnp.dtype("float16"), "BF16": jnp.dtype("bfloat16")}
# The largest weight of types that have less room than float32. A block of Q8_0 is 127 steps of float16.
_LARGEST = {"F16": 65504.0, "Q8_0": 127 * 65504.0}
# ggml's other types, so that they are refused by name: what stands at the place of their number.
_KNOWN = (
    "F32 F16 Q4_0 Q4_1 Q4_2 Q4_3 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS "
    "IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16"
).split()


def type_name(number: int) -> str:
    """What ggml calls the type of that number."""
    return _KNOWN[number] if number < len(_KNOWN) else f"of type {number}"


def bytes_of(kind: str, weights: int) -> int:
    """How many bytes so many weights of a row take, a multiple of the block."""
    return weights // TYPES[kind].block * TYPES[kind].bytes


def decoded(kind: str, data: np.ndarray) -> np.ndarray:
    """Rows of bytes, uint8 `[rows, bytes]`, as float32 `[rows, weights]`."""
    if kind in _FLOATS:
        return data.view(_FLOATS[kind].newbyteorder("<")).astype(np.float32)
    package = quantization()
    return package.dequantize(data, package.GGMLQuantizationType[kind])


def encoded(kind: str, rows: np.ndarray) -> np.ndarray:
    """Rows of floats `[rows, weights]` in a type of GGUF, as bytes, uint8 `[rows, bytes]`.

    Raises ValueError for a weight that is too large for the type.
    """
    largest = _LARGEST.get(kind)
    if largest is not None and np.abs(rows.astype(np.float32)).max() > largest:
        raise ValueError(f"has a weight beyond {largest:,.0f}, the largest of {kind}")
    if kind in _FLOATS:
        return np.ascontiguousarray(rows.astype(_FLOATS[kind])).view(np.uint8)
    package = quantization()
    return package.quantize(rows.astype(np.float32), package.GGMLQuantizationType[kind])


def quantization() -> Any:
    """The module of the extra `gguf` that knows quantized types. Raises ValueError where it is missing."""
    try:
        from gguf import quants
    except ModuleNotFoundError:
        raise ValueError("gguf is not installed: pip install 'rationalyst_jax[gguf]'") from None
    return quants
