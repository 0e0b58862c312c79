"""Adapters in the file format of Hugging Face's PEFT, read and written without it."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rationalyst_jax.files.whole import read_json, whole, write_json
from rationalyst_jax.lm.devices.distributed import is_main
from rationalyst_jax.lm.model.llama import Llama
from rationalyst_jax.lm.model.lora import Adapters
from rationalyst_jax.lm.model.projections import PROJECTIONS, ProjectionName
from rationalyst_jax.lm.model.settings import LoraConfig
from rationalyst_jax.lm.weights.open import hub_id
from rationalyst_jax.lm.weights.tensor_files import misfits

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What PEFT knows beside plain LoRA would load and then silently be wrong, and it learns more every year. So
# every key of a configuration is one of three: of no consequence for trained weights, whatever its value ...
_HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",  # of embeddings, which have no adapters here
    "inference_mode",
    "layers_pattern",  # means something beside layers_to_transform only
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",  # beside use_qalora
    "revision",
    "runtime_config",
    "task_type",
}
# ... or one of these, with a value that means plain LoRA (others than these `init_lora_weights` change the
# weights of the model itself) ...
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian"),
}
_READ = {"r", "lora_alpha", "target_modules"}
# ... or switched off, as all else must be: None, False, or an empty list or object.


def save_adapters(model: Llama, path: str | Path, base: str) -> None:
    """Writes the adapters of `model` into the folder `path`, in their dtype, for the model that `base` names.

    A `base` in the Hub's cache is called as on the Hub, so that PEFT finds it on any machine. Process 0
    writes; all must call it. Raises OSError naming the file where it cannot be written.
    """
    path = Path(path)
    adapters = model.adapters
    assert adapters is not None
    tensors: dict[str, np.ndarray] = {}
    for name in adapters.config.projections:
        a_LIR, b_LRO = (_on_host(getattr(adapters, f"{name}_{side}")[...]) for side in ("in", "out"))
        L, R = b_LRO.shape[:2]
        for layer in range(L):
            key_a, key_b = _keys(name, layer)
            tensors[key_a] = np.ascontiguousarray(a_LIR[layer].reshape(-1, R).T)
            tensors[key_b] = np.ascontiguousarray(b_LRO[layer].reshape(R, -1).T)
    if not is_main():
        return
    with whole(path / _WEIGHTS) as unfinished:
        try:
            save_file(tensors, unfinished, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, say
            raise OSError(f"{path / _WEIGHTS}: {error}") from error
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": hub_id(Path(base).resolve()) or base,
        "inference_mode": True,
        "r": adapters.config.rank,
        "lora_alpha": adapters.config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "target_modules": [_module(name) for name in adapters.config.projections],
    }
    write_json(path / _CONFIG, config)


def load_adapters(model: Llama, path: str | Path) -> Adapters:
    """The adapters in the folder `path`, for the projections of `model`, in the dtype they are stored in.

    Raises FileNotFoundError for a missing file, and ValueError naming the file for what is damaged, asks for
    what is not done here, or does not fit the model (listing all of it).
    """
    path = Path(path)
    config = _lora_config(path / _CONFIG)
    adapters = nnx.eval_shape(lambda: Adapters(model.layers, config, rngs=nnx.Rngs(0)))
    stored = _read(path / _WEIGHTS)
    places = {
        f"{name}_{side}": [_keys(name, layer)[number] for layer in range(model.config.num_layers)]
        for name in config.projections
        for number, side in enumerate(("in", "out"))
    }
    wanted = {key: _stored_shape(getattr(adapters, part)) for part, keys in places.items() for key in keys}
    if problems := list(misfits(wanted, {key: values.shape for key, values in stored.items()})):
        raise ValueError(f"{path / _WEIGHTS}: the adapters do not fit the model: {'; '.join(problems)}")
    for part, keys in places.items():
        parameter: nnx.Param = getattr(adapters, part)
        values = np.stack([stored[key].T for key in keys]).reshape(parameter.shape)
        setattr(adapters, part, parameter.replace(jnp.asarray(values)))
    return adapters


def _module(name: ProjectionName) -> str:
    """What PEFT calls a projection among the modules that have adapters."""
    return PROJECTIONS[name].module.split(".")[-1]


def _keys(name: ProjectionName, layer: int) -> tuple[str, str]:
    """PEFT's names of both matrices."""
    stem = f"base_model.model.model.layers.{layer}.{PROJECTIONS[name].module}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


def _stored_shape(parameter: nnx.Param) -> tuple[int, int]:
    """The shape of a matrix of one layer in PEFT's files, `[out, in]`."""
    _, *shape = parameter.shape
    if parameter.get_metadata("axes")[-1] == "rank":
        return shape[-1], math.prod(shape[:-1])
    return math.prod(shape[1:]), shape[0]


def _on_host(x: Any) -> np.ndarray:
    """All of an array, however it is divided."""
    if x.is_fully_addressable:
        return np.asarray(x)
    whole_on_each = NamedSharding(x.sharding.mesh, PartitionSpec())
    return np.asarray(jax.jit(lambda x: x, out_shardings=whole_on_each)(x))


def _lora_config(file: Path) -> LoraConfig:
    raw = read_json(file)
    for key, value in raw.items():
        if key not in _HARMLESS | _READ and not _plain(key, value):
            raise ValueError(f"{file}: {key} {value!r} is not supported, only plain LoRA is")
    try:
        return LoraConfig(int(raw["r"]), float(raw["lora_alpha"]), _projections(raw["target_modules"]))
    except (KeyError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{file}: {what}") from error


def _plain(key: str, value: Any) -> bool:
    if key in _PLAIN:
        return value in _PLAIN[key]
    return value is None or value is False or value in ([], {})


def _projections(target_modules: Any) -> tuple[ProjectionName, ...]:
    """The projections that have adapters. Raises ValueError for other modules, or a pattern."""
    if target_modules == "all-linear":
        return tuple(PROJECTIONS)
    modules = [_module(name) for name in PROJECTIONS]
    if not isinstance(target_modules, list) or not set(target_modules) <= set(modules):
        raise ValueError(f"target_modules must be a list of {', '.join(modules)}, got {target_modules!r}")
    return tuple(name for name in PROJECTIONS if _module(name) in target_modules)


def _read(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        with safe_open(file, framework="numpy") as stored:
            return {key: stored.get_tensor(key) for key in stored.keys()}
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged safetensors file: {error}") from error
