"""Adapters: what they add, that they alone are trained and kept, and that PEFT reads and writes the same
files.
"""

import json
import shutil
from contextlib import suppress
from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx
from random_model import random_llama
from safetensors import SafetensorError
from safetensors.numpy import load_file
from test_train import FAST, assert_same_weights, fit_examples, random_examples

from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama, tree_attend
from rationalyst_jax.lm.model.lora import Adapters, LoraParam, merge
from rationalyst_jax.lm.model.projections import PROJECTIONS
from rationalyst_jax.lm.model.settings import LoraConfig
from rationalyst_jax.lm.weights.hf import load_llama, save_llama
from rationalyst_jax.lm.weights.peft import load_adapters, save_adapters
from rationalyst_jax.train.checkpoints import load_trained

CONFIG = LlamaConfig(64, 16, 24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, tie_embeddings=True)
SOME = LoraConfig(rank=3, alpha=5.0, projections=("q", "o", "down"))
EVERY = LoraConfig(rank=2, alpha=16.0)


def tiny(dtype=jnp.float32) -> Llama:
    return random_llama(CONFIG, dtype=dtype, deviation=0.2)


def adapted(config: LoraConfig) -> Llama:
    """With adapters that do something."""
    model = tiny()
    rng = np.random.default_rng(1)
    model.adapters = Adapters(model.layers, config, rngs=nnx.Rngs(0))
    for name in config.projections:
        out = getattr(model.adapters, f"{name}_out")
        out[...] = jnp.asarray(rng.normal(0, 0.2, out.shape), jnp.float32)
    return model


def logits(model: Llama, tokens_BT) -> np.ndarray:
    B, T = tokens_BT.shape
    place_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    hidden_BTD, _ = model(jnp.asarray(tokens_BT), place_BT, tree_attend(T - place_BT))
    return np.asarray(hidden_BTD @ model.output_VD().T)


TOKENS = np.random.default_rng(2).integers(0, 64, (2, 20))


def test_new_adapters_change_nothing():
    model = tiny()
    before = logits(model, TOKENS)
    model.adapters = Adapters(model.layers, EVERY, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(logits(model, TOKENS), before)


@pytest.mark.parametrize("config", [SOME, EVERY])
def test_merged_adapters_do_what_they_did(config):
    model = adapted(config)
    before = logits(model, TOKENS)
    assert np.abs(before - logits(tiny(), TOKENS)).max() > 0.1
    merge(model)
    np.testing.assert_allclose(logits(model, TOKENS), before, atol=1e-5)


@pytest.mark.filterwarnings("default")  # torch's and PEFT's own deprecations are not ours
@pytest.mark.parametrize("config", [SOME, EVERY])
def test_peft_reads_what_we_write_and_we_what_it_writes(config, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is the oracle here")
    peft = pytest.importorskip("peft", reason="PEFT is the oracle here")
    model = adapted(config)
    save_llama(tiny(), tmp_path / "base")
    save_adapters(model, tmp_path / "adapters", base=str(tmp_path / "base"))
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapters"))
    with torch.no_grad():
        found = theirs(torch.from_numpy(TOKENS)).logits.numpy()
    np.testing.assert_allclose(found, logits(model, TOKENS), atol=1e-4)
    theirs.save_pretrained(str(tmp_path / "again"))
    again = load_adapters(tiny(), tmp_path / "again")
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(model.adapters))


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("hub/models--meta-llama--Llama-3.2-1B/snapshots/4e20de3", "meta-llama/Llama-3.2-1B"),
        ("link", "meta-llama/Llama-3.2-1B"),
        ("runs/first/hf", "runs/first/hf"),
        ("world", "world"),
    ],
)
def test_a_base_of_the_hubs_cache_is_called_as_on_the_hub(base, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cached = tmp_path / "hub/models--meta-llama--Llama-3.2-1B/snapshots/4e20de3"
    cached.mkdir(parents=True)
    (tmp_path / "link").symlink_to(cached)
    save_adapters(adapted(SOME), tmp_path / "adapters", base=base)
    config = json.loads((tmp_path / "adapters/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == name


def test_only_adapters_are_trained_and_kept(tmp_path):
    before = jax.tree.map(np.asarray, nnx.state(tiny()))
    config = replace(FAST, lora=SOME)
    trained = fit_examples(tiny(), random_examples(60), config, tmp_path).model
    _, adapters, others = nnx.split(trained, LoraParam, ...)
    jax.tree.map(np.testing.assert_array_equal, others, before)
    assert len(jax.tree.leaves(adapters)) == 2 * len(SOME.projections)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(adapters))
    kept = json.loads((tmp_path / "checkpoints/6/state/_METADATA").read_text())["tree_metadata"]
    weights = [key for key in kept if "weights" in key]
    assert len(weights) == 2 * len(SOME.projections) and all("adapters" in key for key in weights)
    with pytest.raises(ValueError, match="holds adapters alone; `rationalyst merge`"):
        load_trained(tmp_path / "checkpoints")


def test_training_adapters_resumes_in_the_same_bits(tmp_path):
    class Killed(Exception):
        pass

    def kill(steps, row):
        if row["step"] == 3:
            raise Killed

    config = replace(FAST, lora=EVERY)
    straight = fit_examples(tiny(), random_examples(60), config, tmp_path / "straight").model
    with pytest.raises(Killed):
        fit_examples(tiny(), random_examples(60), config, tmp_path / "broken", progress=kill)
    assert_same_weights(
        straight, fit_examples(tiny(), random_examples(60), config, tmp_path / "broken").model
    )


def test_training_adapters_is_training_their_product(tmp_path):
    """Full rank on one projection, one step of plain descent: the gradient of A B is that of the weight."""
    model = adapted(LoraConfig(rank=16, alpha=16.0, projections=("gate",)))

    def loss(adapters_state, weights_state, graph):
        return jnp.square(logits_of(nnx.merge(graph, adapters_state, weights_state))).mean()

    def logits_of(model):
        place_BT = jnp.broadcast_to(jnp.arange(20), (2, 20))
        hidden_BTD, _ = model(jnp.asarray(TOKENS), place_BT, tree_attend(20 - place_BT))
        return hidden_BTD @ model.output_VD().T

    graph, adapters, weights = nnx.split(model, LoraParam, ...)
    by_adapters = jax.grad(loss, argnums=0)(adapters, weights, graph)["adapters"]
    merged = adapted(LoraConfig(rank=16, alpha=16.0, projections=("gate",)))
    merge(merged)
    graph, weights = nnx.split(merged)
    by_weight = jax.grad(lambda w: jnp.square(logits_of(nnx.merge(graph, w))).mean())(weights)
    gradient_LDF = by_weight["layers"]["gate_DF"][...]
    a_LDR, b_LRF = (getattr(model.adapters, f"gate_{side}")[...] for side in ("in", "out"))
    expected_a = jnp.einsum("LDF,LRF->LDR", gradient_LDF, b_LRF)
    expected_b = jnp.einsum("LDR,LDF->LRF", a_LDR, gradient_LDF)
    np.testing.assert_allclose(by_adapters["gate_in"][...], expected_a, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(by_adapters["gate_out"][...], expected_b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "lora: rank must be at least 1, got 0"),
        ({"alpha": float("inf")}, "lora: alpha must be above 0 and finite, got inf"),
        ({"projections": ()}, "lora: projections must be some of q, k"),
        ({"projections": ("q", "q")}, "lora: projections must be some of q, k"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**changes)


def test_a_disk_that_cannot_take_adapters_is_an_error_of_that_file(tmp_path, monkeypatch):
    def full(tensors, file, metadata):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("rationalyst_jax.lm.weights.peft.save_file", full)
    with pytest.raises(OSError, match=r"adapter_model\.safetensors: Error while .*No space left on device"):
        save_adapters(adapted(SOME), tmp_path, base="base")
    assert not list(tmp_path.iterdir())


def test_adapter_files_that_do_not_fit_are_named(tmp_path):
    save_adapters(adapted(SOME), tmp_path, base="base")
    other = replace(CONFIG, intermediate_size=20, num_layers=1)
    small = nnx.eval_shape(lambda: Llama(other, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError) as caught:
        load_adapters(small, tmp_path)
    message = str(caught.value)
    assert "adapter_model.safetensors: the adapters do not fit the model: " in message and "\n" not in message
    assert "layers.0.mlp.down_proj.lora_A.weight has shape (3, 24), not (3, 20)" in message
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: damaged"):
        load_adapters(tiny(), tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors: no such file"):
        load_adapters(tiny(), tmp_path)


REFUSED = [
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "pissa_niter_4"},
    {"init_lora_weights": "olora"},
    {"init_lora_weights": "loftq"},
    {"use_rslora": True},
    {"use_dora": True},
    {"lora_bias": True},
    {"bias": "all"},
    {"bias": "lora_only"},
    {"fan_in_fan_out": True},
    {"layer_replication": [[0, 2], [1, 2]]},
    {"layers_to_transform": 0},
    {"layers_to_transform": [1]},
    {"rank_pattern": {"q_proj": 4}},
    {"alpha_pattern": {"q_proj": 4}},
    {"modules_to_save": ["lm_head"]},
    {"exclude_modules": ["q_proj"]},
    {"target_parameters": ["mlp.gate_proj.weight"]},
    {"trainable_token_indices": [1]},
    {"peft_type": "VERA"},
    {"something_new": {"rank": 2}},
    {"something_new": 0},
]
PLAIN = [
    {"init_lora_weights": False},
    {"init_lora_weights": "gaussian"},
    {"modules_to_save": []},
    {"layers_to_transform": []},
    {"rank_pattern": {}},
    {"exclude_modules": None, "lora_dropout": 0.3, "task_type": None, "revision": "main"},
    {"megatron_core": "other", "qalora_group_size": 4},
    {"something_new": None, "something_other": False},
]


def rewritten(folder, change: dict) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A model and its adapters."""
    folder = tmp_path_factory.mktemp("stored")
    save_llama(tiny(), folder / "base")
    save_adapters(adapted(SOME), folder / "adapters", base=str(folder / "base"))
    return folder


@pytest.mark.parametrize("change", REFUSED, ids=str)
def test_adapters_beyond_plain_lora_are_refused_by_name(change, stored, tmp_path):
    shutil.copytree(stored / "adapters", tmp_path / "adapters")
    rewritten(tmp_path / "adapters", change)
    with pytest.raises(ValueError, match=rf"config\.json: {next(iter(change))} .* not supported") as caught:
        load_adapters(tiny(), tmp_path / "adapters")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("default")  # torch's and PEFT's own
@pytest.mark.parametrize("change", PLAIN, ids=str)
def test_what_is_plain_lora_is_merged_as_peft_merges_it(change, stored, tmp_path):
    pytest.importorskip("torch", reason="torch is the oracle here")
    peft = pytest.importorskip("peft", reason="PEFT is the oracle here")
    shutil.copytree(stored / "adapters", tmp_path / "adapters")
    rewritten(tmp_path / "adapters", change)
    model = load_llama(stored / "base")
    model.adapters = load_adapters(model, tmp_path / "adapters")
    merge(model)
    save_llama(model, tmp_path / "merged")
    base = transformers.LlamaForCausalLM.from_pretrained(stored / "base")
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapters")).merge_and_unload().state_dict()
    for key, ours in load_file(tmp_path / "merged" / "model.safetensors").items():
        np.testing.assert_allclose(ours, theirs[key].numpy(), atol=1e-6, err_msg=key)


def test_every_setting_of_peft_switched_on_is_refused_or_of_no_consequence(stored, tmp_path):
    """Also those that a later PEFT adds."""
    peft = pytest.importorskip("peft", reason="PEFT knows its settings")
    shutil.copytree(stored / "adapters", tmp_path / "adapters")
    written = json.loads((stored / "adapters" / "adapter_config.json").read_text())
    known = {field.name for field in fields(peft.LoraConfig)}
    loaded = set()
    for key in known:
        rewritten(tmp_path / "adapters", written | {key: {"any": 1}})
        with suppress(ValueError):
            load_adapters(tiny(), tmp_path / "adapters")
            loaded.add(key)
        (tmp_path / "adapters" / "adapter_config.json").write_text(json.dumps(written))
    assert loaded == known & {
        *("auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "inference_mode"),
        *("layers_pattern", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size"),
        *("revision", "runtime_config", "task_type"),
    }


@pytest.mark.parametrize("modules", [["q_proj", "head"], ["q"], r".*\.(q|v)_proj", [["q_proj"]], None])
def test_target_modules_are_projections_by_their_names(modules, stored, tmp_path):
    shutil.copytree(stored / "adapters", tmp_path / "adapters")
    rewritten(tmp_path / "adapters", {"target_modules": modules})
    with pytest.raises(ValueError, match=r"adapter_config\.json: ") as caught:
        load_adapters(tiny(), tmp_path / "adapters")
    assert "\n" not in str(caught.value)


def test_all_linear_means_every_projection(tmp_path):
    save_adapters(adapted(EVERY), tmp_path, base="base")
    rewritten(tmp_path, {"target_modules": "all-linear"})
    assert load_adapters(tiny(), tmp_path).config == EVERY


def test_every_projection_has_its_adapter():
    assert set(EVERY.projections) == set(PROJECTIONS)
    state = nnx.state(adapted(EVERY).adapters)
    assert len(jax.tree.leaves(state)) == 14
