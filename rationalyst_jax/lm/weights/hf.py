"""Llama weights between Hugging Face safetensors and our stacked parameters, without torch.

Hugging Face stores every projection as `[out, in]`, layer by layer; ours are input-first, with heads as axes
of their own and all layers stacked. Both rotate halves (not interleaved pairs), so no permutation is needed.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from rationalyst_jax.files.settings import digest
from rationalyst_jax.files.whole import read_json
from rationalyst_jax.lm.devices.distributed import barrier
from rationalyst_jax.lm.devices.sharding import shard_weights
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.model.projections import PROJECTIONS
from rationalyst_jax.lm.model.quantize import QUANTIZED, Scales, quantized
from rationalyst_jax.lm.weights.folder import Weights, save_weights
from rationalyst_jax.lm.weights.generation import GENERATION_CONFIG
from rationalyst_jax.lm.weights.streaming import Layout, load_parameter, stored_rows
from rationalyst_jax.lm.weights.tensor_files import (
    DTYPES,
    StoredTensor,
    misfits,
    same_values,
    stored_tensors,
)

# Hugging Face key -> our parameter, and how many of its leading axes (layer axis aside) are inputs of the
# projection. 0 means both store the same array. `{layer}` stands for the layer index.
_LAYER = "model.layers.{layer}."
_KEYS = {
    "model.embed_tokens.weight": (("embed_VD",), 0),
    f"{_LAYER}input_layernorm.weight": (("layers", "attention_norm_D"), 0),
    f"{_LAYER}post_attention_layernorm.weight": (("layers", "mlp_norm_D"), 0),
    **{f"{_LAYER}{p.module}.weight": (("layers", p.parameter), p.inputs) for p in PROJECTIONS.values()},
    "model.norm.weight": (("final_norm_D",), 0),
    "lm_head.weight": (("head_VD",), 0),
}
# What older checkpoints store beside weights: tables of RoPE, which follow from config.json.
_BUFFER = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    GENERATION_CONFIG,
)
_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def load_config(path: str | Path) -> LlamaConfig:
    """The config.json of checkpoint folder `path`; raises FileNotFoundError or ValueError naming the file."""
    file = Path(path) / "config.json"
    raw = read_json(file)
    try:
        return LlamaConfig.from_hf(raw)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def check_llama(path: str | Path) -> None:
    """Raises what `load_llama` would raise for a checkpoint that is not whole.

    Reads headers only, and of tied weights those that are stored twice.
    """
    path = Path(path)
    config = load_config(path)
    _fitting(path, config)


def stored_dtype(path: str | Path) -> np.dtype:
    """The dtype of the weights in the Hugging Face folder `path`; of several, the one that holds them all.

    Reads headers only. Raises FileNotFoundError for a missing file and ValueError for a damaged one, or for
    one with another dtype than float32, bfloat16 and float16.
    """
    stored = _stored(Path(path)).values()
    others = sorted({tensor.dtype for tensor in stored} - DTYPES.keys())
    if others or not stored:
        found = f"weights in {', '.join(others)}" if others else "no weights"
        raise ValueError(f"{path}: {found}, wanted {', '.join(DTYPES)}")
    return jnp.result_type(*{DTYPES[tensor.dtype] for tensor in stored})


def load_llama(
    path: str | Path,
    dtype: Callable[[np.dtype], DTypeLike] = lambda stored: stored,
    mesh: Mesh | None = None,
    *,
    int8: bool = False,
) -> Llama:
    """The Llama in the Hugging Face folder `path`; `dtype` turns the dtype of a stored parameter into ours.
    With `int8` projections are rounded (`lm/model/quantize.py`) as soon as they are read, one by one.

    With a mesh, every parameter goes straight to where `lm/devices/sharding.py` wants it: each process (all
    must call this) reads the part of `model.safetensors` or its shards that its devices keep. Without one it
    goes to the default device. Beside the model the host holds less than 1 GiB, whatever the model's size.

    Raises FileNotFoundError for a missing file and ValueError for a damaged one, for a mesh that does not
    divide the model, or listing every missing, extra and misshaped key.
    """
    path = Path(path)
    config = load_config(path)
    graph, parameters = _abstract(config)
    shardings: dict[Any, Any] = {}
    if mesh is not None:
        shardings = dict(nnx.to_flat_state(shard_weights(nnx.from_flat_state(parameters), mesh)))
    stored = _fitting(path, config)
    scales: dict[str, nnx.Param] = {}
    for name, parameter in parameters.items():
        tensors = [tensor for tensor in _tensors(config) if tensor.parameter == name]
        parts = [stored[tensor.key] for tensor in tensors]
        ours = dtype(jnp.result_type(*{DTYPES[part.dtype] for part in parts}))
        sharding = None if mesh is None else shardings[name].get_value()
        wanted = jax.ShapeDtypeStruct(parameter.shape, jnp.dtype(ours), sharding=sharding)
        loaded = parameter.replace(load_parameter(wanted, tensors[0].layout, [part.read for part in parts]))
        if int8 and name[-1] in QUANTIZED:
            loaded, scales[name[-1]] = quantized(name[-1], loaded)
        parameters[name] = loaded
    model = nnx.merge(graph, nnx.from_flat_state(parameters))
    model.scales = Scales(scales) if scales else None
    return model


def fingerprint(path: str | Path) -> str:
    """A short name for the checkpoint in folder `path` that follows it wherever it is moved.

    Made from config.json, the files of the tokenizer, and of each file of weights the size and 64 windows of
    64 KiB, evenly spread: enough to tell checkpoints apart without reading every byte.
    """
    windows = 64
    window = 1 << 16
    folder = Path(path)
    parts: list[bytes] = []
    for name in ("config.json", *TOKENIZER_FILES):
        if (folder / name).is_file():
            parts += [name.encode(), (folder / name).read_bytes()]
    for weights in sorted(folder.glob("*.safetensors")):
        size = weights.stat().st_size
        parts.append(str(size).encode())
        with weights.open("rb") as file:
            for start in np.linspace(0, max(0, size - window), windows, dtype=int).tolist():
                file.seek(start)
                parts.append(file.read(window))
    return digest(parts)


def copy_tokenizer(source: str | Path, target: str | Path) -> int:
    """Copies the tokenizer's files and generation_config.json from folder to folder; gives their number."""
    found = [name for name in TOKENIZER_FILES if (Path(source) / name).is_file()]
    Path(target).mkdir(parents=True, exist_ok=True)
    for name in found:
        shutil.copyfile(Path(source) / name, Path(target) / name)
    return len(found)


def weights_of(model: Llama, dtype: DTypeLike | None = None) -> Weights:
    """The weights of a model in `dtype` (None: as they are).

    Raises ValueError naming parameters (adapters, say) that a Hugging Face checkpoint has no place for.
    """
    arrays = {name: parameter.get_value() for name, parameter in nnx.to_flat_state(nnx.state(model))}
    tensors = {tensor.key: tensor for tensor in _tensors(model.config)}
    unknown = arrays.keys() - {tensor.parameter for tensor in tensors.values()}
    if unknown:
        names = ", ".join(sorted(".".join(map(str, name)) for name in unknown))
        raise ValueError(f"a Llama of Hugging Face has no place for {names}")
    header = {
        key: (tensor.layout.stored_shape(arrays[tensor.parameter].shape), arrays[tensor.parameter].dtype)
        for key, tensor in tensors.items()
    }
    if dtype is not None:
        header = {key: (shape, jnp.dtype(dtype)) for key, (shape, _) in header.items()}

    def rows(key: str) -> Iterator[tuple[int, np.ndarray]]:
        tensor = tensors[key]
        return stored_rows(arrays[tensor.parameter], tensor.layout, tensor.layer, header[key][1])

    return Weights(model.config, header, rows)


def weights_in(path: str | Path) -> Weights:
    """The weights in the Hugging Face folder `path`, as they are stored. Raises as `load_llama`."""
    path = Path(path)
    config = load_config(path)
    stored = _fitting(path, config)
    header = {t.key: (stored[t.key].shape, DTYPES[stored[t.key].dtype]) for t in _tensors(config)}
    return Weights(config, header, lambda key: stored[key].blocks())


def save_llama(
    model: Llama, path: str | Path, max_shard_bytes: int = 10**9, dtype: DTypeLike | None = None
) -> None:
    """Writes `model` into the folder `path` as Hugging Face's config.json and safetensors.

    Weights are written in `dtype` (None: as they are) and, beyond `max_shard_bytes`, split into shards with
    an index. They may be divided over a mesh, also over one of several processes: all of these must call
    this, process 0 writes, and the others wait for it. The host holds a few chunks of the weights, never a
    whole file. Everything is written under other names first: a save that is cut off, or meets a full
    disk (an OSError naming the file), leaves an earlier checkpoint in `path` whole and nothing half-written.

    Raises ValueError for a dtype, or naming parameters (adapters, say), that the format has no place for.
    """
    path = Path(path)
    try:
        weights = weights_of(model, dtype)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    save_weights(weights, path, max_shard_bytes)
    barrier(f"save_llama {path}")


def tensor_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The key and shape of every tensor of a checkpoint, in file order."""
    parameters = _abstract(config)[1]
    return {t.key: t.layout.stored_shape(parameters[t.parameter].shape) for t in _tensors(config)}


@dataclass(frozen=True)
class _Tensor:
    """One stored tensor: its Hugging Face key and the parameter (or the layer of one) that it holds."""

    key: str
    parameter: tuple[str, ...]
    layer: int | None
    layout: Layout


def _tensors(config: LlamaConfig) -> list[_Tensor]:
    """Every tensor of a checkpoint, in file order."""
    tensors = []
    for pattern, (name, inputs) in _KEYS.items():
        stacked = name[0] == "layers"
        if not (pattern == _HEAD and config.tie_embeddings):
            tensors += [
                _Tensor(pattern.format(layer=layer), name, layer, Layout(stacked, inputs))
                for layer in (range(config.num_layers) if stacked else [None])
            ]
    return tensors


def _abstract(config: LlamaConfig) -> tuple[Any, dict[Any, nnx.Variable]]:
    """The structure of the model, and the shapes of its parameters by name."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))))
    return graph, dict(nnx.to_flat_state(state))


def _stored(path: Path) -> dict[str, StoredTensor]:
    """The weights of a checkpoint by their keys, without the buffers that old ones hold beside them."""
    return {key: tensor for key, tensor in stored_tensors(path).items() if not _BUFFER.fullmatch(key)}


def _fitting(path: Path, config: LlamaConfig) -> dict[str, StoredTensor]:
    """The stored weights, which are those of `config`: one ValueError says all in which they differ.

    A tied checkpoint may repeat the embedding as its head: that copy is left out.
    """
    stored = _stored(path)
    if config.tie_embeddings and _HEAD in stored:
        head = stored.pop(_HEAD)
        embed = stored.get(_EMBED)
        if embed is not None and not same_values(head, embed):
            raise ValueError(f"{path}: config.json ties the embeddings but {_HEAD} differs from {_EMBED}")
    wanted = tensor_shapes(config)
    problems = list(misfits(wanted, {key: tensor.shape for key, tensor in stored.items()}))
    for key in wanted:
        if key in stored and stored[key].dtype not in DTYPES:
            problems.append(f"{key} is {stored[key].dtype}, not one of {', '.join(DTYPES)}")
    if problems:
        raise ValueError(f"{path}: the checkpoint does not fit its config.json: {'; '.join(problems)}")
    return stored
