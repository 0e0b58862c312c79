"""Kernels for CPUs: against float64, against what XLA computes instead, and without a compiler."""

import os
import subprocess
import sys
import weakref
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler import needs_compiler
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import random_llama
from test_engine import byte_tokenizer

from rationalyst_jax.lm.cpu import library, products
from rationalyst_jax.lm.devices.sharding import make_mesh
from rationalyst_jax.lm.engine.attention import CHOICE
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import GenerateRequest, ScoreRequest
from rationalyst_jax.lm.model import llama
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import lay_out, tree_attend
from rationalyst_jax.lm.model.lora import Adapters
from rationalyst_jax.lm.model.quantize import QUANTIZED, Scales, quantized
from rationalyst_jax.lm.model.settings import LoraConfig
from rationalyst_jax.lm.trees.likelihood import Pair, score
from rationalyst_jax.lm.weights.open import open_checkpoint
from rationalyst_jax.lm.weights.orbax import save_orbax
from rationalyst_jax.world.checkpoint import checkpoint_path


@needs_compiler
@settings(deadline=None, max_examples=60)
@given(
    M=st.integers(1, 20) | st.sampled_from([64, 131]),
    inputs=st.integers(1, 70) | st.sampled_from([256, 257, 600, 2100]),
    outputs=st.integers(1, 140) | st.sampled_from([512, 515]),
    dtype=st.sampled_from(["float32", "bfloat16", "int8"]),
    data=st.data(),
)
def test_a_product_is_that_of_float64(M, inputs, outputs, dtype, data):
    count = data.draw(st.integers(0, M))
    rng = np.random.default_rng(M * inputs + outputs)
    x_MI = rng.normal(size=(M, inputs)).astype(np.float32)
    scale = 20 if dtype == "int8" else 1
    weights = jnp.asarray(np.clip(scale * rng.normal(size=(3, inputs, outputs)), -127, 127), dtype)
    stacks = [products.in_panels(some) for some in (weights, weights[:, :, :1])]
    results = products.multiply(jnp.asarray(x_MI), stacks, [outputs, 1], 1, count)
    weight = np.asarray(weights[1].astype(jnp.float32), np.float64)
    want = x_MI.astype(np.float64) @ weight
    bound = np.abs(x_MI) @ np.abs(weight)  # what rounding is relative to
    for got in map(np.asarray, results):
        width = got.shape[1]
        assert (np.abs(got - want[:, :width])[:count] <= 1e-6 * bound[:count, :width] + 1e-30).all()
        assert not got[count:].any()


RESULTS = """
import hashlib, jax, numpy as np, jax.numpy as jnp
from rationalyst_jax.lm.attention.cpu import attention
from rationalyst_jax.lm.cpu.products import in_panels, multiply
from rationalyst_jax.lm.engine.attention import Queries, SharedPrefix, paged_attention
def told(*results):
    print([hashlib.md5(np.asarray(result).tobytes()).hexdigest() for result in results])
rng = np.random.default_rng(0)
weights = jnp.asarray(rng.normal(size=(1, 300, 1100)), jnp.float32)
for M in (1, 3, 4, 5, 8, 10, 11, 40):
    x_MI = jnp.asarray(rng.normal(size=(M, 300)), jnp.float32)
    told(*multiply(x_MI, [in_panels(weights), in_panels(weights[:, :, :500])], [1100, 500], 0, M))
q_BTNH = jnp.asarray(rng.normal(size=(2, 300, 6, 64)), jnp.float32)
k_BTKH = q_BTNH[:, :, :3]
size_BT = jnp.asarray([np.arange(300, 0, -1), np.tile(np.arange(60, 0, -1), 5)], jnp.int32)
out_BTNH, gradients = jax.vjp(lambda *x: attention(*x, size_BT), q_BTNH, k_BTKH, k_BTKH)
told(out_BTNH, *gradients(out_BTNH))
pages = np.arange(6 * 4).reshape(6, 4) % 9
pages[:, :3] = [10, 11, 12]
for dtype in ("float32", "bfloat16"):
    for N, K, R in ((4, 4, 3), (8, 4, 6), (32, 8, 6)):
        cache = jnp.asarray(rng.normal(size=(13, 16, 2 * K, 64)), dtype)
        q_MNH = jnp.asarray(rng.normal(size=(R, N, 64)), jnp.float32)
        queries = Queries(jnp.full((R, 1), 60), jnp.asarray(pages[:R], jnp.int32), jnp.ones(R, bool))
        prefix = SharedPrefix(jnp.asarray([10, 11, 12, 0], jnp.int32), 3)
        told(paged_attention(q_MNH, cache, prefix, [queries]))
"""


@needs_compiler
def test_results_do_not_depend_on_how_many_threads_there_are():
    """XLA takes the size of its pool from NPROC."""
    found = set()
    for threads in ("1", "2", "5", "24"):
        environment = {**os.environ, "NPROC": threads, "JAX_PLATFORMS": "cpu"}
        run = subprocess.run(
            [sys.executable, "-c", RESULTS], env=environment, capture_output=True, text=True, check=True
        )
        found.add(run.stdout)
    assert len(found) == 1, found


def model_with_whole_strips(int8=False, dtype=jnp.float32, **constants):
    """A model whose heads the kernel takes."""
    model = random_llama(LlamaConfig(257, 96, 136, 2, 4, 2, 64, **constants), dtype=dtype)
    if int8:
        scales = {}
        for name in QUANTIZED:
            rounded, scales[name] = quantized(name, getattr(model.layers, name))
            setattr(model.layers, name, rounded)
        model.scales = Scales(scales)
    return model


def results(model):
    """Of some sequences that end at different times, beside scored text, more than one step takes."""
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(0, 256, n).tolist()) for n in (40, 3, 70, 41, 1, 9)]
    prompts.append(prompts[0] + (5, 6))  # begins like another one
    engine = Engine(model, byte_tokenizer(), max_sequences=4, prefill_chunks=4, chunk_size=16, pages=80)
    wanted = [
        *(GenerateRequest(prompt, 3 + 5 * n, temperature=0) for n, prompt in enumerate(prompts)),
        *(ScoreRequest(prompt, (7, 8, 9)) for prompt in prompts),
    ]
    handles = [engine.submit(one) for one in wanted]
    while engine.step():
        pass
    return [handle.result for handle in handles]


@needs_compiler
@pytest.mark.parametrize("int8", [False, True])
def test_the_engine_gives_what_it_gives_without_kernels(monkeypatch, int8):
    model = model_with_whole_strips(int8=int8)
    monkeypatch.setattr(products, "LEAST_BYTES", 0)
    calls = []
    real = products.multiply
    monkeypatch.setattr(products, "multiply", lambda *a, **k: calls.append(1) or real(*a, **k))
    jax.clear_caches()
    found = results(model)
    assert calls
    monkeypatch.setattr(products, "LEAST_BYTES", 2**60)
    monkeypatch.setitem(CHOICE, "cpu", ("xla",))
    jax.clear_caches()
    wanted = results(model)
    jax.clear_caches()
    for one, other in zip(found, wanted, strict=True):
        if isinstance(one[0], np.floating):
            np.testing.assert_allclose(one, other, atol=2e-5)
        else:
            assert [generation.tokens for generation in one] == [generation.tokens for generation in other]
            for mine, theirs in zip(one, other, strict=True):
                np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=2e-5)


@needs_compiler
@pytest.mark.parametrize("int8", [False, True])
def test_a_model_in_panels_computes_what_it_computed_before(monkeypatch, int8):
    """Without an engine, all rows of a batch; the model that an engine is made of keeps its layout."""
    model = model_with_whole_strips(int8=int8)
    monkeypatch.setattr(products, "LEAST_BYTES", 0)
    Engine(model, byte_tokenizer(), max_sequences=2, pages=80)
    assert model.panels is None and model.layers.q_DNH.size
    token_BT = jnp.asarray(np.random.default_rng(0).integers(0, 257, (2, 30)))
    inputs = token_BT, jnp.tile(jnp.arange(30), (2, 1)), tree_attend(jnp.tile(jnp.arange(30, 0, -1), (2, 1)))
    wanted, _ = model(*inputs)
    lay_out(model)
    assert model.panels is not None and not model.layers.q_DNH.size
    found, _ = model(*inputs)
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    lay_out(model)  # changes nothing any more
    np.testing.assert_array_equal(model(*inputs)[0], found)


def with_adapters(model):
    model.adapters = Adapters(model.layers, LoraConfig(rank=3), rngs=nnx.Rngs(0))
    for name in model.adapters.config.projections:  # zeros would add nothing
        out = getattr(model.adapters, f"{name}_out")
        out[...] = 0.1 * jax.random.normal(jax.random.key(1), out.shape)
    return model


@needs_compiler
@pytest.mark.parametrize(
    ("make", "within"),
    [
        (lambda: model_with_whole_strips(tie_embeddings=True), 2e-5),
        (lambda: with_adapters(model_with_whole_strips()), 2e-5),
        (lambda: with_adapters(model_with_whole_strips(int8=True)), 2e-5),
        (lambda: model_with_whole_strips(dtype=jnp.bfloat16), 2e-2),
    ],
    ids=["tied", "adapters", "int8 with adapters", "bfloat16"],
)
def test_trees_are_scored_in_panels_as_before(make, within, monkeypatch):
    model = make()
    groups = [[Pair((1, 2), (3, 4, 5)), Pair((1, 2), (6,))], [Pair((7,), tuple(range(40)))]]
    wanted = score(model, groups, row_length=64, rows_per_batch=1).result()
    monkeypatch.setattr(products, "LEAST_BYTES", 0)
    lay_out(model)
    assert model.panels is not None
    found = score(model, groups, row_length=64, rows_per_batch=1).result()
    for ours, before in zip(chain(*found), chain(*wanted), strict=True):
        np.testing.assert_allclose(ours, before, rtol=within, atol=within)


@needs_compiler
def test_a_model_that_is_loaded_for_inference_lies_in_panels(monkeypatch, tmp_path):
    monkeypatch.setattr(products, "LEAST_BYTES", 0)
    checkpoint = open_checkpoint(checkpoint_path("world"))
    assert checkpoint.load().panels is None
    model = checkpoint.load_for_inference()
    assert model.panels is not None
    with pytest.raises(ValueError, match="q_DNH: laid out for a CPU, takes no new adapter"):
        Adapters(model.layers, LoraConfig(), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="a model that is laid out for a CPU is not saved"):
        save_orbax(model, tmp_path)
    assert not [*tmp_path.iterdir()]


def test_what_the_kernels_do_not_serve_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(products, "LEAST_BYTES", 0)
    of_two_types = model_with_whole_strips()
    narrow = of_two_types.layers.k_DKH[...].astype(jnp.bfloat16)
    of_two_types.layers.k_DKH.set_value(narrow)
    under_a_mesh = model_with_whole_strips()
    for model, mesh in (
        (of_two_types, None),
        (model_with_whole_strips(dtype=jnp.float16), None),
        (under_a_mesh, make_mesh(1, 1, 1, jax.devices()[:1])),
    ):
        lay_out(model, mesh)
        assert model.panels is None and model.layers.q_DNH.size


@needs_compiler
def test_a_model_goes_to_panels_one_projection_after_the_other(monkeypatch):
    """No projection is held twice but the one that is at work."""
    monkeypatch.setattr(products, "LEAST_BYTES", 0)
    model = model_with_whole_strips()
    stacks = [weakref.ref(stack) for stack in model.projections()]
    left = []
    real = llama._stack_in_panels

    def in_panels(*args, **options):
        left.append(sum(stack() is not None for stack in stacks))
        return real(*args, **options)

    monkeypatch.setattr(llama, "_stack_in_panels", in_panels)
    lay_out(model)
    assert left == [7, 6, 5, 4, 3, 2, 1]


@needs_compiler
def test_panels_that_do_not_fit_are_refused():
    panels = products.in_panels(jnp.zeros((1, 8, 40)))
    for rows, outputs in ((jnp.zeros((2, 9)), 40), (jnp.zeros((2, 8)), 1000)):
        with pytest.raises(Exception, match="panels that do not fit"):
            jax.block_until_ready(products.multiply(rows, [panels], [outputs], 0, 2))


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("no-such-compiler", "no-such-compiler: no such compiler"),
        ("false", "false: failed"),
        ("", "CXX: no"),
        ("c++ '", "CXX: No clos"),
    ],
)
def test_without_a_compiler_xla_computes(monkeypatch, caplog, compiler, said):
    monkeypatch.setenv("CXX", compiler)
    library.kernel.cache_clear()
    library._say.cache_clear()
    assert library.kernel("products.cc", "rows_products", "float32") is None
    assert library.kernel("paged_attention.cc", "paged_attention", "float32") is None
    assert library.kernel("tree_attention.cc", "tree_attention", "float32") is None
    [record] = caplog.records
    assert f"no kernels for this CPU, XLA computes instead: {said}" in record.getMessage()
    assert not products.serves([jnp.zeros((1, 4096, 4096))], None)
    library.kernel.cache_clear()


@needs_compiler
def test_a_kernel_is_compiled_once_by_processes_that_begin_together(tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *products.cc*) echo once >> {tmp_path}/calls;; esac\nexec c++ "$@"\n'
    )
    compiler.chmod(0o755)
    code = (
        "import rationalyst_jax.lm.cpu.library as l; print(l.kernel('products.cc', 'rows_products', 'int8'))"
    )
    environment = os.environ | {"CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in running] == ["rows_products_int8"] * 2
    assert (tmp_path / "calls").read_text() == "once\n"
    [kept] = (tmp_path / "cache" / "rationalyst_jax" / "kernels").iterdir()
    assert kept.suffix == ".so"


def test_a_cache_that_cannot_be_written_is_no_fault(monkeypatch, tmp_path, caplog):
    (tmp_path / "rationalyst_jax").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.kernel.cache_clear()
    library._say.cache_clear()
    assert library.kernel("products.cc", "rows_products", "float32") is None
    assert "XLA computes instead" in caplog.text
    library.kernel.cache_clear()


@needs_compiler
def test_a_user_without_a_home_has_no_kernels(monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    library.kernel.cache_clear()
    library._say.cache_clear()
    assert library.kernel("products.cc", "rows_products", "float32") is None
    assert "no home" in caplog.text
    library.kernel.cache_clear()
