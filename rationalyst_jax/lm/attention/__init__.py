"""Attention over packed token trees: the one attention primitive.

Rows hold token trees in depth-first order (`lm/tree.py`). Node i sees node j exactly when
`0 <= i - j < subtree_size[j]`: one comparison is the causal mask, the branch mask and the packing mask.

Each implementation is a module with `attention(q, k, v, subtree_size)` and `refusal(platform, dtype, H)`, the
reason why it cannot serve a call. To add one, write its module and name it in the table below.
"""

from importlib import import_module
from types import ModuleType

import jax
from jax import Array

# What is tried on each platform, in this order; the first that does not refuse serves the call. The GPU
# kernels join their row once they have run on a GPU; until then they serve who names them.
CHOICE = {"cpu": ("xla",), "gpu": ("xla",), "tpu": ("pallas_tpu", "xla")}
IMPLEMENTATIONS = ("xla", "pallas_tpu", "triton", "cudnn")


def tree_attention(
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    subtree_size_BT: Array,
    *,
    implementation: str | None = None,
    platform: str | None = None,
) -> Array:
    """Attention of every node over itself and its ancestors: `[B, T, N, H]`, differentiable in q, k and v.

    q is `[B, T, N, H]`, k and v are `[B, T, K, H]` with K dividing N (grouped queries), all of one float
    dtype; `subtree_size` is int32, at least 1 everywhere. Without an `implementation` the first one in
    `CHOICE` that can serves; `platform` ("cpu", "gpu", "tpu") is that of the default device where it is not
    given. Raises ValueError where the named implementation cannot serve the call: nothing falls back in
    silence.
    """
    platform = platform or jax.default_backend()
    if implementation is None:
        candidates = map(_module, CHOICE[platform])
        chosen = next(m for m in candidates if not m.refusal(platform, q_BTNH.dtype, q_BTNH.shape[3]))
        return chosen.attention(q_BTNH, k_BTKH, v_BTKH, subtree_size_BT)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"tree_attention: no implementation {implementation!r}, only {', '.join(IMPLEMENTATIONS)}"
        )
    try:
        chosen = _module(implementation)
    except ModuleNotFoundError as error:
        raise ValueError(f"tree_attention: {implementation} cannot serve this call: {error}") from None
    if reason := chosen.refusal(platform, q_BTNH.dtype, q_BTNH.shape[3]):
        raise ValueError(f"tree_attention: {implementation} cannot serve this call: {reason}")
    return chosen.attention(q_BTNH, k_BTKH, v_BTKH, subtree_size_BT)


def _module(name: str) -> ModuleType:
    """An implementation; imported when asked for, since some build on optional packages."""
    return import_module(f"{__name__}.{name}")
