"""How exactly matrices are multiplied: as exactly as the dtype of what is multiplied.

TPUs and GPUs round float32 to fewer bits before they multiply, unless they are asked not to. Every product in
`lm` asks by itself: were it a setting of the process, the numbers would depend on who calls.
"""

import jax.numpy as jnp
from jax import Array
from jax.lax import Precision


def precision_of(*operands: Array) -> Precision:
    """HIGHEST where float32 is multiplied; DEFAULT for shorter floats, whose products lose nothing by it."""
    return Precision.HIGHEST if any(x.dtype == jnp.float32 for x in operands) else Precision.DEFAULT
