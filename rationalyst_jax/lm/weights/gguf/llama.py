"""The Llama in a GGUF file: sizes and constants among the metadata, names of tensors, and the order of rows.

ggml's RoPE turns neighbouring rows of a head, Hugging Face's (and ours) one half against the other. So
llama.cpp's converter interleaves the halves of each head of the queries and keys, which is undone here. The
stretched RoPE of Llama 3.1 has no key of its own: a tensor holds what each frequency is divided by.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rationalyst_jax.lm.model.config import LlamaConfig, RopeScaling
from rationalyst_jax.lm.weights.gguf.container import Gguf, Value

ARCHITECTURE = "llama"
ROPE_FACTORS = "rope_freqs.weight"
_EMBED, _HEAD = "token_embd.weight", "output.weight"
# Hugging Face's module -> llama.cpp's, inside a layer and outside.
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
# Our fields that are plain counts among the metadata.
_SIZES = {
    "num_layers": "llama.block_count",
    "max_position_embeddings": "llama.context_length",
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "num_heads": "llama.attention.head_count",
}
_KV_HEADS = "llama.attention.head_count_kv"
_KEY_LENGTH, _VALUE_LENGTH = "llama.attention.key_length", "llama.attention.value_length"
_ROTATED = "llama.rope.dimension_count"
_EPS, _THETA = "llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base"
_VOCABULARY = "llama.vocab_size"
# What other keys of the architecture may say; with another value, or a key not named here, it computes
# something else.
_PLAIN: dict[str, Any] = {
    "llama.rope.scaling.type": "none",
    "llama.expert_count": 0,
    "llama.expert_used_count": 0,
    "llama.attention.causal": True,
}
# The rules whose factors are known: Llama 3.1's and 3.2's.
_RULES = (RopeScaling(8.0, 1.0, 4.0, 8192), RopeScaling(32.0, 1.0, 4.0, 8192))


def gguf_name(key: str) -> str:
    """llama.cpp's name of the tensor that Hugging Face calls `key`."""
    module, _, what = key.rpartition(".")
    if module in _TOP:
        return f"{_TOP[module]}.{what}"
    layer, _, module = module.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_LAYER[module]}.{what}"


def heads_of(name: str, config: LlamaConfig) -> int | None:
    """How many heads have their rows interleaved in the tensor `name`; None: its rows are as they are."""
    return {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(name.split(".")[-2])


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of whole heads `[heads * H, D]`: each head's two halves one row after the other by turns."""
    return rows.reshape(heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def halved(rows: np.ndarray, heads: int) -> np.ndarray:
    """What `interleaved` undoes."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def config_of(gguf: Gguf, vocabulary: int, bos: int | None, ends: Iterable[int]) -> LlamaConfig:
    """The config of the model in a file of so many tokens, of which `ends` end a text.

    Raises ValueError naming the file and the key that is missing, or wants what Llama here doesn't compute.
    """
    metadata = gguf.metadata
    try:
        if metadata.get("general.architecture") != ARCHITECTURE:
            found = metadata.get("general.architecture")
            raise ValueError(f"general.architecture is {found!r}, only {ARCHITECTURE!r} is read")
        used = {*_SIZES.values(), _KV_HEADS, _KEY_LENGTH, _VALUE_LENGTH, _ROTATED, _EPS, _THETA, _VOCABULARY}
        for key, value in metadata.items():
            plain = key in used or (key in _PLAIN and value == _PLAIN[key])
            if key.startswith(f"{ARCHITECTURE}.") and not plain:
                raise ValueError(f"{key} {value!r} is not supported")
        if missing := [key for key in (*_SIZES.values(), _EPS) if key not in metadata]:
            raise ValueError(f"no {', '.join(missing)}")
        sizes = {field: _count(metadata, key) for field, key in _SIZES.items()}
        head_dim = sizes["hidden_size"] // sizes["num_heads"]
        if _KEY_LENGTH in metadata:
            head_dim = _count(metadata, _KEY_LENGTH)
        for key, wanted in ((_VALUE_LENGTH, head_dim), (_ROTATED, head_dim), (_VOCABULARY, vocabulary)):
            if metadata.get(key, wanted) != wanted:
                raise ValueError(f"{key} {metadata[key]!r} is not supported, only {wanted}")
        ids = tuple(ends)
        theta = _shortest(metadata.get(_THETA, 10000.0), _THETA)
        return LlamaConfig(
            **sizes,
            vocab_size=vocabulary,
            num_kv_heads=_count(metadata, _KV_HEADS) if _KV_HEADS in metadata else sizes["num_heads"],
            head_dim=head_dim,
            rms_norm_eps=_shortest(metadata[_EPS], _EPS),
            rope_theta=theta,
            rope_scaling=_rope_scaling(gguf, head_dim, theta),
            tie_embeddings=_HEAD not in gguf.tensors,
            bos_token_id=bos,
            eos_token_id=ids[0] if len(ids) == 1 else ids or None,
        )
    except ValueError as error:
        raise ValueError(f"{gguf.path}: {error}") from None


def metadata_of(config: LlamaConfig) -> dict[str, Value]:
    """The sizes and constants of a model as a file has them."""
    return {
        **{key: getattr(config, field) for field, key in _SIZES.items()},
        _KV_HEADS: config.num_kv_heads,
        _KEY_LENGTH: config.head_dim,
        _VALUE_LENGTH: config.head_dim,
        _ROTATED: config.head_dim,
        _EPS: float(config.rms_norm_eps),
        _THETA: float(config.rope_theta),
        _VOCABULARY: config.vocab_size,
    }


def rope_factors(head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """What llama.cpp divides each RoPE frequency by, float32 `[head_dim / 2]`, for Llama 3.1's rule."""
    frequency_H = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    turns_H = scaling.original_max_position_embeddings * frequency_H / (2 * math.pi)
    kept_H = (turns_H - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept_H = np.clip(kept_H, 0, 1)
    return (1 / (kept_H + (1 - kept_H) / scaling.factor)).astype(np.float32)


def _rope_scaling(gguf: Gguf, head_dim: int, theta: float) -> RopeScaling | None:
    """The rule whose factors the file holds. Raises ValueError for those of another one."""
    if ROPE_FACTORS not in gguf.tensors:
        return None
    tensor = gguf.tensors[ROPE_FACTORS]
    found = tensor.read(0, tensor.rows).reshape(-1)
    for rule in _RULES:
        wanted = rope_factors(head_dim, theta, rule)
        if found.shape == wanted.shape and np.allclose(found, wanted, rtol=1e-4, atol=0):
            return rule
    raise ValueError(f"{ROPE_FACTORS}: not the RoPE scaling of Llama 3.1 or 3.2 with {_THETA} {theta:g}")


def _count(metadata: Mapping[str, Any], key: str) -> int:
    """A count, before anything is reckoned with it. Raises ValueError naming the key."""
    value = metadata[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} must be a positive integer, found {value!r}")
    return value


def _shortest(value: Any, key: str) -> float:
    """The number that was meant by a float32: the shortest decimal that rounds to it. Raises ValueError."""
    if not isinstance(value, float):
        raise ValueError(f"{key} must be a number, found {value!r}")
    return float(str(np.float32(value)))
