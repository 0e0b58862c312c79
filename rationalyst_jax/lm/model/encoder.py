"""Encoders of sentences, BERT (arXiv 1810.04805) and MPNet (arXiv 2004.09297): texts become unit vectors.

One forward pass for both. Where they differ is in their weights: MPNet adds a bias to attention that depends
on the distance of two tokens and is shared by all layers; its positions begin at row 2 of their table, and
BERT adds the same token type everywhere, both of which are seen to when weights are read
(`lm/weights/encoder.py`). Several texts stand in one row and see only their own.

B rows of a batch, T tokens of a row, S keys, P texts of a row, D model, F feed-forward, N heads, H head size,
C the three of query, key and value, V vocabulary, L layers, W positions, R buckets of distances.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rationalyst_jax.lm.devices.precision import precision_of
from rationalyst_jax.lm.model.config import check_count, check_number

# MPNet's buckets of distances, and the tokens from which on it tells distances no more apart.
DISTANCE_BUCKETS = 32
_FARTHEST = 128
_TYPES = ("bert", "mpnet")
_MPNET_FIRST_POSITION = 2  # after the row of padding
_HF_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "position_rows": "max_position_embeddings",
}
# All values that say what is computed here, of the keys that transformers obeys or has obeyed.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "model_type": _TYPES,
    "hidden_act": ("gelu",),
    "position_embedding_type": (None, "absolute"),
    # transformers computes with 32 buckets whatever is asked
    "relative_attention_num_buckets": (None, DISTANCE_BUCKETS),
    "is_decoder": (None, False),
    "add_cross_attention": (None, False),
    "is_encoder_decoder": (None, False),
    "pruned_heads": (None, {}),
    "quantization_config": (None, {}),
    "auto_map": (None, {}),
}


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes (counts) and constants of one encoder.

    position_rows: of the table of positions. first_position: the row of a text's first token. token_types:
    rows of the table of token types, 0 without one. distance_bias: whether attention has MPNet's.

    Raises ValueError naming a value of the wrong type or out of range.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    position_rows: int
    first_position: int
    token_types: int
    distance_bias: bool
    layer_norm_eps: float

    def __post_init__(self):
        for name in _HF_NAMES:
            check_count(name, getattr(self, name))
        check_number("layer_norm_eps", self.layer_norm_eps)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if self.max_tokens < 1:
            raise ValueError(f"max_position_embeddings {self.position_rows} leaves no position to a token")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest text that there are positions for."""
        return self.position_rows - self.first_position

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> Self:
        """Reads a parsed config.json of transformers' BERT or MPNet; a key that is absent takes its default
        there.

        Raises ValueError naming the key that is missing or holds what is not computed here.
        """
        for key, plain in _PLAIN.items():
            if hf.get(key, plain[0]) not in plain:
                wanted = " or ".join(repr(value) for value in plain if value is not None)
                raise ValueError(f"{key} {hf[key]!r} is not supported, only {wanted}")
        missing = [key for key in ("model_type", *_HF_NAMES.values()) if key not in hf]
        if missing:
            raise ValueError(f"missing {', '.join(missing)}")
        mpnet = hf["model_type"] == "mpnet"
        types = 0 if mpnet else hf.get("type_vocab_size", 2)
        if not mpnet:
            check_count("type_vocab_size", types)
        return cls(
            **{ours: hf[theirs] for ours, theirs in _HF_NAMES.items()},
            first_position=_MPNET_FIRST_POSITION if mpnet else 0,
            token_types=types,
            distance_bias=mpnet,
            layer_norm_eps=hf.get("layer_norm_eps", 1e-12),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Norm:
    """Scale and bias of a layer norm, `[D]` or stacked `[L, D]`."""

    scale: Array
    bias: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EncoderLayers:
    """All layers, stacked: the axis L comes first in every array, those of the norms too."""

    qkv_DCNH: Array
    qkv_bias_CNH: Array
    o_NHD: Array
    o_bias_D: Array
    attention_norm: Norm
    up_DF: Array
    up_bias_F: Array
    down_FD: Array
    down_bias_D: Array
    output_norm: Norm


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Encoder:
    """The weights of an encoder, all float32 or all bfloat16, a pytree.

    position_WD: row 0 is that of a text's first token, with the token type added where there is one.
    distance_RN: the bias of each bucket of distances; None: there is none.
    """

    embed_VD: Array
    position_WD: Array
    embed_norm: Norm
    distance_RN: Array | None
    layers: EncoderLayers

    def __call__(self, token_BT: Array, position_BT: Array, text_BT: Array, eps: float) -> Array:
        """Hidden states `[B, T, D]` of packed rows.

        All int32 `[B, T]`: tokens, their positions in their text from 0, and the number of the text in the
        row, -1 where nothing stands. eps: of the layer norms.
        """
        x_BTD = self.embed_VD[token_BT] + self.position_WD[position_BT]
        x_BTD = _layer_norm(x_BTD, self.embed_norm, eps)
        bias_BNTS = jnp.where((text_BT[:, :, None] == text_BT[:, None, :])[:, None], 0.0, -jnp.inf)
        if self.distance_RN is not None:
            bias_BNTS = bias_BNTS + _distance_bias(self.distance_RN, token_BT.shape[1])

        def layer(x_BTD: Array, w: EncoderLayers) -> tuple[Array, None]:
            attended_BTD = _attention(x_BTD, w, bias_BNTS)
            x_BTD = _layer_norm(x_BTD + attended_BTD, w.attention_norm, eps)
            up_BTF = _product("BTD,DF->BTF", x_BTD, w.up_DF) + w.up_bias_F
            up_BTF = jax.nn.gelu(up_BTF, approximate=False)
            down_BTD = _product("BTF,FD->BTD", up_BTF, w.down_FD) + w.down_bias_D
            return _layer_norm(x_BTD + down_BTD, w.output_norm, eps), None

        x_BTD, _ = jax.lax.scan(layer, x_BTD, self.layers)
        return x_BTD


def text_vectors(hidden_BTD: Array, text_BT: Array, texts: int) -> Array:
    """The unit vector of each text, float32 `[B, P, D]` with P = `texts`: the mean of its tokens' hidden
    states, at length 1 (Sentence-BERT, arXiv 1908.10084). Of a number that no text has: zeros."""
    belongs_BPT = (text_BT[:, None, :] == jnp.arange(texts)[:, None]).astype(jnp.float32)
    sum_BPD = _product("BPT,BTD->BPD", belongs_BPT, hidden_BTD.astype(jnp.float32))
    # The mean's length does not matter, so the sum will do.
    length_BP1 = jnp.linalg.norm(sum_BPD, axis=-1, keepdims=True)
    return sum_BPD / jnp.maximum(length_BP1, 1e-12)


def distance_buckets(distance: np.ndarray) -> np.ndarray:
    """MPNet's bucket of each distance, in tokens from the query to the key: the near ones have one each, the
    others share them on a logarithmic scale up to 128 tokens; those ahead have the second half."""
    half = DISTANCE_BUCKETS // 2
    exact = half // 2
    away = np.abs(distance)
    # In float32, as transformers computes it: rounding decides at the borders.
    steps = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact))
    far = exact + (steps / np.float32(math.log(_FARTHEST / exact)) * np.float32(half - exact)).astype(int)
    return np.where(distance > 0, half, 0) + np.where(away < exact, away, np.minimum(far, half - 1))


def _distance_bias(distance_RN: Array, T: int) -> Array:
    """`[N, T, S]`: what attention gets for the distance of two tokens of a row."""
    place = np.arange(T)
    bucket_TS = distance_buckets(place[None, :] - place[:, None])
    return jnp.moveaxis(distance_RN[bucket_TS], -1, 0).astype(jnp.float32)


def _attention(x_BTD: Array, w: EncoderLayers, bias_BNTS: Array) -> Array:
    # Tokens last, and the division after the second product: CPUs compute it a third faster.
    qkv_CBNHT = _product("BTD,DCNH->CBNHT", x_BTD, w.qkv_DCNH) + w.qkv_bias_CNH[:, None, :, :, None]
    q_BNHT, k_BNHS, v_BNHS = qkv_CBNHT
    score_BNTS = _product("BNHT,BNHS->BNTS", q_BNHT, k_BNHS).astype(jnp.float32)
    score_BNTS = score_BNTS / math.sqrt(q_BNHT.shape[2]) + bias_BNTS
    weight_BNTS = jnp.exp(score_BNTS - jnp.max(score_BNTS, axis=-1, keepdims=True))
    sum_BNT1 = jnp.sum(weight_BNTS, axis=-1, keepdims=True)
    out_BNTH = _product("BNTS,BNHS->BNTH", weight_BNTS.astype(x_BTD.dtype), v_BNHS)
    out_BNTH = (out_BNTH / sum_BNT1).astype(x_BTD.dtype)
    return _product("BNTH,NHD->BTD", out_BNTH, w.o_NHD) + w.o_bias_D


def _layer_norm(x_BTD: Array, norm: Norm, eps: float) -> Array:
    """Computed in float32, returned in x's dtype."""
    x32 = x_BTD.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(variance + eps)
    return (normed * norm.scale + norm.bias).astype(x_BTD.dtype)


def _product(axes: str, x: Array, y: Array) -> Array:
    return jnp.einsum(axes, x, y, precision=precision_of(x, y))
