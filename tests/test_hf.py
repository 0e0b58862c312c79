"""Weights cross the border to Hugging Face unchanged, and what does not fit is refused in one line."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx
from random_model import random_llama
from safetensors.numpy import load_file, save_file

from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.weights.hf import check_llama, load_config, load_llama, save_llama, stored_dtype

torch = pytest.importorskip("torch", reason="torch is the oracle here")

CONFIG = LlamaConfig(50, 16, 24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, eos_token_id=(3, 4))
TIED = LlamaConfig(50, 16, 24, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, tie_embeddings=True)


def tensors(folder) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*.safetensors"))
    assert files
    return {key: value for file in files for key, value in load_file(file).items()}


def assert_same_bits(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype and ours[key].shape == value.shape, key
        assert ours[key].tobytes() == value.tobytes(), key


@pytest.fixture
def saved(tmp_path):
    """A folder with a small untied checkpoint in a single file."""
    save_llama(random_llama(CONFIG, 0), tmp_path)
    return tmp_path


def rewrite(folder, change) -> None:
    """Applies `change` to the tensors of a single-file checkpoint."""
    stored = tensors(folder)
    change(stored)
    save_file(stored, folder / "model.safetensors")


@pytest.mark.parametrize("shard", ["100GB", "8KB"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hugging_face_to_ours_and_back_is_bit_identical(dtype, tied, shard, tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        tie_word_embeddings=tied,
    )
    theirs = transformers.LlamaForCausalLM(config).to(dtype)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == (shard == "8KB")

    model = load_llama(tmp_path / "theirs")
    save_llama(model, tmp_path / "ours", max_shard_bytes=8_000 if shard == "8KB" else 10**9)

    assert_same_bits(tensors(tmp_path / "ours"), tensors(tmp_path / "theirs"))
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert again.dtype == dtype
    for key, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize("config", [CONFIG, TIED])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_ours_to_hugging_face_and_back_is_the_same_model(config, dtype, tmp_path):
    model = random_llama(config, 0, dtype)
    save_llama(model, tmp_path, max_shard_bytes=3_000)
    again = load_llama(tmp_path)
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(model))
    assert again.layers.q_DNH.get_metadata("axes") == ("layer", "embed", "heads", "head")
    assert load_llama(tmp_path, lambda stored: jnp.float32).layers.q_DNH.dtype == jnp.float32


def test_shards_stay_within_their_limit_and_are_indexed(tmp_path):
    save_llama(random_llama(CONFIG, 0), tmp_path, max_shard_bytes=4_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    sizes = {}
    for file in tmp_path.glob("*.safetensors"):
        stored = load_file(file)
        sizes[file.name] = sum(value.nbytes for value in stored.values())
        assert sizes[file.name] <= 4_000
        assert all(index["weight_map"][key] == file.name for key in stored)
    assert index["metadata"]["total_size"] == sum(sizes.values())


@pytest.mark.parametrize("limits", [(10**9, 4_000), (4_000, 10**9), (4_000, 9_000)])
def test_a_second_save_replaces_the_first_whatever_their_shards(limits, tmp_path):
    save_llama(random_llama(CONFIG, 0), tmp_path, max_shard_bytes=limits[0])
    second = random_llama(CONFIG, 1)
    save_llama(second, tmp_path, max_shard_bytes=limits[1])
    jax.tree.map(np.testing.assert_array_equal, nnx.state(load_llama(tmp_path)), nnx.state(second))
    transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_save_cut_off_while_writing_leaves_the_earlier_checkpoint(saved, monkeypatch):
    before = tensors(saved)

    def cut_off(array, layout, layer, dtype):
        yield 0, np.zeros(4, dtype)
        raise KeyboardInterrupt

    monkeypatch.setattr("rationalyst_jax.lm.weights.hf.stored_rows", cut_off)
    with pytest.raises(KeyboardInterrupt):
        save_llama(random_llama(CONFIG, 1), saved)
    assert_same_bits(tensors(saved), before)
    assert not list(saved.glob("*.unfinished"))
    load_llama(saved)


def test_a_tied_checkpoint_may_repeat_its_head_but_not_contradict_it(tmp_path):
    model = random_llama(TIED, 0)
    save_llama(model, tmp_path)
    assert "lm_head.weight" not in tensors(tmp_path)
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    check_llama(tmp_path)  # what is asked before training, and before an engine of several devices
    jax.tree.map(np.testing.assert_array_equal, nnx.state(load_llama(tmp_path)), nnx.state(model))
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    for read in (load_llama, check_llama):
        with pytest.raises(ValueError, match=r"lm_head\.weight differs"):
            read(tmp_path)


def test_tables_of_rope_that_older_checkpoints_hold_are_passed_over(tmp_path):
    model = random_llama(CONFIG, 0, jnp.bfloat16)
    save_llama(model, tmp_path)
    frequencies = np.ones(3, np.float32)
    rewrite(
        tmp_path,
        lambda t: t.update(
            {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": frequencies.copy() for i in range(3)}
            | {"model.rotary_emb.inv_freq": frequencies}
        ),
    )
    check_llama(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(load_llama(tmp_path)), nnx.state(model))
    assert stored_dtype(tmp_path) == jnp.bfloat16
    rewrite(tmp_path, lambda t: t.update({"model.rotary_emb.other": frequencies}))
    with pytest.raises(ValueError, match=r"extra model\.rotary_emb\.other"):
        load_llama(tmp_path)


def test_every_key_that_does_not_fit_is_listed_at_once(saved):
    def change(t):
        del t["model.layers.1.mlp.up_proj.weight"], t["lm_head.weight"]
        t["model.layers.3.mlp.up_proj.weight"] = np.zeros((24, 16), np.float32)
        t["model.layers.0.self_attn.q_proj.bias"] = np.zeros(24, np.float32)
        t["model.layers.2.self_attn.o_proj.weight"] = np.zeros((24, 16), np.float32)
        t["model.norm.weight"] = np.zeros(16, np.int8)

    rewrite(saved, change)
    with pytest.raises(ValueError) as caught:
        load_llama(saved)
    message = str(caught.value)
    for part in (
        str(saved),
        "missing model.layers.1.mlp.up_proj.weight",
        "missing lm_head.weight",
        "extra model.layers.3.mlp.up_proj.weight",
        "extra model.layers.0.self_attn.q_proj.bias",
        "model.layers.2.self_attn.o_proj.weight has shape (24, 16), not (16, 24)",
        "model.norm.weight is I8",
    ):
        assert part in message
    assert "\n" not in message


def test_a_missing_file_is_named(saved):
    with pytest.raises(FileNotFoundError, match=r"nowhere.config\.json"):
        load_llama(saved / "nowhere")
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load_llama(saved)
    save_llama(random_llama(CONFIG, 0), saved, max_shard_bytes=4_000)
    next(saved.glob("model-00002-*")).unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-"):
        load_llama(saved)


@pytest.mark.parametrize("content", [b"", b"no tensors here, and too short", b"\xff" * 64])
def test_damaged_weights_are_named(content, saved):
    (saved / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged") as caught:
        load_llama(saved)
    assert "\n" not in str(caught.value)


def test_truncated_weights_are_named(saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        load_llama(saved)


@pytest.mark.parametrize(
    "content", ["{", "[]", '"llama"', '{"model_type": "gpt2"}', '{"model_type": "llama"}']
)
def test_a_damaged_config_is_named(content, saved):
    (saved / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json: ") as caught:
        load_config(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": ["a"]}'])
def test_a_damaged_index_is_named(content, saved):
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index\.json: "):
        load_llama(saved)


def test_checkpoints_are_read_and_written_without_torch(saved):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from rationalyst_jax.lm.weights.hf import load_llama, save_llama\n"
        "save_llama(load_llama(sys.argv[1]), sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, saved, saved / "again"], check=True)
    assert_same_bits(tensors(saved / "again"), tensors(saved))
