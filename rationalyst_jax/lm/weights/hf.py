"""Llama weights between Hugging Face safetensors and our stacked parameters, without torch.

Hugging Face stores every projection as `[out, in]`, layer by layer; ours are input-first, with heads as axes
of their own and all layers stacked. Both rotate halves (not interleaved pairs), so no permutation is needed.
"""

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
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
from rationalyst_jax.lm.devices.distributed import barrier, is_main
from rationalyst_jax.lm.devices.sharding import shard_weights
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.model.quantize import INPUTS, Scales, quantized
from rationalyst_jax.lm.weights.streaming import Layout, load_parameter, stored_rows
from rationalyst_jax.lm.weights.tensor_files import (
    DTYPES,
    INDEX,
    SINGLE,
    StoredTensor,
    naming,
    read_object,
    same_values,
    stored_tensors,
    writing,
)

# Hugging Face key -> our parameter, and how many of its leading axes (layer axis aside) are inputs of the
# projection. 0 means both store the same array. `{layer}` stands for the layer index.
_KEYS = {
    "model.embed_tokens.weight": (("embed_VD",), 0),
    "model.layers.{layer}.input_layernorm.weight": (("layers", "attention_norm_D"), 0),
    "model.layers.{layer}.self_attn.q_proj.weight": (("layers", "q_DNH"), 1),
    "model.layers.{layer}.self_attn.k_proj.weight": (("layers", "k_DKH"), 1),
    "model.layers.{layer}.self_attn.v_proj.weight": (("layers", "v_DKH"), 1),
    "model.layers.{layer}.self_attn.o_proj.weight": (("layers", "o_NHD"), 2),
    "model.layers.{layer}.post_attention_layernorm.weight": (("layers", "mlp_norm_D"), 0),
    "model.layers.{layer}.mlp.gate_proj.weight": (("layers", "gate_DF"), 1),
    "model.layers.{layer}.mlp.up_proj.weight": (("layers", "up_DF"), 1),
    "model.layers.{layer}.mlp.down_proj.weight": (("layers", "down_FD"), 1),
    "model.norm.weight": (("final_norm_D",), 0),
    "lm_head.weight": (("head_VD",), 0),
}
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    GENERATION_CONFIG,
)
_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def load_config(path: str | Path) -> LlamaConfig:
    """The config.json of checkpoint folder `path`; raises FileNotFoundError or ValueError naming the file."""
    file = Path(path) / "config.json"
    raw = read_object(file)
    try:
        return LlamaConfig.from_hf(raw)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def check_llama(path: str | Path) -> None:
    """Raises what `load_llama` would raise for a checkpoint that is not whole; reads no weights."""
    path = Path(path)
    config = load_config(path)
    _check_keys(path, config, _abstract(config)[1], stored_tensors(path))


def stored_dtype(path: str | Path) -> np.dtype:
    """The dtype of the weights in the Hugging Face folder `path`; of several, the one that holds them all.

    Reads headers only. Raises FileNotFoundError for a missing file and ValueError for a damaged one, or for
    one with another dtype than float32, bfloat16 and float16.
    """
    stored = stored_tensors(Path(path)).values()
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
    stored = stored_tensors(path)
    if config.tie_embeddings and _HEAD in stored:
        _check_tied_head(path, stored)
    _check_keys(path, config, parameters, stored)
    scales: dict[str, nnx.Param] = {}
    for name, parameter in parameters.items():
        tensors = [tensor for tensor in _tensors(config) if tensor.parameter == name]
        parts = [stored[tensor.key] for tensor in tensors]
        ours = dtype(jnp.result_type(*{DTYPES[part.dtype] for part in parts}))
        sharding = None if mesh is None else shardings[name].get_value()
        wanted = jax.ShapeDtypeStruct(parameter.shape, jnp.dtype(ours), sharding=sharding)
        loaded = parameter.replace(load_parameter(wanted, tensors[0].layout, [part.read for part in parts]))
        if int8 and name[-1] in INPUTS:
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
    windows, window = 64, 1 << 16
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


def save_llama(
    model: Llama, path: str | Path, max_shard_bytes: int = 10**9, dtype: DTypeLike | None = None
) -> None:
    """Writes `model` into the folder `path` as Hugging Face's config.json and safetensors.

    Weights are written in `dtype` (None: as they are) and, beyond `max_shard_bytes`, split into shards with
    an index. They may be divided over a mesh, also over one of several processes: all of these must call
    this, process 0 writes, and the others wait for it. The host holds a few chunks of the weights, never a
    whole file. Everything is written under temporary names first: a save that is cut off, or meets a full
    disk (an OSError naming the file), leaves an earlier checkpoint in `path` whole and nothing half-written.

    Raises ValueError for a dtype, or naming parameters (adapters, say), that the format has no place for.
    """
    path = Path(path)
    arrays = {name: parameter.get_value() for name, parameter in nnx.to_flat_state(nnx.state(model))}
    tensors = _tensors(model.config)
    unknown = arrays.keys() - {tensor.parameter for tensor in tensors}
    if unknown:
        names = ", ".join(sorted(".".join(map(str, name)) for name in unknown))
        raise ValueError(f"{path}: a Llama of Hugging Face has no place for {names}")
    dtypes = {name: jnp.dtype(array.dtype if dtype is None else dtype) for name, array in arrays.items()}
    if others := {str(found) for found in dtypes.values() if found not in DTYPES.values()}:
        raise ValueError(f"{path}: weights in {', '.join(sorted(others))}, wanted {', '.join(DTYPES)}")
    shapes = {t.key: t.layout.stored_shape(arrays[t.parameter].shape) for t in tensors}
    sizes = {t.key: math.prod(shapes[t.key]) * dtypes[t.parameter].itemsize for t in tensors}
    shards = _plan_shards(tensors, sizes, max_shard_bytes)
    count = len(shards)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)] if count > 1 else [SINGLE]
    if is_main():
        path.mkdir(parents=True, exist_ok=True)
    try:
        for name, shard in zip(names, shards, strict=True):
            _write_shard(path / name, shard, arrays, dtypes)
        if is_main():
            if count > 1:
                weight_map = {t.key: name for name, shard in zip(names, shards, strict=True) for t in shard}
                index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
                _write_json(path / INDEX, index)
                names.append(INDEX)
            torch_dtype = str(dtypes["embed_VD",])
            _write_json(path / "config.json", model.config.to_hf() | {"torch_dtype": torch_dtype})
            _replace(path, [*names, "config.json"])
    finally:
        if is_main():
            for name in (*names, INDEX, "config.json"):
                _partial(path / name).unlink(missing_ok=True)
    barrier(f"save_llama {path}")


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


def _plan_shards(tensors: list[_Tensor], sizes: dict[str, int], limit: int) -> list[list[_Tensor]]:
    """The tensors cut into runs of at most `limit` bytes (or of one larger tensor)."""
    shards, used = [[]], 0
    for tensor in tensors:
        if shards[-1] and used + sizes[tensor.key] > limit:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += sizes[tensor.key]
    return shards


def _write_shard(
    file: Path, tensors: list[_Tensor], arrays: dict[Any, jax.Array], dtypes: dict[Any, np.dtype]
) -> None:
    """Writes a file of weights under its temporary name; other processes than the first give their parts."""
    header = {t.key: (t.layout.stored_shape(arrays[t.parameter].shape), dtypes[t.parameter]) for t in tensors}
    with writing(_partial(file), header) if is_main() else nullcontext(lambda *_: None) as write:
        for t in tensors:
            for first, rows in stored_rows(arrays[t.parameter], t.layout, t.layer, dtypes[t.parameter]):
                write(t.key, first, rows)


def _replace(path: Path, names: list[str]) -> None:
    """Makes the files written under temporary names those of the checkpoint."""
    # Readers prefer a single file to an index: one left from an earlier save would win over these shards.
    for old in path.glob("model*.safetensors*"):
        if old.name not in names:
            old.unlink()
    for name in names:
        _partial(path / name).rename(path / name)


def _check_keys(
    path: Path,
    config: LlamaConfig,
    parameters: dict[Any, nnx.Variable],
    stored: dict[str, StoredTensor],
) -> None:
    """Raises one ValueError for everything in which the stored tensors differ from those of `config`."""
    expected = {t.key: t.layout.stored_shape(parameters[t.parameter].shape) for t in _tensors(config)}
    problems = [f"missing {key}" for key in expected if key not in stored]
    problems += [f"extra {key}" for key in sorted(stored) if key not in expected]
    for key, shape in expected.items():
        if key in stored:
            found = stored[key]
            if found.shape != shape:
                problems.append(f"{key} has shape {found.shape}, not {shape}")
            if found.dtype not in DTYPES:
                problems.append(f"{key} is {found.dtype}, not one of {', '.join(DTYPES)}")
    if problems:
        raise ValueError(f"{path}: the checkpoint does not fit its config.json: {'; '.join(problems)}")


def _check_tied_head(path: Path, stored: dict[str, StoredTensor]) -> None:
    """A tied checkpoint may repeat the embedding as its head; drops that copy from `stored`."""
    head, embed = stored.pop(_HEAD), stored.get(_EMBED)
    if embed is not None and not same_values(head, embed):
        raise ValueError(f"{path}: config.json ties the embeddings but {_HEAD} differs from {_EMBED}")


def _partial(file: Path) -> Path:
    return file.with_name(f".{file.name}.partial")


def _write_json(file: Path, value: dict[str, Any]) -> None:
    with naming(file):
        _partial(file).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
