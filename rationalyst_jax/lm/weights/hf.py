"""Llama weights between Hugging Face safetensors and our stacked parameters, without torch.

Hugging Face stores every projection as `[out, in]`, layer by layer; ours are input-first, with heads as axes
of their own and all layers stacked. Both rotate halves (not interleaved pairs), so no permutation is needed.
"""

import math
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
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
from rationalyst_jax.files.whole import read_json, whole, write_json
from rationalyst_jax.lm.devices.distributed import barrier, is_main
from rationalyst_jax.lm.devices.sharding import shard_weights
from rationalyst_jax.lm.model.config import LlamaConfig
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.model.projections import PROJECTIONS
from rationalyst_jax.lm.model.quantize import QUANTIZED, Scales, quantized
from rationalyst_jax.lm.weights.generation import GENERATION_CONFIG
from rationalyst_jax.lm.weights.streaming import Layout, load_parameter, stored_rows
from rationalyst_jax.lm.weights.tensor_files import (
    DTYPES,
    INDEX,
    SINGLE,
    StoredTensor,
    misfits,
    same_values,
    stored_tensors,
    writing,
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
    _fitting(path, config, _abstract(config)[1])


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
    stored = _fitting(path, config, parameters)
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
    weights = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)] if count > 1 else [SINGLE]
    names = [*weights, INDEX, "config.json"] if count > 1 else [*weights, "config.json"]
    with ExitStack() as written:  # as it is left, all files get their names, or none does
        files: dict[str, Path] = {}
        if is_main():
            files = {name: written.enter_context(whole(path / name)) for name in reversed(names)}
        for name, shard in zip(weights, shards, strict=True):
            _write_shard(files.get(name), shard, arrays, dtypes)
        if is_main():
            if count > 1:
                weight_map = {t.key: name for name, shard in zip(weights, shards, strict=True) for t in shard}
                index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
                write_json(files[INDEX], index)
            write_json(files["config.json"], model.config.to_hf() | {"torch_dtype": str(dtypes["embed_VD",])})
            # Readers prefer a single file to an index: one left from an earlier save would win over these.
            for old in {*path.glob("model*.safetensors"), path / INDEX} - {path / name for name in names}:
                old.unlink(missing_ok=True)
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
    shards = [[]]
    used = 0
    for tensor in tensors:
        if shards[-1] and used + sizes[tensor.key] > limit:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += sizes[tensor.key]
    return shards


def _write_shard(
    file: Path | None, tensors: list[_Tensor], arrays: dict[Any, jax.Array], dtypes: dict[Any, np.dtype]
) -> None:
    """Writes a file of weights; processes that have no file give their parts."""
    header = {t.key: (t.layout.stored_shape(arrays[t.parameter].shape), dtypes[t.parameter]) for t in tensors}
    with nullcontext(lambda *_: None) if file is None else writing(file, header) as write:
        for t in tensors:
            for first, rows in stored_rows(arrays[t.parameter], t.layout, t.layer, dtypes[t.parameter]):
                write(t.key, first, rows)


def _stored(path: Path) -> dict[str, StoredTensor]:
    """The weights of a checkpoint by their keys, without the buffers that old ones hold beside them."""
    return {key: tensor for key, tensor in stored_tensors(path).items() if not _BUFFER.fullmatch(key)}


def _fitting(path: Path, config: LlamaConfig, parameters: dict[Any, nnx.Variable]) -> dict[str, StoredTensor]:
    """The stored weights, which are those of `config`: one ValueError says all in which they differ.

    A tied checkpoint may repeat the embedding as its head: that copy is left out.
    """
    stored = _stored(path)
    if config.tie_embeddings and _HEAD in stored:
        head = stored.pop(_HEAD)
        embed = stored.get(_EMBED)
        if embed is not None and not same_values(head, embed):
            raise ValueError(f"{path}: config.json ties the embeddings but {_HEAD} differs from {_EMBED}")
    wanted = {t.key: t.layout.stored_shape(parameters[t.parameter].shape) for t in _tensors(config)}
    problems = list(misfits(wanted, {key: tensor.shape for key, tensor in stored.items()}))
    for key in wanted:
        if key in stored and stored[key].dtype not in DTYPES:
            problems.append(f"{key} is {stored[key].dtype}, not one of {', '.join(DTYPES)}")
    if problems:
        raise ValueError(f"{path}: the checkpoint does not fit its config.json: {'; '.join(problems)}")
    return stored
