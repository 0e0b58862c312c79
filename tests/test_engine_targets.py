"""The engine's programs for Llama-3-8B, compiled for TPUs that are not there: compiled, not run."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from rationalyst_jax.lm.devices.chips import CHIPS, GIB
from rationalyst_jax.lm.devices.sharding import make_mesh, shard_weights
from rationalyst_jax.lm.engine.batch import CommonPath, Entries, decode_batch, prefill_batch
from rationalyst_jax.lm.engine.prefix_cache import PrefixCache
from rationalyst_jax.lm.engine.sequences import CacheManager
from rationalyst_jax.lm.engine.step import State, cache_sharding, decode_steps, mixed_step
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.plan.program import collectives, memory

pytestmark = pytest.mark.aot

# The engine's defaults.
MAX_SEQUENCES = 64
PREFILL_CHUNKS = 16
CHUNK_SIZE = 32
PAGE_SIZE = 16
STEPS = 16


@pytest.mark.parametrize("kind", ["mixed", "decode"])
@pytest.mark.parametrize(
    ("topology", "tensor", "positions"),
    [("v5e:2x4", 8, 8192), ("v5e:2x4", 8, 131_072), ("v6e:2x2", 4, 8192), ("v5p:2x2x1", 4, 8192)],
)
def test_a_step_of_llama_3_8b_fits(tpu_topology, topology, tensor, positions, kind):
    chip = CHIPS[topology.split(":")[0]]
    config = replace(LlamaConfig.llama3_8b(), max_position_embeddings=positions)
    mesh = make_mesh(1, 1, tensor, tpu_topology(topology))

    def placed(x: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    def alike(tree: Any) -> Any:
        return jax.tree.map(lambda x: placed(jnp.asarray(x), NamedSharding(mesh, PartitionSpec())), tree)

    graph, weights = nnx.split(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)))
    weights = jax.tree.map(placed, weights, shard_weights(weights, mesh))
    on_a_chip = 2 * sum(w.size for w in jax.tree.leaves(weights)) // tensor
    a_token = 2 * config.num_layers * config.num_kv_heads // tensor * config.head_dim * 2
    pages = int(0.9 * (chip.memory - on_a_chip)) // (a_token * PAGE_SIZE)
    shape = config.num_layers * (pages + 1), PAGE_SIZE, 2 * config.num_kv_heads, config.head_dim
    slots = alike((jnp.zeros(MAX_SEQUENCES + 1, jnp.int32), jnp.zeros(MAX_SEQUENCES + 1, bool)))
    cache: Any = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=cache_sharding(mesh))
    state = State(cache, *slots)

    manager = CacheManager(PrefixCache(pages, PAGE_SIZE), config.max_position_embeddings)
    nothing = CommonPath([])
    masks = jnp.zeros((8, config.vocab_size), jnp.uint8)
    decode = decode_batch([], nothing, manager, MAX_SEQUENCES, idle_slot=MAX_SEQUENCES)
    inputs = masks, nothing.shared_prefix(manager.table_length), decode
    if kind == "mixed":
        prefill = prefill_batch([], nothing, manager, PREFILL_CHUNKS, CHUNK_SIZE)
        asked = Entries(MAX_SEQUENCES + PREFILL_CHUNKS * CHUNK_SIZE).inputs()
        lowered = mixed_step.lower(graph, weights, state, *alike((*inputs, prefill, asked)), Z=0, mesh=mesh)
    else:
        rest = alike((*inputs, Entries(MAX_SEQUENCES).inputs(), jnp.int32(STEPS)))
        lowered = decode_steps.lower(graph, weights, state, *rest, most=STEPS, Z=0, mesh=mesh)
    compiled = lowered.compile()

    needed = memory(compiled)
    of_cache = a_token * PAGE_SIZE * (pages + 1)
    exchanged = collectives(compiled)
    sums = sum(c.count for c in exchanged if c.kind == "all-reduce" and c.received > 100_000)
    cells = (
        f"{(needed.arguments - of_cache) / GIB:.2f}",
        f"{needed.temporary / GIB:.2f}",
        f"{of_cache / GIB:.2f}",
    )
    rest = f"{needed.peak / GIB:.2f} of {chip.memory // GIB}", f"{pages * PAGE_SIZE:,}", str(sums)
    print(" | ".join(("", topology, str(tensor), f"{positions:,}", kind, *cells, *rest, "")))
    assert needed.peak < chip.memory
    assert sums <= 2 * config.num_layers + 8  # two a layer; the embedding; of each word asked for
    assert needed.aliased >= of_cache  # donated: nowhere is there a second one
    assert needed.temporary < 0.02 * chip.memory
    assert "tpu_custom_call" in str(compiled.as_text())  # the ragged kernel, not its reference
