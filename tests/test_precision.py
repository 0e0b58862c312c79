"""float32 means float32 in the programs themselves: no product leaves it to a setting of the process."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.lax import Precision

from rationalyst_jax.lm.attention import pallas_tpu
from rationalyst_jax.lm.devices.sharding import make_mesh
from rationalyst_jax.lm.engine import engine as engine_module
from rationalyst_jax.lm.engine.attention import Queries, SharedPrefix, ragged
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import GenerateRequest
from rationalyst_jax.lm.model import lora
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.model.settings import LoraConfig
from rationalyst_jax.lm.trees.likelihood import Batch, score_rows
from rationalyst_jax.lm.weights.hf import load_config, load_llama
from rationalyst_jax.lm.weights.tokenizer import load_tokenizer
from rationalyst_jax.plan.plan import training
from rationalyst_jax.train.config import TrainConfig
from rationalyst_jax.train.step import train_step
from rationalyst_jax.world.checkpoint import SHIPPED, checkpoint_path

PATH = checkpoint_path(SHIPPED)
CONFIG = load_config(PATH)
PRODUCTS = ("dot_general", "ragged_dot_general", "conv_general_dilated")


def products(jaxpr: Any) -> Iterator[Any]:
    """Every product of matrices in a program, those of its loops, branches and kernels included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in PRODUCTS:
            yield equation
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def check(jaxpr: Any, dtype: str, least: int) -> None:
    """At least so many products: HIGHEST wherever float32 is multiplied, in bfloat16 programs nowhere."""
    found = list(products(jaxpr))
    assert len(found) >= least
    for product in found:
        operands = {x.aval.dtype.name for x in product.invars}
        wanted = Precision.HIGHEST if dtype == "float32" else Precision.DEFAULT
        assert product.params["precision"] == (wanted, wanted), product
        assert dtype in operands, product


@pytest.fixture(autouse=True)
def no_setting() -> None:
    assert jax.config.jax_default_matmul_precision is None  # pyright: ignore[reportAttributeAccessIssue]


def array(*shape: int, dtype: str = "int32") -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


both = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


@both
@pytest.mark.parametrize("T", [64, 384])  # dense attention, and block by block
def test_likelihoods(dtype, T):
    graph, weights = nnx.split(nnx.eval_shape(lambda: Llama(CONFIG, rngs=nnx.Rngs(0), dtype=dtype)))
    row, slot = array(2, T), array(1, 2 * T)
    program = score_rows.trace(graph, weights, Batch(row, row, row, slot, slot), (), None)
    check(program.jaxpr, dtype, least=7 + 2 + 1)  # projections, attention, head


@both
@pytest.mark.parametrize(("T", "remat", "rank"), [(64, "none", None), (384, "full", 4)])
def test_training_forward_and_backward(dtype, T, remat, rank):
    adapters = None if rank is None else LoraConfig(rank=rank)
    config = TrainConfig(dtype=dtype, remat=remat, lora=adapters, row_length=T, microbatch_rows=1)
    step: Any = training(CONFIG, config, make_mesh(1, 2, 2, jax.devices()[:4]))
    program = train_step.trace(*step.lower.args)
    check(program.jaxpr, dtype, least=2 * (7 + 2) + 2 if rank is None else 5 * 7)


def test_adapters_are_merged_in_float32():
    shape = (2, 6, 4)
    a, b = array(2, 6, 3, dtype="bfloat16"), array(2, 3, 4, dtype="bfloat16")
    check(lora._added.trace(array(*shape, dtype="bfloat16"), a, b, 0.5).jaxpr, "float32", least=1)


@pytest.mark.parametrize("int8", [False, True], ids=["", "int8"])
@both
def test_the_engine(dtype, int8, monkeypatch):
    model = load_llama(PATH, dtype=lambda _: jnp.dtype(dtype), int8=int8)
    engine = Engine(model, load_tokenizer(PATH), max_sequences=8, prefill_chunks=2, chunk_size=8, pages=32)
    seen = set()

    def watch(name: str) -> None:
        program = getattr(engine_module, name)

        def traced(*arguments: Any, **options: Any) -> Any:
            """Traced, not run: token 0 comes out."""
            trace = program.trace(*arguments, **options)
            check(trace.jaxpr, dtype, least=7 + 2 + 1)
            seen.add(name)
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), trace.out_info)

        monkeypatch.setattr(engine_module, name, traced)

    watch("mixed_step")
    watch("decode_steps")
    engine.generate([GenerateRequest((1, 2, 3), max_tokens=8)])
    assert seen == {"mixed_step", "decode_steps"}


@both
def test_the_kernels_for_tpus(dtype):
    q_BTNH, k_BTKH = array(1, 256, 4, 64, dtype=dtype), array(1, 256, 2, 64, dtype=dtype)

    def gradients(q, k, v, size):
        out, back = jax.vjp(lambda q, k, v: pallas_tpu.attention(q, k, v, size), q, k, v)
        return back(out)

    check(jax.make_jaxpr(gradients)(q_BTNH, k_BTKH, k_BTKH, array(1, 256)).jaxpr, dtype, least=2 + 3 + 4)


@both
def test_the_kernel_over_pages_for_tpus(dtype):
    queries = [Queries(np.arange(8)[None], np.arange(1, 5)[None], np.zeros(1, bool))]
    prefix = SharedPrefix(jnp.zeros(4, jnp.int32), 0)
    attention = partial(ragged.attention, shared_prefix=prefix, queries=queries, platform="tpu")
    arrays = array(8, 4, 128, dtype=dtype), array(9, 16, 4, 128, dtype=dtype)
    check(jax.make_jaxpr(attention)(*arrays).jaxpr, dtype, least=2)
