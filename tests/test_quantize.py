"""Weights in eight bits: how far they may be from the stored ones, and what is computed with them."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_model import random_llama

from rationalyst_jax.lm.engine.config import EngineConfig
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.open import open_engines
from rationalyst_jax.lm.engine.requests import GenerateRequest, ScoreRequest
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama, _project
from rationalyst_jax.lm.model.quantize import QUANTIZED
from rationalyst_jax.lm.weights.hf import load_llama, save_llama
from rationalyst_jax.lm.weights.open import open_checkpoint
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.world.checkpoint import SHIPPED, checkpoint_path

SHAPE = LlamaConfig(260, 32, 48, 3, 8, 4, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_llama(random_llama(SHAPE), path)
    return path


def dequantized(model: Llama) -> Llama:
    """A float32 model with the rounded weights."""
    plain = random_llama(model.config, 9)
    graph, state = nnx.split(plain)
    stored = dict(nnx.to_flat_state(nnx.state(model)))
    for path, parameter in (flat := dict(nnx.to_flat_state(state))).items():
        values = np.asarray(stored[path][...], np.float32)
        if path[-1] in QUANTIZED:
            scale = np.asarray(stored["scales", path[-1]][...])
            values = values * scale.reshape(
                scale.shape[0], *[1] * QUANTIZED[str(path[-1])].inputs, *scale.shape[1:]
            )
        flat[path] = parameter.replace(jnp.asarray(values))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def test_no_weight_is_further_off_than_half_a_step(folder):
    stored, rounded = load_llama(folder), load_llama(folder, int8=True)
    back = dequantized(rounded)
    for parameter, projection in QUANTIZED.items():
        assert getattr(rounded.layers, parameter)[...].dtype == jnp.int8
        w = np.asarray(getattr(stored.layers, parameter)[...])
        off = np.abs(np.asarray(getattr(back.layers, parameter)[...]) - w)
        axes = tuple(range(1, 1 + projection.inputs))
        assert (off <= np.abs(w).max(axis=axes, keepdims=True) / 254 * 1.0001).all()
        assert off.max() > 0
    np.testing.assert_array_equal(rounded.embed_VD[...], stored.embed_VD[...])


@pytest.mark.parametrize("tensor", [1, 4])
def test_the_engine_computes_with_them(folder, tensor):
    tokenizer = load_tokenizer(checkpoint_path("world"))
    checkpoint = open_checkpoint(SHIPPED)
    checkpoint = replace(checkpoint, path=folder, tokenizer=tokenizer, config=SHAPE)
    [engine] = open_engines([checkpoint], EngineConfig(max_sequences=1, pages=60, tensor=tensor, int8=True))
    placed = engine.model.layers.down_FD[...]
    assert {shard.data.shape[1] for shard in placed.addressable_shards} == {SHAPE.intermediate_size // tensor}
    plain = Engine(dequantized(load_llama(folder, int8=True)), tokenizer, max_sequences=1, pages=60)
    requests = [GenerateRequest((1, 2, 3, i), 9, temperature=0) for i in range(3)]
    for [mine], [other] in zip(engine.generate(requests), plain.generate(requests), strict=True):
        assert mine.tokens == other.tokens
        np.testing.assert_allclose(mine.logprobs, other.logprobs, atol=2e-5)
    scored = [ScoreRequest((5,) * 40, (6, 7, 8))]
    np.testing.assert_allclose(engine.score(scored)[0], plain.score(scored)[0], atol=2e-5)


def test_sums_beyond_float16_are_scaled_before_they_are_rounded():
    layer = SimpleNamespace(gate_DF=jnp.full((4, 3), 127, jnp.int8))
    scales: Any = SimpleNamespace(gate_DF=jnp.full(3, 1e-3))
    x = jnp.full((1, 2, 4), 3000, jnp.float16)
    (out,) = _project(cast(Any, layer), None, scales, None, x, "gate")
    assert out.dtype == jnp.float16
    np.testing.assert_allclose(out, 4 * 127 * 3000 * 1e-3, rtol=1e-3)


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match=f"tensor is 99, there are {len(jax.devices())} devices"):
        open_engines([open_checkpoint(SHIPPED)], EngineConfig(tensor=99))
    with pytest.raises(ValueError, match="does not divide the model"):
        open_engines([open_checkpoint(SHIPPED)], EngineConfig(tensor=3))
