"""Llama 3 as Flax NNX modules: stacked layers under one `lax.scan`, hidden states out.

The model is the architecture of "The Llama 3 Herd of Models" (arXiv 2407.21783) as Hugging Face checkpoints
store it: RMSNorm, half-split rotary embeddings, grouped-query attention, SwiGLU. How tokens see each other
is not the model's business: the caller passes `attend`, so that packed token trees, a sampler's KV cache
and whatever comes next share these weights and this code.

B batch, T tokens of a row, D model, F feed-forward, N query heads, K key-value heads, H head size,
V vocabulary, L layers; S panels of W outputs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.typing import DTypeLike

from rationalyst_jax.lm.attention import tree_attention
from rationalyst_jax.lm.cpu import products
from rationalyst_jax.lm.devices.precision import precision_of
from rationalyst_jax.lm.devices.sharding import by_row
from rationalyst_jax.lm.model.config import LlamaConfig, RopeScaling
from rationalyst_jax.lm.model.lora import Adapters
from rationalyst_jax.lm.model.projections import PROJECTIONS, Projection, ProjectionName
from rationalyst_jax.lm.model.quantize import Scales
from rationalyst_jax.lm.model.settings import Remat

# (q_BTNH, k_BTKH, v_BTKH, number of the layer, cache) -> (out_BTNH, new cache)
Attend = Callable[[Array, Array, Array, Array, Any], tuple[Array, Any]]

_LAYER_INPUT = "layer_input"
# What each kind of rematerialisation keeps.
_KEPT: dict[Remat, Any] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_LAYER_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def tree_attend(subtree_size_BT: Array, mesh: Mesh | None = None) -> Attend:
    """Attention within packed token trees, without a cache."""

    def attend(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, layer: Array, cache: None) -> tuple[Array, None]:
        return tree_attention(q_BTNH, k_BTKH, v_BTKH, subtree_size_BT, mesh=mesh), None

    return attend


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Array:
    """Radians per token of each rotary pair, float32 `[H/2]`.

    With `scaling`, Llama 3.1's rule: wavelengths longer than `original / low_freq_factor` are stretched by
    `factor`, those shorter than `original / high_freq_factor` are kept, and between the two the
    frequencies are interpolated.
    """
    frequency_H = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is None:
        return frequency_H
    turns_H = scaling.original_max_position_embeddings * frequency_H / (2 * math.pi)
    kept_H = (turns_H - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept_H = jnp.clip(kept_H, 0.0, 1.0)
    return frequency_H * (kept_H + (1 - kept_H) / scaling.factor)


def rotate(x_BTNH: Array, cos_BTH: Array, sin_BTH: Array) -> Array:
    """Rotary position embedding (arXiv 2104.09864), half-split: pair i is (x[i], x[i + H/2])."""
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    cos = cos_BTH[:, :, None]
    sin = sin_BTH[:, :, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)


# The backward pass computes again what stands between products of matrices: keeping it would cost more time.
@partial(jax.checkpoint, prevent_cse=False)
def gated(gate_BTF: Array, up_BTF: Array) -> Array:
    """SwiGLU (arXiv 2002.05202) of the two projections."""
    return jax.nn.silu(gate_BTF) * up_BTF


@partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def rms_norm(x_BTD: Array, scale_D: Array, eps: float) -> Array:
    """Root-mean-square norm (arXiv 1910.07467), computed in float32, returned in x's dtype."""
    x32 = x_BTD.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return scale_D * normed.astype(x_BTD.dtype)


class Layers(nnx.Module):
    """All transformer blocks: every parameter carries a leading layer axis L."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        c = config
        L = c.num_layers
        D = c.hidden_size
        F = c.intermediate_size
        H = c.head_dim
        N = c.num_heads
        K = c.num_kv_heads
        # The two projections that write to the residual stream start smaller (GPT-2's rule), so that its
        # variance does not grow with depth.
        residual = 1 / math.sqrt(2 * L)

        def normal(
            name: ProjectionName, shape: tuple[int, ...], fan_in: int = D, gain: float = 1.0
        ) -> nnx.Param:
            # 1/sqrt(fan_in) is the usual 0.02 at the published widths; a narrow model that starts at 0.02
            # attends to everything alike for a long time.
            values = gain * fan_in**-0.5 * jax.random.normal(rngs.params(), (L, *shape), jnp.float32)
            return nnx.Param(values.astype(dtype), axes=("layer", *PROJECTIONS[name].axes))

        def ones() -> nnx.Param:
            return nnx.Param(jnp.ones((L, D), dtype), axes=("layer", "embed"))

        self.attention_norm_D = ones()
        self.q_DNH = normal("q", (D, N, H))
        self.k_DKH = normal("k", (D, K, H))
        self.v_DKH = normal("v", (D, K, H))
        self.o_NHD = normal("o", (N, H, D), N * H, residual)
        self.mlp_norm_D = ones()
        self.gate_DF = normal("gate", (D, F))
        self.up_DF = normal("up", (D, F))
        self.down_FD = normal("down", (F, D), F, residual)


class Panels(nnx.Module):
    """The projections as a CPU multiplies with them (`lm/cpu/products.py`). `lay_out` sets them, by the names
    that they have in `Layers`: `q_DNH` is `[L, S, D, W]`, and so on. `head` is the output projection,
    `[1, S, D, W]`."""

    head: nnx.Param


class Llama(nnx.Module):
    """A Llama 3 decoder. Parameters carry logical axis names in their `axes` metadata.

    `adapters`, where there are any (`lm/model/lora.py`), add to the projections of the layers; `scales`
    multiply what they give, where their weights are int8 (`lm/model/quantize.py`); `panels` hold their
    weights instead, where `lay_out` has put them there.
    """

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config = config
        shape = (config.vocab_size, config.hidden_size)

        def table() -> nnx.Param:
            values = config.hidden_size**-0.5 * jax.random.normal(rngs.params(), shape, jnp.float32)
            return nnx.Param(values.astype(dtype), axes=("vocab", "embed"))

        self.embed_VD = table()
        self.layers = Layers(config, rngs=rngs, dtype=dtype)
        self.final_norm_D = nnx.Param(jnp.ones(config.hidden_size, dtype), axes=("embed",))
        self.head_VD = None if config.tie_embeddings else table()
        self.adapters: Adapters | None = nnx.data(None)
        self.scales: Scales | None = nnx.data(None)
        self.panels: Panels | None = nnx.data(None)

    def projections(self) -> list[Array]:
        """The weights of all seven, `[L, ...]` each."""
        return [getattr(self.layers, projection.parameter)[...] for projection in PROJECTIONS.values()]

    def output_VD(self) -> Array:
        """The output projection `[V, D]`: logits are `hidden @ output_VD.T`."""
        return self.embed_VD[...] if self.head_VD is None else self.head_VD[...]

    def __call__(
        self,
        tokens_BT: Array,
        positions_BT: Array,
        attend: Attend,
        cache: Any = None,
        *,
        remat: Remat = "none",
        mesh: Mesh | None = None,
        count: Array | None = None,
    ) -> tuple[Array, Any]:
        """Hidden states after the final norm, `[B, T, D]` in the weights' dtype, and the new cache.

        `tokens` and `positions` (RoPE positions) are int32 `[B, T]`. `cache`, any pytree, goes through
        `attend` of one layer after the other. `remat` is what the backward pass computes again. Under a
        `mesh` activations are divided by their rows. With `count` (int32) only so many of the B * T tokens
        matter, the first ones. It is for models with panels, whose products leave the others out.
        """
        c = self.config
        frequency_H = rope_frequencies(c.head_dim, c.rope_theta, c.rope_scaling)
        angle_BTH = positions_BT.astype(jnp.float32)[..., None] * frequency_H
        cos_BTH = jnp.cos(angle_BTH)
        sin_BTH = jnp.sin(angle_BTH)
        graph, stacked = nnx.split((self.layers, self.adapters, self.scales))

        def divided(x_BTD: Array) -> Array:
            return x_BTD if mesh is None else jax.lax.with_sharding_constraint(x_BTD, by_row(mesh))

        def block(carry: tuple[Array, Any], numbered: tuple[Array, Any]) -> tuple[tuple[Array, Any], None]:
            (x_BTD, cache) = carry
            (layer, weights) = numbered
            x_BTD = checkpoint_name(x_BTD, _LAYER_INPUT)
            w, adapters, scales = nnx.merge(graph, weights)
            panelled = None if self.panels is None else _Panelled(self.panels, c, layer, count)
            project = partial(_project, w, adapters, scales, panelled)
            h_BTD = rms_norm(x_BTD, w.attention_norm_D[...], c.rms_norm_eps)
            q_BTNH, k_BTKH, v_BTKH = project(h_BTD, "q", "k", "v")
            q_BTNH = rotate(q_BTNH, cos_BTH, sin_BTH)
            k_BTKH = rotate(k_BTKH, cos_BTH, sin_BTH)
            out_BTNH, cache = attend(q_BTNH, k_BTKH, v_BTKH, layer, cache)
            (added_BTD,) = project(out_BTNH, "o")
            x_BTD = divided(x_BTD + added_BTD)
            h_BTD = rms_norm(x_BTD, w.mlp_norm_D[...], c.rms_norm_eps)
            (added_BTD,) = project(gated(*project(h_BTD, "gate", "up")), "down")
            return (divided(x_BTD + added_BTD), cache), None

        body = block if remat == "none" else jax.checkpoint(block, policy=_KEPT[remat], prevent_cse=False)
        x_BTD = divided(self.embed_VD[...][tokens_BT])
        numbered = jnp.arange(c.num_layers), stacked
        (x_BTD, cache), _ = jax.lax.scan(body, (x_BTD, cache), numbered)
        return rms_norm(x_BTD, self.final_norm_D[...], c.rms_norm_eps), cache


def _output_shape(projection: Projection, config: LlamaConfig) -> tuple[int, ...]:
    sizes = {
        "embed": config.hidden_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head": config.head_dim,
        "mlp": config.intermediate_size,
    }
    return tuple(sizes[axis] for axis in projection.axes[projection.inputs :])


def lay_out(model: Llama, mesh: Mesh | None = None) -> None:
    """Moves the projections to panels, one after the other, where a CPU has kernels for them, and copies the
    output projection. Such a model has no gradient, takes no new adapters, and is not saved."""
    if model.panels is not None or not products.serves([*model.projections(), model.output_VD()], mesh):
        return
    if len({weight.dtype for weight in model.projections()}) > 1:
        return  # products of the same rows are one call, of one type
    panels = Panels()
    for projection in PROJECTIONS.values():
        weight: nnx.Param = getattr(model.layers, projection.parameter)
        panels_LSIW = _stack_in_panels(weight[...], input_axes=projection.inputs)
        setattr(panels, projection.parameter, nnx.Param(panels_LSIW))
        # In place: whoever else holds the parameter would keep the weights.
        weight.set_value(jnp.zeros((len(panels_LSIW), 0), panels_LSIW.dtype))
    panels.head = nnx.Param(_head_in_panels(model.output_VD()))
    model.panels = panels


@partial(jax.jit, static_argnames="input_axes")
def _stack_in_panels(stack: Array, *, input_axes: int) -> Array:
    inputs = math.prod(stack.shape[1 : 1 + input_axes])
    return products.in_panels(stack.reshape(len(stack), inputs, -1))


@jax.jit
def _head_in_panels(head_VD: Array) -> Array:
    return products.in_panels(head_VD.T[None])


@dataclass(frozen=True)
class _Panelled:
    """Products of a layer, whose panels are read where they lie, with the first `count` rows, or with all."""

    panels: Panels
    config: LlamaConfig
    layer: Array
    count: Array | None

    def __call__(self, rows: Array, projections: Sequence[Projection]) -> list[Array]:
        x_MI = rows.reshape(len(rows), -1)
        stacks = [getattr(self.panels, projection.parameter)[...] for projection in projections]
        shapes = [_output_shape(projection, self.config) for projection in projections]
        count = len(x_MI) if self.count is None else self.count
        sums = products.multiply(x_MI, stacks, [math.prod(shape) for shape in shapes], self.layer, count)
        return [y_MO.reshape(-1, *shape) for y_MO, shape in zip(sums, shapes, strict=True)]


def _project(
    layer: Layers,
    adapters: Adapters | None,
    scales: Scales | None,
    panelled: _Panelled | None,
    x: Array,
    *names: ProjectionName,
) -> list[Array]:
    """`x`, `[B, T, *inputs]`, through projections, and through their adapters where there are any.

    B and T are one axis M meanwhile: for a gradient summed over two axes XLA would first write a transposed
    copy.
    """
    rows = x.reshape(-1, *x.shape[2:])
    projections = [PROJECTIONS[name] for name in names]
    if panelled is None:
        sums = [_product(layer, projection, rows, scales is not None) for projection in projections]
    else:
        sums = panelled(rows, projections)
    outputs = []
    for name, projection, out in zip(names, projections, sums, strict=True):
        if scales is not None:
            out = out * getattr(scales, projection.parameter)[...]
        out = out.astype(rows.dtype)
        added = None if adapters is None else adapters(name, rows)
        out = out if added is None else out + added
        outputs.append(out.reshape(*x.shape[:2], *out.shape[1:]))
    return outputs


def _product(layer: Layers, projection: Projection, rows: Array, scaled: bool) -> Array:
    """The rows through a projection; if it is `scaled` afterwards, its weights are int8 and sums float32."""
    weight = getattr(layer, projection.parameter)[...]
    sums = None
    if scaled:
        weight = weight.astype(rows.dtype)
        sums = jnp.float32  # before they are scaled, they may be beyond what float16 holds
    precision = precision_of(rows, weight)
    return jnp.einsum(projection.product, rows, weight, precision=precision, preferred_element_type=sums)
