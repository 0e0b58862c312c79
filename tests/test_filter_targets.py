"""The whole filter program for Llama-3-8B, compiled for TPUs that are not there: compiled, not run."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from rationalyst_jax.lm.devices.mesh import ROWS
from rationalyst_jax.lm.devices.sharding import make_mesh, shard_weights
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.trees.likelihood import Batch, score_rows

pytestmark = pytest.mark.aot

GIB = 2**30
# Chips, what they are called, and how much memory each has.
CHIPS = {
    ("v5e", 4): ("v5e:2x2", 16 * GIB),
    ("v5e", 8): ("v5e:2x4", 16 * GIB),
    ("v6e", 4): ("v6e:2x2", 32 * GIB),
    ("v6e", 8): ("v6e:2x4", 32 * GIB),
    ("v5p", 4): ("v5p:2x2x1", 95 * GIB),
    ("v5p", 8): ("v5p:2x2x2", 95 * GIB),
}


@pytest.mark.parametrize(("B", "T"), [(4, 2048), (1, 8192)])
@pytest.mark.parametrize(("generation", "tensor"), CHIPS)
def test_the_filter_of_llama_3_8b_fits(tpu_topology, generation, tensor, B, T):
    name, memory_of_chip = CHIPS[generation, tensor]
    mesh = make_mesh(1, 1, tensor, tpu_topology(name))
    model = nnx.eval_shape(lambda: Llama(LlamaConfig.llama3_8b(), rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    graph, weights = nnx.split(model)

    def placed(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    weights = jax.tree.map(placed, weights, shard_weights(weights, mesh))
    by_row = NamedSharding(mesh, PartitionSpec(ROWS))

    row: Any = jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=by_row)
    slots: Any = jax.ShapeDtypeStruct((1, B * T), jnp.int32, sharding=by_row)
    batch = Batch(row, row, row, slots, slots)

    start = time.perf_counter()
    compiled = score_rows.lower(graph, weights, batch, (), mesh).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    assert memory is not None
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    text = str(compiled.as_text())
    arguments, temporary = (
        f"{n / GIB:.2f}" for n in (memory.argument_size_in_bytes, memory.temp_size_in_bytes)
    )
    of_chip = f"{used / GIB:.2f} of {memory_of_chip // GIB}"
    print(
        " | ".join(
            ("", generation, str(tensor), f"{B} x {T}", arguments, temporary, of_chip, f"{seconds:.0f}", "")
        )
    )
    assert used < memory_of_chip
    assert "tpu_custom_call" in text  # the Pallas kernel, not its reference
