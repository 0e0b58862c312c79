"""Orbax checkpoints of a model alone."""

import gc
import json
import shutil

import jax
import numpy as np
import pytest
from cli_files import random_llama
from flax import nnx

from rationalyst_jax.lm.checkpoint import load_orbax, save_orbax


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_orbax_checkpoints_keep_every_bit(tmp_path, dtype, tied):
    model = random_llama(20, dtype, tie_embeddings=tied, eos_token_id=(2, 3))
    save_orbax(model, tmp_path / "orbax")
    loaded = load_orbax(tmp_path / "orbax")
    assert loaded.config == model.config
    assert jax.tree.structure(nnx.state(loaded)) == jax.tree.structure(nnx.state(model))
    for ours, theirs in zip(*(jax.tree.leaves(nnx.state(m)) for m in (model, loaded)), strict=True):
        assert ours.dtype == theirs.dtype == dtype
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def test_a_checkpoint_is_never_overwritten(tmp_path):
    save_orbax(random_llama(20), tmp_path)
    with pytest.raises(ValueError, match="already holds a checkpoint"):
        save_orbax(random_llama(20), tmp_path)


# Orbax drops the coroutines of a failed read; what they say as they are collected is not ours.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_named(tmp_path):
    save_orbax(random_llama(20), tmp_path / "good")
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
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_parameter_that_does_not_fit_is_listed(tmp_path):
    save_orbax(random_llama(20, tie_embeddings=False), tmp_path)
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
    gc.collect()
