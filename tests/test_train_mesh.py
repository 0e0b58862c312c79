"""Training divided among devices and processes: the same losses, whatever the division."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from random_model import random_llama
from test_train import FAST, fit_examples, metrics_rows, random_examples

from rationalyst_jax.lm.devices.mesh import MeshShape
from rationalyst_jax.lm.devices.sharding import created, make_mesh, mesh_of
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.model.settings import LoraConfig
from rationalyst_jax.train.config import TrainConfig

# Divisible by all meshes here: 8 parts of D, 4 of the heads.
CONFIG = LlamaConfig(64, 16, 24, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=4)
RUN = replace(FAST, steps=20, save_every=10, validate_every=10)


def model() -> Llama:
    return random_llama(CONFIG, deviation=0.1)


def losses(run_dir: Path) -> list[float]:
    rows = metrics_rows(run_dir)
    return [row["loss"] for row in rows] + [row["val_loss"] for row in rows if "val_loss" in row]


def devices(shape: tuple[int, int, int]):
    return make_mesh(*shape, jax.devices()[: int(np.prod(shape))])


KINDS = {
    "full": RUN,
    "lora": replace(RUN, lora=LoraConfig(rank=3), remat="full"),
    "adafactor": replace(RUN, optimizer="adafactor", steps=4),
}


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory) -> Callable[[str], list[float]]:
    @cache
    def of(kind: str) -> list[float]:
        run_dir = tmp_path_factory.mktemp(kind)
        fit_examples(model(), random_examples(60), KINDS[kind], run_dir)
        return losses(run_dir)

    return of


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("full", (2, 2, 2)),
        *(pytest.param("full", shape, marks=SLOW) for shape in [(2, 4, 1), (8, 1, 1), (1, 8, 1), (1, 2, 4)]),
        pytest.param("lora", (2, 2, 2), marks=SLOW),
        pytest.param("adafactor", (1, 4, 2), marks=SLOW),
    ],
)
def test_a_mesh_gives_the_losses_of_one_device(kind, shape, on_one_device, tmp_path):
    fit_examples(model(), random_examples(60), KINDS[kind], tmp_path, mesh=devices(shape))
    np.testing.assert_allclose(losses(tmp_path), on_one_device(kind), rtol=0, atol=1e-5)


def test_weights_moments_and_rows_are_divided(tmp_path):
    from rationalyst_jax.train.loop import begin, first_state

    mesh = devices((2, 2, 2))
    state = first_state(begin(model(), TrainConfig(), mesh), TrainConfig(), 1, mesh)
    for tree in (state.weights, state.optimizer[1].mu, state.optimizer[1].nu):
        gate = tree["layers"]["gate_DF"][...]
        assert {shard.data.shape for shard in gate.addressable_shards} == {(2, 8, 12)}
        embed = tree["embed_VD"][...]
        assert {shard.data.shape for shard in embed.addressable_shards} == {(32, 8)}


def test_new_weights_are_made_where_they_belong():
    config = replace(CONFIG, num_layers=1)
    whole = Llama(config, rngs=nnx.Rngs(7))
    divided = created(lambda: Llama(config, rngs=nnx.Rngs(7)), devices((2, 2, 2)))
    gate = divided.layers.gate_DF[...]
    assert {shard.data.shape for shard in gate.addressable_shards} == {(1, 8, 12)}
    for a, b in zip(jax.tree.leaves(nnx.state(whole)), jax.tree.leaves(nnx.state(divided)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    "shape", [(1, 2, 1), pytest.param((1, 1, 1), marks=SLOW), pytest.param((1, 1, 4), marks=SLOW)]
)
def test_a_run_goes_on_with_other_devices(shape, on_one_device, tmp_path):
    class Stop(Exception):
        pass

    def stop(steps, row):
        if row["step"] == 13:
            raise Stop

    with pytest.raises(Stop):
        fit_examples(model(), random_examples(60), RUN, tmp_path, mesh=devices((2, 4, 1)), progress=stop)
    changed = replace(RUN, microbatch_rows=1, remat="dots")  # the machine's settings are free to change
    fit_examples(model(), random_examples(60), changed, tmp_path, mesh=devices(shape))
    np.testing.assert_allclose(losses(tmp_path), on_one_device("full"), rtol=0, atol=1e-5)


def test_a_mesh_fills_one_axis_and_names_what_it_cannot_divide():
    assert mesh_of(MeshShape(), jax.devices()).devices.shape == (1, 8, 1)
    assert mesh_of(MeshShape(2, -1, 2), jax.devices()).devices.shape == (2, 2, 2)
    with pytest.raises(ValueError, match="mesh: replica 1, fsdp -1, tensor 3 do not divide 8 devices"):
        mesh_of(MeshShape(tensor=3), jax.devices())
    with pytest.raises(ValueError, match="mesh: only one axis can be -1"):
        MeshShape(-1, -1, 1)
    with pytest.raises(ValueError, match="mesh: tensor must be at least 1, or -1 to fill, got 0"):
        MeshShape(tensor=0)


def test_every_parameter_that_a_mesh_does_not_divide_is_named(tmp_path):
    with pytest.raises(ValueError) as caught:
        fit_examples(model(), random_examples(20), RUN, tmp_path, mesh=devices((1, 1, 8)))
    assert "layers.k_DKH: 4 kv_heads among 8 of tensor" in str(caught.value)
    assert "layers.v_DKH: 4 kv_heads among 8 of tensor" in str(caught.value)
