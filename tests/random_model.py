"""Models with random weights for the tests."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.weights.orbax import abstract_llama


def random_llama(
    config: LlamaConfig, seed: int = 0, dtype: Any = jnp.float32, deviation: float | None = None
) -> Llama:
    """Random weights from NumPy: `Llama`'s own initialisation would compile for seconds.

    Without a deviation the next tokens are neither certain nor uniform. The scales of norms lie about 1.
    """
    rng = np.random.default_rng(seed)
    graph, state = abstract_llama(config)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path)
        scale = config.hidden_size**-0.5 if deviation is None else deviation
        if deviation is None and ("o_NHD" in name or "down_FD" in name):
            scale /= math.sqrt(2 * config.num_layers)
        return jnp.asarray(rng.normal("norm" in name, scale, leaf.shape), dtype)

    return nnx.merge(graph, jax.tree.map_with_path(draw, state))
