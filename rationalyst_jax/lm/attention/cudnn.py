"""Tree attention through cuDNN, the tree's mask as a dense bias: for GPUs the Triton kernels don't serve.

Work and memory grow with T², so this is for short rows and for checking. cuDNN needs float16 or bfloat16.
"""

import jax
import jax.numpy as jnp
from jax import Array

from rationalyst_jax.lm.attention.xla import tree_mask


def refusal(platform: str, dtype: jnp.dtype, H: int) -> str | None:
    """Why this implementation cannot serve a call; None: it can."""
    if platform != "gpu":
        return f"cuDNN needs an NVIDIA GPU, this is a {platform}"
    if dtype not in (jnp.float16, jnp.bfloat16):
        return f"cuDNN has float16 and bfloat16, not {dtype}"
    if H % 8 or H > 128:
        return f"cuDNN has head sizes up to 128 that 8 divides, not {H}"
    return None


def attention(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, subtree_size_BT: Array) -> Array:
    """Tree attention; see `tree_attention`."""
    mask_B1TT = tree_mask(subtree_size_BT)[:, None]
    return jax.nn.dot_product_attention(q_BTNH, k_BTKH, v_BTKH, mask=mask_B1TT, implementation="cudnn")
