"""Orbax checkpoints, of a model alone and of a training run."""

import asyncio
import gc
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli_files import small_llama
from flax import nnx
from test_train import fit_examples

from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.trees.likelihood import Pair, score
from rationalyst_jax.lm.weights.event_loops import LenientLoop, lenient_loops
from rationalyst_jax.lm.weights.hf import load_llama, save_llama
from rationalyst_jax.lm.weights.open import computable, open_checkpoint
from rationalyst_jax.lm.weights.orbax import load_orbax, save_orbax
from rationalyst_jax.train.checkpoints import load_trained
from rationalyst_jax.train.config import TrainConfig
from rationalyst_jax.train.examples import Example
from rationalyst_jax.world.checkpoint import checkpoint_path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_orbax_checkpoints_keep_every_bit(tmp_path, dtype, tied):
    model = small_llama(20, dtype, tie_embeddings=tied, eos_token_id=(2, 3))
    save_orbax(model, tmp_path / "orbax")
    loaded = load_orbax(tmp_path / "orbax")
    assert loaded.config == model.config
    assert jax.tree.structure(nnx.state(loaded)) == jax.tree.structure(nnx.state(model))
    for ours, theirs in zip(*(jax.tree.leaves(nnx.state(m)) for m in (model, loaded)), strict=True):
        assert ours.dtype == theirs.dtype == dtype
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def test_a_checkpoint_is_never_overwritten(tmp_path):
    save_orbax(small_llama(20), tmp_path)
    with pytest.raises(ValueError, match="already holds a checkpoint"):
        save_orbax(small_llama(20), tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path):
    save_orbax(small_llama(20), tmp_path / "good")
    for part in ("manifest.ocdbt", "_METADATA", "ocdbt.process_0"):
        shutil.copytree(tmp_path / "good", tmp_path / part)
        damaged = tmp_path / part / "weights" / part
        shutil.rmtree(damaged) if damaged.is_dir() else damaged.unlink()
        with pytest.raises(ValueError, match=f"{part}/weights: ") as error:
            load_orbax(tmp_path / part)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        load_orbax(tmp_path)
    shutil.rmtree(tmp_path / "good" / "weights")
    with pytest.raises(FileNotFoundError, match="weights: no such folder"):
        load_orbax(tmp_path / "good")


def test_what_ends_after_its_event_loop_is_closed_is_no_error(caplog):
    async def failing_when_cancelled() -> None:
        try:
            await asyncio.Event().wait()
        except BaseException:
            raise ValueError from None

    with lenient_loops():
        loop = asyncio.new_event_loop()
    task = loop.create_task(failing_when_cancelled())
    loop.run_until_complete(asyncio.sleep(0))  # it has begun to wait
    loop.call_exception_handler({"message": "early"})
    loop.close()
    loop.call_soon_threadsafe(print)  # of other loops this is a RuntimeError
    assert task.done()
    del task
    gc.collect()  # asyncio tells of an exception nobody asked for when its task goes
    loop.call_exception_handler({"message": "late"})
    assert [record.message for record in caplog.records] == ["early"]
    other = asyncio.new_event_loop()
    assert not isinstance(other, LenientLoop)
    other.close()


def test_every_parameter_that_does_not_fit_is_listed(tmp_path):
    save_orbax(small_llama(20, tie_embeddings=False), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    changed = {**config, "head_dim": 4, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError) as error:
        load_orbax(tmp_path)
    for problem in (
        "extra head_VD",
        *(f"layers.{name} has shape" for name in ("q_DNH", "k_DKH", "v_DKH", "o_NHD")),
    ):
        assert problem in str(error.value)


def train_briefly(run_dir: Path) -> None:
    """Two steps and a checkpoint, or nothing where they are done."""
    config = TrainConfig(steps=2, batch_examples=2, row_length=8, microbatch_rows=1, validation_fraction=0.0)
    examples = [Example((1, 2, 3), (0, 1, 1), str(i)) for i in range(4)]
    fit_examples(small_llama(20), examples, config, run_dir)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained")
    train_briefly(run_dir)
    return run_dir


@pytest.mark.parametrize("part", ["run", "run/metadata", "state", "state/_METADATA", "state/ocdbt.process_0"])
def test_a_damaged_training_checkpoint_is_named(trained, tmp_path, part):
    run_dir = tmp_path / "run"
    shutil.copytree(trained, run_dir)
    damaged = run_dir / "checkpoints" / "2" / part
    shutil.rmtree(damaged) if damaged.is_dir() else damaged.unlink()
    with pytest.raises(ValueError) as resumed:
        train_briefly(run_dir)
    with pytest.raises(ValueError) as converted:
        load_trained(run_dir / "checkpoints")
    for error in (resumed, converted):
        assert str(error.value).startswith(f"{run_dir}/checkpoints/2: damaged checkpoint: ")
        assert "\n" not in str(error.value)


def test_a_log_that_lacks_steps_of_the_checkpoint_is_named_and_left_alone(trained, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(trained, run_dir)
    log = run_dir / "metrics.jsonl"
    log.write_text(log.read_text()[:-1])  # the second line is not whole
    before = log.read_bytes()
    with pytest.raises(ValueError, match=r"metrics\.jsonl: holds 1 of 2 steps"):
        train_briefly(run_dir)
    assert log.read_bytes() == before


@pytest.mark.parametrize(
    ("platform", "capability", "expected"),
    [
        ("gpu", "7.5", "float16"),
        ("gpu", "8.0", "bfloat16"),
        ("cpu", None, "bfloat16"),
        ("tpu", None, "bfloat16"),
    ],
)
def test_bfloat16_is_computed_in_float16_on_gpus_without_it(platform, capability, expected):
    device = SimpleNamespace(platform=platform, compute_capability=capability)
    assert computable(jnp.dtype("bfloat16"), device) == expected
    assert computable(jnp.dtype("float32"), device) == "float32"


def test_a_checkpoint_is_computed_with_in_the_dtype_the_device_can(tmp_path, monkeypatch):
    """A T4's path: weights in float16 score as the bfloat16 ones they came from."""
    for file in checkpoint_path("world").iterdir():
        shutil.copy(file, tmp_path)
    save_llama(in_dtype(load_llama(tmp_path), "bfloat16"), tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    exact = in_dtype(checkpoint.load(), "float32")
    assert weight_dtypes(checkpoint.load_for_inference()) == {"bfloat16"}
    monkeypatch.setattr("rationalyst_jax.lm.weights.open.computable", lambda dtype, device: jnp.float16)
    model = checkpoint.load_for_inference()
    assert weight_dtypes(model) == {"float16"}
    text = "Ann has 12 apples. Ben has 5 more apples than Ann. How many apples does Ben have?"
    ids = tuple(checkpoint.tokenizer(text)["input_ids"])
    pairs = [[Pair(ids[:3], ids[3:]), Pair(ids[:3], ids[9:])]]
    for a, b in zip(*(score(m, pairs).result()[0] for m in (model, exact)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-2 * np.abs(b).max())


def in_dtype(model: Llama, dtype: str) -> Llama:
    graph, weights = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda w: w.astype(dtype), weights))


def weight_dtypes(model: Llama) -> set[str]:
    return {str(w.dtype) for w in jax.tree.leaves(nnx.state(model))}
