"""A checkpoint as commands open it: what is cheap to check comes first, weights last."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.checkpoint import abstract_llama
from rationalyst_jax.lm.config import LlamaConfig
from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.hf import check_llama, fingerprint, load_config, load_llama, stored_dtype
from rationalyst_jax.lm.llama import Llama
from rationalyst_jax.lm.settings import EngineConfig
from rationalyst_jax.lm.sharding import make_mesh, shard_weights
from rationalyst_jax.lm.tokenizer import load_tokenizer
from rationalyst_jax.world.checkpoint import checkpoint_path


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face checkpoint folder whose tokenizer fits the model."""

    path: Path
    fingerprint: str
    tokenizer: PreTrainedTokenizerBase
    config: LlamaConfig

    def stored_dtype(self) -> np.dtype:
        """The dtype that the weights are stored in; of several, the one that holds them all."""
        return stored_dtype(self.path)

    def check(self, mesh: Mesh) -> None:
        """Raises what `load` on the mesh would raise, before any weight is read."""
        check_llama(self.path)
        shard_weights(abstract_llama(self.config)[1], mesh)

    def load(self, dtype: DTypeLike | None = None, mesh: Mesh | None = None) -> Llama:
        """The model, divided over the mesh if there is one, in `dtype` or else the dtype it is stored in."""
        return load_llama(self.path, lambda stored: stored if dtype is None else dtype, mesh)

    def load_for_inference(self, mesh: Mesh | None = None, *, int8: bool = False) -> Llama:
        """The model in the dtype in which the mesh, or else the default device, computes with it."""
        device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
        return load_llama(self.path, lambda stored: computable(stored, device), mesh, int8=int8)


def computable(dtype: DTypeLike, device: Any) -> DTypeLike:
    """`dtype`, but float16 for bfloat16 on GPUs before Ampere (a T4, say).

    Those have no bfloat16 arithmetic: XLA would convert every operand to float32 and back.
    """
    old = device.platform == "gpu" and str(device.compute_capability).startswith(("5.", "6.", "7."))
    if old and dtype == jnp.bfloat16:
        return jnp.dtype("float16")
    return dtype


def open_checkpoint(name_or_path: str) -> Checkpoint:
    """The checkpoint at a path, or the one shipped ("world").

    Raises FileNotFoundError or ValueError for a missing or broken config.json or tokenizer, and for a
    tokenizer with more tokens than the model's vocabulary.
    """
    path = checkpoint_path(name_or_path)
    config, tokenizer = load_config(path), load_tokenizer(path)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the model only {config.vocab_size}"
        )
    return Checkpoint(path, fingerprint(path), tokenizer, config)


def open_engines(
    checkpoints: Sequence[Checkpoint], config: EngineConfig, *, alternatives: int = 0
) -> list[Engine]:
    """Engines side by side: first all weights, then the caches, which share what memory is left.

    Raises ValueError where there are not as many devices as asked for, or they do not divide a model.
    """
    devices = jax.devices()
    if config.tensor > len(devices):
        raise ValueError(f"engine: tensor is {config.tensor}, there are {len(devices)} devices")
    mesh = make_mesh(1, 1, config.tensor, devices[: config.tensor]) if config.tensor > 1 else None
    if mesh is not None:
        for checkpoint in checkpoints:
            checkpoint.check(mesh)
    models = [checkpoint.load_for_inference(mesh, int8=config.int8) for checkpoint in checkpoints]
    sizes: dict[str, Any] = {"rows": config.rows, "pages": config.pages, "alternatives": alternatives}
    engines: list[Engine] = []
    for checkpoint, model in zip(checkpoints, models, strict=True):
        memory = 0.9 / (len(models) - 0.9 * len(engines))  # of what the engines before have left
        engines.append(Engine(model, checkpoint.tokenizer, **sizes, memory=memory, mesh=mesh))
    return engines
