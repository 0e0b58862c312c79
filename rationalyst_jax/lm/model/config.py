"""What varies between Llama checkpoints, read from and written to Hugging Face's config.json."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

# Hugging Face's name for each of our fields that is a plain number there.
_HF_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}
# What Llama computes with, as a config.json says it.
_COMPUTED = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
# All values that say so, of these keys and of others that transformers, or code in the checkpoint, obeys;
# with another one it would load and silently be wrong. Other keys pass: transformers' Llama does not
# obey them either, and `tests/test_config.py` fails when it learns a new one.
_PLAIN: dict[str, tuple[Any, ...]] = {
    **{key: (value,) for key, value in _COMPUTED.items()},
    "hidden_act": ("silu", "swish"),  # two names of one function
    "partial_rotary_factor": (None, 1),
    "sliding_window": (None,),
    "attention_chunk_size": (None,),
    "per_layer_config": (None, [], {}),
    "is_causal": (None, True),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
    "quantization_config": (None, {}),
    "auto_map": (None, {}),
}


@dataclass(frozen=True)
class RopeScaling:
    """The "llama3" rule of Llama 3.1 and 3.2, which stretches the slow RoPE frequencies by `factor`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self):
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            check_number(f"rope_scaling: {name}", getattr(self, name))
        name = "original_max_position_embeddings"
        check_count(f"rope_scaling: {name}", getattr(self, name))


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes (counts) and constants of one Llama; positions are in tokens, `rope_scaling` None is plain RoPE.

    Raises ValueError naming a value of the wrong type or out of range, and when the heads cannot be grouped
    or halved for RoPE.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False
    max_position_embeddings: int = 8192
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None

    def __post_init__(self):
        for name in (*_HF_NAMES, "num_kv_heads", "head_dim", "max_position_embeddings"):
            check_count(name, getattr(self, name))
        for name in ("rms_norm_eps", "rope_theta"):
            check_number(name, getattr(self, name))
        if not isinstance(self.tie_embeddings, bool):
            raise ValueError(f"tie_word_embeddings must be true or false, got {self.tie_embeddings!r}")
        for name, ids in {"bos_token_id": (self.bos_token_id,), "eos_token_id": self.ends}.items():
            for i in ids:
                if i is not None and (not _is_integer(i) or i < 0):
                    raise ValueError(f"{name} must be a token id, got {i!r}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"RoPE needs an even head_dim, got {self.head_dim}")

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        eos = self.eos_token_id
        return eos if isinstance(eos, tuple) else () if eos is None else (eos,)

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> Self:
        """Reads a parsed config.json, in the style of transformers 4 or 5.

        A key that is absent takes transformers' own default for Llama, not ours.
        Raises ValueError naming the key that is missing or holds what Llama here does not compute.
        """
        layers = hf.get("layer_types") or []
        if not isinstance(layers, list) or any(layer != "full_attention" for layer in layers):
            raise ValueError(f"layer_types {layers!r} is not supported, only 'full_attention'")
        for key, plain in _PLAIN.items():
            if key in hf and hf[key] not in plain:
                raise ValueError(f"{key} {hf[key]!r} is not supported, only {plain[-1]!r}")
        missing = [key for key in _HF_NAMES.values() if key not in hf]
        if missing:
            raise ValueError(f"missing {', '.join(missing)}")
        sizes = {ours: hf[theirs] for ours, theirs in _HF_NAMES.items()}
        kv_heads = hf.get("num_key_value_heads")
        # Version 5 keeps theta inside rope_parameters, version 4 beside rope_scaling, which wins.
        key = "rope_scaling" if hf.get("rope_scaling") else "rope_parameters"
        rope = hf.get(key) or {}
        if not isinstance(rope, Mapping):
            raise ValueError(f"{key} must be an object, got {rope!r}")
        original = hf.get("original_max_position_embeddings")
        if original is not None and original != rope.get("original_max_position_embeddings"):
            raise ValueError("original_max_position_embeddings is supported within rope_scaling only")
        eos = hf.get("eos_token_id")
        return cls(
            **sizes,
            num_kv_heads=sizes["num_heads"] if kv_heads is None else kv_heads,
            head_dim=_head_dim(hf),
            rms_norm_eps=hf.get("rms_norm_eps", 1e-6),
            rope_theta=rope.get("rope_theta", hf.get("rope_theta", 10000.0)),
            rope_scaling=_rope_scaling(rope),
            tie_embeddings=hf.get("tie_word_embeddings", False),
            max_position_embeddings=hf.get("max_position_embeddings", 2048),
            bos_token_id=hf.get("bos_token_id"),
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
        )

    def to_hf(self) -> dict[str, Any]:
        """The config.json of this model, in version 4's style, which transformers 4 and 5 both read."""
        scaling = self.rope_scaling
        eos = self.eos_token_id
        return {
            "architectures": ["LlamaForCausalLM"],
            **_COMPUTED,
            **{theirs: getattr(self, ours) for ours, theirs in _HF_NAMES.items()},
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": None if scaling is None else {"rope_type": "llama3", **asdict(scaling)},
            "tie_word_embeddings": self.tie_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        }

    @classmethod
    def llama3_8b(cls) -> Self:
        return cls(128256, 4096, 14336, 32, 32, 8, 128, **_LLAMA3_TOKENS)

    @classmethod
    def llama3_70b(cls) -> Self:
        return cls(128256, 8192, 28672, 80, 64, 8, 128, **_LLAMA3_TOKENS)

    @classmethod
    def llama3_1_8b(cls) -> Self:
        return cls(128256, 4096, 14336, 32, 32, 8, 128, **_long(8.0), **_LLAMA3_TOKENS)

    @classmethod
    def llama3_1_70b(cls) -> Self:
        return cls(128256, 8192, 28672, 80, 64, 8, 128, **_long(8.0), **_LLAMA3_TOKENS)

    @classmethod
    def llama3_1_405b(cls) -> Self:
        return cls(128256, 16384, 53248, 126, 128, 8, 128, **_long(8.0), **_LLAMA3_TOKENS)

    @classmethod
    def llama3_2_1b(cls) -> Self:
        return cls(128256, 2048, 8192, 16, 32, 8, 64, tie_embeddings=True, **_long(32.0), **_LLAMA3_TOKENS)

    @classmethod
    def llama3_2_3b(cls) -> Self:
        return cls(128256, 3072, 8192, 28, 24, 8, 128, tie_embeddings=True, **_long(32.0), **_LLAMA3_TOKENS)


_LLAMA3_TOKENS: dict[str, Any] = {"bos_token_id": 128000, "eos_token_id": 128001}


def _long(factor: float) -> dict[str, Any]:
    """What Llama 3.1 and 3.2 add to Llama 3: 131,072 positions through RoPE scaling."""
    return {"rope_scaling": RopeScaling(factor, 1.0, 4.0, 8192), "max_position_embeddings": 131072}


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_count(name: str, value: Any) -> None:
    if not _is_integer(value) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_number(name: str, value: Any) -> None:
    if not (_is_integer(value) or isinstance(value, float)) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a number above 0, got {value!r}")


def _head_dim(hf: Mapping[str, Any]) -> Any:
    if hf.get("head_dim") is not None:
        return hf["head_dim"]
    try:
        return hf["hidden_size"] // hf["num_attention_heads"]
    except (TypeError, ZeroDivisionError):
        return None  # the size at fault is named when the config checks itself


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"rope type {kind!r} is not supported, only 'default' and 'llama3'")
    names = [field.name for field in fields(RopeScaling)]
    for key, value in rope.items():
        if key == "partial_rotary_factor" and value in (None, 1):
            continue
        if key not in ("rope_type", "type", "rope_theta", *names):
            raise ValueError(f"{key} {value!r} is not supported in rope_scaling")
    if kind == "default":
        return None
    missing = [name for name in names if name not in rope]
    if missing:
        raise ValueError(f"rope type 'llama3' is missing {', '.join(missing)}")
    return RopeScaling(**{name: rope[name] for name in names})
