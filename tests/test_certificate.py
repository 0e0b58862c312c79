"""An export is certified where it holds the model, and refused where anything of it is another."""

import hashlib
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from cli_files import rationalyst, small_llama
from random_model import random_llama
from safetensors.numpy import load_file, save_file

from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.weights import hf
from rationalyst_jax.lm.weights.certificate import CERTIFICATE, LIMITS, certify
from rationalyst_jax.lm.weights.hf import copy_tokenizer, load_llama, save_llama
from rationalyst_jax.world.checkpoint import checkpoint_path
from rationalyst_jax.world.vocabulary import make_tokenizer

WORLD = checkpoint_path("world")
TOKENS = len(make_tokenizer())


def exported(model: Llama, path: Path, **options) -> Path:
    save_llama(model, path, **options)
    copy_tokenizer(WORLD, path)
    return path


def test_the_worlds_checkpoint_is_certified(tmp_path):
    pytest.importorskip("torch", reason="torch is the oracle here")
    model = load_llama(WORLD)
    found = certify(model, exported(model, tmp_path / "hf"))
    assert json.loads((tmp_path / "hf" / CERTIFICATE).read_text()) == json.loads(json.dumps(found))
    assert found["readers"]["rationalyst_jax"] == {"logits": 0, "kl_nats": 0}
    transformers = found["readers"]["transformers"]
    assert 0 < transformers["logits"] < LIMITS["logits"] / 10 and transformers["kl_nats"] < 1e-8
    assert {"rationalyst_jax", "jax", "transformers", "torch"} <= found["versions"].keys()
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    assert {key: tensor["sha256"] for key, tensor in found["tensors"].items()} == {
        key: hashlib.sha256(values.tobytes()).hexdigest() for key, values in stored.items()
    }
    assert found["files"].keys() == {file.name for file in WORLD.iterdir()} - {"model.safetensors"}
    config = (tmp_path / "hf" / "config.json").read_bytes()
    assert found["files"]["config.json"] == hashlib.sha256(config).hexdigest()


def test_bfloat16_in_shards_is_certified(tmp_path):
    scaling = {"rope_type": "llama3", "original_max_position_embeddings": 64, "factor": 8.0}
    scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    sizes = {"vocab_size": TOKENS, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "eos_token_id": [1, 2]}
    config = LlamaConfig.from_hf(sizes | heads | {"rope_scaling": scaling})
    model = random_llama(config, dtype=jnp.bfloat16)
    path = exported(model, tmp_path, max_shard_bytes=10_000)
    assert len(list(path.glob("model-*.safetensors"))) > 2
    found = certify(model, path)
    assert (
        found["tensors"].keys()
        == json.loads((path / "model.safetensors.index.json").read_text())["weight_map"].keys()
    )
    assert {tensor["dtype"] for tensor in found["tensors"].values()} == {"BF16"}


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> tuple[Llama, Path]:
    """A small model, and the folder that holds it."""
    model = small_llama(TOKENS, tie_embeddings=True)
    return model, exported(model, tmp_path_factory.mktemp("tied") / "hf")


def change_config(**changes):
    def damage(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | changes))

    return damage


def change_tensors(change):
    def damage(path: Path) -> None:
        stored = load_file(path / "model.safetensors")
        change(stored)
        save_file({key: values.copy() for key, values in stored.items()}, path / "model.safetensors")

    return damage


def transpose(key: str):
    return change_tensors(lambda stored: stored.update({key: stored[key].T}))


def untie(stored) -> None:
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"] + 1


def untie_and_say_so(path: Path) -> None:
    change_tensors(untie)(path)
    change_config(tie_word_embeddings=False)(path)


LAYER = "model.layers.1.self_attn"
DAMAGES = {
    "square": (transpose(f"{LAYER}.q_proj.weight"), r"values of layers\.q_DNH of layer 1 are not those"),
    "oblong": (transpose(f"{LAYER}.k_proj.weight"), r"k_proj\.weight has shape"),
    "theta": (change_config(rope_theta=1e4), r"config\.json differs .*: rope_theta 500000\.0 -> 10000\.0$"),
    "eps": (change_config(rms_norm_eps=1e-6), "rms_norm_eps 1e-05 -> 1e-06"),
    "head": (change_tensors(untie), "ties the embeddings but lm_head.weight differs"),
    "untied": (untie_and_say_so, "tie_embeddings True -> False"),
    "dtype": (
        change_tensors(lambda stored: stored.update({key: stored[key].astype("float16") for key in stored})),
        "embed_VD is stored in float16, not in float32",
    ),
    "tokenizer": (lambda path: (path / "tokenizer.json").unlink(), "no tokenizer.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_export_is_refused(damage, tied, tmp_path):
    model, whole = tied
    path = tmp_path / "hf"
    shutil.copytree(whole, path)
    (path / CERTIFICATE).write_text("of an earlier export")
    change, message = DAMAGES[damage]
    change(path)
    with pytest.raises(ValueError, match=message) as refused:
        certify(model, path)
    assert str(path) in str(refused.value)
    assert not (path / CERTIFICATE).exists()


def test_a_mistake_that_reader_and_writer_share_is_found_by_transformers(files, monkeypatch, capsys):
    pytest.importorskip("torch", reason="torch is the oracle here")
    monkeypatch.chdir(files)
    assert rationalyst("convert --source model --target orbax") == 0
    gate, up = (f"model.layers.{{layer}}.mlp.{name}_proj.weight" for name in ("gate", "up"))
    monkeypatch.setattr(hf, "_KEYS", hf._KEYS | {gate: hf._KEYS[up], up: hf._KEYS[gate]})
    capsys.readouterr()
    assert rationalyst("convert --source orbax --target swapped --verify true") == 1
    error = capsys.readouterr().err
    assert error.startswith("rationalyst convert: swapped: read by transformers it computes something else")
    assert error.count("\n") == 1
    assert Path("swapped/config.json").exists() and not Path("swapped", CERTIFICATE).exists()


def test_without_torch_the_folder_is_read_back_alone(tied, monkeypatch):
    model, path = tied
    monkeypatch.setattr("rationalyst_jax.lm.weights.certificate.is_torch_available", lambda: False)
    found = certify(model, path)
    assert found["readers"].keys() == {"rationalyst_jax"} and "torch" not in found["versions"]


def test_a_device_that_is_too_small_is_one_line(tied, monkeypatch):
    model, path = tied

    def short(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")

    monkeypatch.setattr("rationalyst_jax.lm.weights.certificate._logits", short)
    with pytest.raises(ValueError, match=r"is written, but not verified.*JAX_PLATFORMS=cpu"):
        certify(model, path)
    assert not (path / CERTIFICATE).exists()
