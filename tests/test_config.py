"""The Llama config reads and writes Hugging Face's config.json."""

import json
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from rationalyst_jax.lm.model.config import LlamaConfig, RopeScaling

SIZES = {"vocab_size": 64, "hidden_size": 48, "intermediate_size": 80}
HF = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    **SIZES,
}
SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

counts = st.integers(1, 10**6)
positive = st.floats(1e-12, 1e9)
token_ids = st.integers(0, 200_000)


@st.composite
def configs(draw):
    kv_heads = draw(st.integers(1, 64))
    return LlamaConfig(
        vocab_size=draw(counts),
        hidden_size=draw(counts),
        intermediate_size=draw(counts),
        num_layers=draw(counts),
        num_heads=kv_heads * draw(st.integers(1, 16)),
        num_kv_heads=kv_heads,
        head_dim=2 * draw(counts),
        rms_norm_eps=draw(positive),
        rope_theta=draw(positive),
        rope_scaling=draw(st.none() | st.builds(RopeScaling, positive, positive, positive, counts)),
        tie_embeddings=draw(st.booleans()),
        max_position_embeddings=draw(counts),
        bos_token_id=draw(st.none() | token_ids),
        eos_token_id=draw(st.none() | token_ids | st.lists(token_ids, min_size=1).map(tuple)),
    )


@given(configs())
def test_a_config_survives_the_way_through_json(config):
    assert LlamaConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.mark.parametrize("name", ["llama3_8b", "llama3_70b", "llama3_2_1b"])
def test_presets_equal_the_published_configs(name, shared):
    published = json.loads((shared / "llama_configs" / f"{name}.json").read_text())
    assert LlamaConfig.from_hf(published) == getattr(LlamaConfig, name)()


def test_every_preset_has_the_published_sizes():
    sizes = {  # hidden, intermediate, layers, heads, key-value heads, head dimension
        "llama3_8b": (4096, 14336, 32, 32, 8, 128),
        "llama3_70b": (8192, 28672, 80, 64, 8, 128),
        "llama3_1_8b": (4096, 14336, 32, 32, 8, 128),
        "llama3_1_70b": (8192, 28672, 80, 64, 8, 128),
        "llama3_1_405b": (16384, 53248, 126, 128, 8, 128),
        "llama3_2_1b": (2048, 8192, 16, 32, 8, 64),
        "llama3_2_3b": (3072, 8192, 28, 24, 8, 128),
    }
    factors = {"llama3_1": 8.0, "llama3_2": 32.0}
    assert set(sizes) == {name for name in vars(LlamaConfig) if name.startswith("llama")}
    for name, (hidden, intermediate, layers, heads, kv_heads, head_dim) in sizes.items():
        factor = factors.get(name[:8])
        assert getattr(LlamaConfig, name)() == LlamaConfig(
            vocab_size=128256,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=1e-5,
            rope_theta=500000.0,
            rope_scaling=RopeScaling(factor, 1.0, 4.0, 8192) if factor else None,
            tie_embeddings=name.startswith("llama3_2"),
            max_position_embeddings=131072 if factor else 8192,
            bos_token_id=128000,
            eos_token_id=128001,
        )


def test_presets_have_the_published_parameter_counts():
    def parameters(c: LlamaConfig) -> int:
        attention = 2 * c.hidden_size * c.head_dim * (c.num_heads + c.num_kv_heads)
        layer = attention + 3 * c.hidden_size * c.intermediate_size + 2 * c.hidden_size
        tables = 1 if c.tie_embeddings else 2
        return tables * c.vocab_size * c.hidden_size + c.num_layers * layer + c.hidden_size

    assert parameters(LlamaConfig.llama3_1_8b()) == 8_030_261_248
    assert parameters(LlamaConfig.llama3_1_70b()) == 70_553_706_496
    assert parameters(LlamaConfig.llama3_1_405b()) == 405_853_388_800
    assert parameters(LlamaConfig.llama3_2_3b()) == 3_212_749_824


@pytest.mark.parametrize("rope_type", ["default", "llama3"])
def test_both_styles_of_rope_settings_read_alike(rope_type):
    scaling = {"rope_type": rope_type, **(SCALING if rope_type == "llama3" else {})}
    old = LlamaConfig.from_hf({**HF, "rope_theta": 7e4, "rope_scaling": scaling, "torch_dtype": "bfloat16"})
    new = LlamaConfig.from_hf({**HF, "rope_parameters": {**scaling, "rope_theta": 7e4}, "dtype": "bfloat16"})
    assert old == new
    assert old.rope_theta == 7e4
    assert old.rope_scaling == (RopeScaling(**SCALING) if rope_type == "llama3" else None)


def test_absent_keys_take_the_defaults_of_transformers():
    hf = {key: value for key, value in HF.items() if key != "num_key_value_heads"}
    config = LlamaConfig.from_hf(hf)
    theirs = transformers.LlamaConfig(**hf)
    assert config.num_kv_heads == theirs.num_key_value_heads == 6
    assert config.head_dim == theirs.head_dim == 8
    assert config.rms_norm_eps == theirs.rms_norm_eps
    assert config.max_position_embeddings == theirs.max_position_embeddings
    assert config.tie_embeddings == theirs.tie_word_embeddings
    assert config.rope_theta == LlamaConfig.from_hf(theirs.to_dict()).rope_theta == 10000.0


def test_transformers_reads_what_we_write(tmp_path):
    config = LlamaConfig(
        **SIZES,
        num_layers=2,
        num_heads=6,
        num_kv_heads=2,
        head_dim=10,
        rms_norm_eps=3e-4,
        rope_theta=4321.0,
        rope_scaling=RopeScaling(**SCALING),
        tie_embeddings=True,
        max_position_embeddings=999,
        bos_token_id=1,
        eos_token_id=(2, 3),
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, transformers.LlamaConfig)
    theirs.save_pretrained(tmp_path)
    assert LlamaConfig.from_hf(json.loads((tmp_path / "config.json").read_text())) == config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mistral"}, "model_type 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope type 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type 'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"num_key_value_heads": 4}, "num_kv_heads 4"),
        ({"head_dim": 5}, "even head_dim, got 5"),
        ({"hidden_size": "48"}, "hidden_size must be a positive integer, got '48'"),
        ({"num_attention_heads": 0}, "num_heads must be a positive integer, got 0"),
        ({"max_position_embeddings": None}, "max_position_embeddings must be a positive integer, got None"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a number above 0, got '1e-5'"),
        ({"rms_norm_eps": True}, "rms_norm_eps must be a number above 0, got True"),
        ({"rope_theta": "10000"}, "rope_theta must be a number above 0, got '10000'"),
        ({"rope_theta": float("nan")}, "rope_theta must be a number above 0, got nan"),
        ({"rope_scaling": "llama3"}, "rope_scaling must be an object, got 'llama3'"),
        ({"rope_parameters": [8]}, "rope_parameters must be an object, got [8]"),
        (
            {"rope_scaling": {"rope_type": "llama3", **SCALING, "factor": "8"}},
            "rope_scaling: factor must be a number above 0, got '8'",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", **SCALING, "original_max_position_embeddings": 8192.0}},
            "original_max_position_embeddings must be a positive integer, got 8192.0",
        ),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false, got 'false'"),
        ({"bos_token_id": "1"}, "bos_token_id must be a token id, got '1'"),
        ({"eos_token_id": [2, "3"]}, "eos_token_id must be a token id, got '3'"),
    ],
)
def test_what_llama_here_does_not_compute_is_refused_in_one_line(change, named):
    with pytest.raises(ValueError) as caught:
        LlamaConfig.from_hf({**HF, **change})
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


OTHER_COMPUTATIONS = [
    {"partial_rotary_factor": 0.5},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    {"rope_scaling": {"rope_type": "llama3", **SCALING, "attention_factor": 2.0}},
    {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    {"original_max_position_embeddings": 4096},
    {"sliding_window": 128},
    {"attention_chunk_size": 128},
    {"layer_types": ["full_attention", "sliding_attention"]},
    {"layer_types": 3},
    {"per_layer_config": [{"num_attention_heads": 2}]},
    {"is_causal": False},
    {"is_encoder_decoder": True},
    {"add_cross_attention": True},
    {"pruned_heads": {"0": [1]}},
    {"quantization_config": {"quant_method": "gptq"}},
    {"auto_map": {"AutoModelForCausalLM": "modeling.Other"}},
]


@pytest.mark.parametrize("change", OTHER_COMPUTATIONS, ids=str)
def test_keys_that_name_another_computation_are_refused_by_name(change):
    with pytest.raises(ValueError, match=r"supported") as caught:
        LlamaConfig.from_hf({**HF, **change})
    [(key, value)] = change.items()
    named = {key, *(value if isinstance(value, dict) else ())}
    assert any(name in str(caught.value) for name in named) and "\n" not in str(caught.value)


def test_keys_that_change_nothing_pass():
    harmless = {
        "hidden_act": "swish",
        "pretraining_tp": 2,
        "attention_dropout": 0.1,
        "sliding_window": None,
        "layer_types": ["full_attention"] * 2,
        "partial_rotary_factor": 1.0,
        "quantization_config": None,
        "use_cache": False,
        "unsloth_fixed": True,
        "_name_or_path": "anywhere",
    }
    assert LlamaConfig.from_hf({**HF, **harmless}) == LlamaConfig.from_hf(HF)


def test_every_key_of_transformers_llama_is_read_or_known_to_change_nothing():
    """One that a later version adds may name another computation: look at it, then add it to a list."""
    own = {name for name in transformers.LlamaConfig.__annotations__ if name != "model_type"}
    read = {*HF, "max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id", "head_dim"}
    read |= {"tie_word_embeddings", "rope_parameters"}
    checked = {"hidden_act", "attention_bias", "mlp_bias"}
    harmless = {"initializer_range", "use_cache", "pad_token_id", "pretraining_tp", "attention_dropout"}
    assert own <= read | checked | harmless


def test_of_two_rope_settings_the_one_of_transformers_counts():
    both = {
        "rope_scaling": {"rope_type": "llama3", **SCALING, "rope_theta": 5e5},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }
    theirs: Any = transformers.LlamaConfig(**{**HF, **both}).rope_parameters
    ours = LlamaConfig.from_hf({**HF, **both})
    assert ours.rope_theta == theirs["rope_theta"]
    assert (ours.rope_scaling is not None) == (theirs["rope_type"] == "llama3")


def test_all_missing_sizes_are_named():
    with pytest.raises(ValueError, match="missing vocab_size, num_hidden_layers"):
        LlamaConfig.from_hf({k: v for k, v in HF.items() if k not in ("vocab_size", "num_hidden_layers")})
