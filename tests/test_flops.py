"""Operations against a count of every matrix product in the program that jax traces; the table of chips."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from random_model import random_llama

from rationalyst_jax.lm.devices.chips import CHIPS, chip_of
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.flops import forward_flops, training_flops

CONFIG = LlamaConfig(
    vocab_size=96, hidden_size=32, intermediate_size=56, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6
)
B, T, P = 2, 10, 7


def operations(jaxpr) -> int:
    """2 for each multiplication in the matrix products of a jaxpr, the body of a scan at every turn."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            sizes = [equation.invars[0].aval.shape[axis] for axis in contracted]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(sizes)
        turns = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += turns * operations(inner)
    return total


def attend(q_BTNH, k_BTKH, v_BTKH, layer, cache):
    """Every place sees every place of its row."""
    B, T, N, H = q_BTNH.shape
    q_BTKGH = q_BTNH.reshape(B, T, k_BTKH.shape[2], -1, H)
    weight = jax.nn.softmax(jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BTKH), axis=-1)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weight, v_BTKH).reshape(B, T, N, H), cache


def loss_and_weights():
    graph, weights = nnx.split(random_llama(CONFIG))
    tokens = jnp.zeros((B, T), jnp.int32)

    def loss(weights):
        model = nnx.merge(graph, weights)
        hidden_BTD, _ = model(tokens, tokens, attend)
        return jax.nn.logsumexp(
            jnp.einsum("BPD,VD->BPV", hidden_BTD[:, :P], model.output_VD()), axis=-1
        ).sum()

    return loss, weights


ASKED = B * T, B * T * T, B * P


def test_the_forward_pass_costs_what_its_products_do():
    loss, weights = loss_and_weights()
    assert forward_flops(CONFIG, *ASKED) == operations(jax.make_jaxpr(loss)(weights).jaxpr)


def test_training_costs_what_its_products_do():
    loss, weights = loss_and_weights()
    assert training_flops(CONFIG, *ASKED) == operations(jax.make_jaxpr(jax.grad(loss))(weights).jaxpr)
    assert training_flops(CONFIG, *ASKED) == 3 * forward_flops(CONFIG, *ASKED)


def test_frozen_weights_need_no_gradient():
    loss, weights = loss_and_weights()

    def of_embedding(embed_VD):
        return loss(nnx.State({**weights, "embed_VD": embed_VD}))

    traced = jax.make_jaxpr(jax.grad(of_embedding))(weights["embed_VD"])
    assert training_flops(CONFIG, *ASKED, lora=True) == operations(traced.jaxpr)


def test_where_nothing_else_is_said_every_token_meets_the_head():
    assert forward_flops(CONFIG, 5, 15) == forward_flops(CONFIG, 5, 15, targets=5)


def test_a_trained_token_of_llama_3_8b_costs_six_for_each_weight_that_multiplies_it():
    weights = 8_030_261_248 - 128256 * 4096 - 65 * 4096  # all, less the embedding and the norms
    assert training_flops(LlamaConfig.llama3_8b(), tokens=1, attended=0) == 6 * weights


def test_every_chip_is_found_by_what_jax_calls_it():
    for chip in CHIPS.values():
        for kind in chip.kinds:
            assert chip_of(SimpleNamespace(device_kind=kind)) is chip
    assert chip_of(jax.devices()[0]) is None


@pytest.mark.parametrize(
    ("name", "flops_per_byte", "gib"),
    [("v5e", 241, 16), ("v6e", 574, 32), ("v5p", 166, 95), ("h100", 295, 80)],
)
def test_chips_balance_where_their_data_sheets_say(name, flops_per_byte, gib):
    chip = CHIPS[name]
    assert round(chip.flops / chip.bandwidth) == flops_per_byte and chip.memory == gib * 2**30


@pytest.mark.aot
@pytest.mark.parametrize(
    ("topology", "name"), [("v5e:2x2", "v5e"), ("v6e:2x2", "v6e"), ("v5p:2x2x1", "v5p"), ("v3:2x2", "v3")]
)
def test_the_compiler_calls_chips_so_too(tpu_topology, topology, name):
    assert chip_of(tpu_topology(topology)[0]) is CHIPS[name]
