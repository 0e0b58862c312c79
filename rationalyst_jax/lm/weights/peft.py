"""Adapters in the file format of Hugging Face's PEFT, read and written without it."""

import math
from collections.abc import Mapping
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
from rationalyst_jax.lm.model.settings import PROJECTIONS, LoraConfig, Projection

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BLOCKS = {"q": "self_attn", "k": "self_attn", "v": "self_attn", "o": "self_attn"}
# What PEFT can do and adapters here do not: a file that asks for it would load and then silently be wrong.
_PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
    "layers_to_transform": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}


def save_adapters(model: Llama, path: str | Path, base: str) -> None:
    """Writes the adapters of `model` into the folder `path`, in their dtype; `base` names what they belong
    to.

    Process 0 writes; all must call it.
    """
    path, adapters = Path(path), model.adapters
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
        save_file(tensors, unfinished, metadata={"format": "pt"})
    config = {
        **_PLAIN,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": adapters.config.rank,
        "lora_alpha": adapters.config.alpha,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "target_modules": [f"{name}_proj" for name in adapters.config.projections],
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
    problems = []
    for name in config.projections:
        for side, side_name in enumerate(("in", "out")):
            parameter: nnx.Param = getattr(adapters, f"{name}_{side_name}")
            L, R = parameter.shape[0], config.rank
            size = math.prod(parameter.shape[1:]) // R
            expected = (R, size) if side == 0 else (size, R)
            keys = [_keys(name, layer)[side] for layer in range(L)]
            problems += [f"missing {key}" for key in keys if key not in stored]
            problems += [
                f"{key} has shape {stored[key].shape}, not {expected}"
                for key in keys
                if key in stored and stored[key].shape != expected
            ]
            if problems:
                continue
            values = np.stack([stored.pop(key).T for key in keys]).reshape(parameter.shape)
            setattr(adapters, f"{name}_{side_name}", parameter.replace(jnp.asarray(values)))
    if not problems:
        problems = [f"extra {key}" for key in sorted(stored)]
    if problems:
        raise ValueError(f"{path / _WEIGHTS}: the adapters do not fit the model: {'; '.join(problems)}")
    return adapters


def _keys(name: Projection, layer: int) -> tuple[str, str]:
    """PEFT's names of both matrices."""
    stem = f"base_model.model.model.layers.{layer}.{_BLOCKS.get(name, 'mlp')}.{name}_proj"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


def _on_host(x: Any) -> np.ndarray:
    """All of an array, however it is divided."""
    if x.is_fully_addressable:
        return np.asarray(x)
    whole_on_each = NamedSharding(x.sharding.mesh, PartitionSpec())
    return np.asarray(jax.jit(lambda x: x, out_shardings=whole_on_each)(x))


def _lora_config(file: Path) -> LoraConfig:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    raw = read_json(file)
    if not isinstance(raw, Mapping):
        raise ValueError(f"{file}: not a JSON object")
    for key, plain in _PLAIN.items():
        if raw.get(key, plain) not in (plain, None):
            raise ValueError(f"{file}: {key} {raw[key]!r} is not supported, only {plain!r}")
    try:
        targets = [str(target).removesuffix("_proj") for target in raw["target_modules"]]
        names: tuple[Projection, ...] = tuple(name for name in PROJECTIONS if name in targets)
        if set(targets) - set(names):
            raise ValueError(f"target_modules must be some of {', '.join(PROJECTIONS)} with _proj")
        return LoraConfig(int(raw["r"]), float(raw["lora_alpha"]), names)
    except (KeyError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{file}: {what}") from error


def _read(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        with safe_open(file, framework="numpy") as stored:
            return {key: stored.get_tensor(key) for key in stored.keys()}
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged safetensors file: {error}") from error
