"""Llama weights between Hugging Face safetensors and our stacked parameters, without torch.

Hugging Face stores every projection as `[out, in]`, layer by layer; ours are input-first, with heads as axes
of their own and all layers stacked. Both rotate halves (not interleaved pairs), so no permutation is needed.
"""

import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rationalyst_jax.files.settings import digest
from rationalyst_jax.lm.config import LlamaConfig
from rationalyst_jax.lm.llama import Llama

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
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "generation_config.json",
)
_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_DTYPES = {"F32": jnp.float32, "BF16": jnp.bfloat16, "F16": jnp.float16}
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def load_config(path: str | Path) -> LlamaConfig:
    """The config.json of checkpoint folder `path`; raises FileNotFoundError or ValueError naming the file."""
    file = Path(path) / "config.json"
    raw = _read_json(file)
    try:
        return LlamaConfig.from_hf(raw)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def check_llama(path: str | Path) -> None:
    """Raises what `load_llama` would raise for a checkpoint that is not whole; reads no weights."""
    path = Path(path)
    _, state = nnx.split(nnx.eval_shape(lambda: Llama(load_config(path), rngs=nnx.Rngs(0))))
    with ExitStack() as stack:
        _check_keys(path, dict(nnx.to_flat_state(state)), _tensors(load_config(path)), _open(path, stack))


def load_llama(path: str | Path, dtype: Callable[[np.dtype], DTypeLike] = lambda stored: stored) -> Llama:
    """The Llama in the Hugging Face folder `path`; `dtype` turns the dtype of a stored parameter into ours.

    Reads `config.json` and `model.safetensors` or its shards, one tensor at a time: beside the model itself
    at most one stacked parameter is in memory. Raises FileNotFoundError for a missing file and ValueError for
    a damaged one, or listing every missing, extra and misshaped key.
    """
    path = Path(path)
    config = load_config(path)
    graph, state = nnx.split(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))))
    parameters = dict(nnx.to_flat_state(state))
    tensors = _tensors(config)
    with ExitStack() as stack:
        stored = _open(path, stack)
        if config.tie_embeddings and _HEAD in stored:
            _check_tied_head(path, stored)
        _check_keys(path, parameters, tensors, stored)
        for name, parameter in parameters.items():
            parts = [tensor for tensor in tensors if tensor.parameter == name]
            dtypes = [_DTYPES[stored[part.key].get_slice(part.key).get_dtype()] for part in parts]
            values = np.empty(parameter.shape, dtype(jnp.result_type(*dtypes)))
            for part in parts:
                array = stored[part.key].get_tensor(part.key)
                target = values if part.layer is None else values[part.layer]
                target[...] = array if part.inputs == 0 else array.T.reshape(target.shape)
            parameters[name] = parameter.replace(jnp.asarray(values))
    return nnx.merge(graph, nnx.from_flat_state(parameters))


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


def save_llama(model: Llama, path: str | Path, max_shard_bytes: int = 5 * 10**9) -> None:
    """Writes `model` into the folder `path` as Hugging Face's config.json and safetensors, dtypes kept.

    Weights beyond `max_shard_bytes` are split into shards with an index. Everything is written under
    temporary names first, so that a save cut off while writing leaves an earlier checkpoint in `path` whole.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    parameters = dict(nnx.to_flat_state(nnx.state(model)))
    shards = _plan_shards(model.config, parameters, max_shard_bytes)
    count = len(shards)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)] if count > 1 else [_SINGLE]
    for name, tensors in zip(names, shards, strict=True):
        arrays = {tensor.key: tensor.to_hf(parameters[tensor.parameter]) for tensor in tensors}
        save_file(arrays, _partial(path / name), metadata={"format": "pt"})
    if count > 1:
        weight_map = {t.key: name for name, tensors in zip(names, shards, strict=True) for t in tensors}
        total = sum(parameter[...].nbytes for parameter in parameters.values())
        _write_json(path / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        names.append(_INDEX)
    dtype = {"torch_dtype": str(model.embed_VD[...].dtype)}
    _write_json(path / "config.json", model.config.to_hf() | dtype)
    # Readers prefer a single file to an index: one left from an earlier save would win over these shards.
    for old in path.glob("model*.safetensors*"):
        if old.name not in names:
            old.unlink()
    for name in (*names, "config.json"):
        _partial(path / name).rename(path / name)


@dataclass(frozen=True)
class _Tensor:
    """One stored tensor: its Hugging Face key and the parameter (or the layer of one) that it holds."""

    key: str
    parameter: tuple[str, ...]
    layer: int | None
    inputs: int

    def shape(self, parameter: nnx.Variable) -> tuple[int, ...]:
        """The Hugging Face shape: `[out, in]`, or ours where `inputs` is 0."""
        ours = parameter.shape if self.layer is None else parameter.shape[1:]
        return (math.prod(ours[self.inputs :]), math.prod(ours[: self.inputs])) if self.inputs else ours

    def to_hf(self, parameter: nnx.Variable) -> np.ndarray:
        values = parameter[...]
        if self.layer is not None:  # with a dynamic index: a static one compiles anew for every layer
            values = jax.lax.dynamic_index_in_dim(values, self.layer, keepdims=False)
        values = np.asarray(values)
        if self.inputs:
            values = values.reshape(self.shape(parameter)[::-1]).T
        return np.ascontiguousarray(values)  # safetensors writes the buffer, whatever its strides


def _tensors(config: LlamaConfig) -> list[_Tensor]:
    """Every tensor of a checkpoint, in file order."""
    tensors = []
    for pattern, (name, inputs) in _KEYS.items():
        layers = range(config.num_layers) if name[0] == "layers" else [None]
        if not (pattern == _HEAD and config.tie_embeddings):
            tensors += [_Tensor(pattern.format(layer=layer), name, layer, inputs) for layer in layers]
    return tensors


def _plan_shards(config: LlamaConfig, parameters: dict[Any, nnx.Variable], limit: int) -> list[list[_Tensor]]:
    """The tensors of `config` cut into runs of at most `limit` bytes (or of one larger tensor)."""
    shards, used = [[]], 0
    for tensor in _tensors(config):
        parameter = parameters[tensor.parameter]
        size = math.prod(tensor.shape(parameter)) * parameter[...].dtype.itemsize
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += size
    return shards


def _open(path: Path, stack: ExitStack) -> dict[str, Any]:
    """Every stored key -> the open file that holds it."""
    files = [path / _SINGLE]
    if not files[0].exists():
        if not (path / _INDEX).exists():
            raise FileNotFoundError(f"{path}: no {_SINGLE} and no {_INDEX}")
        try:
            files = [path / name for name in sorted(set(_read_json(path / _INDEX)["weight_map"].values()))]
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path / _INDEX}: no weight_map of key to file") from error
    stored = {}
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"{file}: no such file")
        try:
            opened = stack.enter_context(safe_open(file, framework="numpy"))
        except SafetensorError as error:
            raise ValueError(f"{file}: damaged safetensors file: {error}") from error
        stored |= dict.fromkeys(opened.keys(), opened)
    return stored


def _check_keys(
    path: Path, parameters: dict[Any, nnx.Variable], tensors: list[_Tensor], stored: dict[str, Any]
) -> None:
    """Raises one ValueError for everything in which the stored keys differ from the wanted `tensors`."""
    expected = {tensor.key: tensor.shape(parameters[tensor.parameter]) for tensor in tensors}
    problems = [f"missing {key}" for key in expected if key not in stored]
    problems += [f"extra {key}" for key in sorted(stored) if key not in expected]
    for key, shape in expected.items():
        if key in stored:
            found = stored[key].get_slice(key)
            if tuple(found.get_shape()) != shape:
                problems.append(f"{key} has shape {tuple(found.get_shape())}, not {shape}")
            if found.get_dtype() not in _DTYPES:
                problems.append(f"{key} is {found.get_dtype()}, not one of {', '.join(_DTYPES)}")
    if problems:
        raise ValueError(f"{path}: the checkpoint does not fit its config.json: {'; '.join(problems)}")


def _check_tied_head(path: Path, stored: dict[str, Any]) -> None:
    """A tied checkpoint may repeat the embedding as its head; drops that copy from `stored`."""
    head = stored.pop(_HEAD).get_tensor(_HEAD)
    if _EMBED in stored and not np.array_equal(head, stored[_EMBED].get_tensor(_EMBED)):
        raise ValueError(f"{path}: config.json ties the embeddings but {_HEAD} differs from {_EMBED}")


def _read_json(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file}: not a JSON object")
    return value


def _partial(file: Path) -> Path:
    return file.with_name(f".{file.name}.partial")


def _write_json(file: Path, value: dict[str, Any]) -> None:
    _partial(file).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
