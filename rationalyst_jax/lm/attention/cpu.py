"""Tree attention on a CPU by code of our own (`lm/cpu/tree_attention.cc`): next to nothing is masked.

Heads of other sizes and types other than float32 are for XLA (`xla.py`). Without a compiler XLA
computes all.
"""

import jax
import jax.numpy as jnp
from jax import Array

from rationalyst_jax.lm.cpu.library import HEAD, kernel

_SOURCE, _NAME, _GRADIENT = "tree_attention.cc", "tree_attention", "tree_attention_gradient"


def refusal(platform: str, dtype: jnp.dtype, H: int) -> str | None:
    """None where the kernel can serve, else the reason why it cannot."""
    if platform != "cpu":
        return "it is for CPUs"
    if dtype != jnp.float32:
        return f"it computes in float32, not in {jnp.dtype(dtype).name}"
    if H % HEAD:
        return f"heads of {H} are no multiple of {HEAD}"
    there = all(kernel(_SOURCE, name, dtype) for name in (_NAME, _GRADIENT))
    return None if there else "there is no kernel for this processor"


@jax.custom_vjp
def attention(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, subtree_size_BT: Array) -> Array:
    """Tree attention; see `tree_attention`."""
    return _forward(q_BTNH, k_BTKH, v_BTKH, subtree_size_BT)[0]


def _forward(q_BTNH, k_BTKH, v_BTKH, subtree_size_BT):
    """Outputs, and the log-sum-exp of each query's scores, `[B, T, N]`."""
    outputs = (
        jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype),
        jax.ShapeDtypeStruct(q_BTNH.shape[:3], q_BTNH.dtype),
    )
    call = jax.ffi.ffi_call(_target(_NAME, q_BTNH.dtype), outputs, vmap_method="sequential")
    return call(q_BTNH, k_BTKH, v_BTKH, subtree_size_BT)


def _target(symbol: str, dtype: jnp.dtype) -> str:
    target = kernel(_SOURCE, symbol, dtype)
    assert target is not None, "asked in spite of `refusal`"
    return target


def _attention_fwd(q_BTNH, k_BTKH, v_BTKH, subtree_size_BT):
    out_BTNH, lse_BTN = _forward(q_BTNH, k_BTKH, v_BTKH, subtree_size_BT)
    return out_BTNH, (q_BTNH, k_BTKH, v_BTKH, subtree_size_BT, out_BTNH, lse_BTN)


def _attention_bwd(saved, dout_BTNH):
    gradients = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in saved[:3]]
    call = jax.ffi.ffi_call(_target(_GRADIENT, dout_BTNH.dtype), gradients, vmap_method="sequential")
    return *call(*saved, dout_BTNH), None


attention.defvjp(_attention_fwd, _attention_bwd)
